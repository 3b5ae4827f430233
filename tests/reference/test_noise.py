"""Philox, uniforms, logs and exponentials: published vectors, C++ against numpy bit for bit, and accuracy."""

import numpy as np
import pytest
from chi_square import FALSE_ALARM, p_value

from pearl_rt import _testing
from pearl_rt.reference import noise
from pearl_rt.reference.noise import Purpose

# Random123's kat_vectors for philox4x32, 10 rounds: counter, key, output.
KNOWN = {
    "zeros": ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    "ones": (
        [0xFFFFFFFF] * 4,
        [0xFFFFFFFF] * 2,
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
    ),
    "pi": (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
}

EDGE_WORDS = np.unique(
    np.concatenate(
        [
            np.arange(300, dtype=np.uint32),
            np.arange(2**32 - 600, 2**32, dtype=np.uint64).astype(np.uint32),
            np.array([max(0, 2**k + d) for k in range(32) for d in (-2, -1, 0, 1, 2)], dtype=np.uint32),
        ]
    )
)
WORDS = np.concatenate([EDGE_WORDS, np.random.default_rng(1).integers(0, 2**32, 300_000, dtype=np.uint32)])


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    assert a.dtype == b.dtype == np.float32
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


def ulps(got: np.ndarray, want: np.ndarray) -> float:
    """The largest distance from a float64 truth, in units of the fp32 spacing there."""
    return float(np.max(np.abs(got.astype(np.float64) - want) / np.spacing(np.abs(want).astype(np.float32))))


@pytest.mark.parametrize("name", KNOWN)
def test_philox_known_answers(name: str) -> None:
    counter, key, want = KNOWN[name]
    assert noise.philox4x32_10([counter], (key[0], key[1]))[0].tolist() == want
    assert list(_testing.philox_block(counter, key)) == want


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1, 0x0123456789ABCDEF], ids=hex)
@pytest.mark.parametrize("position", [0, 1, 2**31, 2**32 + 5, 2**62])
def test_words_are_philox_at_their_place(seed: int, position: int) -> None:
    for purpose in Purpose:
        got = _testing.philox(seed, position, purpose, 13)
        assert np.array_equal(got, noise.words(seed, position, purpose, 13))
        counter = [2, position & 0xFFFFFFFF, position >> 32, purpose]
        block = _testing.philox_block(counter, [seed & 0xFFFFFFFF, seed >> 32])
        assert got[8:12].tolist() == list(block)


def test_no_two_places_share_a_word() -> None:
    """Seeds, positions, purposes and indices: 4 * 6 * 5 * 64 words, none twice.

    Independent words would collide with probability 7e-3; the seeds are fixed."""
    places = [(s, t, p) for s in (0, 1, 2**32, 7) for t in range(6) for p in Purpose]
    words = np.concatenate([_testing.philox(s, t, p, 64) for s, t, p in places])
    assert len(np.unique(words)) == len(words)


def test_uniform_is_the_stated_rounding() -> None:
    got = _testing.uniform(WORDS)
    exact = (WORDS.astype(np.float64) + 0.5) / 2.0**32
    assert same_bits(got, exact.astype(np.float32))
    assert same_bits(got, noise.uniform(WORDS))
    assert got.min() == np.float32(2.0**-33) and got.max() == 1.0


@pytest.mark.filterwarnings("error")
def test_variates_match_numpy_bit_for_bit() -> None:
    u = noise.uniform(WORDS)
    assert same_bits(_testing.exponential(u), noise.exponential(u))
    assert same_bits(_testing.gumbel(WORDS), noise.gumbel(u))
    x = np.concatenate(
        [np.abs(np.random.default_rng(2).normal(0, 1e3, 100_000)) + 1e-30, [np.inf, 1e-37, 3e38]]
    )
    assert same_bits(_testing.log(x.astype(np.float32)), noise.log(x.astype(np.float32)))
    z = -np.concatenate(
        [np.random.default_rng(3).exponential(20, 100_000), [0, 86.999, 87, 87.001, 1e30, np.inf]]
    )
    assert same_bits(_testing.exp(z.astype(np.float32)), noise.exp(z.astype(np.float32)))


def test_exponential_is_accurate() -> None:
    u = np.unique(_testing.uniform(WORDS))
    u = u[u < 1]
    assert ulps(_testing.exponential(u), -np.log1p(-u.astype(np.float64))) <= 2


def test_log_is_accurate() -> None:
    x = np.concatenate([np.geomspace(1.2e-38, 3e38, 200_000), np.linspace(0.5, 2, 200_000)]).astype(
        np.float32
    )
    x = x[x != 1]
    assert ulps(_testing.log(x), np.log(x.astype(np.float64))) <= 2
    assert _testing.log(np.ones(1, np.float32))[0] == 0


def test_exp_is_accurate() -> None:
    x = -np.concatenate([np.linspace(0, 87, 300_000), np.geomspace(1e-30, 1, 100_000)]).astype(np.float32)
    assert ulps(_testing.exp(x), np.exp(x.astype(np.float64))) <= 2


def test_ends() -> None:
    """Noise is finite, or -inf at u = 1; a weight is 0 below e^-87; nothing is NaN or +inf."""
    gumbel = _testing.gumbel(WORDS)
    at_one = _testing.uniform(WORDS) == 1
    assert at_one.any() and np.all(gumbel[at_one] == -np.inf)
    assert np.all(np.isfinite(gumbel[~at_one]))
    assert (
        gumbel.max() == gumbel[WORDS == 0][0] and 22.8 < gumbel.max() < 22.9 and gumbel[~at_one].min() > -2.9
    )
    assert np.isinf(_testing.exponential(np.ones(1, np.float32))[0])
    assert _testing.exp(np.array([0, -87.1, -np.inf], np.float32)).tolist() == [1, 0, 0]


def test_gumbel_is_monotonic_and_bounded() -> None:
    """Larger words never have larger noise (to rounding), and the bound that lets blocks be skipped holds."""
    words = np.unique(WORDS)
    gumbel = _testing.gumbel(words)
    assert np.all(np.diff(gumbel[np.isfinite(gumbel)].astype(np.float64)) <= 2e-6)
    assert np.all(_testing.gumbel_bound(words) >= gumbel)


def test_gumbel_has_its_law() -> None:
    """100 equally likely bins, 300,000 draws."""
    words = _testing.philox(5, 17, Purpose.TARGET, 300_000)
    edges = -np.log(-np.log(np.arange(1, 100) / 100))
    counts = np.bincount(np.searchsorted(edges, _testing.gumbel(words)), minlength=100)
    assert p_value(counts, np.full(100, 3000)) > FALSE_ALARM
