"""Steps as graphs: each is captured when a program first asks for it, and handed to its native lane.

Knows steps, streams and programs; not requests or rounds. A graph lives as long as its owner here, which lets
go of it only when no lane can launch it any more.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pearl_rt._C as _C
from pearl_rt.checkpoint.loader import loading_bar
from pearl_rt.device.gpu import Gpu, GraphStream, StepGraph
from pearl_rt.device.logits_processors import LogitsProcessors
from pearl_rt.device.logprob_ring import LogprobRing
from pearl_rt.device.state import IDLE
from pearl_rt.device.steps import DraftSteps, TargetSteps
from pearl_rt.errors import PearlError
from pearl_rt.strategy.program import LANES, Program
from pearl_rt.types.json import Json


@dataclass(frozen=True)
class Step:
    """What is captured once: an op, and all that its launches depend on."""

    op: str
    gamma: int = 0
    judge: str = ""
    keep_logits: bool = False
    slot: int = 0
    processed: bool = False  # with filters and penalties, which change nothing where they are off
    logprobs: bool = False  # with log-probabilities, for slots that want them

    def __str__(self) -> str:
        known = {name: value for name, value in vars(self).items() if name != "op" and value}
        return " ".join([repr(self.op), *(f"{name}={value}" for name, value in known.items())])


def steps_of(
    chosen: Program,
    *,
    gamma: int,
    judge: str,
    keep_logits: bool,
    slots: Iterable[int],
    processed: bool = False,
    logprobs: bool = False,
    joins: bool = False,
) -> list[tuple[str, Step]]:
    """(lane, step): what the lanes launch in a program, in order of first use.

    gamma: the window of the run, if it drafts at all. slots: those that have a request, or may get one.
    joins: whether requests join the run.
    """
    drafts = any(op.kind == "draft" for lane in chosen.lanes for op in lane.body)
    window = gamma if drafts else 0
    found: dict[tuple[str, Step], None] = {}
    for name, lane in zip(LANES, chosen.lanes, strict=False):
        for op in (*lane.prologue, *lane.body):
            steps: list[Step] = []
            if op.kind in ("prefill", "prefill context"):
                steps = [Step("prefill chunk")]
            if op.kind == "prefill":
                steps += [Step("prefill logits", window, slot=slot) for slot in slots]
            elif op.kind in ("first", "verify"):
                names = ("verify", "join") if joins else ("verify",)
                steps = [Step(name, window, judge, processed=processed, logprobs=logprobs) for name in names]
            elif op.kind in ("score", "score window"):
                steps = [Step(op.kind, window)]
            elif op.kind == "draft":
                steps = [Step("draft", window, judge, keep_logits, processed=processed)]
            found |= dict.fromkeys((name, step) for step in steps)
    return list(found)


@dataclass
class LaneGraphs:
    """The graphs of one lane. Steps run once when they are captured, on idle slots."""

    name: str
    steps: TargetSteps | DraftSteps
    stream: GraphStream
    native: _C.CudaLane
    processors: LogitsProcessors | None = None  # of steps that are processed
    logprob_ring: LogprobRing | None = None  # of steps with log-probabilities; the target's
    graphs: dict[Step, StepGraph] = field(default_factory=dict)

    def capture(self, step: Step) -> None:
        """Captures one step and hands it to the native lane. Nothing may run on either lane's stream."""
        graph = self.stream.capture(f"{step} of the {self.name} lane", self._launch_of(step))
        self.graphs[step] = graph
        self.native.add_step(
            step.op,  # "verify" is "first" too
            gamma=step.gamma,
            judge=step.judge,
            keep_logits=step.keep_logits,
            slot=step.slot,
            processed=step.processed,
            logprobs=step.logprobs,
            graph=graph.graph,
            exec=graph.exec,
            function=graph.function,
            owner=graph,
        )

    def idle(self) -> None:
        """Empties the slots of the last request, whose prompt and state are written anew by the next."""
        self.steps.state.whole.finish_reason.fill_(IDLE)
        self.steps.state.joining.fill_(IDLE)
        self.steps.chunk.zero_()

    def destroy(self) -> None:
        """Only when the native lane launches nothing any more, and never will."""
        with suppress(RuntimeError):  # of a context that is lost
            self.stream.synchronize()
        while self.graphs:
            self.graphs.popitem()[1].destroy()

    def _launch_of(self, step: Step) -> Callable[[], None]:
        steps, processors = self.steps, self.processors if step.processed else None
        if step.op == "prefill chunk":
            return steps.prefill_chunk
        if isinstance(steps, DraftSteps):
            assert step.op == "draft", f"{step} is no step of a draft"
            return lambda: steps.draft(step.gamma, step.judge, step.keep_logits, processors)
        if step.op == "prefill logits":
            return lambda: steps.prefill_logits(step.gamma, step.slot)
        if step.op in ("verify", "join"):
            return self._verify_of(step, steps, processors)
        return lambda: steps.score(step.gamma, include_window=step.op == "score window")

    def _verify_of(
        self, step: Step, steps: TargetSteps, processors: LogitsProcessors | None
    ) -> Callable[[], None]:
        ring, keeps = self.logprob_ring, processors is not None

        def verify() -> None:
            steps.verify(step.gamma, step.judge, processors, joining=step.op == "join")

        def verify_and_publish() -> None:
            assert ring is not None, f"{step} has no ring of log-probabilities"
            ring.begin(step.gamma, keeps=keeps)
            verify()
            ring.publish(step.gamma, keeps=keeps)

        return verify_and_publish if step.logprobs else verify


