"""The round's rule: its invariants over gamma 1 to 8, all verdicts, EOS and limits anywhere, and `decode`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pearl_rt.reference.judge import ReferenceJudge
from pearl_rt.reference.round import (
    Limits,
    RoundPlan,
    RoundResult,
    RoundState,
    Verdict,
    advance,
    cut,
    decode,
    plan,
)

VOCAB = 6
SPECULATIVE = ("sd", "pearl")
STRATEGIES = ("ar", *SPECULATIVE)


class GreedyJudge:
    """A "row of logits" is the token itself: the rule without numbers."""

    def draft_token(self, logits: int, prefix: Sequence[int]) -> int:
        return logits

    def verdict(
        self,
        target_logits: Sequence[int],
        draft_logits: Sequence[int],
        ids: Sequence[int],
        prefix: Sequence[int],
    ) -> Verdict:
        assert len(target_logits) - len(ids) in (0, 1) and len(draft_logits) == len(ids)
        for row, token in enumerate(ids):
            if target_logits[row] != token:
                return Verdict(row, target_logits[row])
        return Verdict(len(ids), target_logits[-1] if len(target_logits) > len(ids) else -1)


class Chain:
    """Next token = a table's entry at a hash of the prefix; counts what it was asked."""

    def __init__(self, seed: int, wrong: float = 0.0, like: "Chain | None" = None) -> None:
        self.seed, self.wrong, self.like = seed, wrong, like
        self.longest = 0

    def __call__(self, prefix: Sequence[int]) -> int:
        self.longest = max(self.longest, len(prefix))
        rng = np.random.default_rng([self.seed, *prefix])
        own = int(rng.integers(VOCAB))
        return own if self.like is None or rng.random() < self.wrong else self.like(prefix)


@st.composite
def cases(draw: Any) -> dict[str, Any]:
    prompt = draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5))
    return {
        "prompt": prompt,
        "gamma": draw(st.integers(1, 8)),
        "limit": len(prompt) + draw(st.integers(1, 40)),
        "stops": frozenset(draw(st.lists(st.integers(0, VOCAB - 1), max_size=1))),
        "target_seed": draw(st.integers(0, 10**6)),
        "wrong": draw(st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0])),
    }


def run(case: dict[str, Any], strategy: str) -> tuple[list[RoundResult], Chain, Chain]:
    target = Chain(case["target_seed"])
    draft = Chain(case["target_seed"] + 1, case["wrong"], Chain(case["target_seed"]))
    limits = Limits(case["limit"], case["stops"])
    rounds = decode(target, draft, case["prompt"], strategy, case["gamma"], limits, GreedyJudge())
    return rounds, target, draft


def tokens_of(rounds: list[RoundResult]) -> list[int]:
    return [token for r in rounds for token in r.token_ids]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(cases(), st.sampled_from(SPECULATIVE))
def test_rounds_keep_the_invariants(case: dict[str, Any], strategy: str) -> None:
    rounds, target, draft = run(case, strategy)
    gamma, limit, start = case["gamma"], case["limit"], len(case["prompt"])
    assert (rounds[0].num_judged, rounds[0].pending_before, len(rounds[0].token_ids)) == (0, 0, 1)
    committed = start + 1
    for r in rounds[1:]:
        room = limit - committed
        if strategy == "sd":
            assert r.pending_before == 0
            assert r.num_judged == min(gamma, room)
        else:
            assert r.pending_before in (0, min(gamma - 1, room))
            assert r.num_judged == min(r.pending_before + 1, room)
        assert 1 <= len(r.token_ids) <= r.accept_len + 1
        assert 0 <= r.accept_len <= r.num_judged
        if strategy == "pearl" and not r.finish_reason:
            assert len(r.token_ids) == r.accept_len + (r.accept_len < r.num_judged)
        if strategy == "sd" and not r.finish_reason:
            assert len(r.token_ids) == r.accept_len + 1
        committed += len(r.token_ids)
    assert [r.finish_reason != "" for r in rounds] == [False] * (len(rounds) - 1) + [True]
    assert max(target.longest, draft.longest) < limit  # the last position is sampled, never fed


@settings(max_examples=400, deadline=None, derandomize=True)
@given(cases())
def test_all_strategies_give_the_same_tokens_cut_at_the_same_place(case: dict[str, Any]) -> None:
    answers = {s: run(case, s)[0] for s in STRATEGIES}
    want = tokens_of(answers["ar"])
    for rounds in answers.values():
        assert tokens_of(rounds) == want
        assert rounds[-1].finish_reason == answers["ar"][-1].finish_reason
    stopped = [i for i, token in enumerate(want) if token in case["stops"]]
    room = case["limit"] - len(case["prompt"])
    assert stopped in ([], [len(want) - 1]) and len(want) <= room
    assert answers["ar"][-1].finish_reason == ("stop" if stopped else "length")
    assert stopped or len(want) == room


