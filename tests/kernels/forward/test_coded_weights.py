"""linear, gate_up_silu and embedding over codes of 8 and 4 bits: each value, definitions, rows, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from compiled import COMPILED
from rows import among_nan

from pearl_rt.kernels.forward.embedding import embedding
from pearl_rt.kernels.forward.gate_up_silu import gate_up_silu
from pearl_rt.kernels.forward.linear import MAX_ROWS, coded_config, config, linear, num_parts, workspace_size
from pearl_rt.kernels.forward.weight_tile import SLICES, UNIT, WeightForm
from pearl_rt.kernels.reference.forward.embedding import embedding as embedding_definition
from pearl_rt.kernels.reference.forward.gate_up_silu import gate_up_silu as gate_up_definition
from pearl_rt.kernels.reference.forward.linear import linear as linear_definition
from pearl_rt.kernels.tools.compile import SHARED_LIMITS
from pearl_rt.model.coded_matrix import CodedMatrix
from pearl_rt.reference.groups import GroupForm, Groups

FP16, FP32, BF16 = torch.float16, torch.float32, torch.bfloat16
FORMS = {
    "q4": GroupForm(4, 32, True),
    "q8": GroupForm(8, 32),
    "q8-minimums": GroupForm(8, 32, True),
    "q8-of-16": GroupForm(8, 16),
    "q8-of-16-minimums": GroupForm(8, 16, True),
}
SHIPPED = ("q4", "q8")
NAN = 0x7E007E00  # a word of two fp16


def groups_of(name: str, n: int, k: int, seed: int = 0) -> Groups:
    """Random codes, the most and the least among them; scales and minimums that differ by group."""
    form, rng = FORMS[name], np.random.default_rng(seed)
    low, high = (0, 16) if form.bits == 4 else (-128, 128)
    codes = rng.integers(low, high, (n, k)).astype(np.uint8 if form.bits == 4 else np.int8)
    count = -(-k // form.group)
    scales = ((0.5 + rng.random((n, count))) / (high * k**0.5)).astype(np.float16)
    minimums = rng.standard_normal((n, count)).astype(np.float16) / np.float16(k**0.5)
    return Groups(codes, scales, minimums if form.has_minimums else None, form.group)


@dataclass
class Coded:
    """A weight of codes in memory that holds others around it, and the values that it stands for."""

    values: torch.Tensor  # [n, k] fp32
    weight: torch.Tensor
    form: dict[str, Any]  # what operators are told of it

    @classmethod
    def make(cls, name: str, n: int, k: int, device: torch.device, seed: int = 0) -> Coded:
        groups = groups_of(name, n, k, seed)
        packed = CodedMatrix.pack({"w": groups}, groups.form, 0, torch.device("cpu"))
        room = torch.full((packed.codes.numel() + 128,), 113, dtype=packed.codes.dtype, device=device)
        codes = room[64:-64].view(packed.codes.shape).copy_(packed.codes)
        words = torch.full((packed.scales.shape[0] + 2, n + 5), NAN, dtype=torch.int32, device=device)
        scales = words[1:-1, 2:-3].copy_(packed.scales)
        values = torch.from_numpy(groups.dequantize()).to(device)
        return cls(values, codes, {"scales": scales, "group": packed.group})


def poisoned(num_bytes: int, device: torch.device) -> torch.Tensor:
    return torch.full((num_bytes,), 255, dtype=torch.uint8, device=device)


def run_linear(x: torch.Tensor, coded: Coded, function: Callable[..., None] = linear) -> torch.Tensor:
    """[T, N] fp32, between two rows that must stay as they are."""
    T, N = x.shape[0], coded.weight.shape[0]
    whole = torch.full((T + 2, N), torch.nan, device=x.device)
    space = poisoned(workspace_size(T, N, x.shape[1]), x.device)
    function(x, coded.weight, whole[1:-1], None, None, space, **coded.form)
    assert whole[[0, -1]].isnan().all(), "a row beside the output was written"
    return whole[1:-1]


def check_each_value(name: str, n: int, k: int, dtype: torch.dtype, device: torch.device) -> None:
    """Rows of x that pick one column each: the products are the values, rounded once, and nothing else."""
    coded = Coded.make(name, n, k, device)
    picks = torch.eye(k, dtype=dtype, device=device)
    found = torch.cat([run_linear(rows.contiguous(), coded) for rows in picks.split(MAX_ROWS)])
    assert torch.equal(found, coded.values.to(dtype).float().t())


@pytest.mark.parametrize("name", FORMS)
def test_each_value(name: str, device: torch.device) -> None:
    check_each_value(name, 21, 136, FP16, device)


@pytest.mark.parametrize("name", SHIPPED)
def test_each_value_of_parts_that_are_added(name: str, device: torch.device) -> None:
    """K in two parts, a column of each unit's halves, and of the last one."""
    K = 4168
    assert config(20, K, 2).split_k == 2
    coded = Coded.make(name, 20, K, device)
    columns = torch.tensor([0, 33, 2303, 2304, 4095, 4127, 4160, K - 1])
    x = torch.zeros(len(columns), K, dtype=FP16, device=device)
    x[torch.arange(len(columns)), columns] = 1
    assert torch.equal(run_linear(x, coded), coded.values[:, columns].half().float().t())


