"""rms_norm against its definition: awkward sizes, canaries, both forms, row invariance, bad input."""

from __future__ import annotations

import pytest
import torch
from compiled import COMPILED, skip_where_compiled

from pearl_rt.kernels.forward.rms_norm import MAX_HIDDEN, rms_norm
from pearl_rt.kernels.reference.forward.rms_norm import rms_norm as reference

EPS = 1e-5


def rows_of(T: int, H: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(T, H, generator=generator) * 3).to(device, dtype)


def guarded(T: int, H: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """NaN [T, H] with a row of NaN before and after it: the whole, and the middle."""
    whole = torch.full((T + 2, H), torch.nan, dtype=dtype, device=device)
    return whole, whole[1:-1]


@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(("T", "H"), [(1, 1), (3, 63), (2, 64), (5, 1000), (1, 4096)], ids=lambda v: str(v))
def test_is_the_definition(
    T: int, H: int, dtype: torch.dtype, with_residual: bool, device: torch.device
) -> None:
    x, weight = rows_of(T, H, dtype, device), rows_of(1, H, dtype, device, seed=1)[0]
    whole, out = guarded(T, H, dtype, device)
    expected = torch.empty(T, H, device=device)
    if with_residual:
        stream = rows_of(T, H, torch.float32, device, seed=2)
        whole_residual, residual = guarded(T, H, torch.float32, device)
        residual.copy_(stream)
        expected_residual = stream.clone()
        rms_norm(x, weight, EPS, out, residual)
        reference(x, weight, EPS, expected, expected_residual)
        assert torch.equal(residual, expected_residual)
        assert whole_residual[[0, -1]].isnan().all()
    else:
        rms_norm(x, weight, EPS, out, None)
        reference(x, weight, EPS, expected, None)
    assert whole[[0, -1]].isnan().all(), "a row beside the output was written"
    tolerance = {torch.float32: 2e-6, torch.float16: 1e-3}[dtype]  # one rounding of the result
    torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)


def test_normalises_the_fp32_stream_into_fp16(device: torch.device) -> None:
    x = rows_of(2, 100, torch.float32, device) * 1e4  # squares pass fp16's range
    weight, out = (
        torch.ones(100, dtype=torch.float16, device=device),
        torch.empty(2, 100, device=device).half(),
    )
    rms_norm(x, weight, EPS, out, None)
    torch.testing.assert_close(out.float().square().mean(-1), torch.ones(2, device=device), rtol=2e-3, atol=0)


def test_worked_example(device: torch.device) -> None:
    x, out = torch.tensor([[3.0, 4.0, 0.0, 0.0]], device=device), torch.empty(1, 4, device=device)
    rms_norm(x, torch.tensor([1.0, 1.0, 1.0, 2.0], device=device), 0.0, out, None)
    torch.testing.assert_close(out, torch.tensor([[1.2, 1.6, 0.0, 0.0]], device=device))


def test_eps_is_inside_the_root(device: torch.device) -> None:
    x, out = torch.full((1, 8), 3.0, device=device), torch.empty(1, 8, device=device)
    rms_norm(x, torch.ones(8, device=device), 7.0, out, None)
    torch.testing.assert_close(out, torch.full((1, 8), 0.75, device=device))  # 3 / sqrt(9 + 7)


def test_a_row_has_the_same_bits_in_any_company(device: torch.device) -> None:
    row, weight = rows_of(1, 777, torch.float16, device), rows_of(1, 777, torch.float16, device, seed=1)[0]
    stream = rows_of(1, 777, torch.float32, device, seed=2)
    alone, alone_residual = torch.empty_like(row), stream.clone()
    rms_norm(row, weight, EPS, alone, alone_residual)
    for T, index in ((2, 1), (5, 3), (16, 0), (64, 63)):
        x = rows_of(T, 777, torch.float16, device, seed=T)
        residual = rows_of(T, 777, torch.float32, device, seed=T + 1)
        x[index], residual[index] = row[0], stream[0]
        out = torch.empty_like(x)
        rms_norm(x, weight, EPS, out, residual)
        assert torch.equal(out[index], alone[0]), f"row {index} of {T}"
        assert torch.equal(residual[index], alone_residual[0]), f"row {index} of {T}"


def test_a_bad_row_stays_alone(device: torch.device) -> None:
    x, weight = rows_of(3, 40, torch.float32, device), torch.ones(40, device=device)
    x[1, 7] = torch.nan
    out = torch.empty_like(x)
    rms_norm(x, weight, EPS, out, None)
    assert out[1].isnan().all()
    assert out[[0, 2]].isfinite().all()


def test_is_an_operator(device: torch.device) -> None:
    x, weight = rows_of(2, 24, torch.float32, device), torch.ones(24, device=device)
    for residual in (None, torch.zeros(2, 24, device=device)):
        torch.library.opcheck(torch.ops.pearl_rt.rms_norm, (x, weight, EPS, torch.empty_like(x), residual))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(4)}, r"x has shape \[4\], expected \[\*, \*\]"),
        ({"weight": torch.zeros(3)}, r"weight has shape \[3\], expected \[8\]"),
        ({"out": torch.zeros(2, 8, dtype=torch.int32)}, r"out is torch.int32, expected torch.float32 or"),
        ({"out": torch.zeros(8, 2).t()}, r"out has strides \(1, 2\): pass a contiguous tensor"),
        ({"residual": torch.zeros(2, 8).half()}, r"residual is torch.float16, expected torch.float32"),
        ({"x": torch.zeros(2, 8, device="meta")}, r"tensors on several devices \(x on meta"),
    ],
    ids=["rank", "weight-size", "dtype", "strides", "residual-dtype", "device"],
)
def test_refuses(changes: dict[str, torch.Tensor], message: str, device: torch.device) -> None:
    arguments = {"x": torch.zeros(2, 8), "weight": torch.zeros(8), "out": torch.zeros(2, 8), "residual": None}
    arguments |= changes
    moved = {n: t if t is None or t.is_meta else t.to(device) for n, t in arguments.items()}
    with pytest.raises(ValueError, match=message):
        rms_norm(eps=EPS, **moved)


def test_refuses_bf16_where_it_is_rounded_wrongly(device: torch.device) -> None:
    skip_where_compiled()
    x = torch.zeros(1, 8, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="which Triton's interpreter computes wrongly: use float16"):
        rms_norm(x, x[0], EPS, torch.zeros_like(x), None)


@COMPILED[0]
@COMPILED[1]
@pytest.mark.parametrize("H", [576, 1000, 4096])
def test_rounds_bf16_once(H: int, device: torch.device) -> None:
    x, weight = (rows_of(n, H, torch.bfloat16, device, seed=n) for n in (3, 1))
    out, expected = torch.empty_like(x), torch.empty(3, H, device=device)
    rms_norm(x, weight[0], EPS, out, None)
    reference(x, weight[0], EPS, expected, None)
    torch.testing.assert_close(out.float(), expected, rtol=2**-8, atol=0)


def test_refuses_rows_that_pass_the_registers(device: torch.device) -> None:
    x = torch.zeros(1, MAX_HIDDEN + 1, device=device)
    with pytest.raises(ValueError, match="rows of 32769 values, expected 1 to 32768"):
        rms_norm(x, x[0], EPS, x.clone(), None)
