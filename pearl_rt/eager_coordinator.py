"""A coordinator in Python: runs a program over the steps of one device op by op, for checking and for tests.

start, next, stop and trace are the native coordinator's; the work is done in next(), by its caller, who looks
at every verdict at once. It knows programs and rounds; not prompts, text, or how a step works. On a GPU the
steps are launched on the stream that is current, one after another.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pearl_rt.device_pair import DevicePair
from pearl_rt.device_shaping import Shaping
from pearl_rt.device_state import BAD_LOGITS, FINISH_NAMES, RUNNING, RoundRow
from pearl_rt.errors import RequestError
from pearl_rt.metrics import TraceRow
from pearl_rt.planner import MAX_GAMMA, StepTimes
from pearl_rt.program import LANES, Op, Program
from pearl_rt.request import Request, check_on_device, check_stop_ids

# What launching op by op takes says nothing about a device: as if a pass of the target took a second, five of
# the draft.
NOMINAL_TIMES = StepTimes(target={1: 1.0, MAX_GAMMA + 1: 1.0}, window={1: 0.2, MAX_GAMMA: 0.2 * MAX_GAMMA})


@dataclass(frozen=True)
class RoundResult:
    """What one round committed for one sequence: the native coordinator's has the same fields."""

    round: int
    slot: int
    token_ids: list[int]
    accept_len: int
    num_judged: int
    pending_before: int
    finish_reason: str
    t_ns: int
    logprobs: None = None  # cannot be asked for
    error: str = ""  # finish_reason "error": what was found, and where
    request_id: int = 0


