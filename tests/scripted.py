"""Scripted executors behind the real coordinator, and the round's rule written again in 40 lines of Python.

The rule here is greedy and slow on purpose: it asks what follows a prefix, one prefix at a time.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pearl_rt import _C
from pearl_rt.program import Program, program

TIMEOUT_MS = 20_000
VOCAB = 12
CAPACITY = 64

Next = Callable[[Sequence[int]], int]
Round = tuple[
    list[int], int, int, int, str
]  # token_ids, accept_len, num_judged, pending_before, finish_reason


def greedy(**script: Any) -> Next:
    """prefix -> the token that this script puts after it; ids that it lacks read as its last one."""
    executor = _C.ScriptedExecutor(vocab_size=script.pop("vocab_size", VOCAB), max_model_len=256, **script)
    known: dict[tuple[int, ...], int] = {}

    def after(prefix: Sequence[int]) -> int:
        key = tuple(min(token, executor.vocab_size - 1) for token in prefix)
        if key not in known:
            logits = executor.forward(0, list(key), 0, 1)[0][:VOCAB]
            known[key] = int(logits.argmax())
        return known[key]

    return after


def expected_rounds(
    strategy: str,
    target: Next,
    draft: Next,
    prompt: Sequence[int],
    gamma: int,
    limit: int,
    stops: Iterable[int],
) -> list[Round]:
    """What every round commits and judges; `limit` bounds prompt and answer together."""
    tokens, pending, stops = list(prompt), list[int](), set(stops)
    rounds: list[Round] = []

    def commit(new: list[int], accepted: int, judged: int, before: int) -> bool:
        reason = ""
        for i, token in enumerate(new):
            if token in stops or len(tokens) + i + 1 == limit:
                new, reason = new[: i + 1], "stop" if token in stops else "length"
                break
        tokens.extend(new)
        rounds.append((new, accepted, judged, before, reason))
        return reason != ""

    over = commit([target(tokens)], 0, 0, 0)
    while not over:
        before = len(pending)
        line = tokens + pending
        room = limit - len(line)
        window: list[int] = []
        if strategy != "ar":
            for _ in range(min(gamma, room)):
                window.append(draft(line + window))
        candidates = pending + window
        rows = min(before + 1 + (len(window) if strategy == "sd" else 0), limit - len(tokens))
        judged = min(rows, len(candidates))
        accepted = 0
        while accepted < judged and target(tokens + candidates[:accepted]) == candidates[accepted]:
            accepted += 1
        if accepted < rows:  # recovered or bonus
            pending = []
            new = [*candidates[:accepted], target(tokens + candidates[:accepted])]
        else:
            new, pending = candidates[:judged], candidates[judged:]
        over = commit(new, accepted, judged, before)
    return rounds


@dataclass
class Bench:
    """One coordinator over two scripted executors."""

    coordinator: Any
    target: Any
    draft: Any
    placement: str

    @classmethod
    def build(
        cls,
        placement: str = "split",
        *,
        target: dict[str, Any] | None = None,
        draft: dict[str, Any] | None = None,
        num_slots: int = 1,
        gamma_max: int = 8,
        ring_capacity: int = 1024,
        spin_us: int = 2000,
    ) -> "Bench":
        """target, draft: arguments of their scripts."""
        shape = {"vocab_size": VOCAB, "max_model_len": CAPACITY, "num_slots": num_slots}
        target_executor = _C.ScriptedExecutor(**{**shape, **(target or {})})
        draft_executor = _C.ScriptedExecutor(**{**shape, **(draft or {})})
        device = _C.Device([], spin_us)
        draft_device = device if placement == "shared" else _C.Device([], spin_us)
        coordinator = _C.Coordinator(
            target_executor,
            device,
            draft_executor,
            draft_device,
            num_slots=num_slots,
            gamma_max=gamma_max,
            capacity=CAPACITY,
            ring_capacity=ring_capacity,
        )
        return cls(coordinator, target_executor, draft_executor, placement)

    def start(self, strategy: str | Program, *requests: Any, judge: str = "coupled") -> None:
        """Starts one request per slot."""
        chosen = program(strategy, self.placement) if isinstance(strategy, str) else strategy
        self.coordinator.start(chosen, list(requests), judge)

    def finish(self) -> list[Any]:
        """All results to the end of the run; fails if the lanes fall silent."""
        results: list[Any] = []
        while (more := self.coordinator.next(TIMEOUT_MS)) is not None:
            assert more, f"the lanes were silent for {TIMEOUT_MS} ms after {len(results)} results"
            results += more
        return results

    def run(self, strategy: str | Program, *requests: Any, judge: str = "coupled") -> list[Any]:
        """start and finish."""
        self.start(strategy, *requests, judge=judge)
        return self.finish()


def rounds_of(results: Iterable[Any], slot: int = 0) -> list[Round]:
    """Results as the oracle writes them."""
    return [
        (r.token_ids, r.accept_len, r.num_judged, r.pending_before, r.finish_reason)
        for r in results
        if r.slot == slot
    ]


def tokens_of(results: Iterable[Any], slot: int = 0) -> list[int]:
    """The answer of one sequence."""
    return [token for r in results if r.slot == slot for token in r.token_ids]
