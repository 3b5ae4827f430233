"""Which steps a program needs, and how graphs live: captured once, on idle slots, destroyed when shut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pearl_rt.device.capture import Capture, LaneGraphs, shut, steps_of
from pearl_rt.device.state import IDLE, RUNNING
from pearl_rt.device.steps import DraftSteps
from pearl_rt.errors import DeviceError, RequestError
from pearl_rt.strategy.program import program


@dataclass
class Log:
    """What happened, in order."""

    lines: list[str] = field(default_factory=list)


class Graph:
    def __init__(self, log: Log, name: str, number: int) -> None:
        self.log, self.name = log, name
        self.graph, self.exec = 100 + number, 200 + number
        self.function = None

    def destroy(self) -> None:
        self.log.lines.append(f"destroy {self.name}")


class Stream:
    """Runs what it captures."""

    handle = 7

    def __init__(self, log: Log, fails: str = "") -> None:
        self.log, self.fails, self.count = log, fails, 0

    def synchronize(self) -> None:
        self.log.lines.append("synchronize")

    def capture(self, name: str, launch: Callable[[], None]) -> Graph:
        if self.fails and self.fails in name:
            raise DeviceError(f"step {name} could not be captured")
        launch()
        self.count += 1
        self.log.lines.append(f"capture {name}")
        return Graph(self.log, name, self.count)


class Native:
    """The calls that a native lane gets."""

    def __init__(self) -> None:
        self.steps: list[tuple[Any, ...]] = []

    def add_step(self, op: str, **known: Any) -> None:
        self.steps.append((op, *known.values()))


class Gpu:
    def __init__(self) -> None:
        self.free = 1000

    def free_memory(self) -> int:
        self.free -= 10
        return self.free

    def settle(self) -> None: ...


def state_of() -> SimpleNamespace:
    whole = SimpleNamespace(finish_reason=torch.full((2,), RUNNING))
    return SimpleNamespace(whole=whole, joining=torch.full((2,), RUNNING))


class Target:
    """Steps that say that they ran, on which slots."""

    def __init__(self, log: Log) -> None:
        self.log, self.state, self.chunk = log, state_of(), torch.ones(2, 2, dtype=torch.int32)

    def _ran(self, what: str) -> None:
        assert self.state.whole.finish_reason.tolist() == [IDLE, IDLE] == self.state.joining.tolist()
        assert not self.chunk.any()
        self.log.lines.append(f"run {what}")

    def prefill_chunk(self) -> None:
        self._ran("chunk")

    def prefill_logits(self, gamma: int, slot: int) -> None:
        self._ran(f"logits {gamma} {slot}")

    def score(self, gamma: int, include_window: bool) -> None:
        self._ran(f"score {gamma} {include_window}")

    def verify(self, gamma: int, judge: str, processors: object, *, joining: bool) -> None:
        self._ran(
            f"verify {gamma} {judge}" + (f" by {processors}" if processors else "") + " joining" * joining
        )


class Draft(DraftSteps):
    def __init__(self, log: Log) -> None:
        self.log, self.state, self.chunk = log, state_of(), torch.ones(2, 2, dtype=torch.int32)  # type: ignore

    def prefill_chunk(self) -> None:
        self.log.lines.append("run chunk of draft")

    def draft(self, gamma: int, judge: str, keep_logits: bool, processors: object) -> None:  # type: ignore
        self.log.lines.append(
            f"run draft {gamma} {judge} {keep_logits}" + (f" by {processors}" if processors else "")
        )


def capture_of(log: Log, fails: str = "") -> Capture:
    return Capture(
        [
            LaneGraphs("target", Target(log), Stream(log, fails), Native(), "processors"),  # type: ignore[arg-type]
            LaneGraphs("draft", Draft(log), Stream(log, fails), Native(), "processors"),  # type: ignore[arg-type]
        ],
        [Gpu()],  # type: ignore[list-item]
    )


def names(strategy: str, placement: str = "shared", **options: Any) -> list[str]:
    known = {"gamma": 3, "judge": "coupled", "keep_logits": False, "slots": [0]} | options
    return [f"{lane}: {step}" for lane, step in steps_of(program(strategy, placement), **known)]


def test_what_each_program_needs() -> None:
    assert names("ar") == [
        "target: 'prefill chunk'",
        "target: 'prefill logits'",
        "target: 'verify' judge=coupled",
        "target: 'score'",
    ]
    own = [
        "target: 'prefill chunk'",
        "target: 'prefill logits' gamma=3",
        "target: 'verify' gamma=3 judge=coupled",
    ]
    draft = ["draft: 'prefill chunk'", "draft: 'draft' gamma=3 judge=coupled"]
    for placement in ("shared", "devices"):
        assert names("sd", placement) == [*own, "target: 'score window' gamma=3", *draft]
        assert names("pearl", placement) == [*own, "target: 'score' gamma=3", *draft]


def test_what_is_shaped_is_captured_with_it() -> None:
    log = Log()
    capture = capture_of(log)
    options: Any = {"gamma": 2, "judge": "coupled", "keep_logits": False, "slots": [0]}
    capture.ensure(steps_of(program("sd"), **options, processed=True))
    processed = [line for line in log.lines if "processors" in line and "run" in line]
    assert processed == ["run verify 2 coupled by processors", "run draft 2 coupled False by processors"]
    assert capture.lanes["target"].native.steps[2][:6] == ("verify", 2, "coupled", False, 0, True)
    count = capture.stats()["graphs"]
    capture.ensure(steps_of(program("sd"), **options))
    assert capture.stats()["graphs"] == count + 2


def test_log_probabilities_are_captured_around_the_verdict() -> None:
    """Rows are kept where they are changed before they are judged."""
    log = Log()

    class Ring:
        def begin(self, gamma: int, *, keeps: bool) -> None:
            log.lines.append(f"run begin {gamma} {keeps}")

        def publish(self, gamma: int, *, keeps: bool) -> None:
            log.lines.append(f"run publish {gamma} {keeps}")

    capture = capture_of(log)
    capture.lanes["target"].logprob_ring = Ring()  # type: ignore[assignment]
    options: Any = {"gamma": 2, "judge": "coupled", "keep_logits": False, "slots": [0], "logprobs": True}
    for processed, by in ((False, ""), (True, " by processors")):
        log.lines.clear()
        capture.ensure(steps_of(program("sd"), **options, processed=processed))
        at = log.lines.index(f"run verify 2 coupled{by}")
        assert (
            log.lines[at - 1] == f"run begin 2 {processed}"
            and log.lines[at + 1] == f"run publish 2 {processed}"
        )
    assert capture.lanes["target"].native.steps[2][:7] == ("verify", 2, "coupled", False, 0, False, True)
    assert [
        step for lane, step in steps_of(program("sd"), **options) if lane == "draft" and step.logprobs
    ] == []


def test_what_joins_is_judged_by_a_step_of_its_own() -> None:
    log = Log()
    capture = capture_of(log)
    options: Any = {"gamma": 2, "judge": "coupled", "keep_logits": False, "slots": range(2)}
    capture.ensure(steps_of(program("ar"), **options, joins=True))
    assert "run verify 0 coupled joining" in log.lines
    assert [step[0] for step in capture.lanes["target"].native.steps] == [
        *("prefill chunk", "prefill logits", "prefill logits", "verify", "join", "score"),
    ]


def test_what_a_window_of_several_slots_and_kept_logits_needs() -> None:
    found = names("pearl", slots=[0, 1, 2], judge="rejection", keep_logits=True)
    assert [name for name in found if "logits'" in name] == [
        "target: 'prefill logits' gamma=3",
        "target: 'prefill logits' gamma=3 slot=1",
        "target: 'prefill logits' gamma=3 slot=2",
    ]
    assert found[-1] == "draft: 'draft' gamma=3 judge=rejection keep_logits=True"


def test_steps_are_captured_when_they_are_first_asked_for() -> None:
    """On slots that are idle, and each once."""
    log = Log()
    capture = capture_of(log)
    options: Any = {"judge": "coupled", "keep_logits": False, "slots": [0]}
    capture.ensure(steps_of(program("ar"), gamma=5, **options))
    target, draft = capture.lanes["target"], capture.lanes["draft"]
    assert [step[0] for step in target.native.steps] == [
        *("prefill chunk", "prefill logits", "verify", "score"),
    ]
    assert target.native.steps[2][-4:-2] == (103, 203)
    assert draft.native.steps == [] and capture.stats()["graphs"] == 4
    count = len(log.lines)
    capture.ensure(steps_of(program("ar"), gamma=2, **options))  # the same: ar has no window
    assert len(log.lines) == count
    capture.ensure(steps_of(program("sd"), gamma=2, **options))
    assert [step[0] for step in draft.native.steps] == ["prefill chunk", "draft"]
    assert draft.native.steps[1][:5] == ("draft", 2, "coupled", False, 0)
    capture.ensure(steps_of(program("pearl"), gamma=2, **options))
    assert log.lines[-2:] == ["run score 2 False", "capture 'score' gamma=2 of the target lane"]
    stats = capture.stats()
    assert stats["graphs"] == 10 and stats["bytes"] == 30 and stats["seconds"] > 0
    assert "draft: 'draft' gamma=2 judge=coupled" in stats["steps"]


def test_a_lane_of_the_cpu_has_no_graphs() -> None:
    log = Log()
    capture = capture_of(log)
    del capture.lanes["draft"]
    capture.ensure(steps_of(program("sd", "devices"), gamma=2, judge="coupled", keep_logits=False, slots=[0]))
    assert capture.stats()["graphs"] == 4


def test_a_capture_that_fails_leaves_what_was_captured() -> None:
    log = Log()
    capture = capture_of(log, fails="'score'")
    wanted = steps_of(program("ar"), gamma=0, judge="coupled", keep_logits=False, slots=[0])
    for _ in range(2):
        with pytest.raises(DeviceError, match="'score' of the target lane could not be captured"):
            capture.ensure(wanted)
        assert capture.stats()["graphs"] == 3


@pytest.mark.parametrize("fails", [False, True])
def test_shut_stops_first_and_destroys_then(fails: bool) -> None:
    log = Log()
    capture = capture_of(log)
    capture.ensure(steps_of(program("sd"), gamma=2, judge="coupled", keep_logits=False, slots=[0]))
    log.lines.clear()

    def stop() -> None:
        log.lines.append("stop")
        if fails:
            raise RequestError("in use by another thread")

    shut(SimpleNamespace(stop=stop), capture)
    assert log.lines[:2] == ["stop", "synchronize"]
    assert sum(line.startswith("destroy") for line in log.lines) == 6
    shut(SimpleNamespace(stop=stop), capture)
    assert sum(line.startswith("destroy") for line in log.lines) == 6


def test_stats_may_be_asked_for_while_another_thread_captures() -> None:
    """Between two steps that are told a third one is captured."""
    graphs: dict[Any, Any] = {}

    class Told:
        def __str__(self) -> str:
            graphs[object()] = None
            return "a step"

    graphs |= {Told(): None, Told(): None}
    lane: Any = SimpleNamespace(name="target", graphs=graphs)
    told = Capture([lane], []).stats()
    assert told["graphs"] == 2 and told["steps"] == ["target: a step"] * 2
    assert len(graphs) == 4
