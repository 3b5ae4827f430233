"""An engine on a GPU that is none: native lanes over the fake driver, and kernels in Triton's interpreter.

Shows order, handles, uploads and verdicts; of speed, and of kernels on a chip, nothing.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import fake_cuda
import pytest
import torch
from fake_gpu import FakeWorld, fresh
from tiny_pairs import Pair

from pearl_rt import (
    ConfigError,
    DeviceError,
    Engine,
    RequestError,
    RequestOutput,
    ResourceError,
    SamplingParams,
)
from pearl_rt.device.pair_sizes import PairSizes
from pearl_rt.device.steps import LaneSteps
from pearl_rt.strategy.step_timing import NOMINAL_TIMES

MAX_LEN = 24
ONE, LONG = [7], list(range(3, 21))  # LONG crosses a prefill chunk and a page
SMALL: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_key_value_heads": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": MAX_LEN,
}
FORMS = ("events", "graph")
SAMPLED = SamplingParams(temperature=0.8, seed=2**64 - 1, max_tokens=4)
GREEDY = SamplingParams(max_tokens=10**9)  # to max_model_len
RUNS = (
    ("ar", 1, LONG, GREEDY),
    ("sd", 2, ONE, SAMPLED),
    ("pearl", 1, ONE, SAMPLED),
    ("pearl", 3, LONG, GREEDY),
)

pytestmark = [pytest.mark.skipif(not fake_cuda.has_compiler(), reason="no C++ compiler"), pytest.mark.slow]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWorld]:
    """Two GPUs; step times are not measured, which would take rounds of every program."""
    monkeypatch.setattr("pearl_rt.backends.cuda_lanes.measure", lambda lanes: NOMINAL_TIMES)
    yield from fresh(fake_cuda.load(), monkeypatch)
    gc.collect()


@cache
def pair_of(draft: str = "half-right") -> Pair:
    return Pair.make(draft, **SMALL)


@cache
def executed(prompt: tuple[int, ...], params: SamplingParams) -> RequestOutput:
    with pair_of().engine(device="cpu", max_model_len=MAX_LEN, placement="shared", num_threads=1) as engine:
        return engine.generate(list(prompt), params, strategy="ar", judge="coupled")[0]


def expected(prompt: tuple[int, ...], params: SamplingParams) -> tuple[list[int], str]:
    """What the CPU's executor says; every program of it says the same."""
    return text_of(executed(prompt, params))


def engine_of(**options: Any) -> Engine:
    return pair_of().engine(**{"device": "cuda", "max_model_len": MAX_LEN} | options)


def text_of(output: RequestOutput) -> tuple[list[int], str]:
    return output.token_ids, output.finish_reason


def check(engine: Engine, prompt: list[int], params: SamplingParams, **options: Any) -> RequestOutput:
    [output] = engine.generate(prompt, params, **options)
    assert text_of(output) == expected(tuple(prompt), params), options
    return output


@pytest.mark.parametrize("form", FORMS)
def test_tokens_are_the_executors(world: FakeWorld, form: str) -> None:
    """Greedy to max_model_len, and sampled with shared noise; with `pdl`, which does nothing here."""
    with engine_of(form=form, judge="coupled", pdl=form == "graph") as engine:
        for strategy, gamma, prompt, params in RUNS:
            check(engine, prompt, params, strategy=strategy, gamma=gamma)
        stats = engine.stats()
        assert (stats["form"], stats["pdl"]) == (form, form == "graph") and "Fake 0" in str(stats["device"])
        assert stats["capture"]["graphs"] == sum(line.startswith("captured") for line in world.log)
        assert "draft: 'draft' gamma=3 judge=coupled" in stats["capture"]["steps"]


@pytest.mark.parametrize(("draft_device", "form"), [("cuda:1", "graph"), ("cpu", "events")])
def test_a_draft_with_a_memory_of_its_own(world: FakeWorld, draft_device: str, form: str) -> None:
    """Beside the CPU's executor the blocks of both caches are as long as it likes them."""
    with engine_of(draft_device=draft_device, judge="coupled", form=form) as engine:
        size, total = (32, 1) if draft_device == "cpu" else (16, 2)
        assert engine.stats()["kv_blocks"] == {"block_size": size, "total": total, "free": total}
        for strategy, gamma, prompt, params in RUNS[1:]:
            check(engine, prompt, params, strategy=strategy, gamma=gamma, placement="devices")


