"""Noise that decides two things is two noises: between purposes, positions, requests, and across rollbacks.

Each test would raise a false alarm with probability 1e-4, had its seeds not been fixed.
"""

import itertools

import numpy as np
import pytest
from chi_square import FALSE_ALARM, p_value
from law import PROMPT, Case
from processed import coordinator_of, processed_case, ragged_answers

from pearl_rt import _C, _testing
from pearl_rt.reference.noise import Purpose, sample_seed
from pearl_rt.reference.processors import Transform
from pearl_rt.strategy.program import program

SEEDS = 20_000
CELLS = 8  # of a uniform


def uniforms(seeds: "np.ndarray | range", position: int, purpose: int, index: int = 0) -> np.ndarray:
    """[seeds] the uniform of an index."""
    return np.array(
        [_testing.uniform(_testing.philox(int(s), position, purpose, index + 1))[index] for s in seeds]
    )


def independent(a: np.ndarray, b: np.ndarray) -> bool:
    """Two streams of uniforms, by their joint histogram of 64 cells."""
    cells = np.minimum((a * CELLS).astype(int), CELLS - 1) * CELLS + np.minimum(
        (b * CELLS).astype(int), CELLS - 1
    )
    counts = np.bincount(cells, minlength=CELLS**2)
    return p_value(counts, np.full(CELLS**2, len(a) / CELLS**2)) > FALSE_ALARM


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(Purpose, 2)), ids=lambda p: p.name)
def test_purposes(one: Purpose, other: Purpose) -> None:
    seeds = range(4_000)
    assert independent(uniforms(seeds, 9, one), uniforms(seeds, 9, other))


@pytest.mark.parametrize("purpose", [Purpose.DRAFT, Purpose.ACCEPT, Purpose.TARGET], ids=lambda p: p.name)
def test_positions_indices_and_consecutive_seeds(purpose: Purpose) -> None:
    seeds = np.arange(4_000)
    here = uniforms(seeds, 9, purpose)
    assert independent(here, uniforms(seeds, 10, purpose))
    assert independent(here, uniforms(seeds, 9, purpose, index=1))
    assert independent(here, uniforms(seeds + 1, 9, purpose))
    assert independent(here, uniforms([sample_seed(int(seed), 1) for seed in seeds], 9, purpose))  # type: ignore[arg-type]


def test_a_shared_counter_would_be_seen() -> None:
    here = uniforms(range(500), 9, Purpose.DRAFT)
    assert not independent(here, here)


@pytest.mark.parametrize("judge", ["rejection", "coupled"])
def test_answers_of_consecutive_seeds(judge: str) -> None:
    """First and second token of seed s beside those of seed s + 1."""
    case = processed_case(1.5, top_p=1.0)
    answers = ragged_answers(case, "pearl", 3, SEEDS, 64, judge)
    law = case.law().reshape(8, 8, 8).sum(axis=2).reshape(-1)
    pairs = answers[:, 0] * 8 + answers[:, 1]
    counts = np.zeros((64, 64))
    np.add.at(counts, (pairs[:-1:2], pairs[1::2]), 1)
    assert p_value(counts.reshape(-1), np.outer(law, law).reshape(-1) * (SEEDS // 2)) > FALSE_ALARM


def revisited(case: Case, strategy: str, gamma: int) -> list[tuple[int, ...]]:
    """Answers whose second token took a rejected draft's place, so that the third was drafted before."""
    coordinator = coordinator_of(case, 64, gamma, "model")
    kept = []
    for first in range(0, SEEDS, 64):
        requests = [
            _C.Request(
                list(PROMPT),
                gamma=gamma,
                max_tokens=case.length,
                temperature=case.temperature,
                seed=seed,
                **case.processors,
            )
            for seed in range(first, first + 64)
        ]
        coordinator.start(program(strategy, "shared"), requests, "rejection")
        rounds: list[list] = [[] for _ in requests]
        while (results := coordinator.next(20_000, min_results=10**6)) is not None:
            for result in results:
                rounds[result.slot].append(result)
        for own in rounds:
            if own[1].accept_len == 0 and own[1].num_judged > 0:
                kept.append(tuple(token for result in own for token in result.token_ids))
    return kept


@pytest.mark.parametrize(("strategy", "gamma"), [("sd", 3), ("pearl", 3)], ids=str)
def test_a_position_visited_twice(strategy: str, gamma: int) -> None:
    """After a rejection the next position is drafted again, with the same noise: it still has its law."""
    case = processed_case(1.2)
    transform = Transform(case.temperature, prompt_len=len(PROMPT), **case.processors)
    logits = case.logits("target")
    counts, expected = np.zeros((8, 8, 8)), np.zeros((8, 8, 8))
    answers = revisited(case, strategy, gamma)
    for answer in answers:
        counts[answer] += 1
    for first, second in itertools.product(range(8), repeat=2):
        row = transform.row(logits([*PROMPT, first, second]), [*PROMPT, first, second]).astype(np.float64)
        law = np.exp((row - row.max()) / case.temperature)
        expected[first, second] = counts[first, second].sum() * law / law.sum()
    assert len(answers) > 3_000
    assert p_value(counts.reshape(-1), expected.reshape(-1)) > FALSE_ALARM
