"""A coordinator in Python: runs a program over the steps of one device op by op, for checking and for tests.

start, submit, cancel, take_waiting, next, stop and trace are the native coordinator's; the work is done in
next(), by its caller, who looks at every verdict at once. It knows programs and rounds; not text, or how a
step works. On a GPU the steps are launched on the stream that is current, one after another.

A request that joins takes an idle slot between two rounds, in order of submission. Its prompt is fed a chunk
a round beside the others' rows, one prompt at a time, in a slot that is idle to all other launches; with the
last chunk it is judged, as its round 0. What a run lacks for it, a longer window, kept logits or shaping, is
made when it joins.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from pearl_rt.backends.admission import Admission
from pearl_rt.backends.lane_cursor import LaneCursor
from pearl_rt.device.logits_processors import Shaping, check_biased
from pearl_rt.device.model import memory_errors
from pearl_rt.device.pages import DevicePages
from pearl_rt.device.row_logprobs import DeviceLogprobs, Told
from pearl_rt.device.state import BAD_LOGITS, FINISH_NAMES, RoundRow
from pearl_rt.device.steps import LaneSteps
from pearl_rt.errors import RequestError
from pearl_rt.lowlevel.pair import DevicePair
from pearl_rt.strategy.planner import StepTimes
from pearl_rt.strategy.program import LANES, MAX_GAMMA, Op, Program
from pearl_rt.types.metrics import TraceRow
from pearl_rt.types.request import FILTERS, SHAPING, Request, check_stop_ids

# What launching op by op takes says nothing about a device: as if a pass of the target took a second, five of
# the draft.
NOMINAL_TIMES = StepTimes(target={1: 1.0, MAX_GAMMA + 1: 1.0}, window={1: 0.2, MAX_GAMMA: 0.2 * MAX_GAMMA})
MAX_TRACE_ROWS = 1 << 16  # a run may go on for ever


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
    logprobs: Told | None = None  # None unless asked for
    error: str = ""  # finish_reason "error": what was found, and where
    request_id: int = 0


@dataclass
class _Sequence:
    """A request in a slot."""

    request_id: int
    request: Request
    fed: int  # tokens of the prompt that both models have been fed
    round: int = 0  # that is judged next

    @property
    def prompt_len(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def runs(self) -> bool:
        """Whether the prompt was fed, so that kernels see the slot."""
        return self.fed == self.prompt_len


class EagerCoordinator:
    """Lanes take turns: each runs until it waits for an event that was not recorded."""

    def __init__(self, pair: DevicePair) -> None:
        self._pair = pair
        self.state = pair.state
        self._pages = DevicePages(pair.state, pair.pool)
        self._target = pair.target_steps
        self._draft = pair.draft_steps
        self._admission = Admission()
        self._sequences: dict[int, _Sequence] = {}  # by slot; the others are idle
        self._feeding: int | None = None  # the slot whose prompt goes on in this round
        self._lanes: list[LaneCursor] = []
        self._results: list[RoundResult] = []
        self._trace: list[TraceRow] = []
        self._shaping: Shaping | None = None
        self._logprobs: DeviceLogprobs | None = None
        self._is_drafted = False
        self._gamma = 0  # the window in use
        self._judge = ""
        self._keep_logits = False
        self.running = False

    def start(self, chosen: Program, requests: Sequence[Request], judge: str = "rejection") -> list[int]:
        """Request i runs in slot i -> their ids, in order. Raises RequestError for what cannot be run, or
        while another runs.
        """
        if self.running:
            raise RequestError("a request is running; call stop() or read next() to its end first")
        if len(requests) > (slots := self.state.sizes.num_slots):
            raise RequestError(
                f"{len(requests)} requests for {slots} slots: start fewer, and submit the others"
            )
        self._is_drafted = any(op.kind == "draft" for lane in chosen.lanes for op in lane.body)
        for request in requests:
            self._check(request)
        self._pair.pool.check_together(requests)
        self._judge, self._keep_logits = judge, False
        self._gamma = max((request.gamma for request in requests if self._is_drafted), default=0)
        self._shaping = self._logprobs = None
        self._sequences, self._feeding = {}, None
        self._pair.claim()
        with self._pair.on_device():
            self._pages.restart(requests)
            self.state.start([])
            for slot, request in enumerate(requests):
                self._fill(slot, self._admission.take_id(), request, is_fed=True)
        self._lanes = [LaneCursor(name, lane) for name, lane in zip(LANES, chosen.lanes, strict=False)]
        self._records: dict[str, int] = dict.fromkeys(chosen.events, 0)
        self._results, self._trace = [], []
        self._admission.open()
        self.running = True
        return [sequence.request_id for sequence in self._sequences.values()]

    def submit(self, request: Request) -> int | None:
        """One more request for the run that goes on -> its id, or None: there is none. It takes the next idle
        slot once as many KV blocks are free as it may come to need, in order of submission. From any thread.
        Raises RequestError for what cannot be run.
        """
        self._check(request)
        self._pair.pool.check(request)
        return self._admission.submit(request)

    def has_place(self, request: Request) -> bool:
        """Whether a request would get its KV blocks now, behind those that wait: what else a run lacks for it
        is made when it joins. From any thread.
        """
        needed = self._pages.pool.blocks_for
        return self._admission.has_room(
            lambda waiting: needed(request) + sum(map(needed, waiting)) <= self._pages.num_free
        )

    @property
    def num_free_blocks(self) -> int:
        """KV blocks that nobody holds; all of them while no run goes on. From any thread."""
        return self._pages.num_free if self.running else self._pages.pool.num_blocks

    def cancel(self, request_id: int) -> bool:
        """Ends a request within a round; its last result says "abort". True if it had no slot yet: nothing
        follows. From any thread.
        """
        return self._admission.cancel(request_id)

    def take_waiting(self) -> list[int]:
        """Ids of requests that were submitted and never got a slot, once the run has ended."""
        if self.running:
            raise RequestError("requests may still get a slot; call stop() or read next() to its end first")
        return self._admission.take_waiting()

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
        self._admission.close()
        self.running = False

    def trace(self) -> list[TraceRow]:
        """What each lane did in the last run, from its beginning."""
        return list(self._trace)

    def _check(self, request: Request) -> None:
        """Raises RequestError for what has no room here."""
        if self._is_drafted:
            self._pair.check_gamma(request.gamma)
        check_stop_ids(request, self.state.sizes.max_stop_ids)
        check_biased(request)

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
        self.stop()  # nothing left to do, or a program that check() refuses: nobody can go on

    def _time(self, lane: str, op: Op, number: int) -> None:
        begin_ns = time.monotonic_ns()
        self._perform(op)
        if len(self._trace) < MAX_TRACE_ROWS:
            self._trace.append(TraceRow(lane, op.kind.split()[0], number, begin_ns, time.monotonic_ns()))

    def _perform(self, op: Op) -> None:
        if op.kind == "prefill":
            for slot, sequence in self._sequences.items():
                self._target.prefill(slot, sequence.prompt_len, self._gamma)
        elif op.kind in ("score", "score window"):
            if self._anybody_runs():
                self._target.score(self._gamma, include_window=op.kind == "score window")
            self._feed(self._target)
        elif op.kind in ("first", "verify"):
            self._verify(admits=op.kind == "verify")
        elif self._draft is None:
            raise RequestError(f"op {op.kind!r} needs a draft model")
        elif op.kind == "draft":
            if self._anybody_runs():
                self._draft.draft(self._gamma, self._judge, self._keep_logits, self._shaping)
            self._feed(self._draft)
        else:
            for slot, sequence in self._sequences.items():
                self._draft.prefill(slot, sequence.prompt_len)

    def _anybody_runs(self) -> bool:
        return any(sequence.runs for sequence in self._sequences.values())

    def _feed(self, steps: LaneSteps) -> None:
        """The next chunk of the prompt that is being fed: to the draft all but the last token, to the target
        with the logits of the last. Behind the others' launches, which write to idle slots' rows too.
        """
        if self._feeding is None:
            return
        slot, sequence = self._feeding, self._sequences[self._feeding]
        end = self._chunk_end(sequence)
        is_last = end == sequence.prompt_len
        if steps is self._draft and is_last:
            end -= 1
        if end > sequence.fed:
            steps.next_chunk(slot, sequence.fed, end)
            steps.prefill_chunk()
        if steps is self._target and is_last:
            self._target.prefill_logits(self._gamma, slot)

    def _chunk_end(self, sequence: _Sequence) -> int:
        return min(sequence.fed + self._target.model.sizes.prefill_chunk, sequence.prompt_len)

    def _verify(self, *, admits: bool) -> None:
        """Judges, and looks at the results at once, which no lane of a device would do here; with admits,
        requests leave before it and join behind it.
        """
        if admits:
            self._let_go()
        if self._feeding is not None:
            sequence = self._sequences[self._feeding]
            sequence.fed = self._chunk_end(sequence)
            if sequence.runs:
                self.state.run(self._feeding)
                self._feeding = None
        if self._anybody_runs():
            self._judge_all()
        if admits:
            self._admit()
        if not self._sequences and self._admission.close_if_empty():
            self.running = False

    def _judge_all(self) -> None:
        """One round of every slot that runs."""
        told = self._logprobs if self._logprobs is not None and self._logprobs.is_on else None
        if told is not None and self._shaping is not None and self._shaping.penalises:
            told.keep(self._gamma)
        self._target.verify(self._gamma, self._judge, self._shaping)
        self.state.whole.finish_reason.tolist()  # waits for the device, which has written the ring
        t_ns = time.monotonic_ns()
        rows: dict[int, RoundRow] = {}
        for slot, sequence in self._sequences.items():
            row = self.state.read(self._gamma, sequence.round, slot) if sequence.runs else None
            if row is not None:
                rows[slot] = row
        logprobs = (
            {} if told is None else told.told(self._gamma, {s: row.token_ids for s, row in rows.items()})
        )
        for slot, row in rows.items():
            error = self._bad_logits(slot, row) if row.finish_reason == BAD_LOGITS else ""
            self._tell(slot, row, FINISH_NAMES[row.finish_reason], t_ns, logprobs.get(slot), error)

    def _tell(
        self, slot: int, row: RoundRow, reason: str, t_ns: int, logprobs: Told | None = None, error: str = ""
    ) -> None:
        """Puts a round among the results; with a reason, the slot's last."""
        sequence = self._sequences[slot]
        result = RoundResult(
            row.round,
            slot,
            row.token_ids,
            row.accept_len,
            row.num_judged,
            row.pending_before,
            reason,
            t_ns,
            logprobs,
            error,
            sequence.request_id,
        )
        sequence.round += 1
        if reason:
            self._clear(slot)
        self._results.append(result)

    def _let_go(self) -> None:
        """Requests that were given up leave their slots."""
        for request_id in self._admission.take_cancelled():
            for slot, sequence in list(self._sequences.items()):
                if sequence.request_id == request_id:
                    nothing = RoundRow(sequence.round, 0, 0, 0, 0, [])
                    self._tell(slot, nothing, "abort", time.monotonic_ns())

    def _admit(self) -> None:
        """Requests that wait take idle slots; the prompt that has waited longest is fed next."""
        for slot in range(self.state.sizes.num_slots):
            if slot in self._sequences:
                continue
            waiting = self._admission.next(partial(self._pages.reserve, slot))
            if waiting is None:
                break
            self._fill(slot, *waiting, is_fed=False)
        if self._feeding is None:  # one prompt at a time, so that a round waits for one chunk at most
            unfed = {s.request_id: slot for slot, s in self._sequences.items() if not s.runs}
            self._feeding = unfed[min(unfed)] if unfed else None

    def _fill(self, slot: int, request_id: int, request: Request, *, is_fed: bool) -> None:
        """A request takes an idle slot. is_fed: the program's prologue feeds its prompt, not the rounds."""
        if self._is_drafted and request.gamma > self._gamma:
            if self._shaping is not None:
                self._shaping.widen(self._gamma, request.gamma)
            self.state.widen(self._gamma, request.gamma)
            self._gamma = request.gamma
        self._keep_logits |= self._judge == "rejection" and request.temperature > 0
        asked = set(request.asked())
        with memory_errors(self._pair.device, "filters, penalties or log-probabilities"):
            if self._shaping is None and asked & {*SHAPING, *FILTERS}:
                self._shaping = Shaping(self.state)
            if self._logprobs is None and request.num_logprobs >= 0:
                self._logprobs = DeviceLogprobs(self.state)
        self.state.fill(slot, request, self._gamma)
        for own in (self._shaping, self._logprobs):
            if own is not None:
                own.fill(slot, request)
        fed = len(request.prompt_ids) if is_fed else 0
        self._sequences[slot] = _Sequence(request_id, request, fed)
        if is_fed:
            self.state.run(slot)

    def _clear(self, slot: int) -> None:
        """A sequence has ended: its slot is idle."""
        del self._sequences[slot]
        if self._feeding == slot:
            self._feeding = None
        self.state.clear(slot)
        self._pages.release(slot)
        for own in (self._shaping, self._logprobs):
            if own is not None:
                own.clear(slot)

    def _bad_logits(self, slot: int, row: RoundRow) -> str:
        """A draft that could not be sampled is -1 in its window."""
        window = self.state.windowed(self._gamma).draft_token_ids[slot].tolist()
        place = row.accept_len - row.pending_before
        by_draft = row.round > 0 and 0 <= place < len(window) and window[place] < 0
        step, lane = ("draft", "draft") if by_draft else ("score" if row.round else "prefill", "target")
        position = int(self.state.whole.committed[slot]) + row.accept_len
        return (
            f"NaN or infinite logits in step {step} of the {lane} lane, sequence {slot}, position "
            f"{position}; the request was ended"
        )