@COMPILED[0]
@COMPILED[1]
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", FORMS)
def test_each_value_compiled(name: str, dtype: torch.dtype, device: torch.device) -> None:
    check_each_value(name, 40, 208, dtype, device)


@pytest.mark.parametrize(
    ("T", "N", "K"), [(1, 1, 64), (5, 63, 1000), (17, 33, 24), (3, 111, 72)], ids=lambda v: str(v)
)
@pytest.mark.parametrize("name", SHIPPED)
def test_linear_is_the_definition(name: str, T: int, N: int, K: int, device: torch.device) -> None:
    x, coded = among_nan(T, K, dtype=FP16, device=device, seed=1), Coded.make(name, N, K, device)
    found, expected = run_linear(x, coded), run_linear(x, coded, linear_definition)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * K**0.5)
    exact = x.double() @ coded.values.double().t()
    assert (expected - exact).abs().max() <= 2**-10 * K**0.5


@pytest.mark.parametrize("K", [200, 4096], ids=["whole", "split"])
def test_what_layers_hand_to_each_other(K: int, device: torch.device) -> None:
    """The residual, scaled for the next norm; rows that are picked; the factor of a row's norm."""
    T, N, eps = 5, 40, 0.1
    x, coded = among_nan(T, K, dtype=FP16, device=device, seed=1), Coded.make("q4", N, K, device)
    norm = among_nan(N, dtype=FP16, device=device, seed=2)
    squares = among_nan(T, num_parts(K), dtype=FP32, device=device, seed=5).abs() * 40
    rows = torch.tensor([4, 0, 4], dtype=torch.int32, device=device)

    def run(function: Callable[..., None]) -> list[torch.Tensor]:
        residual = torch.ones(T, N, device=device)
        scaled = torch.full_like(residual, torch.nan).half()
        parts = torch.zeros(T, num_parts(N), device=device)
        out, space = torch.full((3, N), torch.nan, device=device), poisoned(workspace_size(T, N, K), device)
        written = {"next_norm": norm, "scaled": scaled, "next_squares": parts}
        function(x, coded.weight, None, None, residual, space, **written, **coded.form)
        function(x, coded.weight, out, norm, None, space, None, rows, squares, eps, **coded.form)
        return [residual, scaled.float(), parts, out]

    for found, expected in zip(run(linear), run(linear_definition), strict=True):
        torch.testing.assert_close(found, expected, rtol=2**-10, atol=1e-3)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_row_has_the_same_bits_in_any_company(name: str, device: torch.device) -> None:
    coded, x = Coded.make(name, 30, 136, device), among_nan(64, 136, dtype=FP16, device=device, seed=1)
    row = x[7:8].clone()
    alone = run_linear(row, coded)
    for T, index in ((2, 1), (33, 32)):
        others = x[:T].clone()
        others[index] = row[0]
        assert torch.equal(run_linear(others, coded)[index], alone[0]), f"row {index} of {T}"


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize(("T", "I", "K"), [(1, 1, 64), (17, 63, 200)])
def test_gate_up_silu_is_the_definition(name: str, T: int, I: int, K: int, device: torch.device) -> None:  # noqa: E741
    """And a row has the same bits alone."""
    x, coded = among_nan(T, K, dtype=FP16, device=device, seed=1), Coded.make(name, 2 * I, K, device)
    squares = among_nan(T, num_parts(K), dtype=FP32, device=device, seed=3).abs() * 40

    def run(function: Callable[..., None], rows: slice) -> torch.Tensor:
        own, factors = x[rows].clone(), squares[rows].clone()
        whole = torch.full((len(own) + 2, I), torch.nan, device=device)
        function(own, coded.weight, whole[1:-1], poisoned(0, device), None, factors, 0.1, **coded.form)
        assert whole[[0, -1]].isnan().all()
        return whole[1:-1]

    found = run(gate_up_silu, slice(T))
    torch.testing.assert_close(found, run(gate_up_definition, slice(T)), rtol=1e-5, atol=1e-5)
    assert torch.equal(run(gate_up_silu, slice(T - 1, T))[0], found[-1])


@pytest.mark.parametrize("hidden", [1, 63, 1000, 1100])
@pytest.mark.parametrize("name", FORMS)
def test_embedding_has_each_value(name: str, hidden: int, device: torch.device) -> None:
    """Not rounded; what the first layer reads is the definition's."""
    coded = Coded.make(name, 17, hidden, device)
    ids = torch.tensor([16, 0, -1, 17, 2**31 - 1], dtype=torch.int32, device=device)
    norm = torch.randn(hidden, device=device).half()

    def run(function: Callable[..., None]) -> list[torch.Tensor]:
        out = torch.full((7, hidden), torch.nan, device=device)
        scaled, squares = out[1:-1].half(), torch.full((5, num_parts(hidden)), torch.nan, device=device)
        function(ids, coded.weight, out[1:-1], norm, scaled, squares, **coded.form)
        assert out[[0, -1]].isnan().all()
        return [out[1:-1], scaled, squares]

    found, expected = run(embedding), run(embedding_definition)
    assert torch.equal(found[0], coded.values[ids.clamp(0, 16).long()])
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[2], expected[2])