@pytest.mark.parametrize("strategy", ["sd", "pearl"])
def test_rejection_draws_the_executors_numbers(world: FakeWorld, strategy: str) -> None:
    with (
        engine_of(strategy=strategy, gamma=3) as engine,
        pair_of().engine(device="cpu", max_model_len=MAX_LEN, placement="shared", num_threads=1) as native,
    ):
        found = engine.generate(ONE, SAMPLED)[0]
        assert text_of(found) == text_of(native.generate(ONE, SAMPLED, strategy=strategy, gamma=3)[0])


PROCESSED = SamplingParams(
    temperature=1.1,
    seed=5,
    max_tokens=3,
    top_k=20,
    top_p=0.8,
    min_p=0.02,
    repetition_penalty=1.3,
    frequency_penalty=0.4,
    presence_penalty=-0.2,
    logit_bias={3: 2.0, 30: -100.0},
    min_tokens=2,
    stop_token_ids=(1, 3, 9, 30),
)


@pytest.mark.parametrize("draft_device", ["cuda:1", "cpu"])
def test_filters_and_penalties_are_the_executors(world: FakeWorld, draft_device: str) -> None:
    """With a draft whose rows, and what they were cut at, come from another memory."""
    options: dict[str, Any] = {"strategy": "sd", "gamma": 1}
    with (
        engine_of(draft_device=draft_device, rounds_ahead=1, **options) as engine,
        pair_of().engine(device="cpu", max_model_len=MAX_LEN, placement="shared", num_threads=1) as native,
    ):
        found = engine.generate(LONG[:3], PROCESSED)[0]
        assert text_of(found) == text_of(native.generate(LONG[:3], PROCESSED, **options)[0])


def test_eager_launches_step_by_step(world: FakeWorld) -> None:
    """Two sequences at once, with log-probabilities."""
    params = SamplingParams(max_tokens=4, logprobs=1)
    with engine_of(form="eager", strategy="pearl", gamma=2, max_num_seqs=2) as engine:
        outputs = engine.generate([ONE, LONG[:3]], params)
        for output, prompt in zip(outputs, (ONE, LONG[:3]), strict=True):
            assert text_of(output) == expected(tuple(prompt), SamplingParams(max_tokens=4))
            assert output.logprobs is not None
            pairs = zip(output.logprobs, output.token_ids, strict=True)
            assert all(told[token].rank == 1 for told, token in pairs)
        assert engine.stats()["capture"] == {}
    assert world.log == []


REPORTED = (
    (LONG[:3], SamplingParams(max_tokens=7, logprobs=0, stop_token_ids=(15,))),  # in the middle of a window
    (LONG[:3], replace(SAMPLED, logprobs=20)),
    (LONG[:3], replace(PROCESSED, logprobs=2)),
)


@cache
def logprobs_by_eager() -> list[RequestOutput]:
    with engine_of(form="eager", strategy="sd", gamma=2, judge="coupled") as engine:
        return [engine.generate(prompt, params)[0] for prompt, params in REPORTED]


@pytest.mark.parametrize(("form", "draft_device"), [("graph", None), ("events", "cuda:1")])
def test_log_probabilities_are_those_of_eager(
    world: FakeWorld, monkeypatch: pytest.MonkeyPatch, form: str, draft_device: str | None
) -> None:
    """The same bits: of the target's own rows, where penalties change them too; round a ring of two."""
    expected = logprobs_by_eager()
    assert [len(output.token_ids) for output in expected] == [3, 4, 3]
    monkeypatch.setattr(PairSizes, "of", partial(PairSizes.of, ring_size=2))
    options: dict[str, Any] = {"strategy": "sd", "gamma": 2, "judge": "coupled", "draft_device": draft_device}
    with engine_of(form=form, rounds_ahead=1, **options) as engine:
        for (prompt, params), wanted in zip(REPORTED, expected, strict=True):
            found = engine.generate(prompt, params)[0]
            assert text_of(found) == text_of(wanted)
            assert found.logprobs == wanted.logprobs and found.logprobs is not None
        assert engine.generate(ONE, SamplingParams(max_tokens=1))[0].logprobs is None
        steps = engine.stats()["capture"]["steps"]
        assert "target: 'verify' gamma=2 judge=coupled processed=True logprobs=True" in steps
        assert "target: 'verify' gamma=2 judge=coupled" in steps


def test_a_target_alone(world: FakeWorld) -> None:
    pair = pair_of()
    with Engine(pair.config, pair.target, device="cuda", max_model_len=MAX_LEN) as engine:
        check(engine, LONG, SamplingParams(max_tokens=3))
        assert engine.stats()["capture"]["graphs"] == 4


