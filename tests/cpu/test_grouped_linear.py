"""The linear layer over weights of 8 and 4 bits: its definition, bit for bit, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pearl_rt import _C, _testing
from pearl_rt.backends.cpu import view_of
from pearl_rt.errors import CheckpointError
from pearl_rt.reference.groups import Groups, linear

ISAS = [*_C.available_isas(), "amx_emulated"]
SIZES = [(1, 1), (16, 32), (17, 33), (40, 64), (70, 130), (131, 200)]
SIZE_IDS = [f"{n}x{k}" for n, k in SIZES]


def floats(n: int, k: int, seed: int = 0) -> np.ndarray:
    """bf16 values, so that both dtypes hold the same rows."""
    values = np.random.default_rng(seed).standard_normal((n, k), np.float32)
    return torch.from_numpy(values).bfloat16().float().numpy()


def random_groups(n: int, k: int, form: str, seed: int = 0) -> Groups:
    """Codes of the whole range, and scales of every size, subnormal ones too."""
    rng = np.random.default_rng(seed)
    bits, group, has_minimums = int(form[0]), int(form[2:4]), "min" in form
    shape = n, -(-k // group)
    scales = (rng.standard_normal(shape) * 2.0 ** rng.integers(-24, 4, shape)).astype(np.float16)
    minimums = rng.standard_normal(shape).astype(np.float16) if has_minimums else None
    codes = rng.integers(-128, 128, (n, k)).astype(np.int8)
    return Groups(codes if bits == 8 else (codes & 15).astype(np.uint8), scales, minimums, group)


FORMS = ["8-32", "8-16", "8-32-min", "8-16-min", "4-32-min", "4-32"]


def computed(x: np.ndarray, parts: list[Groups], isa: str, dtype: str = "bfloat16") -> np.ndarray:
    return _testing.grouped_linear(x, [view_of(part) for part in parts], isa, dtype)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("isa", ISAS)
def test_bits_are_those_of_the_definition(isa: str, form: str) -> None:
    """For each number of rows; and a row has the same bits alone as among others."""
    for n, k in SIZES:
        weight, x = random_groups(n, k, form), floats(17, k, 1)
        expected = linear(x, weight)
        for rows in (*range(1, 10), 16, 17):
            for dtype in ("bfloat16", "float32"):
                assert same_bits(computed(x[:rows], [weight], isa, dtype), expected[:rows]), (n, k, rows)
        assert same_bits(computed(x[5:6], [weight], isa), expected[5:6])


@pytest.mark.parametrize("isa", ISAS)
def test_largest_codes_do_not_saturate(isa: str) -> None:
    x = np.full((3, 96), 1.0, np.float32)
    x[1:] *= -1
    x[2, ::2] *= -1
    for code in (-128, 127):
        groups = Groups(np.full((16, 96), code, np.int8), np.ones((16, 3), np.float16))
        assert same_bits(computed(x, [groups], isa), linear(x, groups))
    halves = Groups(np.full((16, 96), 15, np.uint8), *[np.ones((16, 3), np.float16)] * 2)
    assert same_bits(computed(x, [halves], isa), linear(x, halves))


@pytest.mark.parametrize("isa", ISAS)
def test_nan_and_infinity_stay_in_their_row(isa: str) -> None:
    x = floats(9, 70, 3)
    clean = computed(x, [random_groups(20, 70, "4-32-min")], isa)
    x[2, 69], x[7, 0] = np.nan, np.inf
    spoilt = computed(x, [random_groups(20, 70, "4-32-min")], isa)
    assert np.isnan(spoilt[[2, 7]]).all()
    assert same_bits(np.delete(spoilt, [2, 7], 0), np.delete(clean, [2, 7], 0))


@pytest.mark.parametrize("forms", [("8-32", "4-32-min"), ("8-16", "4-32-min", "8-32"), ("4-32", "8-32-min")])
@pytest.mark.parametrize("isa", ISAS)
def test_parts_of_several_forms_are_one_matrix(isa: str, forms: tuple[str, ...]) -> None:
    """Their values stay what they are: a wider form holds all of a narrower one."""
    parts = [random_groups(n, 130, form, n) for n, form in zip((20, 16, 9), forms, strict=False)]
    x = floats(3, 130)
    values = np.concatenate([part.dequantize() for part in parts])
    exact = x.astype(np.float64) @ values.astype(np.float64).T
    bound = np.abs(x).max() / 127 * 0.51 * np.abs(values).sum(-1) + 1e-4
    assert (np.abs(computed(x, parts, isa) - exact) <= bound).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("n", "k"), SIZES, ids=SIZE_IDS)
def test_packing_keeps_values(n: int, k: int, form: str) -> None:
    groups = random_groups(n, k, form)
    assert np.array_equal(_testing.unpacked(view_of(groups), k), groups.dequantize())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("n", "k"), SIZES, ids=SIZE_IDS)
def test_rounding_is_the_definition_bit_for_bit(n: int, k: int, bits: int) -> None:
    x = floats(n, k) * 2.0 ** np.random.default_rng(4).integers(-30, 10, (n, k))
    x = x.astype(np.float32)
    x[0] = 0
    source = view_of(torch.from_numpy(x))
    assert np.array_equal(_testing.unpacked(source, k, bits), Groups.quantize(x, bits).dequantize())


def test_wider_codes_are_rounded_and_narrower_ones_stay() -> None:
    wide, narrow = random_groups(20, 64, "8-32"), random_groups(20, 64, "4-32-min")
    rounded = Groups.quantize(wide.dequantize(), 4).dequantize()
    assert same_bits(_testing.unpacked(view_of(wide), 64, 4), rounded)
    assert np.array_equal(_testing.unpacked(view_of(narrow), 64, 8), narrow.dequantize())


@pytest.mark.parametrize("value", [np.nan, -np.inf, 3e38])
def test_weights_without_a_code_are_refused_by_name(value: float) -> None:
    x = floats(20, 64)
    x[19, 63] = value
    with pytest.raises(CheckpointError, match=r"tensor 'weight' has weights that are NaN.*weights='auto'"):
        _testing.unpacked(view_of(torch.from_numpy(x)), 64, 8)


def test_memory_that_does_not_fit_its_shape_is_refused() -> None:
    codes, scales, minimums, bits, group, shape = view_of(random_groups(4, 64, "4-32-min"))
    for source, words in (
        ((codes[:3], scales, minimums, bits, group, shape), "codes of tensor 'weight' have 192 bytes"),
        ((codes, scales[:3], minimums, bits, group, shape), "scales of tensor 'weight' have 12 bytes"),
        ((codes, scales, minimums[:3], bits, group, shape), "minimums of tensor 'weight' have 12 bytes"),
        ((codes, scales, minimums, 5, group, shape), "has 5 bits in groups of 32"),
        ((codes, scales, minimums, 4, 16, shape), "has 4 bits in groups of 16"),
    ):
        with pytest.raises(ValueError, match=words):
            _testing.unpacked(source, 64)
