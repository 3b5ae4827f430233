"""Candidates for one place: C++ against numpy bit for bit, the law of what is drawn and chosen, and what
cannot be used.
"""

import itertools
from typing import Any

import numpy as np
import pytest
from chi_square import FALSE_ALARM, p_value
from logit_rows import SHAPES, row_of

from pearl_rt import _testing
from pearl_rt.reference.candidates import Choice, choose, draw
from pearl_rt.reference.judge import judge, sample
from pearl_rt.reference.noise import Purpose
from pearl_rt.strategy.program import JUDGES as KINDS

VOCABS = (1, 2, 7, 63, 255, 256, 257, 1000, 4099)
TEMPERATURES = (0.0, 1e-5, 0.3, 1.0, 7.0, 1e5)


def native(target: np.ndarray, draft: np.ndarray, ids: list[int], *rest: Any) -> Choice:
    return Choice(*_testing.choose_candidate(target, draft, list(ids), *rest))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_draws_match_numpy(shape: str, temperature: float) -> None:
    rng = np.random.default_rng([SHAPES.index(shape), TEMPERATURES.index(temperature)])
    for vocab, count in itertools.product(VOCABS, (1, 3, 8)):
        row = row_of(shape, vocab, rng)
        asked = (row, temperature, 77, int(rng.integers(2**40)), Purpose.DRAFT)
        ids = _testing.draw_candidates(*asked, count)
        assert ids == draw(*asked, count), (vocab, count)
        assert ids[0] == sample(*asked) and len(set(ids)) == len(ids) <= count
        assert all(0 <= token < vocab and row[token] > -np.inf for token in ids)


@pytest.mark.parametrize("kind", KINDS)
def test_choices_match_numpy(kind: str) -> None:
    """Drafts that are equal, near and far; all shapes of logits, temperatures and numbers of candidates."""
    rng = np.random.default_rng(KINDS.index(kind))
    seen: set[int] = set()
    for trial in range(400):
        vocab, count = int(rng.choice(VOCABS[:-1])), int(rng.integers(1, 9))
        shape, temperature = str(rng.choice(SHAPES)), float(rng.choice(TEMPERATURES))
        target = row_of(shape, vocab, rng)
        draft = target + (rng.integers(3) * rng.normal(0, 1, vocab)).astype(np.float32)
        if rng.random() < 0.2:
            draft = row_of("normal", vocab, rng)
        if rng.random() < 0.2:  # of another size
            draft = np.concatenate([draft, np.full(5, np.nan, np.float32)])
        purpose = Purpose.DRAFT if kind == "rejection" else Purpose.TARGET
        position, seed = int(rng.integers(0, 2**33)), int(rng.integers(0, 2**63))
        ids = draw(draft[:vocab], temperature, seed, position, purpose, count)
        asked = (target, draft, ids, position, temperature, seed, kind)
        got = native(*asked)
        assert got == choose(*asked), (trial, vocab, shape, temperature)
        assert (got.taken >= 0) != (got.next_token >= 0)
        seen.add(got.taken)
        if len(ids) == 1:  # as one draft is judged
            verdict = judge(target[None], [draft], ids, *asked[3:])
            assert (got.taken, got.next_token) == (verdict.accept_len - 1, verdict.next_token)
    assert {-1, 0, 1, 2} <= seen


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_law_is_the_targets(count: int) -> None:
    """Over seeds: what is drawn without replacement and tried in turn. Five are all of the vocabulary. Each
    draw would be a false alarm with probability 1e-4, had the seeds not been fixed.
    """
    rng = np.random.default_rng(3)
    target, draft = (rng.normal(0, 1.5, 5).astype(np.float32) for _ in range(2))
    counts, taken = np.zeros(5), np.zeros(count)
    for seed in range(20_000):
        ids = _testing.draw_candidates(draft, 0.9, seed, 5, Purpose.DRAFT, count)
        choice = native(target, draft, ids, 5, 0.9, seed, "rejection")
        counts[choice.next_token if choice.taken < 0 else ids[choice.taken]] += 1
        taken[max(choice.taken, 0)] += choice.taken >= 0
    weights = np.exp(target.astype(np.float64) / 0.9)
    assert p_value(counts, weights / weights.sum() * 20_000) > FALSE_ALARM
    assert (taken[:2] > 100).all()


def test_draws_are_without_replacement() -> None:
    """The second one has the law of q without the first. One draw, as above."""
    row = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    counts, expected = np.zeros((4, 4)), np.zeros((4, 4))
    for seed in range(20_000):
        counts[tuple(_testing.draw_candidates(row, 1.0, seed, 2, Purpose.DRAFT, 2))] += 1
    for first, second in itertools.permutations(range(4), 2):
        q = np.exp(row.astype(np.float64))
        expected[first, second] = 20_000 * q[first] * q[second] / (1 - q[first])
    assert p_value(counts.reshape(-1), expected.reshape(-1)) > FALSE_ALARM


def test_tokens_without_a_chance_are_no_candidates() -> None:
    """Filtered ones, and those whose weight is 0 in fp32: q could not say how they were drawn."""
    row = np.array([0.0, -np.inf, -1.0, -88.0, -86.0], np.float32)
    for seed in range(50):
        for purpose in (Purpose.DRAFT, Purpose.TARGET):
            ids = _testing.draw_candidates(row, 1.0, seed, 3, purpose, 8)
            assert sorted(ids) == [0, 2, 4] and ids == draw(row, 1.0, seed, 3, purpose, 8)
    assert _testing.draw_candidates(row, 0.0, 1, 3, Purpose.DRAFT, 8) == [0, 2, 4, 3]


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=["nan", "inf"])
def test_what_cannot_be_used(bad: float) -> None:
    row, broken = np.zeros(8, np.float32), np.zeros(8, np.float32)
    broken[3] = bad
    assert (
        _testing.draw_candidates(broken, 1.0, 1, 2, 0, 3) == draw(broken, 1.0, 1, 2, Purpose.DRAFT, 3) == []
    )
    for kind, temperature in itertools.product(KINDS, (0.0, 1.0)):
        rest = (5, temperature, 1, kind)
        for args in ((broken, row, [0, 1]), (row, row, [0, 8]), (row, row, [-1, 2])):
            assert native(*args, *rest) == choose(*args, *rest) == Choice(-1, -1)
    assert native(row, broken, [0, 1], 5, 1.0, 1, "rejection") == Choice(-1, -1)