def test_step_times_are_read_from_a_timed_trace(world: FakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    from pearl_rt.backends import cuda_lanes as cuda_lane
    from pearl_rt.strategy import step_timing

    monkeypatch.setattr(cuda_lane, "measure", step_timing.measure)
    with engine_of(gamma=2) as engine:
        assert not any("gamma=4" in step for step in engine.stats()["capture"]["steps"])
        times = engine.stats()["step_times"]["shared"]
        assert times["target"][1] > 0 and times["window"][2] > 0
        assert times["beside_target"][1] > 0 and times["beside_window"][2] > 0
        assert engine.generate(ONE, SamplingParams(max_tokens=3))[0].metrics.trace == ()


def test_two_engines_in_one_process(world: FakeWorld) -> None:
    with (
        engine_of(strategy="pearl", gamma=2) as one,
        engine_of(strategy="sd", gamma=1, device="cuda:1") as two,
    ):
        found: list[tuple[list[int], str]] = []
        params = SamplingParams(max_tokens=5)
        thread = threading.Thread(target=lambda: found.append(text_of(two.generate(ONE, params)[0])))
        thread.start()
        check(one, ONE, params)
        thread.join()
        assert found == [expected(tuple(ONE), params)]


def test_an_engine_in_use_is_refused_to_others(world: FakeWorld) -> None:
    with engine_of(strategy="ar") as engine:
        stream = engine.stream(ONE, SamplingParams(max_tokens=6))
        first = next(stream)
        with pytest.raises(RequestError, match="in use"):
            engine.generate(ONE)
        stream.close()
        assert engine.last_output is not None and engine.last_output.finish_reason in ("abort", "length")
        tokens = expected(tuple(ONE), SamplingParams(max_tokens=6))[0]
        assert first.token_ids == tokens[: len(first.token_ids)]
        check(engine, ONE, SamplingParams(max_tokens=6))


def test_graphs_are_destroyed_when_nothing_runs_any_more(world: FakeWorld) -> None:
    """By close(), twice; without it by garbage collection, in a cycle too."""
    engine = engine_of(strategy="sd", gamma=2)
    check(engine, ONE, SamplingParams(max_tokens=3))
    engine.close()
    engine.close()
    assert sum(line.startswith("destroyed") for line in world.log) == 6
    with pytest.raises(RequestError, match="closed"):
        engine.generate(ONE)
    world.log.clear()
    engine = engine_of(strategy="sd", gamma=2)
    stream = engine.stream(ONE, SamplingParams(max_tokens=12))
    next(stream)
    cycle: list[Any] = [engine, stream]
    cycle.append(cycle)
    del engine, stream, cycle
    gc.collect()
    assert sum(line.startswith("destroyed") for line in world.log) == 6
    assert world.cuda.live_handles() == [] and world.cuda.num_calls("cuStreamDestroy") == 4  # lanes' own


@pytest.mark.parametrize(
    ("call", "nth", "code", "named"),
    [
        ("cuGraphLaunch", 3, 719, "cuGraphLaunch.*CUDA_ERROR_LAUNCH_FAILED"),
        ("kernel", 4, 700, "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("cuStreamWaitEvent", 1, 400, "cuStreamWaitEvent.*CUDA_ERROR_INVALID_HANDLE"),
    ],
)
def test_a_device_error_in_flight(world: FakeWorld, call: str, nth: int, code: int, named: str) -> None:
    """One exception, and an engine that can be closed."""
    engine = engine_of(strategy="pearl", gamma=2)
    world.cuda.inject(call, nth, code)
    with pytest.raises(DeviceError, match=named) as caught:
        engine.generate(ONE, SamplingParams(max_tokens=8))
    assert caught.value.code == code
    engine.close()
    engine.close()


def test_memory_that_runs_out_in_flight(world: FakeWorld) -> None:
    with engine_of(strategy="sd", gamma=2) as engine:
        world.cuda.inject("cuGraphLaunch", 2, 2)
        with pytest.raises(ResourceError, match="cuGraphLaunch"):
            engine.generate(ONE, SamplingParams(max_tokens=8))
        check(engine, ONE, SamplingParams(max_tokens=4))


def test_leaving_without_close() -> None:
    """In a process of its own, with a request half read."""
    script = """
import os, sys
os.environ["TRITON_INTERPRET"] = "1"
sys.path[:0] = ["tests/fakes", "tests/support", "tests/cuda"]
import fake_cuda, pytest
from fake_gpu import FakeWorld, installed
from test_cuda_engine import engine_of, ONE
from pearl_rt import SamplingParams
from pearl_rt.backends import cuda_lanes as cuda_lane
from pearl_rt.strategy.step_timing import NOMINAL_TIMES
cuda_lane.measure = lambda lanes: NOMINAL_TIMES
fake_cuda.load().reset(devices=2)
world = installed(FakeWorld(fake_cuda.load()), pytest.MonkeyPatch())
engine = engine_of(strategy="pearl", gamma=2)
stream = engine.stream(ONE, SamplingParams(max_tokens=12))
next(stream)
print("left")
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "left\n"), done.stderr
    assert "Traceback" not in done.stderr


def test_steps_are_measured_where_each_is_a_launch(world: FakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the form; and forms follow each other."""
    seen: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        "pearl_rt.backends.cuda_lanes.measure",
        lambda lanes: (seen.append((lanes.form, lanes.timed)), NOMINAL_TIMES)[1],
    )
    with engine_of(form="graph") as engine:
        lanes = engine.lanes["shared"]
        seen.clear()
        lanes.measure()
        assert seen == [("events", True)] and (lanes.form, lanes.timed) == ("graph", False)
        for form in (*FORMS, "graph"):
            lanes.form = form
            assert lanes.form == form
        with pytest.raises(ConfigError, match=r"form 'eager' can't follow 'graph'.*'events', 'graph'"):
            lanes.form = "eager"


@pytest.mark.parametrize(
    ("draft_device", "blocks", "form"), [("cuda:0", (16, 3), "events"), ("cpu", (32, 2), "graph")]
)
def test_a_batch_is_what_each_is_alone(
    world: FakeWorld, monkeypatch: pytest.MonkeyPatch, draft_device: str, blocks: tuple[int, int], form: str
) -> None:
    """Three requests with parameters of their own in two slots: one starts the run, the others join. Of three
    KV blocks of 16 LONG needs two, the others one; what was in a block before it was given out is NaN. What
    is told of them is the executor's, to a rounding or two.
    """
    feed_chunk = LaneSteps.prefill_chunk

    def poisoned(self: LaneSteps) -> None:
        for slot, (start, end) in enumerate(self.chunk.tolist()):
            if start < end and start == 0:
                num_held = -(-int(self.state.whole.max_total_len[slot]) // blocks[0])
                own = self.state.block_table[slot, :num_held].tolist()
                for pages in (*self.model.kv_cache.keys, *self.model.kv_cache.values):
                    pages[own] = torch.nan
        feed_chunk(self)

    monkeypatch.setattr(LaneSteps, "prefill_chunk", poisoned)
    first = SamplingParams(max_tokens=2, temperature=0.9, seed=3, top_k=9, repetition_penalty=1.5, logprobs=1)
    asked = (
        (LONG, first),
        (ONE, SamplingParams(max_tokens=2)),
        (LONG[3:6], SamplingParams(max_tokens=2, temperature=0.7, seed=4, logprobs=0)),
    )
    options: dict[str, Any] = {"strategy": "pearl", "gamma": 1, "judge": "coupled", "rounds_ahead": 1}
    options |= {"kv_cache_tokens": 33, "draft_device": draft_device}
    with engine_of(max_num_seqs=2, form=form, **options) as engine:
        size, total = blocks
        assert engine.stats()["kv_blocks"] == {"block_size": size, "total": total, "free": total}
        (lanes,), joined = engine.lanes.values(), threading.Event()
        submit = lanes.submit
        monkeypatch.setattr(lanes, "submit", lambda one: (submit(one), joined.set())[0])
        with world.lock:  # no kernel runs before the second is there
            handles = [engine.submit(prompt, params) for prompt, params in asked]
            assert joined.wait(60)
        for handle, (prompt, params) in zip(handles, asked, strict=True):
            output, alone = handle.result(120), executed(tuple(prompt), params)
            assert text_of(output) == text_of(alone)
            assert (output.logprobs is None) == (params.logprobs is None)
            for found, wanted in zip(output.logprobs or (), alone.logprobs or (), strict=True):
                assert list(found) == list(wanted)
                assert [e.rank for e in found.values()] == [e.rank for e in wanted.values()]
                values = [e.logprob for e in wanted.values()]
                assert [e.logprob for e in found.values()] == pytest.approx(values, abs=1e-5)
        stats = engine.stats()
        assert (
            "target: 'join' gamma=1 judge=coupled processed=True logprobs=True" in stats["capture"]["steps"]
        )
        assert stats["kv_blocks"]["free"] == total
