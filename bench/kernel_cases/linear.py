"""Cases of the operators that read weights or rows only: linear, gate_up_silu and rms_norm.

Weights are what has to be cold: each rotated copy is a weight of its own, with its own rows and its own
output. Buffers are made on torch's default device, in bf16 by default.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib import import_module

import torch
import torch.nn.functional as F

from bench.kernel_cases import peers, traffic
from bench.kernel_cases.case import Job, Spec, Variant, job_of, spoil
from pearl_rt.kernels.base.shapes import SHAPES

ROWS = (1, 5, 8, 16)
QUICK_ROWS = (1, 8)
QUICK_SHAPES = ("Llama-3.2-1B", "Llama-3.1-8B")
RESIDUAL = ("o_proj", "down_proj")  # the layers whose result is added to the residual stream
IN_FP32 = ("qkv_proj", "lm_head")  # the layers whose result is written as the fp32 sum
BF16 = torch.bfloat16
EPS = 1e-5
Tensors = list[torch.Tensor]


def random(*size: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    return torch.empty(size, dtype=dtype).normal_(0.0, scale)


def workspace(num_bytes: int) -> torch.Tensor:
    return torch.empty(max(num_bytes, 16), dtype=torch.uint8)


def linear_job(
    copies: int,
    rows: int,
    n: int,
    k: int,
    *,
    residual: bool = False,
    in_fp32: bool = False,
    dtype: torch.dtype = BF16,
) -> Job:
    op = import_module("pearl_rt.kernels.forward.linear")
    xs = [random(rows, k, dtype=dtype) for _ in range(copies)]
    weights = [random(n, k, dtype=dtype, scale=k**-0.5) for _ in range(copies)]
    space = workspace(op.workspace_size(rows, n, k))
    if not residual:
        outs = [torch.empty(rows, n, dtype=torch.float32 if in_fp32 else dtype) for _ in range(copies)]
        return job_of(
            lambda i: op.linear(xs[i], weights[i], outs[i], None, None, space),
            outs,
            lambda i: xs[i].float() @ weights[i].float().t(),
            {"torch.mm": peers.matmul(xs, weights)},
        )
    before = random(rows, n, dtype=torch.float32)
    ours, theirs = ([before.clone() for _ in range(copies)] for _ in range(2))

    def reset() -> None:
        for tensor in ours + theirs:
            tensor.copy_(before)

    return job_of(
        lambda i: op.linear(xs[i], weights[i], None, None, ours[i], space),
        ours,
        lambda i: before + xs[i].float() @ weights[i].float().t(),
        {"torch.mm + add": rounded(peers.matmul_add(xs, weights, theirs), dtype)},
        reset=reset,
        repeatable=False,
    )


def rounded(variant: Variant, dtype: torch.dtype) -> Variant:
    """The same, compared within the roundings of dtype, through which the product passes there."""
    output = variant.output
    return Variant(variant.calls, None if output is None else lambda i: output(i).to(dtype))


def gate_up_job(
    copies: int,
    rows: int,
    intermediate: int,
    hidden: int,
    *,
    with_compile: bool = False,
    dtype: torch.dtype = BF16,
) -> Job:
    op = import_module("pearl_rt.kernels.forward.gate_up_silu")
    xs = [random(rows, hidden, dtype=dtype) for _ in range(copies)]
    weights = [random(2 * intermediate, hidden, dtype=dtype, scale=hidden**-0.5) for _ in range(copies)]
    outs = [torch.empty(rows, intermediate, dtype=xs[0].dtype) for _ in range(copies)]
    space = workspace(op.workspace_size(rows, intermediate, hidden))

    def exact(i: int) -> torch.Tensor:
        gate, up = (xs[i].float() @ weights[i].float().t()).chunk(2, dim=-1)
        return F.silu(gate) * up

    pairs = list(zip(xs, weights, strict=True))
    others = {"torch": loosely(peers.torch_call(peers.gate_up_silu, pairs))}
    if with_compile:
        others["torch.compile"] = loosely(peers.compiled(peers.gate_up_silu, pairs))
    return job_of(lambda i: op.gate_up_silu(xs[i], weights[i], outs[i], space), outs, exact, others)


def loosely(variant: Variant) -> Variant:
    """Not compared: eager torch rounds gate, up and silu(gate) before the product."""
    return Variant(variant.calls)


def rms_norm_job(
    copies: int,
    rows: int,
    hidden: int,
    *,
    residual: bool = False,
    with_compile: bool = False,
    dtype: torch.dtype = BF16,
) -> Job:
    """Without a residual x is the fp32 residual stream; with it x is in half precision and is added first."""
    op = import_module("pearl_rt.kernels.forward.rms_norm")
    xs = [random(rows, hidden, dtype=dtype if residual else torch.float32) for _ in range(copies)]
    weight = random(hidden, dtype=dtype)
    wide = weight.float()  # torch takes no mixed dtypes
    outs = [torch.empty(rows, hidden, dtype=weight.dtype) for _ in range(copies)]
    before = random(rows, hidden, dtype=torch.float32) if residual else None
    streams = [[before.clone() if before is not None else None for _ in range(copies)] for _ in range(3)]

    def exact(i: int) -> torch.Tensor:
        row = xs[i].float() + (before if before is not None else 0.0)
        return F.rms_norm(row, (hidden,), weight.float(), EPS)

    def reset() -> None:
        spoil(outs)
        for stream in streams:
            for tensor in stream:
                if tensor is not None and before is not None:
                    tensor.copy_(before)

    def arguments(stream: int) -> list[tuple[object, ...]]:
        if residual:
            return [(xs[i], streams[stream][i], wide, EPS, dtype) for i in range(copies)]
        return [(xs[i], wide, EPS, dtype) for i in range(copies)]

    function = peers.residual_rms_norm if residual else peers.rms_norm
    others = {"torch": peers.torch_call(function, arguments(1))}
    if with_compile:
        others["torch.compile"] = peers.compiled(function, arguments(2))
    return job_of(
        lambda i: op.rms_norm(xs[i], weight, EPS, outs[i], streams[0][i]),
        outs,
        exact,
        others,
        reset=reset,
        repeatable=not residual,
    )


def linear_specs() -> Iterator[Spec]:
    """Every layer of every shipped shape; a weight shape that two models share once."""
    seen: set[tuple[int, int, bool]] = set()
    for shape in SHAPES:
        for layer, (n, k) in shape.linears.items():
            residual, in_fp32 = layer in RESIDUAL, layer in IN_FP32
            if (n, k, residual) in seen:
                continue
            seen.add((n, k, residual))
            out = traffic.FLOAT if in_fp32 else traffic.HALF
            for rows in ROWS:
                yield Spec(
                    "linear",
                    f"linear {shape.name} {layer} {n}x{k} T{rows}",
                    traffic.linear(rows, n, k, out=out, residual=residual),
                    partial(linear_job, rows=rows, n=n, k=k, residual=residual, in_fp32=in_fp32),
                    {"shape": shape.name, "rows": rows, "weight_bytes": n * k * traffic.HALF},
                    quick=shape.name in QUICK_SHAPES and rows in QUICK_ROWS,
                )


def gate_up_specs() -> Iterator[Spec]:
    for shape in SHAPES:
        n, k = shape.intermediate, shape.hidden
        for rows in ROWS:
            compiles = shape.name == "Llama-3.1-8B" and rows == 8
            tags = {"shape": shape.name, "rows": rows, "weight_bytes": 2 * n * k * traffic.HALF}
            yield Spec(
                "gate_up_silu",
                f"gate_up_silu {shape.name} 2x{n}x{k} T{rows}",
                traffic.gate_up_silu(rows, n, k),
                partial(gate_up_job, rows=rows, intermediate=n, hidden=k, with_compile=compiles),
                tags | {"compiles": compiles},
                quick=shape.name in QUICK_SHAPES and rows in QUICK_ROWS and not compiles,
            )


def rms_norm_specs() -> Iterator[Spec]:
    shapes = [shape for shape in SHAPES if shape.name != "Llama-2-7B"]  # which has 8B's
    cases = [(shape.name, shape.hidden, rows, False) for shape in shapes for rows in (1, 16)]
    for shape, hidden, rows, residual in (*cases, ("Llama-3.1-8B", 4096, 16, True)):
        compiles = shape == "Llama-3.1-8B" and rows == 16 and not residual
        yield Spec(
            "rms_norm",
            f"rms_norm {shape} H{hidden} T{rows}{' +residual' if residual else ''}",
            traffic.rms_norm(rows, hidden, x=traffic.HALF if residual else traffic.FLOAT, residual=residual),
            partial(rms_norm_job, rows=rows, hidden=hidden, residual=residual, with_compile=compiles),
            {"shape": shape, "rows": rows, "compiles": compiles},
            quick=shape == "Llama-3.2-1B",
        )


def specs() -> list[Spec]:
    return [*linear_specs(), *gate_up_specs(), *rms_norm_specs()]
