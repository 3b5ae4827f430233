"""Paged attention against its definition, with poison wherever a kernel must not look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from compiled import COMPILED, NEEDS_GPU, skip_where_compiled
from torch import Tensor

from pearl_rt.kernels.forward.attention import MAX_Q_LEN, SPLIT, num_splits, workspace_size
from pearl_rt.kernels.reference.forward.attention import attention as reference

attention = torch.ops.pearl_rt.attention
UNUSED = 2147480000  # an entry of a block table that must not be read
CANARY = 7.0


@dataclass
class Case:
    """The arguments of one call."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    block_table: Tensor
    context_lens: Tensor
    cu_seqlens_q: Tensor
    scale: float
    max_q_len: int

    @property
    def num_rows(self) -> int:
        return int(self.cu_seqlens_q[-1])

    def poisoned_out(self) -> Tensor:
        return torch.full_like(self.q, CANARY)

    def poisoned_workspace(self) -> Tensor:
        num_positions = self.block_table.shape[1] * self.k_cache.shape[1]
        num_bytes = workspace_size(*self.q.shape, num_positions, self.max_q_len)
        return torch.full((num_bytes,), 255, dtype=torch.uint8, device=self.q.device)  # NaN as fp32

    def run(self, *, counted: bool = True) -> Tensor:
        """counted: with counters, by which splits are merged in the launch that makes them."""
        out = self.poisoned_out()
        counters = torch.zeros(self.q.shape[0] * self.q.shape[1], dtype=torch.int32, device=self.q.device)
        given = {"counters": counters} if counted else {}
        attention(**vars(self), out=out, workspace=self.poisoned_workspace(), **given)
        assert not counters.any()
        return out

    def expected(self, dtype: torch.dtype) -> Tensor:
        """By the definition, computed in that dtype."""
        cast = {name: getattr(self, name).to(dtype) for name in ("q", "k_cache", "v_cache")}
        case = replace(self, **cast)
        out = case.poisoned_out()
        reference(**vars(case), out=out)
        return out


