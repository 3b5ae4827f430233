"""Which of a chain drafts, by figures to count by hand: ONE is a chance of 1, and the cost of a step."""

from __future__ import annotations

import pytest

from pearl_rt.reference.drafters.chain import LONGEST_STREAK, MOST_WINDOWS, OF_LOOKUP, Chain
from pearl_rt.reference.drafters.lookup import ONE

STREAK = LONGEST_STREAK // OF_LOOKUP  # windows of the lookup
CYCLE = [1, 2, 3, 4, 5] * 4  # the next tokens are sure: a match of 8 and more
ONCE = [9, 1, 7, 8, 9]  # one token agrees: 1, then 7 and 8


def judged(chain: Chain, windows: int, stood: int, length: int = 4) -> list[int]:
    """Tells of so many windows of the model, in each of which `stood` drafts did -> the final tokens."""
    final = [100]
    for _ in range(windows):
        drafts = [(len(final) + place, 200 + place) for place in range(length)]
        chain.model_drafted(drafts, is_final=True)
        final += [token for _, token in drafts[:stood]] + [100]
        chain.window(final, [], 0)
    return final


def test_a_long_match_is_the_lookups_and_a_short_one_the_models() -> None:
    chain = Chain(0, is_free=True)
    assert chain.window(CYCLE, [], 4) == [1, 2, 3, 4]
    assert chain.window(ONCE, [], 4) == [] and chain.lookup.expected > 0


@pytest.mark.parametrize("passes", [0, 1, 2, 4, 9])
def test_what_the_model_costs_is_counted(passes: int) -> None:
    """A weak proposal is taken where the passes cost more than the drafts are worth: 2 by the prior."""
    for cost, taken in ((0.0, False), (0.05, False), (2.0, True)):
        chain = Chain(round(cost * ONE), is_free=True, passes=passes)
        assert bool(chain.window(ONCE, [], 4)) is taken
    # Of 0.4 steps four passes are 1.6, two 0.8 and one 0.4: 1.4 tokens for nothing are worth more, or not.
    found = Chain(round(0.4 * ONE), is_free=True, passes=passes)
    assert bool(found.window(ONCE, [], 4)) is (passes not in (1, 2))
    # A rule is taken to end windows behind the draft that falls: 3 of 15 passes.
    for ends_early, taken in ((False, True), (True, False)):
        found = Chain(round(0.3 * ONE), is_free=True, ends_early=ends_early)
        assert bool(found.window(ONCE, [], 15)) is taken


def test_a_model_that_is_always_right_drafts_on() -> None:
    chain = Chain(0, is_free=True)
    judged(chain, MOST_WINDOWS - 1, 4)
    assert (chain.windows, chain.stood) == (MOST_WINDOWS - 1, 4 * (MOST_WINDOWS - 1))
    assert chain.window(CYCLE, [], 4) == []  # of which less than 4 are expected
    assert Chain(0, is_free=True).window(CYCLE, [], 4)


def test_counts_fade_and_a_model_left_alone_is_tried_again() -> None:
    chain = Chain(round(0.1 * ONE), is_free=True)
    judged(chain, MOST_WINDOWS, 0)
    assert (chain.windows, chain.stood) == (MOST_WINDOWS // 2, 0)
    assert chain.window(ONCE, [], 4)  # the model is worth next to nothing
    before = chain.windows
    for _ in range(STREAK - 1):
        assert chain.windows == before
        assert chain.window(CYCLE, [], 4)
    assert chain.windows == before // 2
    for _ in range(3 * STREAK):
        chain.window(CYCLE, [7], 4)  # behind tokens that may fall nothing is counted
    assert chain.windows == before // 2


def test_drafts_behind_one_that_fell_are_not_counted() -> None:
    chain = Chain(0, is_free=True)
    chain.model_drafted([(1, 5), (2, 6), (3, 7)], is_final=True)
    chain.window([4, 5], [6, 7], 4)  # the first stood, two are pending
    assert (chain.windows, chain.stood) == (1, 1)
    chain.model_drafted([(4, 8), (5, 9)], is_final=False)
    chain.window([4, 5, 1], [], 4)  # the second fell, and the window behind it with it
    assert (chain.windows, chain.stood, chain.model_drafts) == (1, 1, [])


def test_a_proposal_that_was_not_taken_is_learned_from() -> None:
    """As far as the window goes that was drafted instead."""
    chain = Chain(0, is_free=True, windows=50, stood=200)
    assert chain.window(CYCLE, [], 4) == []
    assert chain.window([*CYCLE, 1, 2, 3], [], 4) == []
    assert {key: (rate.stood, rate.judged) for key, rate in chain.lookup.rates.items()} == {
        ("text", 5): (3, 3)
    }
    assert chain.window([*CYCLE, 1, 2, 3, 9], [], 4) == []
    assert (3, 4) in {(rate.stood, rate.judged) for rate in chain.lookup.rates.values()}


def test_words_behind_rejected_drafts_are_read_where_they_cannot_change_the_text() -> None:
    import numpy as np

    rows = [np.eye(6, dtype=np.float32)[3]]
    for is_free in (True, False):
        chain = Chain(0, is_free=is_free)
        chain.told([1, 2], 2, rows)
        assert bool(chain.lookup.words) is is_free
