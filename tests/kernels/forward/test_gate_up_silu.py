"""gate_up_silu against its definition: awkward shapes, poison, row invariance, many rows, bad input."""

from __future__ import annotations

import pytest
import torch
from compiled import COMPILED
from rows import among_nan

from pearl_rt.kernels.forward.gate_up_silu import config, gate_up_silu, workspace_size
from pearl_rt.kernels.forward.linear import MAX_ROWS, num_parts
from pearl_rt.kernels.reference.forward.gate_up_silu import gate_up_silu as reference

FP16, FP32 = torch.float16, torch.float32


def run(x: torch.Tensor, weight: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
    """Into an output between two rows of NaN; all bytes of the workspace are 255, which is NaN as fp32."""
    T, I = x.shape[0], weight.shape[0] // 2  # noqa: E741
    whole = torch.full((T + 2, I), torch.nan, dtype=out_dtype, device=x.device)
    size = workspace_size(T, I, x.shape[1])
    gate_up_silu(x, weight, whole[1:-1], torch.full((size,), 255, dtype=torch.uint8, device=x.device))
    assert whole[[0, -1]].isnan().all(), "a row beside the output was written"
    return whole[1:-1]


@pytest.mark.parametrize("T", [1, 5, MAX_ROWS + 1])
def test_rows_that_were_scaled(T: int, device: torch.device) -> None:
    """What a norm makes of them is made of the sums; a row has the same bits in any company."""
    I, K, eps = 20, 72, 0.1  # noqa: E741
    x = among_nan(T, K, dtype=FP16, device=device, seed=1)
    weight = among_nan(2 * I, K, dtype=FP16, device=device, seed=2) / K**0.5
    squares = among_nan(T, num_parts(K), dtype=FP32, device=device, seed=3).abs() * 40
    found, expected = (torch.full((T, I), torch.nan, device=device) for _ in range(2))
    space = torch.full((workspace_size(T, I, K),), 255, dtype=torch.uint8, device=device)
    gate_up_silu(x, weight, found, space, None, squares, eps)
    reference(x, weight, expected, space, None, squares, eps)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if T <= MAX_ROWS:
        alone = torch.empty(1, I, device=device)
        gate_up_silu(x[-1:].clone(), weight, alone, space, None, squares[-1:].clone(), eps)
        assert torch.equal(alone[0], found[-1])


@pytest.mark.slow
@pytest.mark.parametrize("out_dtype", [FP16, FP32], ids=["to-fp16", "to-fp32"])
@pytest.mark.parametrize(
    ("T", "I", "K"),
    [(1, 1, 64), (5, 111, 64), (17, 40, 576), (16, 16, 256), (2, 4300, 24), (MAX_ROWS + 1, 40, 64)],
    ids=lambda v: str(v),
)
def test_is_the_definition(T: int, I: int, K: int, out_dtype: torch.dtype, device: torch.device) -> None:  # noqa: E741
    x = among_nan(T, K, dtype=FP16, device=device, seed=1)
    weight = among_nan(2 * I, K, dtype=FP16, device=device, seed=2) / K**0.5
    found, expected = run(x, weight, out_dtype), torch.empty(T, I, device=device)
    reference(x, weight, expected, torch.empty(0, dtype=torch.uint8, device=device))
    rounding = 2**-10 if out_dtype == FP16 else 1e-5
    torch.testing.assert_close(found.float(), expected, rtol=rounding, atol=1e-5)


def test_worked_example(device: torch.device) -> None:
    x = torch.tensor([[1.0, 2.0, 0.0, 0.0]], device=device)
    weight = torch.tensor([[1.0, 0.0, 0.0, 0.0], [3.0, 1.0, 0.0, 0.0]], device=device)
    assert run(x, weight, FP32).item() == pytest.approx(3.6553, abs=1e-4)


def test_fp32_weights(device: torch.device) -> None:
    x = among_nan(3, 100, dtype=FP32, device=device, seed=1)
    weight = among_nan(66, 100, dtype=FP32, device=device, seed=2)
    expected = torch.empty(3, 33, device=device)
    reference(x, weight, expected, torch.empty(0, dtype=torch.uint8, device=device))
    torch.testing.assert_close(run(x, weight, FP32), expected, rtol=1e-5, atol=1e-4)


def test_tables_differ_by_width() -> None:
    assert config(4300, 24, 2).block_i == 32
    assert config(111, 64, 2).block_i == 16


def test_gates_far_from_zero(device: torch.device) -> None:
    """silu of -1000 is 0, without an overflow that turns into NaN; of 1000 it is 1000."""
    x = torch.ones(1, 8, device=device)
    weight = torch.ones(4, 8, device=device)
    weight[0], weight[1] = -125.0, 125.0
    assert run(x, weight, FP32).tolist() == [[0.0, 8000.0]]


@pytest.mark.slow
@pytest.mark.parametrize("I", [40, 4300])
def test_a_row_has_the_same_bits_in_any_company(I: int, device: torch.device) -> None:  # noqa: E741
    rows = among_nan(64, 72, dtype=FP16, device=device, seed=1)
    weight = among_nan(2 * I, 72, dtype=FP16, device=device, seed=2)
    alone = run(rows[7:8].clone(), weight, FP32)
    for T, index in ((2, 1), (5, 4), (16, 0), (64, 40)) if I == 40 else ((2, 1),):
        x = rows[:T].clone()
        x[index] = rows[7]
        assert torch.equal(run(x, weight, FP32)[index], alone[0]), f"row {index} of {T}"


def test_nothing_is_done_where_nothing_lives(device: torch.device) -> None:
    x = among_nan(5, 72, dtype=FP16, device=device, seed=1)
    weight = among_nan(80, 72, dtype=FP16, device=device, seed=2)
    plain, workspace = run(x, weight, FP16), torch.empty(0, dtype=torch.uint8, device=device)
    for function, rows in ((gate_up_silu, 0), (reference, 0), (gate_up_silu, 5)):
        out = torch.full_like(plain, torch.nan)
        function(x, weight, out, workspace, torch.tensor([rows], dtype=torch.int32, device=device))
        assert torch.equal(out, plain) if rows else out.isnan().all()


def test_is_an_operator(device: torch.device) -> None:
    for T in (2, MAX_ROWS + 1):
        x, weight = torch.randn(T, 32, device=device), torch.randn(40, 32, device=device)
        workspace = torch.empty(workspace_size(T, 20, 32), dtype=torch.uint8, device=device)
        out = torch.empty(T, 20, device=device)
        num_live = torch.ones(1, dtype=torch.int32, device=device)
        torch.library.opcheck(torch.ops.pearl_rt.gate_up_silu, (x, weight, out, workspace, num_live))


ARGUMENTS = {
    "x": torch.zeros(2, 64),
    "weight": torch.zeros(16, 64),
    "out": torch.zeros(2, 8),
    "workspace": torch.zeros(0, dtype=torch.uint8),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.zeros(15, 64)}, r"weight has 15 rows, expected an even number"),
        ({"weight": torch.zeros(16, 32)}, r"weight has shape \[16, 32\], expected \[\*, 64\]"),
        ({"x": torch.zeros(2, 5), "weight": torch.zeros(16, 5)}, r"K is 5, rows have 20 bytes"),
        ({"squares": torch.zeros(2, 5)}, r"squares has shape \[2, 5\], expected \[2, 4\]"),
        ({"out": torch.zeros(2, 16)}, r"out has shape \[2, 16\], expected \[2, 8\]"),
        ({"out": torch.zeros(2, 8).half()}, r"out is torch.float16, expected torch.float32"),
        ({"x": torch.zeros(65, 64), "out": torch.zeros(65, 8)}, r"workspace has 0 bytes, needs 4160"),
        ({"workspace": torch.zeros(4)}, r"workspace is torch.float32 \[4\], expected uint8 \[bytes\]"),
        ({"x": torch.zeros(2, 64, device="meta")}, r"tensors on several devices \(x on meta"),
    ],
    ids=[
        "odd",
        "K",
        "row-bytes",
        "squares",
        "out-size",
        "out-dtype",
        "workspace-size",
        "workspace-dtype",
        "device",
    ],
)
def test_refuses(changes: dict[str, torch.Tensor], message: str, device: torch.device) -> None:
    moved = {n: t if t.is_meta else t.to(device) for n, t in (ARGUMENTS | changes).items()}
    with pytest.raises(ValueError, match=message):
        gate_up_silu(**moved)


@COMPILED[0]
@COMPILED[1]
@pytest.mark.parametrize(("T", "I", "K"), [(1, 8192, 2048), (9, 1536, 576), (64, 14336, 4096)])
def test_errs_no_more_than_torch_in_bf16(T: int, I: int, K: int, device: torch.device) -> None:  # noqa: E741
    x = among_nan(T, K, dtype=torch.bfloat16, device=device, seed=1)
    weight = among_nan(2 * I, K, dtype=torch.bfloat16, device=device, seed=2) / K**0.5
    found = run(x, weight, torch.bfloat16).double()
    gate, up = (x.double() @ weight.double().t()).chunk(2, -1)
    exact = torch.nn.functional.silu(gate) * up
    gate, up = torch.mm(x, weight.t()).chunk(2, -1)
    same = (torch.nn.functional.silu(gate) * up).double()
    assert (found - exact).abs().max() <= 2 * (same - exact).abs().max() + 1e-3
