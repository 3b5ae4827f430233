"""A pair on the kernels in Triton's interpreter, op by op in Python: for tests without a GPU.

Runs the programs of pearl_rt.program over the device's state and steps, behind the interface of the native
lanes. It knows programs and rounds; not prompts, text, or how a step works. Import it after
Environment.interpret_kernels().
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from triton.runtime.interpreter import InterpretedFunction

from pearl_rt.config import ModelConfig
from pearl_rt.device_state import BAD_LOGITS, FINISH_NAMES, RUNNING, DeviceState, RoundRow, StateSizes
from pearl_rt.device_steps import DraftSteps, TargetSteps
from pearl_rt.errors import ConfigError, NumericsError, RequestError
from pearl_rt.kernels.feed import feed_kernel
from pearl_rt.loader import loading_bar
from pearl_rt.metrics import TraceRow
from pearl_rt.models.llama import Llama, LlamaWeights, Sizes
from pearl_rt.planner import MAX_GAMMA, StepTimes
from pearl_rt.program import LANES, Op, Program, program
from pearl_rt.request import Request

PREFILL_CHUNK = 16
BLOCK_SIZE = 16
DEVICE = torch.device("cpu")
# What the interpreter takes says nothing about a device: as if a pass of the target took a second, five of
# the draft.
NOMINAL_TIMES = StepTimes(target={1: 1.0, MAX_GAMMA + 1: 1.0}, window={1: 0.2, MAX_GAMMA: 0.2 * MAX_GAMMA})


@dataclass(frozen=True)
class InterpretModel:
    """A model's weights as the kernels read them."""

    config: ModelConfig
    dtype: str
    weights: LlamaWeights
    max_model_len: int
    isa: str = "triton-interpreter"

    @classmethod
    def pack(
        cls, config: ModelConfig, tensors: Mapping[str, torch.Tensor], *, name: str, max_model_len: int
    ) -> "InterpretModel":
        """In fp32: bf16 arithmetic is wrong in the interpreter. `name` labels the progress bar."""
        size = sum(tensor.numel() for tensor in tensors.values()) * 4
        with loading_bar(f"packing the {name}", size) as advance:
            weights = LlamaWeights.pack(config, tensors, dtype=torch.float32, device=DEVICE, advance=advance)
        return cls(config, "float32", weights, max_model_len)

    def lane(self, sizes: Sizes, vocab_size: int | None = None) -> Llama:
        """With a KV cache and buffers of its own."""
        return Llama(self.config, self.weights, sizes, block_size=BLOCK_SIZE, vocab_size=vocab_size)


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


class InterpretCoordinator:
    """start, next, stop and trace of the native coordinator; the work is done in next(), by its caller.

    Lanes take turns: each runs until it waits for an event that was not recorded.
    """

    def __init__(self, state: DeviceState, target: TargetSteps, draft: DraftSteps | None) -> None:
        self.state = state
        self._target = target
        self._draft = draft
        self._lanes: list[_Lane] = []
        self._results: list[RoundResult] = []
        self._trace: list[TraceRow] = []
        self._failure: NumericsError | None = None
        self.running = False

    def start(self, chosen: Program, requests: Sequence[Request], judge: str = "rejection") -> None:
        """Request i runs in slot i. Raises RequestError for what cannot be run, and while another runs."""
        if self.running:
            raise RequestError("a request is running; call stop() or read next() to its end first")
        sizes = self.state.sizes
        for request in requests:
            num_stops = len(request.stop_ids) + (0 if request.ignore_eos else len(request.eos_ids))
            if num_stops > sizes.max_stop_ids:
                raise RequestError(
                    f"{num_stops} end-of-text and stop ids; this lane takes {sizes.max_stop_ids}: pass fewer"
                )
        self._prompt_lens = [len(request.prompt_ids) for request in requests]
        is_drafted = any(op.kind == "draft" for lane in chosen.lanes for op in lane.body)
        self._gamma = max(request.gamma for request in requests) if is_drafted else 0
        self._judge = judge
        self._keep_logits = judge == "rejection" and any(request.temperature > 0 for request in requests)
        self.state.start(list(requests))
        lengths = self.state.whole.max_total_len.tolist()[: len(requests)]
        for steps in (self._target, self._draft):
            if steps is not None:
                steps.restart(lengths)
        rounds = max(length - prompt for length, prompt in zip(lengths, self._prompt_lens, strict=True))
        self._lanes = [_Lane(name, lane.ops(rounds)) for name, lane in zip(LANES, chosen.lanes, strict=False)]
        self._records: dict[str, int] = dict.fromkeys(chosen.events, 0)
        self._results, self._trace, self._failure = [], [], None
        self.running = True

    def next(self, timeout_ms: int = -1, min_results: int = 1) -> list[RoundResult] | None:
        """Works until there are min_results, the run has ended, or the time is up -> what there is.

        None: the run has ended and all of it was handed out. Raises the run's error once, after its results.
        """
        deadline = time.monotonic() + timeout_ms / 1000 if timeout_ms >= 0 else float("inf")
        while self.running and len(self._results) < max(min_results, 1):
            self._advance()
            if time.monotonic() >= deadline:
                break
        results, self._results = self._results, []
        if results or self.running:
            return results
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return None

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
            self._draft.draft(self._gamma, self._judge, self._keep_logits)
        else:
            for slot, length in enumerate(self._prompt_lens):
                self._draft.prefill(slot, length)

    def _verify(self, number: int) -> None:
        """Judges, and looks at the results at once, which no lane of a device would do here."""
        self._target.verify(self._gamma, self._judge)
        t_ns = time.monotonic_ns()
        for slot in range(len(self._prompt_lens)):
            row = self.state.read(self._gamma, number, slot)
            if row is None:  # the slot does not run any more
                continue
            if row.finish_reason == BAD_LOGITS:
                self._fail(number, slot, row)
                continue
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
                )
            )
        if RUNNING not in self.state.whole.finish_reason.tolist():
            self.running = False

    def _fail(self, number: int, slot: int, row: RoundRow) -> None:
        """A draft that could not be sampled is -1 in its window."""
        window = self.state.windowed(self._gamma).draft_token_ids[slot].tolist()
        place = row.accept_len - row.pending_before
        by_draft = number > 0 and 0 <= place < len(window) and window[place] < 0
        step, lane = ("draft", "draft") if by_draft else ("score" if number else "prefill", "target")
        position = int(self.state.whole.committed[slot]) + row.accept_len
        self._failure = NumericsError(
            f"NaN or infinite logits in step {step} of the {lane} lane, sequence {slot}, position "
            f"{position}; the run was stopped"
        )
        self.running = False


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