def paged(
    keys: Sequence[Tensor],  # per sequence [context_len, Hkv, D]
    values: Sequence[Tensor],
    queries: Sequence[Tensor],  # per sequence [q_len, Hq, D]
    block_size: int,
    spare_entries: int = 2,
    padding: int = 3,
    max_q_len: int | None = None,
) -> Case:
    """Scattered pages, NaN in rows that hold no key, unused table entries, padding rows after the queries."""
    device, dtype = keys[0].device, keys[0].dtype
    num_pages = [-(-len(k) // block_size) for k in keys]
    # Block 0, which masked table entries come out as, holds no key either.
    order = (1 + torch.randperm(sum(num_pages) + 2, generator=torch.Generator().manual_seed(1))).tolist()
    table = torch.full((len(keys), max(num_pages) + spare_entries), UNUSED, dtype=torch.int32)
    caches = [
        torch.full((len(order) + 1, block_size, *keys[0].shape[1:]), torch.nan, dtype=dtype, device=device)
        for _ in "kv"
    ]
    for b, rows in enumerate(zip(keys, values, strict=True)):
        pages = [order.pop() for _ in range(num_pages[b])]
        table[b, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
        for cache, row in zip(caches, rows, strict=True):
            for i, page in enumerate(pages):
                part = row[i * block_size : (i + 1) * block_size]
                cache[page, : len(part)] = part
    head_shape = queries[0].shape[1:]
    q = torch.cat([*queries, torch.full((padding, *head_shape), torch.nan, dtype=dtype, device=device)])
    q_lens = [len(rows) for rows in queries]
    cu = torch.tensor([0, *q_lens]).cumsum(0).int()
    context_lens = torch.tensor([len(k) for k in keys], dtype=torch.int32)
    return Case(
        q,
        *caches,
        table.to(device),
        context_lens.to(device),
        cu.to(device),
        scale=head_shape[-1] ** -0.5,
        max_q_len=max(q_lens) if max_q_len is None else max_q_len,
    )


def random_case(
    contexts: Sequence[int],
    q_lens: Sequence[int],
    heads: tuple[int, int, int],  # Hq, Hkv, D
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    **options: int,
) -> Case:
    num_heads, num_kv_heads, head_dim = heads
    generator = torch.Generator().manual_seed(0)

    def rows(lengths: Sequence[int], count: int) -> list[Tensor]:
        return [torch.randn(n, count, head_dim, generator=generator).to(device, dtype) for n in lengths]

    return paged(
        rows(contexts, num_kv_heads),
        rows(contexts, num_kv_heads),
        rows(q_lens, num_heads),
        block_size,
        **options,
    )


def assert_matches_definition(case: Case) -> None:
    """As near to exact as twice the error of the definition in that dtype; nothing else written."""
    found, num_rows = case.run(), case.num_rows
    exact = case.expected(torch.float32)[:num_rows]
    same_dtype = case.expected(case.q.dtype)[:num_rows].float()
    bound = 2 * (same_dtype - exact).abs().max().item() + 2e-6
    error = (found[:num_rows].float() - exact).abs().max().item()
    assert error <= bound, f"error {error}, bound {bound}"
    assert torch.equal(found[num_rows:], case.poisoned_out()[num_rows:])


FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("contexts", "q_lens", "heads", "block_size", "dtype"),
    [
        pytest.param([1], [1], (1, 1, 16), 16, FP32, id="B1-one-token"),
        pytest.param([63, 1, 257], [5, 1, 16], (8, 2, 64), 16, FP32, id="B3-G4-D64-BS16-fp32"),
        pytest.param([300, 64, 9], [1, 8, 9], (3, 1, 64), 16, FP16, id="B3-G3-D64-BS16-fp16"),
        pytest.param([130, 65], [3, 2], (8, 2, 128), 256, FP16, id="B2-G4-D128-BS256-fp16"),
        pytest.param([100, 49], [2, 7], (2, 2, 80), 48, FP16, id="B2-G1-D80-BS48-fp16"),
        pytest.param([97], [2], (16, 1, 96), 32, FP32, id="B1-G16-D96-BS32-fp32"),
        pytest.param([70], [6], (2, 1, 256), 64, FP16, id="B1-G2-D256-BS64-fp16"),
        pytest.param([64], [64], (2, 2, 32), 16, FP32, id="B1-all-64-new"),
        pytest.param([5300], [3], (1, 1, 32), 256, FP16, id="B1-long-splits"),
        pytest.param([66], [66], (4, 2, 64), 16, FP32, id="prefill-B1-whole-prompt"),
        pytest.param([200, 70, 9], [75, 2, 9], (3, 1, 80), 32, FP16, id="prefill-B3-ragged-chunks"),
        pytest.param([130], [65], (2, 2, 256), 256, FP16, id="prefill-B1-D256"),
        # the first rows of M tiles see all of a block of keys but its last one
        pytest.param([96], [66], (1, 1, 16), 16, FP32, id="prefill-B1-edge-of-a-block"),
    ],
)
def test_matches_the_definition(
    contexts: list[int],
    q_lens: list[int],
    heads: tuple[int, int, int],
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    assert_matches_definition(random_case(contexts, q_lens, heads, block_size, dtype, device))


@COMPILED[0]
@COMPILED[1]
@pytest.mark.parametrize(
    "context", [1, 63, 1000, pytest.param(4096, marks=NEEDS_GPU), pytest.param(33000, marks=NEEDS_GPU)]
)
@pytest.mark.parametrize("heads", [(12, 12, 64), (9, 3, 64), (32, 8, 128), (64, 8, 128)], ids=str)
@pytest.mark.parametrize("q_len", [1, 8, 64, 200])
def test_matches_the_definition_in_bf16(
    context: int, heads: tuple[int, int, int], q_len: int, device: torch.device
) -> None:
    contexts = [context, max(1, context // 2)]
    q_lens = [min(q_len, n) for n in contexts]
    case = random_case(contexts, q_lens, heads, 16, BF16, device, max_q_len=q_len)
    assert_matches_definition(case)


@pytest.mark.parametrize("max_q_len", [8, MAX_Q_LEN + 1])
def test_sequences_without_tokens_are_skipped(max_q_len: int, device: torch.device) -> None:
    """No context, or no new token: nothing of theirs is read or written; others are as they are alone."""
    case = random_case([40, 40, 40, 40], [3, 2, 0, 4], (2, 1, 32), 16, FP32, device, max_q_len=max_q_len)
    case.context_lens[1] = 0
    case.block_table[1:3] = UNUSED
    case.q[3:5] = torch.nan
    found = case.run()
    assert torch.equal(found[3:5], case.poisoned_out()[3:5])
    bounds = case.cu_seqlens_q.clone()
    for b in (0, 3):
        first, last = bounds[b].item(), bounds[b + 1].item()
        alone = replace(
            case,
            q=case.q[first:last].contiguous(),
            block_table=case.block_table[b : b + 1],
            context_lens=case.context_lens[b : b + 1],
            cu_seqlens_q=torch.tensor([0, last - first], dtype=torch.int32, device=device),
        )
        assert torch.equal(found[first:last], alone.run())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("position", "dtype"),
    [
        (SPLIT - 1, FP32),
        (SPLIT, FP16),
        (300, FP16),
        *(pytest.param(n, BF16, marks=COMPILED) for n in (SPLIT - 1, SPLIT, 300)),
    ],
)
def test_bits_of_a_row_depend_on_nothing_but_its_context(
    position: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Alone and among 2, 5, 16, 64 tokens, alone and in a batch, with pages and tables of any size."""
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(330, heads, 64, generator=generator).to(device, dtype) for heads in (3, 1, 1))

    def row(
        before: int, after: int, block_size: int = 16, spare_entries: int = 0, batched: bool = False
    ) -> Tensor:
        first, last = position - before, position + after + 1
        keys, values, queries = [k[:last]], [v[:last]], [q[first:last]]
        if batched:  # the sequence comes after two others
            keys, values = [k[5:25], k[10:200], *keys], [v[5:25], v[10:200], *values]
            queries = [q[:1], q[7:12], *queries]
        case = paged(keys, values, queries, block_size, spare_entries)
        return case.run()[int(case.cu_seqlens_q[-2]) + before]

    alone = row(0, 0)
    assert not alone.isnan().any()
    for before, after in ((1, 0), (0, 1), (2, 2), (10, 5), (40, 23)):
        assert torch.equal(row(before, after), alone), f"{before} tokens before, {after} after"
    assert torch.equal(row(0, 0, block_size=256), alone)
    assert torch.equal(row(2, 2, block_size=48, batched=True), alone)
    assert torch.equal(row(0, 0, spare_entries=40), alone)
    assert torch.equal(row(2, 2, spare_entries=300, batched=True), alone)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [FP16, FP32, pytest.param(BF16, marks=COMPILED)], ids=str)
def test_both_kernels_mean_the_same_at_the_seam(dtype: torch.dtype, device: torch.device) -> None:
    """max_q_len alone picks one of them: decode for 64 tokens, prefill for the same 64 and room for one."""
    heads = 2, 1, 16
    decode = random_case([70, 20], [MAX_Q_LEN, 3], heads, 16, dtype, device, max_q_len=MAX_Q_LEN)
    prefill = replace(decode, max_q_len=MAX_Q_LEN + 1)
    assert prefill.poisoned_workspace().numel() == 0 < decode.poisoned_workspace().numel()
    bound = 2e-6 if dtype == FP32 else 2**-7
    difference = (decode.run().float() - prefill.run().float())[: decode.num_rows].abs().max().item()
    assert difference <= bound, difference
    assert_matches_definition(random_case([70, 20], [MAX_Q_LEN + 1, 3], heads, 16, dtype, device))


@pytest.mark.parametrize("dtype", [FP16, FP32, pytest.param(BF16, marks=COMPILED)], ids=str)
def test_bits_of_a_prompt_do_not_depend_on_its_chunks(dtype: torch.dtype, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(150, heads, 32, generator=generator).to(device, dtype) for heads in (2, 1, 1))

    def chunk(first: int, last: int, block_size: int = 16, other: int = 0) -> Tensor:
        keys, values, queries = [k[:last]], [v[:last]], [q[first:last]]
        if other:
            keys, values, queries = [k[:other], *keys], [v[:other], *values], [q[:other], *queries]
        case = paged(keys, values, queries, block_size, max_q_len=max(MAX_Q_LEN + 1, last - first, other))
        return case.run()[other : other + last - first]

    whole = chunk(0, 150)
    assert torch.equal(torch.cat((chunk(0, 70), chunk(70, 150, other=20))), whole)
    assert torch.equal(torch.cat((chunk(0, 1), chunk(1, 100, block_size=256), chunk(100, 150))), whole)


@pytest.mark.parametrize("max_q_len", [4, MAX_Q_LEN + 1])
def test_nan_stays_in_its_row(max_q_len: int, device: torch.device) -> None:
    """A NaN query spoils its heads only; a NaN key spoils the rows that see it, and no earlier one."""
    case = random_case([80], [4], (2, 1, 32), 16, FP32, device, max_q_len=max_q_len)
    clean = case.run()
    case.q[1, 0, 3] = torch.nan
    found = case.run()
    assert found[1, 0].isnan().all()
    found[1, 0] = clean[1, 0]
    assert torch.equal(found[:4], clean[:4])

    case = random_case([80], [4], (2, 1, 32), 16, FP32, device, max_q_len=max_q_len)
    last_page = int(case.block_table[0, 4])
    case.k_cache[last_page, 14] = torch.nan  # position 78
    found = case.run()
    assert torch.equal(found[:2], clean[:2])
    assert found[2:4].isnan().all()


def test_splits_cover_every_position_once() -> None:
    for num_positions in range(1, 40 * SPLIT, 37):
        firsts = [SPLIT * (s + max(s - 16, 0)) for s in range(num_splits(num_positions) + 1)]
        assert firsts[-2] < num_positions <= firsts[-1]


def test_blocks_past_two_to_the_31_elements(device: torch.device) -> None:
    """Memory for them is reserved, and only the pages in use are touched."""
    block_size, heads, head_dim = 256, 2, 256
    last_page = 2**31 // (block_size * heads * head_dim) + 1
    try:
        caches = [
            torch.empty(last_page + 1, block_size, heads, head_dim, dtype=FP16, device=device) for _ in "kv"
        ]
    except (RuntimeError, MemoryError):
        pytest.skip("no address space for two caches of 4 GiB")
    small = random_case([20], [2], (2, 2, 256), block_size, FP16, device)
    page = int(small.block_table[0, 0])
    for cache, source in zip(caches, (small.k_cache, small.v_cache), strict=True):
        cache[last_page] = source[page]
    table = small.block_table.clone()
    table[0, 0] = last_page
    large = replace(small, k_cache=caches[0], v_cache=caches[1], block_table=table)
    assert torch.equal(large.run(), small.run())


@pytest.mark.slow
def test_operator(device: torch.device) -> None:
    case = random_case([20, 3], [2, 1], (2, 1, 16), 16, FP32, device)
    arguments = {
        **vars(case),
        "out": case.poisoned_out(),
        "workspace": torch.zeros_like(case.poisoned_workspace()),
    }
    torch.library.opcheck(torch.ops.pearl_rt.attention.default, (), arguments)
    torch.ops.pearl_rt.attention(**arguments)
    assert torch.equal(arguments["out"], case.run())


def test_nothing_to_do(device: torch.device) -> None:
    case = random_case([20], [2], (2, 1, 16), 16, FP32, device)
    empty = replace(case, q=case.q[:0])
    assert empty.run().shape == (0, 2, 16)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("q", lambda t: t.double(), r"attention: q is torch.float64, expected torch.float32 or"),
        (
            "q",
            lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
            r"q has strides .*: pass a contiguous",
        ),
        (
            "q k_cache v_cache",
            lambda t: t[..., :8].contiguous(),
            r"head_dim is 8, expected a multiple of 16 from 16 to 256",
        ),
        ("q", lambda t: t[:, :3].contiguous(), r"3 query heads on 2 KV heads"),
        ("k_cache", lambda t: t.half(), r"k_cache is torch.float16, expected torch.float32"),
        (
            "k_cache v_cache",
            lambda t: t[:, :8].contiguous(),
            r"block_size is 8, expected a multiple of 16 from 16 to 256",
        ),
        ("v_cache", lambda t: t[:1].contiguous(), r"v_cache has shape \[1, 16, 2, 16\], expected"),
        ("block_table", lambda t: t.long(), r"block_table is torch.int64, expected torch.int32"),
        ("context_lens", lambda t: t[:1], r"context_lens has shape \[1\], expected \[2\]"),
        ("cu_seqlens_q", lambda t: t[1:], r"cu_seqlens_q has shape \[2\], expected \[3\]"),
        ("max_q_len", lambda n: 0, r"max_q_len is 0, expected at least 1"),
    ],
)
def test_refuses(name: str, change: object, message: str, device: torch.device) -> None:
    case = random_case([20, 3], [2, 1], (4, 2, 16), 16, FP32, device)
    changed = replace(case, **{one: change(getattr(case, one)) for one in name.split()})  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        attention(**vars(changed), out=changed.poisoned_out(), workspace=case.poisoned_workspace())


def test_refuses_a_small_workspace(device: torch.device) -> None:
    case = random_case([20], [2], (2, 1, 16), 16, FP32, device)
    with pytest.raises(ValueError, match=r"workspace has \d+ bytes, needs \d+"):
        attention(**vars(case), out=case.poisoned_out(), workspace=case.poisoned_workspace()[:-1])


def test_refuses_bfloat16_in_the_interpreter(device: torch.device) -> None:
    skip_where_compiled()
    case = random_case([20], [2], (2, 1, 16), 16, BF16, device)
    with pytest.raises(ValueError, match="interpreter computes wrongly"):
        case.run()