def test_swapped_nibbles_and_a_neighbours_scale_would_show(device: torch.device) -> None:
    """So that the tests above compare what they say."""
    x, coded = among_nan(3, 136, dtype=FP16, device=device, seed=1), Coded.make("q4", 21, 136, device)
    expected = run_linear(x, coded, linear_definition)
    scales = coded.form["scales"].clone()
    swapped = Coded(coded.values, coded.weight >> 4 | coded.weight << 4, coded.form)
    moved = Coded(coded.values, coded.weight, coded.form | {"scales": scales.roll(1, 0).contiguous()})
    for other in (swapped, moved):
        assert (run_linear(x, other) - expected).abs().max() > 0.1


def test_shipped_layers_fill_a_chip() -> None:
    """Programs of a weight of codes have room, and 24 KiB of weights on their way, or all that they read."""
    for name in FORMS.values():
        form = WeightForm(name.bits, name.group, name.has_minimums)
        for N, K in ((6144, 4096), (4096, 4096), (4096, 14336), (128256, 4096), (576, 1536), (1536, 576)):
            cut = coded_config(N, K, 2, form)
            rows = cut.block_n * SLICES * (form.unit_bytes + 4 * form.words)
            step = rows + 16 * SLICES * UNIT.value * 2
            assert (cut.num_stages - 1) * step <= min(SHARED_LIMITS.values())
            whole = -(-K // (SLICES * UNIT.value))
            assert (cut.num_stages - 1) * rows >= min(24 << 10, whole * rows) or cut.block_n == 16, (N, K)
            assert (cut.block_n, cut.split_k) == (config(N, K, 2).block_n, config(N, K, 2).split_k)


X, CODES = torch.zeros(2, 72), torch.zeros(8, 128, dtype=torch.int8)
WORDS = torch.zeros(2, 8, dtype=torch.int32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": None}, r"weight has shape \[8, 128\], expected \[\*, 72\]"),
        ({"weight": torch.zeros(8, 72), "scales": WORDS}, r"scales given for a weight of torch.float32"),
        ({"weight": CODES[:, :64].contiguous()}, r"weight has shape \[8, 64\], expected \[\*, 128\]"),
        ({"weight": CODES.view(torch.uint8)}, r"weight has shape \[8, 128\], expected \[\*, 64\]"),
        ({"scales": WORDS[:1]}, r"scales has shape \[1, 8\], expected \[4, 8\]"),
        ({"scales": WORDS[:, :7]}, r"scales has shape \[2, 7\], expected \[\*, 8\]"),
        ({"scales": WORDS.float()}, r"scales is torch.float32, expected torch.int32"),
        ({"scales": torch.zeros(8, 2, dtype=torch.int32).t()}, r"scales has strides \(1, 2\)"),
        ({"group": 64}, r"group is 64, expected 32 or 16"),
        ({"x": torch.zeros(65, 72), "out": torch.zeros(65, 8)}, r"65 rows for codes, at most 64"),
    ],
    ids=["no-scales", "elements", "codes", "bits", "words", "rows", "dtype", "strides", "group", "many-rows"],
)
def test_refuses(changes: dict[str, Any], message: str, device: torch.device) -> None:
    given = {"x": X, "weight": CODES, "out": torch.zeros(2, 8), "bias": None, "residual": None}
    given |= {"workspace": torch.zeros(4 * 65 * 8, dtype=torch.uint8), "scales": WORDS, "group": 32}
    given |= changes
    moved = {n: t.to(device) if isinstance(t, torch.Tensor) else t for n, t in given.items()}
    with pytest.raises(ValueError, match=message):
        linear(**moved)


def test_codes_of_4_bits_in_groups_of_16_are_refused(device: torch.device) -> None:
    coded = Coded.make("q4", 8, 72, device)
    with pytest.raises(ValueError, match="group is 16, codes of 4 bits have groups of 32"):
        other = Coded(coded.values, coded.weight, coded.form | {"group": 16})
        run_linear(torch.zeros(1, 72, device=device), other)


@pytest.mark.slow
def test_operators(device: torch.device) -> None:
    coded, one = Coded.make("q4", 20, 32, device), torch.ones(1, dtype=torch.int32, device=device)
    x, out, space = torch.ones(2, 32, device=device), torch.empty(2, 20, device=device), poisoned(0, device)
    torch.library.opcheck(
        torch.ops.pearl_rt.linear, (x, coded.weight, out, None, None, space, one), coded.form
    )
    half = torch.empty(2, 10, device=device)
    torch.library.opcheck(torch.ops.pearl_rt.gate_up_silu, (x, coded.weight, half, space, one), coded.form)
    wide = torch.empty(1, 32, device=device)
    torch.library.opcheck(torch.ops.pearl_rt.embedding, (one, coded.weight, wide), coded.form)
