"""What bench/rounds_ahead.py says of rounds that are queued, from scripted runs; and that lanes take another
depth between requests.
"""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Iterator
from typing import Any

import fake_cuda
import pytest
from bench_fakes import run_of
from fake_gpu import FakeWorld, fresh
from tiny_pairs import SMALL, Pair

from bench.harness import goals
from bench.harness import measure as m
from bench.model_pairs.model_pair import ModelPair
from bench.rounds.rounds_ahead import DEFAULT, best_depths, depth_rows, format_depths, sweep
from pearl_rt.errors import RequestError
from pearl_rt.strategy.step_timing import NOMINAL_TIMES
from pearl_rt.types.metrics import RequestMetrics

AR, SD = m.Program("ar", "events"), m.Program("sd", "events", 8)
WORK = m.Workload([[5], [9]], 4)


class Lanes:
    def __init__(self) -> None:
        self.rounds_ahead = DEFAULT


class Scripted:
    """A scripted whose runs take what a script says: (strategy, depth, run) -> seconds."""

    def __init__(self, seconds: Any, wrong_depth: int = 0) -> None:
        self.seconds, self.wrong_depth = seconds, wrong_depth
        self.own, self.host_us = Lanes(), {}
        self.runs: list[tuple[str, int]] = []

    def lanes(self) -> list[Lanes]:
        return [self.own]

    def switch(self, name: str, value: Any) -> bool:
        setattr(self.own, name, value)
        return True

    def run(self, program: m.Program, workload: m.Workload, prompt: int) -> list[m.Sample]:
        depth = self.own.rounds_ahead
        seconds = self.seconds(program.strategy, depth, len(self.runs))
        self.runs.append((program.strategy, depth))
        self.host_us.setdefault(str(program), []).append(10.0 * depth)
        ids = [prompt, 2 if depth == self.wrong_depth else 1]
        return [m.Sample(prompt, ids, seconds, 0.1, 0.1, run_of(program.strategy, [], 3))]

    def timed_runs(self, program: m.Program, workload: m.Workload) -> list[RequestMetrics]:
        return []


def swept(seconds: Any, **options: Any) -> tuple[Scripted, list[Any], str | None]:
    scripted = Scripted(seconds, **options)
    found, difference = sweep(scripted, [AR, SD], WORK)  # type: ignore[arg-type]
    return scripted, found, difference


def test_depths_run_by_turns_and_the_best_is_named() -> None:
    """ar does not care; sd pays for every round behind the end."""

    def seconds(strategy: str, depth: int, run: int) -> float:
        noise = random.Random(run).uniform(0.995, 1.005)
        return noise * (1.0 if strategy == "ar" else 0.5 + 0.05 * depth)

    scripted, found, difference = swept(seconds)
    assert difference is None and scripted.own.rounds_ahead == DEFAULT, "its own depth is back"
    assert [(d.program, d.rounds_ahead) for d in found] == [
        (str(program), depth) for program in (AR, SD) for depth in (1, 2, 3, 4)
    ]
    first = scripted.runs[:8]
    assert len(set(first)) == 8 and scripted.runs[8] == first[1], "by turns, each round one further"
    told = {depth.rounds_ahead: depth for depth in found if depth.program == str(SD)}
    assert told[2].x_default == 1 and told[1].x_default == pytest.approx(0.6 / 0.55, rel=0.01)
    assert told[3].host_us == 30.0 and math.isnan(told[3].between_p50)
    assert told[1].tail_ms == pytest.approx(1e3 * (0.55 - 0.003), rel=0.01)
    ar, sd = best_depths(found)
    assert ar.is_within_noise and not sd.is_within_noise and sd.rounds_ahead == 1
    text = format_depths(found, difference)
    assert "NOT within noise" in text and "sd/events gamma 8: 1 is best" in text
    goal = next(goal for goal in goals.ROUND_GOALS if goal.figure == "of_best")
    verdict = goals.verdict(goal, depth_rows(found, difference, "8b+135m"))
    assert verdict.met is False and verdict.found == pytest.approx(0.55 / 0.6, rel=0.01)
    assert "8b+135m sd/events gamma 8, best 1" in goals.format_goals([verdict])


def test_tokens_that_depend_on_the_depth_have_no_best_one() -> None:
    _, found, difference = swept(lambda strategy, depth, run: 1.0, wrong_depth=3)
    assert difference is not None and "token 1" in difference
    text = format_depths(found, difference)
    assert "TOKENS DIFFER" in text and "is best" not in text
    goal = next(goal for goal in goals.ROUND_GOALS if goal.figure == "of_best")
    assert goals.verdict(goal, depth_rows(found, difference, "pair")).met is False


def test_the_subject_has_its_depth_again_after_a_fault() -> None:
    def fails(strategy: str, depth: int, run: int) -> float:
        if run == 3:
            raise RequestError("no")
        return 1.0

    scripted = Scripted(fails)
    with pytest.raises(RequestError):
        sweep(scripted, [AR], WORK)  # type: ignore[arg-type]
    assert scripted.own.rounds_ahead == DEFAULT


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWorld]:
    monkeypatch.setattr("pearl_rt.backends.cuda_lanes.measure", lambda lanes: NOMINAL_TIMES)
    yield from fresh(fake_cuda.load(), monkeypatch)
    gc.collect()


@pytest.mark.slow
@pytest.mark.skipif(not fake_cuda.has_compiler(), reason="the fake driver needs a compiler")
def test_lanes_take_another_depth_between_requests(world: FakeWorld) -> None:
    pair = Pair.make("half-right", **SMALL)
    with pair.engine(device="cuda", max_model_len=12, judge="coupled", rounds_ahead=3) as engine:
        scripted = ModelPair(engine, "cuda", ("a", "b"), None, None, [[5, 9, 3]], forms=("events",))  # type: ignore[arg-type]
        work = m.Workload([[5, 9, 3]], 3)
        found, difference = sweep(scripted, [m.Program("ar", "events")], work, depths=(1,), repeats=1)
        assert difference is None and [depth.rounds_ahead for depth in found] == [1, DEFAULT]
        assert all(depth.between_p50 > 0 and depth.host_us > 0 for depth in found)
        [lanes] = scripted.lanes()
        assert lanes.rounds_ahead == 3
        with pytest.raises(RequestError, match="rounds_ahead is 0"):
            lanes.rounds_ahead = 0