@pytest.mark.parametrize("strategy", SPECULATIVE)
@pytest.mark.parametrize("gamma", range(1, 9))
def test_a_perfect_draft_is_always_accepted(strategy: str, gamma: int) -> None:
    case = {"prompt": [1], "gamma": gamma, "limit": 100, "stops": (), "target_seed": 3, "wrong": 0.0}
    rounds, _, _ = run(case, strategy)
    inner = rounds[2:-2]
    assert all(r.accept_len == r.num_judged for r in rounds)
    assert all(len(r.token_ids) == (gamma + 1 if strategy == "sd" else gamma) for r in inner)
    assert all(r.pending_before == (0 if strategy == "sd" else gamma - 1) for r in inner)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 8),
    st.sampled_from(SPECULATIVE),
    st.integers(0, 2**64 - 1),
    st.sampled_from([0.0, 0.7, 2.0]),
)
def test_coupled_and_greedy_tokens_depend_on_the_target_only(
    gamma: int, strategy: str, seed: int, temperature: float
) -> None:
    rng = np.random.default_rng([gamma, seed % 2**32])
    target = rng.normal(0, 2, (VOCAB, VOCAB)).astype(np.float32)
    draft = target + rng.normal(0, 1, (VOCAB, VOCAB)).astype(np.float32)
    judge = ReferenceJudge("coupled", temperature, seed)

    def tokens(how: str) -> list[int]:
        limits = Limits(16, {0})
        return tokens_of(
            decode(lambda p: target[p[-1]], lambda p: draft[p[-1]], [2, 1], how, gamma, limits, judge)
        )

    assert tokens(strategy) == tokens("ar")


@pytest.mark.parametrize("strategy", SPECULATIVE)
@pytest.mark.parametrize("gamma", range(1, 9))
def test_rows_of_one_pass_are_behind_masks(strategy: str, gamma: int) -> None:
    """Not behind the drafts: each window asks for rows behind the text and 0, 1, .. gamma - 1 masks."""
    mask = VOCAB
    target, asked = Chain(5), []

    def draft(prefix: Sequence[int]) -> int:
        asked.append(list(prefix))
        return target(prefix) if mask not in prefix else prefix.count(mask) % VOCAB

    limits = Limits(40)
    rounds = decode(target, draft, [1], strategy, gamma, limits, GreedyJudge(), mask_token=mask)
    assert tokens_of(rounds) == tokens_of(decode(target, None, [1], "ar", 0, limits, GreedyJudge()))
    windows: list[list[list[int]]] = []
    for prefix in asked:
        if prefix[-1] != mask:
            windows.append([])
        windows[-1].append(prefix)
    for window in windows:
        assert window == [window[0] + [mask] * number for number in range(len(window))]
        assert mask not in window[0] and len(window) <= gamma
    assert any(len(window) == gamma for window in windows)


@pytest.mark.parametrize("accept_len", range(10))
@pytest.mark.parametrize("gamma", range(1, 9))
def test_advance_worked_out(gamma: int, accept_len: int) -> None:
    """Every verdict from both of PEARL's states and from sd's, far from the limit."""
    for pending in {0, gamma - 1}:
        todo = plan("pearl", RoundState(50, pending), gamma, 1000)
        assert todo == RoundPlan(gamma, pending + 1, has_bonus=False)
        if accept_len <= pending:
            assert advance(RoundState(50, pending), todo, accept_len) == RoundState(51 + accept_len, 0)
        if accept_len == pending + 1:
            assert advance(RoundState(50, pending), todo, accept_len) == RoundState(51 + pending, gamma - 1)
    todo = plan("sd", RoundState(50, 0), gamma, 1000)
    assert todo == RoundPlan(gamma, gamma, has_bonus=True)
    if accept_len <= gamma:
        assert advance(RoundState(50, 0), todo, accept_len) == RoundState(51 + accept_len, 0)
    assert plan("ar", RoundState(50, 0), 0, 1000) == RoundPlan(0, 0, has_bonus=True)


@pytest.mark.parametrize("room", range(1, 10))
@pytest.mark.parametrize("gamma", range(1, 9))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_plans_stay_below_the_limit(strategy: str, gamma: int, room: int) -> None:
    for pending in {0, min(gamma - 1, room)} if strategy == "pearl" else {0}:
        todo = plan(strategy, RoundState(20, pending), gamma, 20 + room)
        assert 20 + pending + todo.window <= 20 + room
        assert 1 <= todo.num_rows <= room
        assert todo.num_draft_tokens <= pending + todo.window
        for accept_len in range(todo.num_draft_tokens + 1):
            after = advance(RoundState(20, pending), todo, accept_len)
            assert after.committed > 20 and after.pending >= 0
            assert after.committed + after.pending <= 20 + room


def test_cut_worked_out() -> None:
    assert cut([5, 2, 7], 10, Limits(20)) == (3, "")
    assert cut([5, 2, 7], 10, Limits(12, {7})) == (2, "length")
    assert cut([5, 2, 7], 10, Limits(20, {2})) == (2, "stop")
    assert cut([5, 2, 7], 10, Limits(13, {7})) == (3, "stop")
    assert cut([5, 2, 7], 10, Limits(13)) == (3, "length")
    assert cut([5], 10, Limits(11, {5})) == (1, "stop")
    assert cut([], 10, Limits(11)) == (0, "")


def test_decode_refuses_what_cannot_run() -> None:
    chain = Chain(1)
    for prompt, limit in (([], 5), ([1, 2], 2)):
        with pytest.raises(ValueError, match=f"prompt of {len(prompt)} tokens"):
            decode(chain, chain, prompt, "sd", 2, Limits(limit), GreedyJudge())


def test_decode_names_the_position_of_bad_logits() -> None:
    def target(prefix: Sequence[int]) -> np.ndarray:
        return np.full(4, np.nan if len(prefix) == 5 else 0.0, dtype=np.float32)

    def draft(prefix: Sequence[int]) -> np.ndarray:
        return np.zeros(4, dtype=np.float32)

    with pytest.raises(ValueError, match="position 5 "):
        decode(target, draft, [1, 1], "pearl", 3, Limits(20), ReferenceJudge("coupled", 0.0, 0))
