"""Kernels of a few lines, written in PTX by a test, and values to try them with."""

from __future__ import annotations

import numpy as np

from ptx.driver import Step, program_of, run
from ptx.faults import Extent

HEAD = """
.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
{module}
.visible .entry small(
{params}
)
.reqntid {threads}
{{
  .reg .pred %p<64>;
  .reg .b16 %h<64>;
  .reg .b32 %r<512>;
  .reg .b64 %q<64>;
{body}
  ret;
}}
"""
BITS = {np.dtype(kind): np.dtype(kind).itemsize * 8 for kind in "bBhHiIlLefd"}
PREFIX = {16: "%h", 32: "%r", 64: "%q"}


def kernel(body: str, num_params: int = 0, threads: int = 32, module: str = "") -> str:
    """A module with one kernel, whose parameters are addresses small_param_0 .. and so on."""
    params = ",\n".join(f"  .param .u64 small_param_{i}" for i in range(num_params))
    return HEAD.format(params=params, threads=threads, body=body, module=module)


def launch(
    body: str,
    *arrays: np.ndarray,
    threads: int = 32,
    grid: tuple[int, int, int] = (1, 1, 1),
    shared: int = 0,
    seed: int = 0,
    module: str = "",
    global_races: bool = False,
    step: Step | None = None,
    dependent: bool = False,
) -> int:
    """Runs it on these arrays, which are a0, a1 .. in errors."""
    values = [array.ctypes.data for array in arrays]
    extents = [Extent(f"a{i}", v, v + a.nbytes) for i, (v, a) in enumerate(zip(values, arrays, strict=True))]
    program = program_of(kernel(body, len(arrays), threads, module))
    return run(program, grid, values, extents, shared, seed, global_races, step, dependent)


def addresses(sizes: list[int]) -> str:
    """%q0 .. : the entry of this thread in each parameter, of so many bytes."""
    lines = ["mov.u32 %r0, %tid.x;", "mov.u32 %r1, %ctaid.x;", "mad.lo.s32 %r0, %r1, 32, %r0;"]
    for i, size in enumerate(sizes):
        lines += [f"ld.param.b64 %q{i}, [small_param_{i}];", f"mad.wide.u32 %q{i}, %r0, {size}, %q{i};"]
    return "\n".join(lines)


def register(array: np.ndarray, number: int) -> str:
    """The register of an entry: predicates are arrays of bool."""
    return f"%p{number}" if array.dtype == bool else f"{PREFIX[max(BITS[array.dtype], 16)]}{number}"


def load(array: np.ndarray, parameter: int, name: str) -> str:
    """The entry of this thread into a register."""
    if array.dtype == bool:
        return f"ld.global.b8 %h60, [%q{parameter}]; setp.ne.b16 {name}, %h60, 0;"
    return f"ld.global.b{BITS[array.dtype]} {name}, [%q{parameter}];"


def store(array: np.ndarray, parameter: int, name: str) -> str:
    """A register to the entry of this thread."""
    if array.dtype == bool:
        return f"selp.b16 %h60, 1, 0, {name}; st.global.b8 [%q{parameter}], %h60;"
    return f"st.global.b{BITS[array.dtype]} [%q{parameter}], {name};"


def apply(instruction: str, out: str, *inputs: np.ndarray) -> np.ndarray:
    """instruction with registers for {d}, {a}, {b}, {c}, run for each entry of the inputs -> dtype out."""
    count = len(inputs[0])
    padded = -(-count // 32) * 32
    result = np.zeros(padded, out)
    arrays = [result, *(np.resize(array, padded) for array in inputs)]
    names = {
        name: register(array, 10 + i) for i, (name, array) in enumerate(zip("dabc", arrays, strict=False))
    }
    lines = [addresses([array.itemsize for array in arrays])]
    lines += [
        load(array, i, name) for i, (name, array) in enumerate(zip(names.values(), arrays, strict=True)) if i
    ]
    lines += [instruction.format(**names) + ";", store(result, 0, names["d"])]
    launch("\n".join(lines), *arrays, grid=(padded // 32, 1, 1))
    return result[:count]


def integers(kind: str, seed: int = 0, count: int = 400) -> np.ndarray:
    """Of that dtype: the extremes, small ones, and random ones of all sizes."""
    info = np.iinfo(kind)
    generator = np.random.default_rng(seed)
    fixed = [info.min, info.min + 1, 0, 1, 2, 3, 7, 31, 32, 33, 63, 64, 100, info.max - 1, info.max]
    fixed += [-1, -2, -7] if info.min < 0 else []
    drawn = generator.integers(info.min, info.max, count, dtype=kind, endpoint=True)
    shifts = generator.integers(0, info.bits, count).astype(kind)
    return generator.permutation(np.concatenate([np.array(fixed, kind), drawn, drawn >> shifts]))


def floats(kind: str, seed: int = 0, count: int = 600) -> np.ndarray:
    """Of that dtype: zeros, infinities, NaN, denormals, halves, and random bits."""
    generator = np.random.default_rng(seed)
    whole = {2: "u2", 4: "u4", 8: "u8"}[np.dtype(kind).itemsize]
    bits = generator.integers(0, np.iinfo(whole).max, count, dtype=whole, endpoint=True).view(kind)
    info = np.finfo(kind)
    fixed = np.array([0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 3.0, 65519.0, 65520.0, 1e-5], kind)
    edges = np.array([info.max, -info.max, info.tiny, -info.tiny, info.smallest_subnormal], kind)
    special = np.array([np.inf, -np.inf, np.nan, info.tiny / 2, 2147483648.0, -2147483904.0], kind)
    plain = (generator.standard_normal(count) * 10.0 ** generator.integers(-3, 4, count)).astype(kind)
    return generator.permutation(np.concatenate([fixed, edges, special, bits, plain]))


def same(found: np.ndarray, expected: np.ndarray) -> None:
    """Bit by bit; any NaN is NaN."""
    assert found.dtype == expected.dtype
    if found.dtype.kind == "f":
        assert np.array_equal(np.isnan(found), np.isnan(expected))
        whole = {2: "u2", 4: "u4", 8: "u8"}[found.dtype.itemsize]
        known = ~np.isnan(found)
        found, expected = found[known].view(whole), expected[known].view(whole)
    wrong = np.nonzero(found != expected)[0]
    assert not len(wrong), (
        f"{len(wrong)} differ, first {wrong[0]}: {found[wrong[0]]} is not {expected[wrong[0]]}"
    )