class EagerCoordinator:
    """Lanes take turns: each runs until it waits for an event that was not recorded."""

    def __init__(self, pair: DevicePair) -> None:
        self._pair = pair
        self.state = pair.state
        self._target = pair.target_steps
        self._draft = pair.draft_steps
        self._lanes: list[_Lane] = []
        self._results: list[RoundResult] = []
        self._trace: list[TraceRow] = []
        self._shaping: Shaping | None = None
        self.running = False

    def start(self, chosen: Program, requests: Sequence[Request], judge: str = "rejection") -> list[int]:
        """Request i runs in slot i; i is its id. Raises RequestError for what cannot be run, or while
        another runs.
        """
        if self.running:
            raise RequestError("a request is running; call stop() or read next() to its end first")
        sizes = self.state.sizes
        for request in requests:
            check_stop_ids(request, sizes.max_stop_ids)
            check_on_device(request, shaped=True)
        self._prompt_lens = [len(request.prompt_ids) for request in requests]
        is_drafted = any(op.kind == "draft" for lane in chosen.lanes for op in lane.body)
        self._gamma = max(request.gamma for request in requests) if is_drafted else 0
        self._judge = judge
        self._keep_logits = judge == "rejection" and any(request.temperature > 0 for request in requests)
        self._pair.claim()
        with self._pair.on_device():
            self._shaping = None
            if any(request.asked() for request in requests):
                self._shaping = Shaping(self.state)
                self._shaping.start(requests)
            self.state.start(list(requests))
            lengths = self.state.whole.max_total_len.tolist()[: len(requests)]
        rounds = max(length - prompt for length, prompt in zip(lengths, self._prompt_lens, strict=True))
        self._lanes = [_Lane(name, lane.ops(rounds)) for name, lane in zip(LANES, chosen.lanes, strict=False)]
        self._records: dict[str, int] = dict.fromkeys(chosen.events, 0)
        self._results, self._trace = [], []
        self.running = True
        return list(range(len(requests)))

    def submit(self, request: object) -> None:
        """Nobody joins a run here."""

    def next(self, timeout_ms: int = -1, min_results: int = 1) -> list[RoundResult] | None:
        """Works until there are min_results, the run has ended, or the time is up -> what there is.

        None: the run has ended and all of it was handed out.
        """
        deadline = time.monotonic() + timeout_ms / 1000 if timeout_ms >= 0 else float("inf")
        while self.running and len(self._results) < max(min_results, 1):
            with self._pair.on_device():
                self._advance()
            if time.monotonic() >= deadline:
                break
        results, self._results = self._results, []
        return results if results or self.running else None

    def stop(self) -> None:
        """Ends the run; what was verified before can still be had from next()."""
        self.running = False

    def trace(self) -> list[TraceRow]:
        """What each lane did in the last request."""
        return list(self._trace)

    def _advance(self) -> None:
        """One step of the first lane that can go on, past waits and records."""
        moved = True
        while moved:
            moved = False
            for lane in self._lanes:
                while (at := lane.next_op()) is not None:
                    number, op = at
                    if op.kind == "wait" and not lane.passes(op, self._records):
                        break
                    moved = True
                    lane.done()
                    if op.kind == "record":
                        self._records[op.event] += 1
                    elif op.kind != "wait":
                        self._time(lane.name, op, number)
                        return
        self.running = False  # nothing left to do, or a program that check() refuses: nobody can go on

    def _time(self, lane: str, op: Op, number: int) -> None:
        begin_ns = time.monotonic_ns()
        self._perform(op, number)
        self._trace.append(TraceRow(lane, op.kind.split()[0], number, begin_ns, time.monotonic_ns()))

    def _perform(self, op: Op, number: int) -> None:
        if op.kind == "prefill":
            for slot, length in enumerate(self._prompt_lens):
                self._target.prefill(slot, length, self._gamma)
        elif op.kind == "score":
            self._target.score(self._gamma, include_window=False)
        elif op.kind == "score window":
            self._target.score(self._gamma, include_window=True)
        elif op.kind in ("first", "verify"):
            self._verify(number)
        elif self._draft is None:
            raise RequestError(f"op {op.kind!r} needs a draft model")
        elif op.kind == "draft":
            self._draft.draft(self._gamma, self._judge, self._keep_logits, self._shaping)
        else:
            for slot, length in enumerate(self._prompt_lens):
                self._draft.prefill(slot, length)

    def _verify(self, number: int) -> None:
        """Judges, and looks at the results at once, which no lane of a device would do here."""
        self._target.verify(self._gamma, self._judge, self._shaping)
        reasons = self.state.whole.finish_reason.tolist()  # waits for the device, which has written the ring
        t_ns = time.monotonic_ns()
        for slot in range(len(self._prompt_lens)):
            row = self.state.read(self._gamma, number, slot)
            if row is None:  # the slot does not run any more
                continue
            error = self._bad_logits(number, slot, row) if row.finish_reason == BAD_LOGITS else ""
            self._results.append(
                RoundResult(
                    number,
                    slot,
                    row.token_ids,
                    row.accept_len,
                    row.num_judged,
                    row.pending_before,
                    FINISH_NAMES[row.finish_reason],
                    t_ns,
                    error=error,
                    request_id=slot,
                )
            )
        if RUNNING not in reasons:
            self.running = False

    def _bad_logits(self, number: int, slot: int, row: RoundRow) -> str:
        """A draft that could not be sampled is -1 in its window."""
        window = self.state.windowed(self._gamma).draft_token_ids[slot].tolist()
        place = row.accept_len - row.pending_before
        by_draft = number > 0 and 0 <= place < len(window) and window[place] < 0
        step, lane = ("draft", "draft") if by_draft else ("score" if number else "prefill", "target")
        position = int(self.state.whole.committed[slot]) + row.accept_len
        return (
            f"NaN or infinite logits in step {step} of the {lane} lane, sequence {slot}, position "
            f"{position}; the request was ended"
        )


class _Lane:
    """Where one lane is in its list of ops."""

    def __init__(self, name: str, ops: Sequence[tuple[int, Op]]) -> None:
        self.name = name
        self._ops = ops
        self._next = 0
        self._waits: dict[str, int] = {}

    def next_op(self) -> tuple[int, Op] | None:
        """(round, op), or None at the end."""
        return self._ops[self._next] if self._next < len(self._ops) else None

    def done(self) -> None:
        """Goes on to the next op."""
        self._next += 1

    def passes(self, op: Op, records: Mapping[str, int]) -> bool:
        """Whether a wait is over: its event was recorded once more than it was waited for."""
        waited = self._waits.get(op.event, 0)
        if records[op.event] <= waited:
            return False
        self._waits[op.event] = waited + 1
        return True
