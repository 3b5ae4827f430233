"""Conversions, comparisons and moves: each against numpy, on extremes and on random values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ptx.unit.small import apply, floats, integers, launch, same

KINDS = {"s16": "i2", "u16": "u2", "s32": "i4", "u32": "u4", "s64": "i8", "u64": "u8"}
REALS = {"f32": "f4", "f64": "f8"}


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
def test_integers_are_extended_by_their_sign_and_cut(target: str, source: str) -> None:
    a = integers(KINDS[source])
    same(apply(f"cvt.{target}.{source} {{d}}, {{a}}", KINDS[target], a), a.astype(KINDS[target]))


@pytest.mark.parametrize("source", ["s16", "s32", "u64"])
def test_bytes_lie_in_registers_of_16_bits(source: str) -> None:
    a = integers(KINDS[source])
    same(apply(f"cvt.s8.{source} {{d}}, {{a}}", "i2", a), a.astype("i1").astype("i2"))
    same(apply(f"cvt.u8.{source} {{d}}, {{a}}", "u2", a), a.astype("u1").astype("u2"))
    same(apply("cvt.s32.s8 {d}, {a}", "i4", a.astype("i2")), a.astype("i1").astype("i4"))


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("whole", KINDS)
def test_integers_and_floats(whole: str, real: str) -> None:
    a, x = integers(KINDS[whole]), floats(REALS[real])
    same(apply(f"cvt.rn.{real}.{whole} {{d}}, {{a}}", REALS[real], a), a.astype(REALS[real]))
    info = np.iinfo(KINDS[whole])
    highest_bit = np.array(1 << info.bits - 1, f"u{info.bits // 8}").view(KINDS[whole])
    of_nan = 0 if real == "f32" and info.bits < 64 else int(highest_bit)
    for rounding, f in (("rzi", np.trunc), ("rni", np.rint), ("rmi", np.floor), ("rpi", np.ceil)):
        found = apply(f"cvt.{rounding}.{whole}.{real} {{d}}, {{a}}", KINDS[whole], x)
        exact = [of_nan if v != v else int(max(min(v, 2.0**70), -(2.0**70))) for v in f(x).astype("f8")]
        same(found, np.array([min(max(v, info.min), info.max) for v in exact], KINDS[whole]))


def test_between_floating_types() -> None:
    x, y = floats("f4"), floats("f8")
    same(apply("cvt.f64.f32 {d}, {a}", "f8", x), x.astype("f8"))
    same(apply("cvt.rn.f32.f64 {d}, {a}", "f4", y), y.astype("f4"))
    for rounding, f in (("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)):
        same(apply(f"cvt.{rounding}.f32.f32 {{d}}, {{a}}", "f4", x), f(x))


@pytest.mark.parametrize(("kind", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_halves_are_rounded_to_nearest(kind: str, dtype: torch.dtype) -> None:
    every = np.arange(2**16, dtype="u2")
    exact = torch.from_numpy(every.view("i2")).view(dtype).float().numpy()
    same(apply(f"cvt.f32.{kind} {{d}}, {{a}}", "f4", every), exact)
    between = (exact[:-1].astype("f8") + exact[1:]) / 2  # halfway: the even neighbour
    x = np.concatenate([floats("f4", count=3000), exact, between.astype("f4")])
    x = x[~np.isnan(x)]
    expected = torch.from_numpy(x).to(dtype).view(torch.int16).numpy().view("u2")
    same(apply(f"cvt.rn.{kind}.f32 {{d}}, {{a}}", "u2", x), expected)
    high, low = x[: len(x) // 2], x[len(x) // 2 :][: len(x) // 2]
    pairs = expected[: len(high)].astype("u4") << 16 | expected[len(x) // 2 :][: len(low)]
    same(apply(f"cvt.rn.{kind}x2.f32 {{d}}, {{a}}, {{b}}", "u4", high, low), pairs)
    assert (apply(f"cvt.rn.{kind}.f32 {{d}}, {{a}}", "u2", np.full(32, np.nan, "f4")) == 0x7FFF).all()


ORDERS = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater}
ORDERS |= {"ge": np.greater_equal}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_comparisons_of_integers(kind: str, order: str) -> None:
    a, b = integers(KINDS[kind], 1), integers(KINDS[kind], 2)
    b[::3] = a[::3]
    same(apply(f"setp.{order}.{kind} {{d}}, {{a}}, {{b}}", "?", a, b), ORDERS[order](a, b))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", REALS)
def test_comparisons_of_floats(kind: str, order: str) -> None:
    """Ordered ones do not hold with NaN, unordered ones do."""
    a, b = floats(REALS[kind], 1), floats(REALS[kind], 2)
    b[::3] = a[::3]
    nan = np.isnan(a) | np.isnan(b)
    same(apply(f"setp.{order}.{kind} {{d}}, {{a}}, {{b}}", "?", a, b), ORDERS[order](a, b) & ~nan)
    same(apply(f"setp.{order}u.{kind} {{d}}, {{a}}, {{b}}", "?", a, b), ORDERS[order](a, b) | nan)
    same(apply(f"setp.num.{kind} {{d}}, {{a}}, {{b}}", "?", a, b), ~nan)
    same(apply(f"setp.nan.{kind} {{d}}, {{a}}, {{b}}", "?", a, b), nan)


@pytest.mark.parametrize(("kind", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_comparisons_of_halves(kind: str, dtype: torch.dtype) -> None:
    a, b = np.random.default_rng(1).integers(0, 2**16, (2, 3200), dtype="u2")
    b[::3], a[:2], b[:2] = a[::3], [0, 0x8000], [0x8000, 0]
    x, y = (torch.from_numpy(v.view("i2")).view(dtype).float().numpy() for v in (a, b))
    equal, nan = x == y, np.isnan(x) | np.isnan(y)
    same(apply(f"setp.eq.{kind} {{d}}, {{a}}, {{b}}", "?", a, b), equal)
    same(apply(f"setp.equ.{kind} {{d}}, {{a}}, {{b}}", "?", a, b), equal | nan)
    same(apply(f"setp.ne.{kind} {{d}}, {{a}}, {{b}}", "?", a, b), ~equal & ~nan)
    pairs = [v[:1600].astype("u4") | v[1600:].astype("u4") << 16 for v in (a, b)]
    low = apply(f"setp.ne.{kind}x2 {{d}}|%p50, {{a}}, {{b}}", "?", *pairs)
    high = apply(f"setp.ne.{kind}x2 %p50|{{d}}, {{a}}, {{b}}", "?", *pairs)
    same(np.concatenate([low, high]), ~equal & ~nan)


def test_predicates() -> None:
    a, b = np.random.default_rng(1).integers(0, 2, (2, 64)).astype(bool)
    for name, f in (("and", np.logical_and), ("or", np.logical_or), ("xor", np.logical_xor)):
        same(apply(f"{name}.pred {{d}}, {{a}}, {{b}}", "?", a, b), f(a, b))
    same(apply("not.pred {d}, {a}", "?", a), ~a)
    same(apply("mov.pred {d}, {a}", "?", a), a)
    assert apply("mov.pred {d}, -1", "?", a).all() and not apply("mov.pred {d}, 0", "?", a).any()


@pytest.mark.parametrize("kind", ["b16", "b32", "b64", "f32", "f64"])
def test_selp(kind: str) -> None:
    dtype = f"u{int(kind[1:]) // 8}"
    a, b = integers(dtype, 1)[:400], integers(dtype, 2)[:400]
    c = np.random.default_rng(1).integers(0, 2, 400).astype(bool)
    same(apply(f"selp.{kind} {{d}}, {{a}}, {{b}}, {{c}}", dtype, a, b, c), np.where(c, a, b))


def test_guards_keep_the_other_lanes() -> None:
    a, b = integers("u4", 1)[:320], np.random.default_rng(1).integers(0, 2, 320).astype(bool)
    same(apply("mov.u32 {d}, 7; @{b} mov.u32 {d}, {a}", "u4", a, b), np.where(b, a, 7).astype("u4"))
    same(apply("mov.u32 {d}, 7; @!{b} mov.u32 {d}, {a}", "u4", a, b), np.where(b, 7, a).astype("u4"))


def test_registers_are_split_and_joined() -> None:
    a, b = integers("u8"), integers("u4")
    high = (a >> np.uint64(32)).astype("u4")
    same(apply("mov.b64 {{_, {d}}}, {a}", "u4", a), high)
    same(apply("mov.b64 {{{d}, _}}, {a}", "u4", a), a.astype("u4"))
    same(apply("mov.b64 {{%r40, %r41}}, {a}; mov.b64 {d}, {{%r41, %r40}}", "u8", a), a << 32 | high)
    same(apply("mov.b32 {{%h40, %h41}}, {a}; mov.b32 {d}, {{%h41, %h40}}", "u4", b), b << 16 | b >> 16)
    same(apply("mov.b64 {{%h40, %h41, %h42, %h43}}, {a}; mov.b16 {d}, %h42", "u2", a), high.astype("u2"))


def test_special_registers() -> None:
    out = np.zeros((2, 3, 4, 64, 6), "u4")
    names = ("%tid.x", "%laneid", "%ctaid.x", "%ctaid.y", "%ctaid.z", "%ntid.x")
    body = """
      mov.u32 %r0, %ctaid.z; mov.u32 %r1, %nctaid.y; mov.u32 %r2, %ctaid.y; mad.lo.s32 %r0, %r0, %r1, %r2;
      mov.u32 %r1, %nctaid.x; mov.u32 %r2, %ctaid.x; mad.lo.s32 %r0, %r0, %r1, %r2;
      mov.u32 %r2, %tid.x; mad.lo.s32 %r0, %r0, 64, %r2; ld.param.b64 %q0, [small_param_0];
      mad.wide.u32 %q0, %r0, 24, %q0;
    """
    body += "".join(f"mov.u32 %r5, {name}; st.global.b32 [%q0+{4 * i}], %r5;" for i, name in enumerate(names))
    launch(body, out, threads=64, grid=(4, 3, 2))
    z, y, x, thread = np.indices((2, 3, 4, 64))
    same(out.reshape(-1), np.stack([thread, thread % 32, x, y, z, 0 * x + 64], -1).astype("u4").reshape(-1))