class InterpretLanes:
    """One placement: pearl_rt.lane.Lanes over the interpreter."""

    target_cores: tuple[int, ...] = ()
    draft_cores: tuple[int, ...] = ()

    def __init__(
        self, placement: str, target: InterpretModel, draft: InterpretModel | None, num_slots: int = 1
    ) -> None:
        self.placement = placement
        self.has_draft = draft is not None
        gamma_max = MAX_GAMMA if draft is not None else 0
        vocab_size = target.config.vocab_size
        draft_vocab_size = min(vocab_size, draft.config.vocab_size) if draft is not None else 1
        state = DeviceState(
            StateSizes(num_slots, gamma_max, target.max_model_len, vocab_size, draft_vocab_size), DEVICE
        )
        sizes = Sizes(
            step_tokens=num_slots * max(gamma_max + 1, 2),
            prefill_chunk=PREFILL_CHUNK,
            logit_rows=num_slots * (gamma_max + 1),
            max_sequences=num_slots,
            max_model_len=target.max_model_len,
        )
        draft_steps = DraftSteps(draft.lane(sizes, draft_vocab_size), state) if draft is not None else None
        self.coordinator = InterpretCoordinator(state, TargetSteps(target.lane(sizes), state), draft_steps)

    def start(self, strategy: str, request: Request, judge: str) -> None:
        """Starts a program for one request."""
        self.coordinator.start(program(strategy, self.placement), [request], judge)

    def trace(self) -> list[TraceRow]:
        """What each lane did in the last request."""
        return self.coordinator.trace()

    def measure(self) -> StepTimes:
        """Nominal times: nothing is run."""
        return NOMINAL_TIMES


class InterpretBackend:
    """What an engine asks of device="interpret": see pearl_rt.lane.CpuBackend."""

    def __init__(self) -> None:
        if not isinstance(feed_kernel, InterpretedFunction):
            raise ConfigError(
                "kernels were imported before they were to be interpreted, and are compiled now: set "
                "TRITON_INTERPRET=1 before Python starts, or use device='interpret' first"
            )

    def dtype(self, name: str, dtype: str, config: ModelConfig) -> str:
        """float32, whatever the checkpoint is stored in. Raises ConfigError for another one."""
        if dtype not in ("auto", "float32"):
            raise ConfigError(
                f"dtype {dtype!r} is not computed rightly by Triton's interpreter: pass dtype='float32' or "
                "'auto'"
            )
        return "float32"

    def pack(
        self,
        config: ModelConfig,
        tensors: Mapping[str, torch.Tensor],
        *,
        name: str,
        dtype: str,
        max_model_len: int,
    ) -> InterpretModel:
        """Weights as the kernels read them."""
        return InterpretModel.pack(config, tensors, name=name, max_model_len=max_model_len)

    def lanes(self, placement: str, target: InterpretModel, draft: InterpretModel | None) -> InterpretLanes:
        """The lanes of one placement."""
        return InterpretLanes(placement, target, draft)
