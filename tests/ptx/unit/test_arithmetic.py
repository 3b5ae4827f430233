"""Integers and floating point: each opcode against numpy, on extremes and on random values."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from ptx.unit.small import apply, floats, integers, same

Values = np.ndarray
KINDS = {"s16": "i2", "u16": "u2", "s32": "i4", "u32": "u4", "s64": "i8", "u64": "u8"}
BITWISE = {"b16": "u2", "b32": "u4", "b64": "u8"}


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with np.errstate(all="ignore"):
        yield


def exactly(f: Callable[..., int], kind: str, *inputs: Values) -> Values:
    """f on Python's integers, cut to the bits of the dtype."""
    bits = np.iinfo(kind).bits
    cut = [f(*(int(v) for v in values)) & ((1 << bits) - 1) for values in zip(*inputs, strict=True)]
    return np.array(cut, f"u{bits // 8}").view(kind)


def divided(a: int, b: int) -> int:
    """Towards zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


WHOLE: dict[str, Callable[..., int]] = {
    "add.{t} {d}, {a}, {b}": lambda a, b: a + b,
    "sub.{t} {d}, {a}, {b}": lambda a, b: a - b,
    "mul.lo.{t} {d}, {a}, {b}": lambda a, b: a * b,
    "mad.lo.{t} {d}, {a}, {b}, {c}": lambda a, b, c: a * b + c,
    "min.{t} {d}, {a}, {b}": min,
    "max.{t} {d}, {a}, {b}": max,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("instruction", WHOLE)
def test_whole_numbers(instruction: str, kind: str) -> None:
    f, dtype = WHOLE[instruction], KINDS[kind]
    inputs = [
        integers(dtype, seed) for seed in range(f.__code__.co_argcount if hasattr(f, "__code__") else 2)
    ]
    found = apply(instruction.replace("{t}", kind), dtype, *inputs)
    same(found, exactly(f, dtype, *inputs))


@pytest.mark.parametrize("kind", KINDS)
def test_high_halves_and_wide_products(kind: str) -> None:
    dtype, a, b = KINDS[kind], integers(KINDS[kind], 1), integers(KINDS[kind], 2)
    bits = np.iinfo(dtype).bits
    same(
        apply(f"mul.hi.{kind} {{d}}, {{a}}, {{b}}", dtype, a, b),
        exactly(lambda a, b: a * b >> bits, dtype, a, b),
    )
    if bits < 64:
        wide = f"{dtype[0]}{bits // 4}"
        c = integers(wide, 3)[: len(a)]
        found = apply(f"mul.wide.{kind} {{d}}, {{a}}, {{b}}", wide, a, b)
        same(found, exactly(lambda a, b: a * b, wide, a, b))
        found = apply(f"mad.wide.{kind} {{d}}, {{a}}, {{b}}, {{c}}", wide, a[: len(c)], b[: len(c)], c)
        same(found, exactly(lambda a, b, c: a * b + c, wide, a[: len(c)], b[: len(c)], c))


@pytest.mark.parametrize("kind", KINDS)
def test_division_is_towards_zero(kind: str) -> None:
    dtype = KINDS[kind]
    a, b = integers(dtype, 1), integers(dtype, 2)
    b[b == 0] = 3
    same(apply(f"div.{kind} {{d}}, {{a}}, {{b}}", dtype, a, b), exactly(divided, dtype, a, b))
    remainder = exactly(lambda a, b: a - divided(a, b) * b, dtype, a, b)
    same(apply(f"rem.{kind} {{d}}, {{a}}, {{b}}", dtype, a, b), remainder)


@pytest.mark.parametrize("kind", ["s16", "s32", "s64"])
def test_signs(kind: str) -> None:
    dtype, a = KINDS[kind], integers(KINDS[kind])
    same(apply(f"neg.{kind} {{d}}, {{a}}", dtype, a), -a)
    same(apply(f"abs.{kind} {{d}}, {{a}}", dtype, a), np.abs(a))
    b = integers(dtype, 1)
    found = apply(f"min.relu.{kind} {{d}}, {{a}}, {{b}}", dtype, a, b)
    same(found, np.maximum(np.minimum(a, b), 0).astype(dtype))


@pytest.mark.parametrize("kind", BITWISE)
def test_bits(kind: str) -> None:
    dtype, a, b = BITWISE[kind], integers(BITWISE[kind], 1), integers(BITWISE[kind], 2)
    same(apply(f"and.{kind} {{d}}, {{a}}, {{b}}", dtype, a, b), a & b)
    same(apply(f"or.{kind} {{d}}, {{a}}, {{b}}", dtype, a, b), a | b)
    same(apply(f"xor.{kind} {{d}}, {{a}}, {{b}}", dtype, a, b), a ^ b)
    same(apply(f"not.{kind} {{d}}, {{a}}", dtype, a), ~a)


@pytest.mark.parametrize(("kind", "dtype"), [*BITWISE.items(), *KINDS.items()])
def test_shifts_by_more_than_there_are_bits(kind: str, dtype: str) -> None:
    a, by = integers(dtype, 1), integers("u4", 2)[: len(integers(dtype, 1))]
    a = a[: len(by)]
    by[::2] %= 80
    bits = np.iinfo(dtype).bits
    if kind in BITWISE:
        found = apply(f"shl.{kind} {{d}}, {{a}}, {{b}}", dtype, a, by)
        same(found, exactly(lambda a, by: a << min(by, bits), dtype, a, by))
    found = apply(f"shr.{kind} {{d}}, {{a}}, {{b}}", dtype, a, by)
    same(found, exactly(lambda a, by: a >> min(by, bits), dtype, a, by))


def test_counts_fields_and_bytes() -> None:
    a, b = integers("u4", 1), integers("u4", 2)
    same(apply("popc.b32 {d}, {a}", "u4", a), exactly(lambda a: a.bit_count(), "u4", a))
    same(apply("clz.b32 {d}, {a}", "u4", a), exactly(lambda a: 32 - a.bit_length(), "u4", a))
    for start, length in ((0, 8), (4, 14), (31, 1), (20, 40), (40, 3), (5, 0)):
        mask = (1 << length) - 1
        found = apply(f"bfe.u32 {{d}}, {{a}}, {start}, {length}", "u4", a)
        same(found, exactly(lambda a, s=start, m=mask: a >> s & m, "u4", a))
        signed = apply(f"bfe.s32 {{d}}, {{a}}, {start}, {length}", "i4", a.view("i4"))
        width = min(length, max(32 - start, 0))
        field = exactly(lambda a, s=start, m=(1 << width) - 1: a >> s & m, "u4", a).astype("i8")
        sign_at = min(start + length - 1, 31)
        negative = (a >> np.uint32(sign_at) & 1).astype(bool) & (length > 0)
        same(signed, np.where(negative, field - (1 << width), field).astype("i4"))
    words = [x | y << 32 for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    for selector in (0x5410, 0x7632, 0x3210, 0x0123, 0x8C4F):

        def byte(word: int, i: int, selector: int = selector) -> int:
            choice = selector >> 4 * i & 15
            value = word >> 8 * (choice & 7) & 255
            return (255 if value & 128 else 0) if choice & 8 else value

        expected = np.array([sum(byte(w, i) << 8 * i for i in range(4)) for w in words], "u4")
        same(apply(f"prmt.b32 {{d}}, {{a}}, {{b}}, {selector}", "u4", a, b), expected)
    same(apply("lop3.b32 {d}, {a}, {b}, {c}, 0x96", "u4", a, b, a[::-1].copy()), a ^ b ^ a[::-1])


@pytest.mark.parametrize(("kind", "dtype"), [("f32", "f4"), ("f64", "f8")])
def test_floats_are_rounded_to_nearest(kind: str, dtype: str) -> None:
    a, b = floats(dtype, 1), floats(dtype, 2)
    same(apply(f"add.rn.{kind} {{d}}, {{a}}, {{b}}", dtype, a, b), a + b)
    same(apply(f"sub.rn.{kind} {{d}}, {{a}}, {{b}}", dtype, a, b), a - b)
    same(apply(f"mul.rn.{kind} {{d}}, {{a}}, {{b}}", dtype, a, b), a * b)
    same(apply(f"div.rn.{kind} {{d}}, {{a}}, {{b}}", dtype, a, b), a / b)
    same(apply(f"sqrt.rn.{kind} {{d}}, {{a}}", dtype, a), np.sqrt(a))
    same(apply(f"rcp.rn.{kind} {{d}}, {{a}}", dtype, a), np.array(1, dtype) / a)
    same(apply(f"neg.{kind} {{d}}, {{a}}", dtype, a), -a)
    same(apply(f"abs.{kind} {{d}}, {{a}}", dtype, a), np.abs(a))


def test_fma_rounds_once() -> None:
    a, b, c = (floats("f4", seed) for seed in (1, 2, 3))
    near = np.float32(1) + np.float32(2**-12)
    a[:40], b[:40], c[:40] = near, near, -(near * near)  # the product's own rounding is all that is left
    exact = a.astype(np.longdouble) * b.astype(np.longdouble) + c.astype(np.longdouble)
    found = apply("fma.rn.f32 {d}, {a}, {b}, {c}", "f4", a, b, c)
    assert (found[:40] == np.float32(2.0**-24)).all()
    same(found, exact.astype("f4"))
    x, y = np.full(32, 1 + 2**-30, "f8"), np.full(32, 1 - 2**-30, "f8")
    found = apply("fma.rn.f64 {d}, {a}, {b}, {c}", "f8", x, y, np.full(32, -1.0))
    assert (found == -(2.0**-60)).all()


@pytest.mark.parametrize(("kind", "dtype"), [("f32", "f4"), ("f64", "f8")])
def test_minima_prefer_numbers_to_nan(kind: str, dtype: str) -> None:
    a, b = floats(dtype, 1), floats(dtype, 2)
    a[:4], b[:4] = [0.0, -0.0, np.nan, np.nan], [-0.0, 0.0, np.nan, 1.0]
    order = np.where(np.signbit(a), -1, 1) < np.where(np.signbit(b), -1, 1)  # decides between zeros
    low = np.where((a == b) & (a == 0), np.where(order, a, b), np.fmin(a, b))
    high = np.where((a == b) & (a == 0), np.where(order, b, a), np.fmax(a, b))
    same(apply(f"min.{kind} {{d}}, {{a}}, {{b}}", dtype, a, b), low)
    same(apply(f"max.{kind} {{d}}, {{a}}, {{b}}", dtype, a, b), high)
    if kind == "f32":
        has_nan = np.isnan(a) | np.isnan(b)
        same(apply("max.NaN.f32 {d}, {a}, {b}", dtype, a, b), np.where(has_nan, np.float32("nan"), high))


def test_denormals_are_flushed_where_it_is_asked() -> None:
    tiny = np.array([1e-40, -1e-40, 2e-38, 1.0] * 8, "f4")
    found = apply("mul.rn.ftz.f32 {d}, {a}, {b}", "f4", tiny, np.full(32, 2.0, "f4"))
    same(found[:4], np.array([0.0, -0.0, 4e-38, 2.0], "f4"))
    same(apply("mul.rn.f32 {d}, {a}, {b}", "f4", tiny, np.full(32, 2.0, "f4")), tiny * 2)
    same(apply("add.ftz.f32 {d}, {a}, {b}", "f4", tiny, tiny)[:2], np.array([0.0, -0.0], "f4"))


@pytest.mark.parametrize(
    ("instruction", "exact"),
    [
        ("ex2.approx.f32", np.exp2),
        ("lg2.approx.f32", np.log2),
        ("rsqrt.approx.f32", lambda x: 1 / np.sqrt(x)),
        ("sqrt.approx.f32", np.sqrt),
        ("rcp.approx.f32", lambda x: 1 / x),
        ("sin.approx.f32", np.sin),
        ("cos.approx.f32", np.cos),
        ("tanh.approx.f32", np.tanh),
    ],
)
def test_approximations_are_as_near_as_can_be(instruction: str, exact: Callable[[Values], Values]) -> None:
    a = floats("f4")
    found, expected = apply(f"{instruction} {{d}}, {{a}}", "f4", a), exact(a.astype("f8")).astype("f4")
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    known = ~np.isnan(found)
    np.testing.assert_array_max_ulp(found[known], expected[known], 1)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_fused_halves_are_rounded_once(kind: str) -> None:
    """Against exact fractions. The last lie between two numbers, or beside that by less than fp64 shows."""
    bits = np.random.default_rng(4).integers(0, 2**16, (3, 1000), dtype="u2")
    wide = (lambda x: x.view("f2")) if kind == "f16" else (lambda x: (x.astype("u4") << 16).view("f4"))
    one, step, three, half = (
        (0x3C00, 0x3C01, 0x4200, 0x1000) if kind == "f16" else (0x3F80, 0x3F81, 0x4040, 0x3B80)
    )
    bits[:, -3:] = np.array([[step, three, 0x0001], [step, three, 0x8001], [half, one, one]]).T
    a, b, c = bits
    x, y, z = (wide(v).astype("f8") for v in bits)
    finite = np.isfinite(x) & np.isfinite(y) & np.isfinite(z)
    spacing = 10 if kind == "f16" else 7
    least = -24 if kind == "f16" else -133
    largest = 65504.0 if kind == "f16" else float(np.uint32(0x7F7F0000).view("f4"))

    def nearest(exact: Fraction) -> float:
        if exact == 0:
            return 0.0
        place = max(math.frexp(float(abs(exact)))[1] - 1 - spacing, least)
        if abs(exact) < Fraction(2) ** (place + spacing) and place > least:
            place -= 1  # float() rounded up to a power of two
        value = round(exact / Fraction(2) ** place) * Fraction(2) ** place
        return float(value) if abs(value) <= largest else math.copysign(math.inf, value)

    found = apply(f"fma.rn.{kind} {{d}}, {{a}}, {{b}}, {{c}}", "u2", a, b, c)
    exact = zip(*((Fraction(i) for i in v[finite]) for v in (x, y, z)), strict=True)
    expected = [nearest(i * j + k) for i, j, k in exact]
    assert wide(found[finite]).astype("f8").tolist() == expected
    pairs = [v[:500].astype("u4") | v[500:].astype("u4") << 16 for v in bits]
    two = apply(f"fma.rn.{kind}x2 {{d}}, {{a}}, {{b}}, {{c}}", "u4", *pairs)
    same(np.concatenate([two & 0xFFFF, two >> 16]).astype("u2"), found)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_halves(kind: str) -> None:
    bits = np.random.default_rng(1).integers(0, 2**16, (2, 2000), dtype="u2")
    value = (
        (lambda x: x.view("f2").astype("f4"))
        if kind == "f16"
        else (lambda x: (x.astype("u4") << 16).view("f4"))
    )
    a, b = bits
    for name, f in (("add", np.add), ("sub", np.subtract), ("mul", np.multiply), ("max", np.fmax)):
        exact = f(value(a), value(b))
        expected = rounded(exact, kind)
        found = apply(f"{name}.{kind} {{d}}, {{a}}, {{b}}", "u2", a, b)
        plain = ~np.isnan(exact) & (exact != 0)
        same(found[plain], expected[plain])
        assert np.isnan(value(found[np.isnan(exact)])).all()
        pairs = (
            a[:1000].astype("u4") | a[1000:].astype("u4") << 16,
            b[:1000].astype("u4") | b[1000:].astype("u4") << 16,
        )
        two = apply(f"{name}.{kind}x2 {{d}}, {{a}}, {{b}}", "u4", *pairs)
        same(np.concatenate([two & 0xFFFF, two >> 16]).astype("u2"), found)


def rounded(exact: Values, kind: str) -> Values:
    """fp32 to nearest of the type, as bits."""
    if kind == "f16":
        return exact.astype("f2").view("u2")
    bits = exact.view("u4").astype("u8")
    return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype("u2")


def test_nan_has_one_form() -> None:
    nan = np.full(32, np.uint32(0xFFC12345), "u4")
    assert (apply("add.rn.f32 {d}, {a}, {a}", "u4", nan) == 0x7FFFFFFF).all()
    assert math.isnan(nan.view("f4")[0])
