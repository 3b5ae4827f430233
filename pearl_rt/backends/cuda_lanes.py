"""A pair on GPUs: its steps and state in their memory, streams, and the native lanes that launch on them.

Knows sizes, steps and captures; not prompts, text, or how a round works. A placement is

  shared    both models on one GPU, each on a stream of its own
  devices   the draft on another GPU, or on the CPU's executor, with a memory of its own; or a lookup there
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import pearl_rt._C as _C
from pearl_rt.backends.base import Lanes
from pearl_rt.backends.cpu import Model
from pearl_rt.device.capture import Capture, LaneGraphs, shut, steps_of
from pearl_rt.device.gpu import DRAFT_PRIORITY, TARGET_PRIORITY, Gpu
from pearl_rt.device.logits_processors import MAX_BIASED, LogitsProcessors, check_biased
from pearl_rt.device.logprob_ring import LogprobRing
from pearl_rt.device.model import DeviceModel, memory_errors
from pearl_rt.device.pair_sizes import PairSizes, draft_steps_of
from pearl_rt.device.steps import DraftSteps, TargetSteps
from pearl_rt.errors import ConfigError, RequestError
from pearl_rt.lowlevel.pair import DevicePair
from pearl_rt.strategy.engine_options import CAPTURED_FORMS
from pearl_rt.strategy.planner import StepTimes
from pearl_rt.strategy.program import program
from pearl_rt.strategy.step_timing import (
    MEASURED_GAMMAS,
    NOMINAL_AT_ONCE,
    NOMINAL_LOOKUP,
    NOMINAL_TIMES,
    measure,
)
from pearl_rt.types.json import Json
from pearl_rt.types.request import FILTERS, PROCESSORS, Request, check_stop_ids


@dataclass(frozen=True)
class CudaOptions:
    """How lanes launch."""

    form: str = "events"  # or another of engine_options.FORMS
    rounds_ahead: int = 2
    num_slots: int = 1
    gammas: tuple[int, ...] = MEASURED_GAMMAS  # windows that are timed, and captured for it, at start
    pdl: bool = False  # kernels begin before those ahead of them end


class CudaLanes(Lanes):
    """The native side of one placement: steps, their graphs, and the coordinator that launches them."""

    overlaps = True  # two streams, or two devices

    def __init__(
        self,
        placement: str,
        target: DeviceModel,
        draft: DeviceModel | Model | None,
        options: CudaOptions,
        sizes: PairSizes,
        gpus: tuple[Gpu, Gpu],
        draft_cores: Sequence[int] = (),
        lookup_tokens: int | None = None,
    ) -> None:
        """gpus: the target's and the draft's. draft_cores: of a draft on the CPU. lookup_tokens: of earlier
        answers, for a lookup on the host, which drafts; None: there is none.
        """
        super().__init__(placement, target.config, draft.config if draft is not None else None, sizes.pool)
        self._target_gpu, self._draft_gpu = gpus
        self.gpu = self._target_gpu
        self.options = options
        self.measured_gammas = options.gammas
        self._sizes, self._room = sizes, sizes.state
        self.draft_steps: DraftSteps | None = None
        self.overlaps = sizes.candidates == 1  # else windows wait for the verdict on the last ones
        self._has_head = isinstance(draft, DeviceModel) and draft.head is not None
        with self.gpu.current():
            features = sizes.features(target, draft, pdl=options.pdl)
            self.target_steps = sizes.steps(TargetSteps, target, features=features, pdl=options.pdl)
        if isinstance(draft, DeviceModel):
            shared = self.target_steps.state if placement != "devices" else None
            with self._draft_gpu.current():
                kind = draft_steps_of(draft)
                self.draft_steps = sizes.steps(kind, draft, shared, features=features, pdl=options.pdl)
        self._lookup = None if lookup_tokens is None else _C.LookupDrafter(pool_tokens=lookup_tokens)
        if self._lookup is not None:
            self.has_draft, self.overlaps = True, False
        # What others may launch of these models (pearl_rt.lowlevel.round): on two devices there is none.
        if (placement != "devices" or self._lookup is not None) and not self._has_head:
            self.pair = DevicePair(self.target_steps, self.draft_steps)
        self._claim = -1
        self.drafts_at_once = draft is not None and draft.config.pard_token is not None
        self._draft_on_host = isinstance(draft, Model)
        used = gpus if isinstance(draft, DeviceModel) else gpus[:1]
        self._gpus = list({gpu.ordinal: gpu for gpu in used}.values())
        self._captures = options.form in CAPTURED_FORMS
        self._issuer = _C.CudaIssuer(self.gpu.driver())
        self._issuer.form = options.form if self._captures else "events"
        self._issuer.timed = not self._captures
        self._issuer.rounds_ahead = options.rounds_ahead
        self._issuer.drafts_at_once = self.drafts_at_once
        self._capture = self._native(target, draft, draft_cores)
        # However this ends: first what launches, then what is launched, then the memory that it uses.
        self._end = weakref.finalize(self, shut, self.coordinator, self._capture)

    def start_all(
        self, strategy: str, requests: Sequence[Request], judge: str, windows: Sequence[int] = ()
    ) -> list[int]:
        """Starts a program, once its steps are captured. A run has one window."""
        for request in requests:
            self._check(request)
            self._check_judge(request, judge)
        if self.pair is not None and not self.coordinator.running:
            if self.pair.claims != self._claim:  # other calls have used the slots, on other streams
                self._synchronize()
                self.coordinator.forget_prefixes()  # and the pages
            self._claim = self.pair.claim()
        chosen = program(strategy, self.placement)
        if not self.coordinator.running:  # else start() says that it is
            joins = self._joins
            self._capture.ensure(
                steps_of(
                    chosen,
                    gamma=max((request.gamma for request in requests), default=0),
                    judge=judge,
                    keep_logits=judge == "rejection" and any(r.temperature > 0 for r in requests),
                    slots=range(self._room.num_slots if joins else len(requests)),
                    processed=any({*PROCESSORS, *FILTERS} & set(request.asked()) for request in requests),
                    logprobs=any(request.num_logprobs >= 0 for request in requests),
                    joins=joins,
                )
            )
        return self.coordinator.start(chosen, [self.native(r) for r in requests], judge)

    def submit(self, request: Request) -> int | None:
        """One more request for the run that goes on -> its id, or None: no run goes on, no request can join
        it, or its steps were captured for less: a shorter window, temperature 0, nothing that changes logits,
        no log-probabilities.
        """
        self._check(request)
        return super().submit(request)

    def measure(self) -> StepTimes:
        """The times of its steps, from a few rounds of each program with events around each step. Form
        "eager" has nominal ones: its own say nothing of a device.
        """
        if not self._captures:
            if self._lookup is not None:
                return NOMINAL_LOOKUP
            return NOMINAL_AT_ONCE if self.drafts_at_once else NOMINAL_TIMES
        form, self._issuer.form = self._issuer.form, "events"  # where each step is a launch, with times
        self._issuer.timed = True
        if self._lookup is not None:
            self._lookup.set_fills(True)  # so that scores of many rows are timed
        try:
            return measure(self)
        finally:
            if self._lookup is not None:
                self._lookup.set_fills(False)
            self.coordinator.stop()  # Ctrl-C may have left it at work
            self._issuer.timed = False
            self._issuer.form = form

    @property
    def form(self) -> str:
        """How rounds are launched. Between requests "events" and "graph" may follow each other."""
        return str(self._issuer.form) if self._captures else self.options.form

    @form.setter
    def form(self, form: str) -> None:
        if form == self.form:
            return
        if not self._captures or form not in CAPTURED_FORMS:
            raise ConfigError(
                f"form {form!r} can't follow {self.form!r}: lanes of {', '.join(map(repr, CAPTURED_FORMS))} "
                "may become each other; build an engine with the form that is wanted"
            )
        self._issuer.form = form

    @property
    def rounds_ahead(self) -> int:
        """Rounds that are queued before their verdict is read. Between requests it may be set."""
        return int(self._issuer.rounds_ahead)

    @rounds_ahead.setter
    def rounds_ahead(self, rounds_ahead: int) -> None:
        self._issuer.rounds_ahead = rounds_ahead

    @property
    def timed(self) -> bool:
        """Whether the steps of requests leave their times in the trace, which costs events around each; of
        form "graph" the rounds do.
        """
        return bool(self._issuer.timed)

    @timed.setter
    def timed(self, timed: bool) -> None:
        self._issuer.timed = timed

    @property
    def host_ns_per_round(self) -> float:
        """What the last request's rounds cost the thread that launches them."""
        return self._issuer.host_ns_per_round

    def capture_stats(self) -> Json:
        """What was captured, and what it cost."""
        return self._capture.stats() if self._captures else {}

    def close(self) -> None:
        """Stops what runs and destroys the graphs."""
        self._end()

    @property
    def _joins(self) -> bool:
        """Whether requests can join a run."""
        return self._room.num_slots > 1

    def _check(self, request: Request) -> None:
        check_stop_ids(request, self._room.max_stop_ids)
        check_biased(request)
        if self._sizes.candidates > 1 and {*PROCESSORS, *FILTERS} & set(request.asked()):
            raise RequestError(
                f"filters and penalties are for one window of a sequence on this device, and candidates is "
                f"{self._sizes.candidates}: leave them out, or build the engine with candidates=1"
            )

    def _check_judge(self, request: Request, judge: str) -> None:
        if self._sizes.candidates > 1 and judge == "rejection" and request.temperature > 0:
            raise RequestError(
                f"judge 'rejection' above temperature 0 is for one window of a sequence on this device, and "
                f"candidates is {self._sizes.candidates}: pass judge='coupled', or build the engine with "
                "candidates=1"
            )

    def _synchronize(self) -> None:
        for gpu in self._gpus:
            gpu.synchronize()

    def _native(
        self, target: DeviceModel, draft: DeviceModel | Model | None, draft_cores: Sequence[int]
    ) -> Capture:
        """Builds the lanes and their coordinator -> the owner of their graphs."""
        processors = self._processors(self._target_gpu, self.target_steps)
        with self._target_gpu.current(), memory_errors(self._target_gpu.device, "log-probabilities"):
            ring = LogprobRing(self.target_steps.state, self.options.pdl)
        graphs = [
            self._graphs("target", self._target_gpu, self.target_steps, processors, TARGET_PRIORITY, ring)
        ]
        lanes: list[_C.Lane] = [graphs[0].native]
        if isinstance(draft, DeviceModel):
            assert self.draft_steps is not None
            if self.draft_steps.state is not self.target_steps.state:
                processors = self._processors(self._draft_gpu, self.draft_steps)
            graphs.append(
                self._graphs("draft", self._draft_gpu, self.draft_steps, processors, DRAFT_PRIORITY)
            )
            lanes.append(graphs[1].native)
        elif draft is not None:
            cores = list(draft_cores)
            processors.kept_thresholds.fill_(-float("inf"))  # its rows come as they were sampled, cut already
            executor = draft.executor(cores, self._room.num_slots, self._sizes.pool)
            drafter = _C.ModelDrafter(executor, mask_token=draft.config.pard_token)
            lanes.append(_C.CpuLane("draft", drafter, _C.Device()))
        elif self._lookup is not None:
            lanes.append(_C.CpuLane("draft", self._lookup, _C.Device()))
        room = self._room
        draft_size = None if self._lookup is None else room.vocab_size
        if draft is not None:
            draft_size = draft.config.vocab_size if isinstance(draft, Model) else room.draft_vocab_size
        self.coordinator = self.coordinator_of(
            lanes, room.num_slots, self._sizes.pool, room.vocab_size, draft_size
        )
        return Capture(graphs, self._gpus)

    def _processors(self, gpu: Gpu, steps: TargetSteps | DraftSteps) -> LogitsProcessors:
        """What changes logits in the rounds of a state."""
        with gpu.current(), memory_errors(gpu.device, "filters and penalties"):
            return LogitsProcessors(steps.state, captured=self._captures, pdl=self.options.pdl)

    def _graphs(
        self,
        name: str,
        gpu: Gpu,
        steps: TargetSteps | DraftSteps,
        processors: LogitsProcessors,
        priority: int,
        ring: LogprobRing | None = None,
    ) -> LaneGraphs:
        """A stream of its own, and the native lane that launches on it. ring: the target's."""
        stream, room = gpu.stream(priority, captures=self._captures), self._room
        state = steps.state
        tensors = dict(vars(state.whole)) | {"chunk": steps.chunk, "joining": state.joining}
        tensors |= {"block_table": state.block_table} | processors.arrays()
        tensors |= ring.arrays() if ring is not None else {}
        sizes = {
            "num_slots": room.num_slots,
            "gamma_max": room.gamma_max,
            "capacity": room.capacity,
            "draft_vocab_size": room.draft_vocab_size,
            "num_stop_ids": room.max_stop_ids,
            "prefill_chunk": self._sizes.lane.prefill_chunk,
            "num_biased": MAX_BIASED,
            "max_logprobs": ring.most if ring is not None else -1,
            "block_size": room.block_size,
        }
        staging = gpu.staging(_C.DeviceArrays.staging_bytes(**sizes, host_logits=self._draft_on_host))
        arrays = _C.DeviceArrays(
            {key: tensor.data_ptr() for key, tensor in tensors.items()},
            **sizes,
            vocab_size=room.vocab_size,
            ring_size=room.ring_size,
            num_blocks=steps.model.kv_cache.shape.num_blocks,
            staging=staging.numpy(),
            owner=(steps, processors, ring, staging),
        )
        reads_target = name == "draft" and self._has_head
        native = _C.CudaLane(name, self._issuer, stream.native, arrays, reads_target=reads_target)
        return LaneGraphs(name, steps, stream, native, processors, ring)
