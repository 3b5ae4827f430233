"""Groups of codes: values, rounding, and the linear layer of the definition against plain arithmetic."""

import numpy as np
import pytest

from pearl_rt.errors import CheckpointError
from pearl_rt.reference.groups import Groups, linear, quantize_rows

SIZES = [(1, 1), (3, 31), (16, 32), (5, 33), (17, 96), (2, 200)]
IDS = [f"{n}x{k}" for n, k in SIZES]


def matrix(n: int, k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, k), np.float32)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("n", "k"), SIZES, ids=IDS)
def test_rounding_is_to_the_nearest_code(n: int, k: int, bits: int) -> None:
    """No value is further from its own than half a step, but for what fp16 takes of scale and minimum."""
    x = matrix(n, k)
    groups = Groups.quantize(x, bits)
    assert (groups.shape, groups.bits) == ((n, k), bits)
    step = np.repeat(groups.scales.astype(np.float32), 32, axis=1)[:, :k]
    most = 127 if bits == 8 else 15
    slack = step * most * 2.0**-10 + (0 if bits == 8 else np.abs(x).max() * 2.0**-10)
    assert (np.abs(groups.dequantize() - x) <= step / 2 + slack).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_values_of_codes_round_to_themselves(bits: int) -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(-127, 128, (4, 64)).astype(np.int8)
    codes[:, ::32] = 127
    if bits == 4:
        codes = rng.integers(0, 16, (4, 64)).astype(np.uint8)
        codes[:, ::32], codes[:, 1::32] = 0, 15
    scales = (2.0 ** rng.integers(-3, 3, (4, 2))).astype(np.float16)
    minimums = None if bits == 8 else rng.integers(-8, 1, (4, 2)).astype(np.float16)
    groups = Groups(codes, scales, minimums)
    again = Groups.quantize(groups.dequantize(), bits)
    assert np.array_equal(again.codes, codes) and np.array_equal(again.scales, scales)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [0.0, -3.0, 1e-9])
def test_a_group_of_one_value(bits: int, value: float) -> None:
    x = np.full((2, 40), value, np.float32)
    assert np.abs(Groups.quantize(x, bits).dequantize() - x).max() <= abs(value) * 2.0**-10 + 2e-9


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_has_no_code_is_refused(bits: int, value: float) -> None:
    x = matrix(2, 40)
    x[1, 35] = value
    with pytest.raises(CheckpointError, match=f"cannot have {bits} bits"):
        Groups.quantize(x, bits)


def test_wide_groups_repeat_their_scale() -> None:
    codes, scales = np.ones((2, 160), np.uint8), np.array([[1, 2], [3, 4]], np.float32)
    groups = Groups.with_wide_groups(codes, scales, -8 * scales, 128)
    assert groups.scales.tolist() == [[1, 1, 1, 1, 2], [3, 3, 3, 3, 4]]
    assert groups.dequantize()[1, [127, 128]].tolist() == [3 - 24, 4 - 32]
    with pytest.raises(CheckpointError, match="group 48"):
        Groups.with_wide_groups(codes, scales, None, 48)


SCALES = np.ones((2, 2), np.float16)
CODES = np.zeros((2, 64), np.int8)


@pytest.mark.parametrize(
    ("codes", "scales", "minimums", "group", "words"),
    [
        (CODES.astype(np.int16), SCALES, None, 32, "codes are int16"),
        (CODES[0], SCALES, None, 32, r"codes are int8 \[64\]"),
        (CODES, SCALES[:, :1], None, 32, r"scales are float16 \[2, 1\].* \[2, 2\]"),
        (CODES, SCALES.astype(np.float32), None, 32, "scales are float32"),
        (CODES, SCALES, SCALES[:1], 32, r"minimums are float16 \[1, 2\]"),
        (CODES, SCALES, None, 64, "group 64 of 8 bits"),
        (CODES.astype(np.uint8), SCALES, None, 16, "group 16 of 4 bits"),
        (CODES.astype(np.uint8) + 16, SCALES, None, 32, "a code of 4 bits is 16"),
        (CODES, SCALES * np.float16(np.nan), None, 32, "scales have NaN"),
        (CODES, SCALES, SCALES * np.float16(np.inf), 32, "minimums have NaN or infinite"),
    ],
)
def test_arrays_that_are_no_matrix_are_refused(
    codes: np.ndarray, scales: np.ndarray, minimums: np.ndarray | None, group: int, words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        Groups(codes, scales, minimums, group)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("n", "k"), SIZES, ids=IDS)
def test_linear_is_near_the_dequantised_product(n: int, k: int, bits: int) -> None:
    """Activations have 8 bits: each is off by half a step at most."""
    x, groups = matrix(3, k, 1), Groups.quantize(matrix(n, k), bits)
    exact = x.astype(np.float64) @ groups.dequantize().astype(np.float64).T
    step = np.abs(x).max() / 127
    bound = step * 0.51 * np.abs(groups.dequantize()).sum(-1) + 1e-5
    assert (np.abs(linear(x, groups) - exact) <= bound).all()


def test_activations_that_are_nan_or_infinite_or_zero() -> None:
    x = matrix(4, 70)
    x[0, 3], x[1, 40], x[2] = np.nan, -np.inf, 0
    codes, scales = quantize_rows(x, 32)
    assert np.isnan(scales).tolist() == [[True, False, False], [False, True, False], *[[False] * 3] * 2]
    assert not codes[0, 0].any() and not codes[2].any() and codes[3, 0].any()
    y = linear(x, Groups.quantize(matrix(5, 70, 1), 4))
    assert np.isnan(y[:2]).all() and not y[2].any() and np.isfinite(y[3]).all()
