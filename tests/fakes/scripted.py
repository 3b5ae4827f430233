"""Scripted executors behind the real coordinator, and the pure rule over the same scripts."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pearl_rt import _C, _testing
from pearl_rt.reference.drafters.diffusion import WindowRows
from pearl_rt.reference.judge import ReferenceJudge
from pearl_rt.reference.round import Limits, RoundResult, decode
from pearl_rt.strategy.program import Program, program

TIMEOUT_MS = 20_000
VOCAB = 12
CAPACITY = 64

Logits = Callable[[Sequence[int]], np.ndarray]


def logits_after(**script: Any) -> Logits:
    """prefix -> the logits that this script puts after it; ids that it lacks read as its last one."""
    executor = _testing.ScriptedExecutor(
        vocab_size=script.pop("vocab_size", VOCAB), max_model_len=256, **script
    )
    known: dict[tuple[int, ...], np.ndarray] = {}

    def after(prefix: Sequence[int]) -> np.ndarray:
        key = tuple(min(token, executor.vocab_size - 1) for token in prefix)
        if key not in known:
            known[key] = executor.forward(0, list(key), 0, 1)[0][:VOCAB]
        return known[key]

    return after


def window_rows_after(**script: Any) -> WindowRows:
    """The rows of a window whose tokens see each other, as this script has them."""
    vocab = script.pop("vocab_size", VOCAB)
    executor = _testing.ScriptedExecutor(vocab_size=vocab, max_model_len=256, **script)

    def rows(text: Sequence[int], fed: Sequence[int]) -> np.ndarray:
        ids = [min(token, vocab - 1) for token in (*text, *fed)]
        return executor.forward(0, ids, 0, 1 + len(fed), len(fed))[:, :VOCAB]

    return rows


class AnyToken:
    """A form that allows every token, by a matcher that is itself."""

    vocab_size = VOCAB

    def matcher(self) -> "AnyToken":
        return self

    def step(
        self, num_back: int, tokens: list[int], skip: int, wanted: int, masks: memoryview
    ) -> tuple[int, list[int], bool, list[int]]:
        np.frombuffer(masks, np.uint32)[:] = 2**32 - 1
        return len(tokens), [], wanted == len(tokens), []


def expected_rounds(
    strategy: str, target: Logits, draft: Logits, request: dict[str, Any], judge: str = "coupled"
) -> list[RoundResult]:
    """What the rule says of a request, given as the arguments of _C.Request."""
    prompt = request["prompt_ids"]
    stops = {*request.get("stop_ids", ()), *request.get("eos_ids", ())}
    limits = Limits(min(len(prompt) + request["max_tokens"], CAPACITY), stops)
    reference = ReferenceJudge(judge, request.get("temperature", 0.0), request.get("seed", 0))
    return decode(target, draft, prompt, strategy, request["gamma"], limits, reference)


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
        spin_us: int = 100,
        capacity: int = CAPACITY,
        lookup_pool: int | None = None,
        costs: Sequence[int] = (),
        window_costs: Sequence[int] = (),
        mask_token: int | None = None,
        passes: int | None = None,
        chain_cost: float | None = None,
        head_ids: list[int] | None = None,
        num_blocks: int | None = None,
        block_size: int | None = None,
        prefix_caching: bool = False,
        candidates: int = 1,
    ) -> "Bench":
        """target, draft: arguments of their scripts. lookup_pool: the draft lane looks up and has no script;
        so many tokens of earlier answers are kept, and windows are weighed with `costs`, beside
        those of a model with `window_costs`; so is the number of candidates. mask_token: the draft fills a
        window in one pass, or in so many `passes`, whose rows see each other.
        chain_cost: the draft lane has a script and looks up before it; of a pass, in steps of the target.
        head_ids: the draft is a head that is fed the target's taps, and has these ids. num_blocks,
        block_size: of both KV caches. candidates: windows of a sequence."""
        shape = {"vocab_size": VOCAB, "max_model_len": capacity, "num_slots": num_slots * candidates}
        if candidates > 1:
            size = block_size or min(256, -(-capacity // 16) * 16)
            own = {"num_slots": num_slots, "gamma_max": gamma_max, "block_size": size}
            num_blocks = num_blocks or num_slots * -(-capacity // size)
            extra = _C.Coordinator.branch_blocks(**own, candidates=candidates)
            shape |= {"num_blocks": num_blocks + extra, "block_size": size}
        else:
            shape |= {"num_blocks": num_blocks or 0, "block_size": block_size or 0}
        taps = {"has_taps": head_ids is not None}
        target_executor = _testing.ScriptedExecutor(**{**shape, **taps, **(target or {})})
        draft_executor = _testing.ScriptedExecutor(**{**shape, "head_ids": head_ids or [], **(draft or {})})
        device = _C.Device([], spin_us)
        draft_device = device if placement == "shared" else _C.Device([], spin_us)
        drafts = draft_executor if lookup_pool is None else _C.LookupDrafter(pool_tokens=lookup_pool)
        if candidates > 1 and costs:
            drafts = _C.ModelDrafter(draft_executor)
            drafts.set_branch_costs(list(costs), list(window_costs))
        elif costs and chain_cost is None:
            drafts.set_costs(list(costs))
        head = None
        if head_ids is not None:
            drafts = head = _C.EagleDrafter(draft_executor, target_ids=head_ids)
        elif passes is not None:
            drafts = _C.DiffusionDrafter(draft_executor, mask_token=mask_token, num_passes=passes)
        elif mask_token is not None or chain_cost is not None:
            drafts = _C.ModelDrafter(draft_executor, mask_token=mask_token)
        if chain_cost is not None:
            drafts = _C.ChainDrafter(drafts, pool_tokens=lookup_pool or 0, cost=chain_cost)
            drafts.set_costs(list(costs), list(window_costs))
        coordinator = _C.Coordinator(
            [
                _C.CpuLane("target", target_executor, device, taps=head),
                _C.CpuLane("draft", drafts, draft_device),
            ],
            num_slots=num_slots,
            gamma_max=gamma_max,
            capacity=capacity,
            vocab_size=target_executor.vocab_size,
            draft_vocab_size=draft_executor.vocab_size,
            ring_capacity=ring_capacity,
            num_blocks=num_blocks,
            prefix_caching=prefix_caching,
            candidates=candidates,
        )
        return cls(coordinator, target_executor, draft_executor, placement)

    def start(
        self, strategy: str | Program, *requests: Any, judge: str = "coupled", is_ordered: bool = True
    ) -> None:
        """Starts one request per slot. is_ordered: False for a program whose lanes race."""
        chosen = program(strategy, self.placement) if isinstance(strategy, str) else strategy
        self.coordinator.start(chosen, list(requests), judge, is_ordered=is_ordered)

    def finish(self) -> list[Any]:
        """All results to the end of the run; fails if the lanes fall silent."""
        results: list[Any] = []
        while (more := self.coordinator.next(TIMEOUT_MS)) is not None:
            assert more, f"the lanes were silent for {TIMEOUT_MS} ms after {len(results)} results"
            results += more
        return results

    def run(
        self, strategy: str | Program, *requests: Any, judge: str = "coupled", is_ordered: bool = True
    ) -> list[Any]:
        """start and finish."""
        self.start(strategy, *requests, judge=judge, is_ordered=is_ordered)
        return self.finish()


def rounds_of(results: Iterable[Any], slot: int = 0) -> list[RoundResult]:
    """Results as the rule writes them."""
    return [
        RoundResult(tuple(r.token_ids), r.accept_len, r.num_judged, r.pending_before, r.finish_reason)
        for r in results
        if r.slot == slot
    ]


def tokens_of(results: Iterable[Any], slot: int = 0) -> list[int]:
    """The answer of one sequence."""
    return [token for r in results if r.slot == slot for token in r.token_ids]


def num_threads() -> int:
    """Of this process, those included that are just ending."""
    return len(os.listdir("/proc/self/task"))


def threads_end_at(most: int) -> bool:
    """Whether no more threads than that stay: one that was joined may be listed a moment longer."""
    deadline = time.monotonic() + 60
    while num_threads() > most and time.monotonic() < deadline:
        time.sleep(0.001)
    return num_threads() <= most
