"""linear against its definition: awkward shapes, split K, epilogues, poison, row invariance, bad input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from compiled import COMPILED, skip_where_compiled
from rows import among_nan

from pearl_rt.kernels.base.shapes import SHAPES
from pearl_rt.kernels.forward.linear import MAX_ROWS, SLICES, THIN, config, linear, num_parts, workspace_size
from pearl_rt.kernels.reference.forward.linear import linear as reference
from pearl_rt.kernels.tools.compile import SHARED_LIMITS

FP16, FP32 = torch.float16, torch.float32


def workspace_for(T: int, N: int, K: int, device: torch.device) -> torch.Tensor:
    """All bytes 255, which is NaN as fp32."""
    return torch.full((workspace_size(T, N, K),), 255, dtype=torch.uint8, device=device)


class Case:
    """Operands, guarded outputs, and what the definition says of them."""

    def __init__(
        self, T: int, N: int, K: int, device: torch.device, dtype: torch.dtype = FP16, bias: bool = False
    ) -> None:
        self.x = among_nan(T, K, dtype=dtype, device=device, seed=1)
        self.weight = among_nan(N, K, dtype=dtype, device=device, seed=2)
        self.bias = among_nan(N, dtype=dtype, device=device, seed=3) if bias else None
        self.workspace = workspace_for(T, N, K, device)
        self.stream = torch.randn(T, N, generator=torch.Generator().manual_seed(4)).to(device)
        self.shape, self.device = (T, N), device

    def run(self, function: Callable[..., None], out: torch.dtype | None) -> torch.Tensor:
        """Into an `out` of that dtype, or, with None, into the residual."""
        T, N = self.shape
        whole = torch.full((T + 2, N), torch.nan, dtype=out or FP32, device=self.device)
        result = whole[1:-1]
        if out is None:
            result.copy_(self.stream)
            function(self.x, self.weight, None, self.bias, result, self.workspace)
        else:
            function(self.x, self.weight, result, self.bias, None, self.workspace)
        assert whole[[0, -1]].isnan().all(), "a row beside the output was written"
        return result.float()

    def check(self, out: torch.dtype | None) -> None:
        found, expected = self.run(linear, out), self.run(reference, FP32 if out else None)
        error = (found - expected).abs().max().item()
        assert error <= self.tolerance(expected, out), f"error {error}"

    def tolerance(self, expected: torch.Tensor, out: torch.dtype | None) -> float:
        """Of sums of K products in another order, and of one rounding of the result."""
        order = 1e-6 * self.x.shape[1] ** 0.5 * 4
        return order + (2**-10 * expected.abs().max().item() if out == FP16 else 0.0)


@pytest.mark.parametrize(
    ("T", "N", "K"),
    [(1, 1, 64), (5, 111, 64), (16, 40, 576), (17, 33, 128), (3, 63, 1000), (64, 16, 72)],
    ids=lambda v: str(v),
)
def test_is_the_definition(T: int, N: int, K: int, device: torch.device) -> None:
    Case(T, N, K, device).check(FP32)


def test_worked_example(device: torch.device) -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]], device=device)
    weight = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0]], device=device)
    out, bias = torch.empty(1, 2, device=device), torch.tensor([0.0, 10.0], device=device)
    linear(x, weight, out, bias, None, workspace_for(1, 2, 4, device))
    assert out.tolist() == [[1.0, 16.0]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("N", "block_n"), [(17000, 64), (4300, 32), (3100, 32), (2200, 16)], ids=lambda v: str(v)
)
def test_every_width_of_the_table(N: int, block_n: int, device: torch.device) -> None:
    assert config(N, 24, 2).block_n == block_n
    Case(2, N, 24, device).check(FP32)


def test_tables_differ_by_width() -> None:
    assert len({config(N, 64, 2) for N in (17000, 4300, 3100, 2200, 111)}) == 5


@pytest.mark.parametrize("dtype", [FP16, FP32], ids=["fp16", "fp32"])
@pytest.mark.parametrize("out", [FP16, FP32, None], ids=["to-fp16", "to-fp32", "residual"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_epilogues(dtype: torch.dtype, out: torch.dtype | None, bias: bool, device: torch.device) -> None:
    if (dtype, out) != (FP32, FP16):
        Case(5, 50, 136, device, dtype, bias).check(out)


@pytest.mark.parametrize(("K", "parts"), [(4096, 2), (8200, 4)], ids=["even", "tail"])
@pytest.mark.parametrize("out", [FP16, None], ids=["to-fp16", "residual"])
def test_split_k(K: int, parts: int, out: torch.dtype | None, device: torch.device) -> None:
    assert config(40, K, 2).split_k == config(40, K, 4).split_k == parts
    assert workspace_size(17, 40, K) == parts * 17 * 40 * 4
    Case(17, 40, K, device, bias=True).check(out)


def test_parts_are_added_in_the_order_of_their_index(device: torch.device) -> None:
    N, K = 16, 8192
    assert config(N, K, 2).split_k == 4
    x, weight = torch.zeros(1, K, dtype=FP16, device=device), torch.ones(N, K, dtype=FP16, device=device)
    x[0, 0], x[0, 2048], x[0, 4096], x[0, 6144] = 1.0, 2.0**15, -(2.0**15), 2.0**-14
    weight[:, 2048] = weight[:, 4096] = 2.0**14  # 1 + 2**29 - 2**29 + 2**-14: in this order the 1 is lost
    out = torch.empty(1, N, device=device)
    linear(x, weight, out, None, None, workspace_for(1, N, K, device))
    assert out.tolist() == [[2.0**-14] * N]


@pytest.mark.parametrize("K", [200, 4096], ids=["whole", "split"])
def test_a_row_has_the_same_bits_in_any_company(K: int, device: torch.device) -> None:
    case = Case(64, 60, K, device, bias=True)
    row = case.x[7:8].clone()
    alone = torch.empty(1, 60, device=device)
    linear(row, case.weight, alone, case.bias, None, workspace_for(1, 60, K, device))
    for T, index in ((2, 1), (5, 4), (16, 0), (33, 32), (64, 40)):
        x = case.x[:T].clone()
        x[index] = row[0]
        out = torch.empty(T, 60, device=device)
        linear(x, case.weight, out, case.bias, None, workspace_for(T, 60, K, device))
        assert torch.equal(out[index], alone[0]), f"row {index} of {T}"


def scaled_rows(T: int, K: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """x and squares, as they are after a layer that wrote the residual."""
    x = among_nan(T, K, dtype=FP16, device=device, seed=1)
    return x, among_nan(T, num_parts(K), dtype=FP32, device=device, seed=5).abs() * 40


@pytest.mark.parametrize(
    ("T", "K"), [(5, 200), (17, 4096), (MAX_ROWS + 1, 64)], ids=["whole", "split", "many"]
)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_rows_that_were_scaled(T: int, K: int, bias: bool, device: torch.device) -> None:
    """The factor of a row's norm, on its sums."""
    case = Case(T, 40, K, device, bias=bias)
    squares = scaled_rows(T, K, device)[1]
    found, expected = (torch.full((T, 40), torch.nan, device=device) for _ in range(2))
    for function, out in ((linear, found), (reference, expected)):
        function(case.x, case.weight, out, case.bias, None, case.workspace, None, squares=squares, eps=0.1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("K", [200, 4096], ids=["whole", "split"])
def test_rows_that_are_picked_have_the_bits_of_the_same_rows_alone(K: int, device: torch.device) -> None:
    N, picked = 40, [6, 0, 6, 11]
    case = Case(12, N, K, device)
    x, squares = scaled_rows(12, K, device)
    x[1], squares[2] = torch.nan, torch.nan  # of rows that are not picked
    rows = torch.tensor(picked, dtype=torch.int32, device=device)
    found = torch.full((4, N), torch.nan, device=device)
    space = workspace_for(4, N, K, device)
    linear(x, case.weight, found, None, None, space, None, rows, squares, 0.1)
    for i, row in enumerate(picked):
        own, alone = slice(row, row + 1), torch.empty(1, N, device=device)
        linear(x[own].clone(), case.weight, alone, None, None, space, squares=squares[own].clone(), eps=0.1)
        assert torch.equal(found[i], alone[0])
    expected = torch.empty(4, N, device=device)
    reference(x, case.weight, expected, None, None, space, None, rows, squares, 0.1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("T", "N", "K"), [(5, 50, 136), (5, 300, 4096), (3, 4300, 24), (MAX_ROWS + 1, 48, 64)], ids=str
)
def test_writes_what_the_next_layer_reads(T: int, N: int, K: int, device: torch.device) -> None:
    """The residual has the bits that it has without; a row has the same bits in any company."""
    case = Case(T, N, K, device)
    next_norm = among_nan(N, dtype=FP16, device=device, seed=6)

    def run(function: Callable[..., None], rows: slice) -> tuple[torch.Tensor, ...]:
        residual = case.stream[rows].clone()
        scaled = torch.full_like(residual, torch.nan).half()
        squares = torch.full((len(residual), num_parts(N)), torch.nan, device=device)
        given = {"next_norm": next_norm, "scaled": scaled, "next_squares": squares}
        function(case.x[rows].clone(), case.weight, None, None, residual, case.workspace, **given)
        return residual, scaled, squares

    found, expected = run(linear, slice(T)), run(reference, slice(T))
    plain = case.stream.clone()
    linear(case.x, case.weight, None, None, plain, case.workspace)
    assert torch.equal(found[0], plain)
    for ours, theirs, relative in zip(found, expected, (1e-5, 2**-10, 1e-5), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=relative, atol=1e-3)
    if T <= MAX_ROWS:
        for ours, alone in zip(found, run(linear, slice(T - 1, T)), strict=True):
            assert torch.equal(ours[-1], alone[0])


def test_a_norm_in_two_halves_is_a_norm(device: torch.device) -> None:
    """In fp32, two layers: to rounding what rms_norm between them gives."""
    generator = torch.Generator().manual_seed(7)
    x, first, second = (torch.randn(s, generator=generator).to(device) for s in ((3, 64), (48, 64), (20, 48)))
    residual, next_norm = torch.randn(3, 48, generator=generator).to(device), first[:, 0].contiguous()
    scaled, squares = torch.empty(3, 48, device=device), torch.empty(3, num_parts(48), device=device)
    out, space = torch.empty(3, 20, device=device), workspace_for(3, 48, 64, device)
    halves = {"next_norm": next_norm, "scaled": scaled, "next_squares": squares}
    linear(x, first, None, None, residual, space, **halves)
    linear(scaled, second, out, None, None, space, squares=squares, eps=0.1)
    normed = torch.nn.functional.rms_norm(residual, (48,), next_norm, 0.1)
    torch.testing.assert_close(out, normed @ second.t(), rtol=1e-5, atol=1e-5)


def test_a_bad_row_stays_alone(device: torch.device) -> None:
    case = Case(6, 20, 64, device)
    case.x[2, 5] = torch.inf
    out = torch.empty(6, 20, device=device)
    linear(case.x, case.weight, out, None, None, case.workspace)
    assert not out[2].isfinite().any()
    assert out[[0, 1, 3, 4, 5]].isfinite().all()


@pytest.mark.parametrize("out", [FP16, FP32, None], ids=["to-fp16", "to-fp32", "residual"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_many_rows(out: torch.dtype | None, bias: bool, device: torch.device) -> None:
    assert workspace_size(MAX_ROWS + 1, 48, 64) == 4 * (MAX_ROWS + 1) * 48
    Case(MAX_ROWS + 1, 48, 64, device, bias=bias).check(out)


def test_no_rows(device: torch.device) -> None:
    case, out = Case(1, 20, 64, device), torch.empty(0, 20, device=device)
    linear(case.x[:0], case.weight, out, None, None, case.workspace)


@pytest.mark.parametrize("K", [200, 4096], ids=["whole", "split"])
@pytest.mark.parametrize("is_residual", [False, True], ids=["out", "residual"])
def test_nothing_is_done_where_nothing_lives(K: int, is_residual: bool, device: torch.device) -> None:
    """At 0 neither output nor workspace is written; at any other number the bits are those without it."""
    case = Case(17, 40, K, device, bias=True)
    plain = case.stream.clone() if is_residual else torch.empty(17, 40, device=device)
    others = (None, case.bias, plain) if is_residual else (plain, case.bias, None)
    linear(case.x, case.weight, *others, case.workspace)
    for function, rows in ((linear, 0), (reference, 0), (linear, 1), (linear, 17)):
        case.workspace.fill_(255)
        found = case.stream.clone() if is_residual else torch.full_like(plain, torch.nan)
        before = found.clone()
        others = (None, case.bias, found) if is_residual else (found, case.bias, None)
        num_live = torch.tensor([5, rows], dtype=torch.int32, device=device)[1:]
        function(case.x, case.weight, *others, case.workspace, num_live)
        if rows:
            assert torch.equal(found, plain)
        else:
            assert torch.equal(found.nan_to_num(), before.nan_to_num())
            assert (case.workspace == 255).all()


@pytest.mark.slow
def test_is_an_operator(device: torch.device) -> None:
    for T, N, K in ((2, 20, 32), (1, 16, 4096), (MAX_ROWS + 1, 16, 32)):
        case = Case(T, N, K, device, FP32, bias=True)
        out, residual = torch.empty(T, N, device=device), torch.zeros(T, N, device=device)
        linear_op = torch.ops.pearl_rt.linear
        num_live = torch.ones(1, dtype=torch.int32, device=device)
        torch.library.opcheck(linear_op, (case.x, case.weight, out, None, None, case.workspace, num_live))
        halves = {
            "squares": torch.ones(T, num_parts(K), device=device),
            "next_norm": case.weight[:, 0].contiguous(),
            "scaled": torch.empty(T, N, device=device),
            "next_squares": torch.empty(T, num_parts(N), device=device),
        }
        for given in ({}, halves):
            torch.library.opcheck(
                linear_op, (case.x, case.weight, None, case.bias, residual, case.workspace), given
            )


def test_shipped_layers_fill_a_chip() -> None:
    """60 KiB of weights, or all, are on their way to each program, and to 96 of them if there are 8 MB. Of a
    weight that is bound by launches half is enough, and a program of it leaves room for another model's."""
    for shape in SHAPES:
        for N, K in shape.linears.values():
            cut = config(N, K, 2)
            step = SLICES * cut.slice_k * 2  # bytes of a row
            buffers = cut.num_stages - 1
            shared = buffers * step * (cut.block_n + 16)
            assert shared <= min(SHARED_LIMITS.values()), (N, K)
            programs = -(-N // cut.block_n) * cut.split_k
            at_once = min(programs, 132 * (227 * 1024 // (shared + 1024)))
            in_flight = at_once * buffers * step * cut.block_n
            wanted = 96 if N * K * 2 >= 8 << 20 else min(96, programs)
            is_thin = N * K * 2 <= THIN
            assert in_flight >= min(60 * 1024 * wanted, N * K * 2 // (2 if is_thin else 1)), (N, K, in_flight)
            assert shared <= 64 * 1024 or not is_thin, (N, K, shared)


ARGUMENTS = {
    "x": torch.zeros(2, 64),
    "weight": torch.zeros(8, 64),
    "out": torch.zeros(2, 8),
    "bias": None,
    "residual": None,
    "workspace": torch.zeros(0, dtype=torch.uint8),
    "num_live": None,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(64)}, r"x has shape \[64\], expected \[\*, \*\]"),
        ({"weight": torch.zeros(8, 60)}, r"weight has shape \[8, 60\], expected \[\*, 64\]"),
        ({"weight": torch.zeros(8, 64).half()}, r"weight is torch.float16, expected torch.float32"),
        ({"weight": torch.zeros(64, 8).t()}, r"weight has strides \(1, 8\): pass a contiguous tensor"),
        (
            {"x": torch.zeros(2, 5), "weight": torch.zeros(8, 5)},
            r"K is 5, rows have 20 bytes, expected a multiple",
        ),
        ({"x": torch.zeros(129)[1:].view(2, 64)}, r"x starts at 0x\w+: align it to 16 bytes"),
        ({"out": None}, r"neither of out and residual given, expected one"),
        ({"residual": torch.zeros(2, 8)}, r"both of out and residual given, expected one"),
        ({"out": torch.zeros(2, 9)}, r"out has shape \[2, 9\], expected \[\*, 8\]"),
        ({"out": torch.zeros(2, 8).half()}, r"out is torch.float16, expected torch.float32"),
        (
            {"out": None, "residual": torch.zeros(2, 8).double()},
            r"residual is torch.float64, expected torch.float32",
        ),
        ({"squares": torch.zeros(2, 3)}, r"linear: squares has shape \[2, 3\], expected \[\*, 4\]"),
        (
            {"scaled": torch.zeros(2, 8)},
            r"next_norm, scaled and next_squares belong to a residual: pass all four",
        ),
        (
            {"rows": torch.zeros(65, dtype=torch.int32), "out": torch.zeros(65, 8)},
            r"65 rows are picked of x, at most 64: pick them in blocks",
        ),
        ({"rows": torch.zeros(1, dtype=torch.int32)}, r"rows has shape \[1\], expected \[2\]"),
        ({"num_live": torch.zeros(1)}, r"num_live is torch.float32, expected torch.int32"),
        ({"bias": torch.zeros(9)}, r"bias has shape \[9\], expected \[8\]"),
        ({"x": torch.zeros(1, 4096), "weight": torch.zeros(8, 4096), "out": torch.zeros(1, 8)}, r"needs 64"),
        ({"x": torch.zeros(2, 64, device="meta")}, r"tensors on several devices \(x on meta"),
    ],
    ids=[
        *("rank", "K", "dtypes", "strides", "row-bytes", "alignment", "neither", "both", "out-size"),
        *("out-dtype", "residual-dtype", "squares", "no-residual", "many-picked", "picked"),
        *("num-live", "bias-size", "workspace", "device"),
    ],
)
def test_refuses(changes: dict[str, torch.Tensor | None], message: str, device: torch.device) -> None:
    if device.type != "cpu" and "starts at" in message:
        pytest.skip("a copy to another device is aligned")
    moved = {n: t if t is None or t.is_meta else t.to(device) for n, t in (ARGUMENTS | changes).items()}
    with pytest.raises(ValueError, match=message):
        linear(**moved)


def test_refuses_bf16_where_it_is_computed_wrongly(device: torch.device) -> None:
    skip_where_compiled()
    x, out = torch.zeros(1, 64, dtype=torch.bfloat16), torch.zeros(1, 1)
    with pytest.raises(ValueError, match="which Triton's interpreter computes wrongly: use float16"):
        linear(x, x, out, None, None, ARGUMENTS["workspace"])


@COMPILED[0]
@COMPILED[1]
@pytest.mark.parametrize("dtype", [torch.bfloat16, FP16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(
    ("T", "N", "K"), [(1, 4096, 4096), (8, 896, 4864), (16, 2048, 8192), (64, 32000, 576)]
)
def test_errs_no_more_than_torch(T: int, N: int, K: int, dtype: torch.dtype, device: torch.device) -> None:
    case = Case(T, N, K, device, dtype)
    found, exact = case.run(linear, dtype), case.x.double() @ case.weight.double().t()
    same = torch.mm(case.x, case.weight.t()).double()
    assert (found - exact).abs().max() <= 2 * (same - exact).abs().max() + 1e-3