class Capture:
    """Captures what programs need, and says what that cost."""

    def __init__(self, lanes: Iterable[LaneGraphs], gpus: Sequence[Gpu]) -> None:
        self.lanes = {lane.name: lane for lane in lanes}
        self.process = os.getpid()  # whose graphs these are
        self._gpus = gpus
        self._seconds = 0.0
        self._bytes = 0

    def ensure(self, wanted: Sequence[tuple[str, Step]]) -> None:
        """Captures those of (lane, step) that are not there yet; nothing may run meanwhile. Lanes that are no
        GPU's have none.
        """
        missing = [
            (self.lanes[name], step)
            for name, step in wanted
            if name in self.lanes and step not in self.lanes[name].graphs
        ]
        if not missing:
            return
        begin, free = time.monotonic(), self._free_memory()
        for lane in self.lanes.values():
            lane.idle()
        for gpu in self._gpus:
            gpu.settle()  # idle() wrote on torch's stream; another engine may be in its own capture
        with loading_bar("capturing the steps", len(missing), unit="step") as advance:
            for lane, step in missing:
                lane.capture(step)
                advance(1)
        self._seconds += time.monotonic() - begin
        self._bytes += max(0, free - self._free_memory())

    def stats(self) -> Json:
        """Graphs, the seconds that they took, and the bytes of GPU memory that went meanwhile: those of
        kernels and workspaces too, and of other processes if there are any. From any thread: another may
        capture meanwhile.
        """
        captured = [(lane.name, list(lane.graphs)) for lane in self.lanes.values()]
        return {
            "graphs": sum(len(steps) for _, steps in captured),
            "seconds": self._seconds,
            "bytes": self._bytes,
            "steps": [f"{name}: {step}" for name, steps in captured for step in steps],
        }

    def _free_memory(self) -> int:
        return sum(gpu.free_memory() for gpu in self._gpus)


def shut(coordinator: _C.Coordinator, capture: Capture) -> None:
    """Ends what runs, then destroys the graphs. What they read and write lives as long as `capture`. In
    the child of a fork both are still the parent's.
    """
    if capture.process != os.getpid():
        return
    with suppress(PearlError):
        coordinator.stop()
    for lane in capture.lanes.values():
        lane.destroy()
