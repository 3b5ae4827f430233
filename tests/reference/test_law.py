"""Losslessness at T > 0 as a law: all 512 answers of three tokens over a vocabulary of 8, against exact odds.

Each test would raise a false alarm with probability 1e-4, had its seeds not been fixed. With
PEARL's published seeding bug put in they fail: exactness/test_mutants.py.
"""

from collections.abc import Sequence

import numpy as np
import pytest
from chi_square import FALSE_ALARM, p_value
from law import CASES, UNRELATED, Case, NativeJudge, coordinator_counts, decoder_counts

from pearl_rt import _C, _testing
from pearl_rt.reference.judge import ReferenceJudge
from pearl_rt.reference.noise import Words
from pearl_rt.reference.round import Limits, decode
from pearl_rt.strategy.program import program

RUNS = 20_000
BUG_RUNS = 1_500  # of the numpy decoder: p falls below 1e-10
PROGRAMS = [("ar", 1), ("sd", 1), ("sd", 2), ("pearl", 1), ("pearl", 2), ("pearl", 3)]


def correct(seed: int, position: int, purpose: int, count: int) -> Words:
    return _testing.philox(seed, position, purpose, count)


def one_seed_for_two_positions(seed: int, position: int, purpose: int, count: int) -> Words:
    return _testing.philox(seed, position // 2, purpose, count)


def one_counter_for_all_purposes(seed: int, position: int, purpose: int, count: int) -> Words:
    return _testing.philox(seed, position, 0, count)


@pytest.mark.parametrize(("strategy", "gamma"), PROGRAMS, ids=lambda v: str(v))
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_coordinator_keeps_the_law(case: Case, strategy: str, gamma: int) -> None:
    first_seed = RUNS * (1 + PROGRAMS.index((strategy, gamma)))
    counts = coordinator_counts(case, strategy, gamma, RUNS, first_seed=first_seed)
    assert p_value(counts, case.law() * RUNS) > FALSE_ALARM


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rejection", "coupled"])
@pytest.mark.parametrize(("strategy", "gamma"), [("sd", 2), ("pearl", 2)], ids=lambda v: str(v))
def test_the_decoder_keeps_the_law(strategy: str, gamma: int, kind: str) -> None:
    counts = decoder_counts(
        UNRELATED, strategy, gamma, RUNS, lambda seed: NativeJudge(kind, UNRELATED.temperature, seed)
    )
    assert p_value(counts, UNRELATED.law() * RUNS) > FALSE_ALARM


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["sd", "pearl"])
@pytest.mark.parametrize(
    ("words", "lossless"),
    [(correct, True), (one_seed_for_two_positions, False), (one_counter_for_all_purposes, False)],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_each_half_of_the_bug_fails_alone(strategy: str, words: object, lossless: bool) -> None:
    counts = decoder_counts(
        UNRELATED,
        strategy,
        2,
        BUG_RUNS,
        lambda seed: ReferenceJudge("rejection", UNRELATED.temperature, seed, words),
    )
    assert (p_value(counts, UNRELATED.law() * BUG_RUNS) > FALSE_ALARM) == lossless


@pytest.mark.parametrize("kind", ["rejection", "coupled"])
@pytest.mark.parametrize("gamma", [1, 2, 5, 8])
@pytest.mark.parametrize("strategy", ["ar", "sd", "pearl"])
def test_the_coordinator_is_the_decoder_token_for_token(strategy: str, gamma: int, kind: str) -> None:
    """T > 0, numpy against C++: randomness is a pure function, so that even `rejection` has one answer."""
    case = Case(vocab=12, target_rule=3, draft_rule=3, draft_scale=1.0)
    target, draft = case.logits("target", 40), case.logits("draft", 40)
    device = _C.Device([])
    lanes = [_C.CpuLane(name, case.executor(name, max_model_len=40), device) for name in ("target", "draft")]
    coordinator = _C.Coordinator(lanes, num_slots=1, gamma_max=8, capacity=40, vocab_size=case.vocab)
    for seed in range(12):
        prompt = [1 + seed % 5] * (1 + seed % 3)
        request = _C.Request(
            prompt, gamma=gamma, max_tokens=30, temperature=case.temperature, seed=seed, eos_ids=[0]
        )
        coordinator.start(program(strategy, "shared"), [request], kind)
        results: list = []
        while (more := coordinator.next(20_000)) is not None:
            results += more
        judge = ReferenceJudge(kind, case.temperature, seed)
        limits = Limits(min(len(prompt) + 30, 40), {0})
        want = decode(target, draft, prompt, strategy, gamma, limits, judge)
        assert [rows(r) for r in results] == [rows(r) for r in want]


def rows(result: object) -> Sequence[object]:
    names = ("accept_len", "num_judged", "pending_before", "finish_reason")
    return [list(result.token_ids), *(getattr(result, name) for name in names)]  # type: ignore[attr-defined]


def test_the_law_is_one() -> None:
    for case in CASES.values():
        law = case.law()
        assert law.shape == (case.vocab**case.length,) and np.isclose(law.sum(), 1) and law.min() > 0
