"""RoPE and the KV store against their definition: right rows written, and no others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from compiled import COMPILED, skip_where_compiled
from torch import Tensor

from pearl_rt.kernels.forward.qkv_rope_store import qkv_rope_store
from pearl_rt.kernels.reference.forward.qkv_rope_store import qkv_rope_store as reference

CANARY = 7.0
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16


@dataclass
class Case:
    """The arguments of one call. Outputs hold a canary until written."""

    qkv: Tensor
    positions: Tensor
    cos: Tensor
    sin: Tensor
    slot_mapping: Tensor
    q_out: Tensor
    k_cache: Tensor
    v_cache: Tensor
    q_norm_weight: Tensor | None
    k_norm_weight: Tensor | None
    eps: float = 1e-5

    def fresh(self) -> Case:
        outputs = ("q_out", "k_cache", "v_cache")
        return replace(self, **{name: torch.full_like(getattr(self, name), CANARY) for name in outputs})

    def run(self) -> tuple[Tensor, Tensor, Tensor]:
        case = self.fresh()
        qkv_rope_store(**vars(case))
        return case.q_out, case.k_cache, case.v_cache

    def expected(self) -> tuple[Tensor, Tensor, Tensor]:
        case = self.fresh()
        reference(**vars(case))
        return case.q_out, case.k_cache, case.v_cache


def random_case(
    num_tokens: int,
    heads: tuple[int, int, int],  # Hq, Hkv, D
    device: torch.device,
    dtype: torch.dtype = FP32,
    source: torch.dtype = FP32,
    block_size: int = 16,
    has_norm: bool = False,
) -> Case:
    """Tokens at scattered positions and slots; every third is not stored."""
    num_heads, num_kv_heads, head_dim = heads
    generator = torch.Generator().manual_seed(0)
    num_blocks, num_positions = num_tokens // block_size + 2, 50
    angles = torch.rand(num_positions, head_dim // 2, generator=generator) * 6
    slots = torch.randperm(num_blocks * block_size, generator=generator)[:num_tokens]
    slots[2::3] = -1
    cache = torch.empty(num_blocks, block_size, num_kv_heads, head_dim, dtype=dtype, device=device)
    weights = [
        torch.rand(head_dim, generator=generator).to(device, dtype) if has_norm else None for _ in "qk"
    ]
    return Case(
        torch.randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim, generator=generator).to(
            device, source
        ),
        torch.randint(0, num_positions, (num_tokens,), generator=generator, dtype=torch.int32).to(device),
        angles.cos().to(device),
        angles.sin().to(device),
        slots.to(device),
        torch.empty(num_tokens, num_heads, head_dim, dtype=dtype, device=device),
        cache,
        cache.clone(),
        *weights,
    )


HEADS = [(1, 1, 16), (9, 3, 64), (4, 2, 80), (32, 8, 128), (2, 1, 256)]
DTYPES = [
    (FP32, FP32),
    (FP16, FP32),
    (FP16, FP16),
    *(pytest.param(BF16, s, marks=COMPILED) for s in (FP32, BF16)),
]


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize(("dtype", "source"), DTYPES, ids=str)
def test_has_the_bits_of_the_definition(
    heads: tuple[int, int, int], dtype: torch.dtype, source: torch.dtype, device: torch.device
) -> None:
    case = random_case(7, heads, device, dtype, source)
    for found, expected in zip(case.run(), case.expected(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_norm_of_the_heads(heads: tuple[int, int, int], device: torch.device) -> None:
    case = random_case(5, heads, device, has_norm=True)
    for found, expected in zip(case.run(), case.expected(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert case.q_norm_weight is not None  # q and k have a weight each
    swapped = replace(case, q_norm_weight=case.k_norm_weight, k_norm_weight=case.q_norm_weight).run()
    assert not torch.allclose(swapped[0], case.run()[0])


def test_token_without_slot_has_a_query_and_stores_nothing(device: torch.device) -> None:
    case = random_case(3, (4, 2, 32), device)
    case.slot_mapping[:] = -1
    q_out, k_cache, v_cache = case.run()
    assert not (q_out == CANARY).any()
    assert (k_cache == CANARY).all()
    assert (v_cache == CANARY).all()


def test_values_are_neither_rotated_nor_normed(device: torch.device) -> None:
    case = random_case(1, (4, 2, 32), device, has_norm=True)
    slot = int(case.slot_mapping[0])
    stored = case.run()[2].view(-1, 2, 32)[slot]
    assert torch.equal(stored, case.qkv.view(8, 32)[6:])


@pytest.mark.slow
@pytest.mark.parametrize("has_norm", [False, True])
def test_bits_of_a_token_do_not_depend_on_the_others(has_norm: bool, device: torch.device) -> None:
    many = random_case(64, (3, 1, 64), device, FP16, FP16, has_norm=has_norm)
    q_out, k_cache, v_cache = many.run()
    for token in (0, 37):
        for count in (1, 2, 5, 16):
            first = max(0, token - count + 1)
            rows = slice(first, first + count)
            few = replace(
                many,
                qkv=many.qkv[rows].contiguous(),
                positions=many.positions[rows].contiguous(),
                slot_mapping=many.slot_mapping[rows].contiguous(),
                q_out=many.q_out[rows].contiguous(),
            )
            found = few.run()
            assert torch.equal(found[0][token - first], q_out[token])
            slot = int(many.slot_mapping[token])
            if slot >= 0:
                for cache, all_of_it in zip(found[1:], (k_cache, v_cache), strict=True):
                    assert torch.equal(cache.view(-1, 64)[slot], all_of_it.view(-1, 64)[slot])


def test_position_outside_the_table_is_nan(device: torch.device) -> None:
    case = random_case(4, (2, 1, 32), device)
    clean = case.run()[0]
    case.positions[:2] = torch.tensor([50, -1])
    found = case.run()[0]
    assert found[:2].isnan().all()
    assert torch.equal(found[2:], clean[2:])


def test_slots_past_two_to_the_31_elements(device: torch.device) -> None:
    """Memory for them is reserved, and only the rows in use are touched."""
    block_size, heads, head_dim = 256, 2, 256
    last_block = 2**31 // (block_size * heads * head_dim) + 1
    case = random_case(2, (2, 2, 256), device, FP16, FP16, block_size)
    shape = last_block + 1, block_size, heads, head_dim
    try:
        caches = [torch.empty(shape, dtype=FP16, device=device) for _ in "kv"]
    except (RuntimeError, MemoryError):
        pytest.skip("no address space for two caches of 4 GiB")
    slots = torch.tensor([last_block * block_size + 3, last_block * block_size + 200], device=device)
    large = replace(case, k_cache=caches[0], v_cache=caches[1], slot_mapping=slots)
    qkv_rope_store(**vars(large))
    small = replace(case, slot_mapping=slots - last_block * block_size).run()
    for cache, expected in zip(caches, small[1:], strict=True):
        for row in (3, 200):
            assert torch.equal(cache[last_block, row], expected[0, row])


def test_operator(device: torch.device) -> None:
    for has_norm in (False, True):
        case = random_case(3, (2, 1, 16), device, has_norm=has_norm).fresh()
        torch.library.opcheck(torch.ops.pearl_rt.qkv_rope_store.default, (), vars(case))
        torch.ops.pearl_rt.qkv_rope_store(**vars(case))
        for found, expected in zip((case.q_out, case.k_cache, case.v_cache), case.run(), strict=True):
            assert torch.equal(found, expected)


def test_no_tokens(device: torch.device) -> None:
    random_case(0, (2, 1, 16), device).run()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "qkv",
            lambda t: t[:, :-16].contiguous(),
            r"qkv_rope_store: qkv has shape \[3, 48\], expected \[3, 64\]",
        ),
        ("qkv", lambda t: t.half(), r"qkv is torch.float16, expected torch.float32"),
        ("positions", lambda t: t.long(), r"positions is torch.int64, expected torch.int32"),
        ("slot_mapping", lambda t: t.int(), r"slot_mapping is torch.int32, expected torch.int64"),
        ("cos sin", lambda t: t[:, :4].contiguous(), r"cos has shape \[50, 4\], expected \[\*, 8\]"),
        ("sin", lambda t: t[:4], r"sin has shape \[4, 8\], expected \[50, 8\]"),
        ("v_cache", lambda t: t.half(), r"v_cache is torch.float16, expected torch.float32"),
        (
            "q_out k_cache v_cache q_norm_weight k_norm_weight",
            lambda t: t[..., :8].contiguous(),
            r"head_dim is 8, expected a multiple of 16",
        ),
        ("q_norm_weight", lambda t: None, r"k_norm_weight without q_norm_weight: pass both or neither"),
    ],
)
def test_refuses(name: str, change: object, message: str, device: torch.device) -> None:
    case = random_case(3, (2, 1, 16), device, has_norm=True)
    changed = replace(case, **{one: change(getattr(case, one)) for one in name.split()})  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        qkv_rope_store(**vars(changed))


def test_refuses_bf16_where_it_is_rounded_wrongly(device: torch.device) -> None:
    skip_where_compiled()
    with pytest.raises(ValueError, match=r"q_out is torch.bfloat16, which Triton's interpreter"):
        random_case(3, (2, 1, 16), device, BF16).run()
