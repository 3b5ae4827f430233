"""The chance by which windows go on: what is drawn has the law of Beta, and drafts follow it.

Each p-value would raise a false alarm with probability 1e-4, had the seeds not been fixed.
"""

from math import comb

import numpy as np
import pytest
from chi_square import FALSE_ALARM, p_value

from pearl_rt.reference import noise
from pearl_rt.reference.drafters.lookup import Rate
from pearl_rt.reference.noise import Purpose
from pearl_rt.reference.stops import Stop, chance, goes_on_by_chance

RATES = [Rate(0, 0), Rate(1, 1), Rate(0, 7), Rate(5, 7), Rate(20, 43), Rate(63, 63), Rate(0, 63)]
DRAWS, CELLS = 3_000, 8


def below(x: float, rate: Rate) -> float:
    """The share of Beta(1 + stood, 1 + fell) below x: at least 1 + stood of 1 + judged uniforms are."""
    count = rate.judged + 1
    return sum(comb(count, k) * x**k * (1 - x) ** (count - k) for k in range(rate.stood + 1, count + 1))


@pytest.mark.parametrize("rate", RATES, ids=lambda rate: f"{rate.stood}/{rate.judged}")
def test_the_law_of_what_is_drawn(rate: Rate) -> None:
    counts, went_on = np.zeros(CELLS), 0
    for seed in range(DRAWS):
        drawn = chance(noise.words(seed, 9, Purpose.STOP, rate.judged + 2)[1:], rate)
        counts[drawn * CELLS >> 32] += 1
        went_on += goes_on_by_chance(seed, 9, rate)
    edges = np.array([below(edge / CELLS, rate) for edge in range(CELLS + 1)])
    law = np.diff(edges) / edges[-1]
    assert p_value(counts, law * DRAWS) > FALSE_ALARM
    share = (rate.stood + 1) / (rate.judged + 2)  # what Beta expects
    assert p_value([went_on, DRAWS - went_on], np.array([share, 1 - share]) * DRAWS) > FALSE_ALARM


def test_a_wrong_law_would_be_seen() -> None:
    """One draft more that fell, of a few."""
    counts = np.zeros(CELLS)
    for seed in range(DRAWS):
        words = noise.words(seed, 9, Purpose.STOP, 9)
        counts[chance(words[1:], Rate(5, 7)) * CELLS >> 32] += 1
    law = np.diff([below(edge / CELLS, Rate(5, 8)) for edge in range(CELLS + 1)])
    assert p_value(counts, law * DRAWS) < FALSE_ALARM


def window(stop: Stop, at: int, most: int) -> int:
    """Tokens of a window that begins at a position."""
    count = 0
    row = np.zeros(4, np.float32)
    while count < most and stop.goes_on() and stop.takes(row, []):
        stop.add(at + count, 1)
        count += 1
    return count


def test_windows_follow_what_stood() -> None:
    """The first token is always drafted. Windows grow while drafts stand, and then shrink."""
    lengths: dict[bool, list[int]] = {}
    for stands in (True, False):
        stop = Stop("thompson", 0.0, 1.0, lambda row, prefix: row, seed=5)
        tokens = [1 if stands else 2] * 4
        for _ in range(40):
            stop.begin(tokens, 0)
            lengths.setdefault(stands, []).append(count := window(stop, len(tokens), 8))
            tokens += [1] * (count + 1) if stands else [2]
    assert min(lengths[True] + lengths[False]) == 1
    assert np.mean(lengths[True][20:]) > 5 and np.mean(lengths[False][20:]) < 1.5
