"""The law of a short generation: exact, and as counted from the coordinator or from the reference decoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pearl_rt import _C, _testing
from pearl_rt.reference.processors import Transform
from pearl_rt.reference.round import Judge, Limits, Verdict, decode
from pearl_rt.strategy.program import program

PROMPT = (1,)  # the first token is at position 1, so that the next two share half a position
SLOTS = 64


@dataclass(frozen=True)
class Case:
    """Two scripted models, and how many tokens of theirs to look at."""

    vocab: int = 8
    length: int = 3
    target_rule: int = 1
    draft_rule: int = 2
    target_scale: float = 1.5
    draft_scale: float = 1.5
    temperature: float = 0.9
    processors: dict[str, Any] = field(default_factory=dict, hash=False)  # of _C.Request: filters, penalties
    prompt: tuple[int, ...] = PROMPT

    def executor(self, which: str, num_slots: int = 1, max_model_len: int = 16, **more: Any) -> Any:
        rule, scale = (
            (self.target_rule, self.target_scale)
            if which == "target"
            else (self.draft_rule, self.draft_scale)
        )
        return _testing.ScriptedExecutor(
            vocab_size=self.vocab,
            max_model_len=max_model_len,
            num_slots=num_slots,
            rule=rule,
            scale=scale,
            **more,
        )

    def logits(self, which: str, max_model_len: int = 16) -> Callable[[Sequence[int]], np.ndarray]:
        """prefix -> [vocab] fp32."""
        executor = self.executor(which, max_model_len=max_model_len)
        known: dict[tuple[int, ...], np.ndarray] = {}

        def row(prefix: Sequence[int]) -> np.ndarray:
            key = tuple(prefix)
            if key not in known:
                known[key] = executor.forward(0, list(key), 0, 1)[0].copy()
            return known[key]

        return row

    def law(self) -> np.ndarray:
        """[vocab ** length]: the target's probability of every answer."""
        logits = self.logits("target")
        transform = Transform(self.temperature, prompt_len=len(self.prompt), **self.processors)

        def row(prefix: Sequence[int]) -> np.ndarray:
            return transform.row(logits(prefix), prefix)

        law = np.ones(1)
        prefixes: list[tuple[int, ...]] = [self.prompt]
        for _ in range(self.length):
            weights = np.exp([row(p).astype(np.float64) / self.temperature for p in prefixes])
            law = (law[:, None] * weights / weights.sum(axis=1, keepdims=True)).reshape(-1)
            prefixes = [(*p, token) for p in prefixes for token in range(self.vocab)]
        return law

    def cell(self, tokens: Sequence[int]) -> int:
        """Where an answer is in law()."""
        assert len(tokens) == self.length
        return int(np.ravel_multi_index(tuple(tokens), (self.vocab,) * self.length))


UNRELATED = Case()
OPPOSITE = Case(vocab=16, length=2, draft_rule=1, target_scale=1.0, draft_scale=-1.0, temperature=1.0)
CASES = {"V8-L3-unrelated": UNRELATED, "V16-L2-opposite": OPPOSITE}


class NativeJudge:
    """_testing.sample and _testing.judge, as the reference decoder asks for them."""

    def __init__(self, kind: str, temperature: float, seed: int) -> None:
        self.kind, self.temperature, self.seed = kind, temperature, seed
        self.draft_purpose = 4 if kind == "coupled" else 0

    def draft_token(self, logits: np.ndarray, prefix: Sequence[int]) -> int:
        return _testing.sample(logits, self.temperature, self.seed, len(prefix), self.draft_purpose)

    def verdict(
        self,
        target_logits: Sequence[np.ndarray],
        draft_logits: Sequence[np.ndarray],
        draft_token_ids: Sequence[int],
        prefix: Sequence[int],
    ) -> Verdict:
        rows = np.stack(draft_logits) if draft_logits else None
        ids = np.array(draft_token_ids, dtype=np.int32)
        return Verdict(
            *_testing.judge(
                np.stack(target_logits), rows, ids, len(prefix), self.temperature, self.seed, self.kind
            )
        )


def decoder_counts(
    case: Case, strategy: str, gamma: int, runs: int, judge: Callable[[int], Judge]
) -> np.ndarray:
    """[vocab ** length] counts of the reference decoder; judge(seed) makes the judge of one run."""
    target, draft = case.logits("target"), case.logits("draft")
    limits = Limits(len(PROMPT) + case.length)
    counts = np.zeros(case.vocab**case.length)
    for seed in range(runs):
        rounds = decode(target, draft, PROMPT, strategy, gamma, limits, judge(seed))
        counts[case.cell([token for r in rounds for token in r.token_ids])] += 1
    return counts


def coordinator_counts(
    case: Case, strategy: str, gamma: int, runs: int, judge: str = "rejection", first_seed: int = 0
) -> np.ndarray:
    """[vocab ** length] counts of the coordinator, SLOTS sequences at a time."""
    device = _C.Device([])
    lanes = [_C.CpuLane(name, case.executor(name, SLOTS), device) for name in ("target", "draft")]
    coordinator = _C.Coordinator(
        lanes,
        num_slots=SLOTS,
        gamma_max=gamma,
        capacity=16,
        vocab_size=case.vocab,
    )
    counts = np.zeros(case.vocab**case.length)
    for first in range(first_seed, first_seed + runs, SLOTS):
        requests = [
            _C.Request(
                list(PROMPT),
                gamma=gamma,
                max_tokens=case.length,
                temperature=case.temperature,
                seed=seed,
                **case.processors,
            )
            for seed in range(first, min(first_seed + runs, first + SLOTS))
        ]
        coordinator.start(program(strategy, "shared"), requests, judge)
        answers: list[list[int]] = [[] for _ in requests]
        while (results := coordinator.next(20_000)) is not None:
            assert results, "the lanes fell silent"
            for result in results:
                answers[result.slot] += result.token_ids
        for answer in answers:
            counts[case.cell(answer)] += 1
    return counts
