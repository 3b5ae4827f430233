"""A round to launch: rounds in the interpreter give the CPU executor's tokens, and a capture replays them.

On a GPU, marked so and never run yet: captures in foreign graphs. Without one, the child node is launched on
the fake driver, whose kernels are the interpreter's.
"""

import gc
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import fake_cuda
import pytest
import torch
from fake_gpu import FakeWorld, fresh
from tiny_pairs import SMALL, Pair

from pearl_rt import (
    ConfigError,
    DevicePair,
    Engine,
    Request,
    RequestError,
    Round,
    RoundGraph,
    RoundRow,
    SamplingParams,
)
from pearl_rt.strategy.step_timing import NOMINAL_TIMES

ROOT = Path(__file__).resolve().parents[2]
MAX_LEN = 24
ONE, LONG = [7], list(range(3, 21))
GREEDY, SAMPLED = SamplingParams(max_tokens=7), SamplingParams(temperature=0.8, seed=11, max_tokens=7)
PROGRAMS = (("ar", 0), ("sd", 1), ("sd", 4), ("pearl", 1), ("pearl", 2), ("pearl", 4))
NEEDS_GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))


@cache
def tensors() -> Pair:
    return Pair.make("half-right", **SMALL)


@cache
def engine_of(device: str) -> Engine:
    options = {"num_threads": 1} if device == "cpu" else {}
    return tensors().engine(device=device, max_model_len=MAX_LEN, placement="shared", **options)


@pytest.fixture(scope="module", autouse=True)
def closed_at_the_end() -> Iterator[None]:
    yield
    engine_of("cpu").close()
    engine_of.cache_clear()


@pytest.fixture
def interpreted() -> Engine:
    if torch.cuda.is_available():
        pytest.skip("kernels are compiled in this process")
    return engine_of("interpret")


def expected(prompt: list[int], params: SamplingParams, strategy: str, gamma: int) -> list[int]:
    [output] = engine_of("cpu").generate(prompt, params, strategy=strategy, gamma=gamma or None)
    return output.token_ids


def to_the_end(own: Round | RoundGraph, launch: Any) -> list[RoundRow]:
    """One round is queued ahead of the one that is read."""
    rows: list[RoundRow] = []
    while not rows or not rows[-1].is_last:
        launch()
        rows.append(own.wait(len(rows)))
    return rows


def tokens_of(rows: list[RoundRow]) -> list[int]:
    return [token for row in rows for token in row.token_ids]


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "gamma"), [("ar", 0), ("sd", 4), ("pearl", 1), ("pearl", 3)])
def test_rounds_give_the_executors_tokens(interpreted: Engine, strategy: str, gamma: int) -> None:
    """Two requests through the same round, greedy and sampled, of other lengths."""
    own = interpreted.round(strategy, gamma)
    for prompt, params in ((LONG, GREEDY), (ONE, SAMPLED)):
        own.plan([interpreted.request(prompt, params)])
        assert tokens_of(to_the_end(own, own.run)) == expected(prompt, params, strategy, gamma)


def test_a_round_that_is_planned_without_requests_runs_idle(interpreted: Engine) -> None:
    own = interpreted.round("pearl", 2, judge="coupled")
    own.plan()
    own.run()
    assert own.read(0) is None and own.read(1) is None
    with pytest.raises(RequestError, match=r"round 1 of slot 0 is not in the ring"):
        own.wait(1)


@pytest.mark.slow
def test_the_engine_works_beside_a_round_and_takes_its_slots(interpreted: Engine) -> None:
    own = interpreted.round("sd", 2)
    with pytest.raises(RequestError, match=r"the round is not planned: call plan\(\) first"):
        own.run()
    own.plan([interpreted.request(ONE, GREEDY)])
    own.run()
    [output] = interpreted.generate(ONE, GREEDY, strategy="pearl", gamma=2)
    assert output.token_ids == expected(ONE, GREEDY, "ar", 0)
    with pytest.raises(RequestError, match=r"its slots were taken since: call plan\(\) again"):
        own.run()
    own.plan([interpreted.request(ONE, GREEDY)])
    assert tokens_of(to_the_end(own, own.run)) == output.token_ids


def test_no_round_while_a_request_runs(interpreted: Engine) -> None:
    own = interpreted.round("sd", 2)
    own.plan()
    stream = interpreted.stream(ONE, GREEDY, strategy="sd", gamma=2)
    next(stream)
    for call in (own.run, own.plan, lambda: interpreted.round("ar")):
        with pytest.raises(RequestError, match=r"the engine is in use"):
            call()
    stream.close()
    own.plan()
    own.run()


@pytest.mark.slow
def test_a_request_asks_for_a_shorter_window_only(interpreted: Engine) -> None:
    pair = interpreted.lanes["shared"].pair
    own = Round(pair, "sd", 3, greedy=True)
    own.plan([Request(ONE, gamma=2, max_tokens=7)])
    assert pair.tensors.gamma.tolist() == [2]
    assert tokens_of(to_the_end(own, own.run)) == expected(ONE, GREEDY, "sd", 2)
    own.plan([Request(ONE, gamma=9, max_tokens=7)])
    assert pair.tensors.gamma.tolist() == [3]


def test_bad_rounds_are_refused(interpreted: Engine) -> None:
    with pytest.raises(RequestError, match=r"strategy 'best' is not supported"):
        interpreted.round("best", 2)
    with pytest.raises(RequestError, match=r"gamma 17 is out of range: pass 0 to 16"):
        interpreted.round("sd", 17)
    with pytest.raises(RequestError, match=r"gamma 0 is no window of 'pearl': pass gamma=1 or more"):
        interpreted.round("pearl")
    with pytest.raises(RequestError, match=r"gamma 2 is no window of 'ar': pass gamma=0"):
        interpreted.round("ar", 2)
    with pytest.raises(RequestError, match=r"judge 'best'"):
        interpreted.round("ar", judge="best")
    own = interpreted.round("sd", 2, judge="rejection", greedy=True)
    with pytest.raises(RequestError, match=r"needs keep_logits=True"):
        own.plan([interpreted.request(ONE, SAMPLED)])
    with pytest.raises(RequestError, match=r"no room to generate"):
        interpreted.request([3] * MAX_LEN)


def test_engines_without_a_gpu_refuse_by_name(interpreted: Engine) -> None:
    message = r"a round is launched on one GPU, and this engine's lanes are on .*'cpu'.*device='cuda'"
    for call in (engine_of("cpu").round, engine_of("cpu").round_graph):
        with pytest.raises(ConfigError, match=message):
            call("sd", 2)
    with pytest.raises(
        ConfigError, match=r"round_graph\(\) needs a GPU, and device 'interpret' has no graphs"
    ):
        interpreted.round_graph("sd", 2)


def test_a_closed_engine_has_no_rounds() -> None:
    engine = tensors().engine(device="cpu", max_model_len=MAX_LEN, placement="shared", num_threads=1)
    engine.close()
    with pytest.raises(RequestError, match="the engine is closed"):
        engine.round("ar")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWorld]:
    """Fake GPUs. The host waits for them where it would spin on a stream."""
    if torch.cuda.is_available() or not fake_cuda.has_compiler():
        pytest.skip("the fake driver needs a compiler, and interpreted kernels")
    cuda = fake_cuda.load()
    monkeypatch.setattr("pearl_rt.backends.cuda_lanes.measure", lambda lanes: NOMINAL_TIMES)
    monkeypatch.setattr(DevicePair, "_is_idle", lambda pair: cuda.synchronize() is None)
    yield from fresh(cuda, monkeypatch)
    gc.collect()


@pytest.mark.slow
def test_a_rounds_graph_is_a_child_node_of_another_graph(
    world: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example's own function, on the fake driver: its calls and handles, and the graph's life."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    import capture_in_your_graph as example

    device = fake_cuda.FakeDevice(world.cuda)
    with tensors().engine(device="cuda", max_model_len=MAX_LEN) as engine:
        params = SamplingParams(max_tokens=8)
        [output] = engine.generate(example.PROMPT, params, strategy="ar")
        found = example.a_child_node(engine, str(world.cuda.path), device.stream)
        assert found == output.token_ids
        assert "destroyed round of pearl" in world.log
        [again] = engine.generate(example.PROMPT, params, strategy="sd", gamma=2)
        assert again.token_ids == output.token_ids


def test_a_closed_graph_is_refused_and_a_second_close_does_nothing(world: FakeWorld) -> None:
    with tensors().engine(device="cuda", max_model_len=MAX_LEN) as engine:
        own = engine.round_graph("sd", 2)
        assert own.raw_cuda_graph() > 0
        own.close()
        own.close()
        with pytest.raises(RequestError, match=r"the round's graph is closed: build another one"):
            own.raw_cuda_graph()


@cache
def gpu_engine() -> Engine:
    return tensors().engine(device="cuda", max_model_len=MAX_LEN, dtype="float32")


@pytest.mark.parametrize(
    ("strategy", "gamma"), [pytest.param(*program, marks=NEEDS_GPU) for program in PROGRAMS]
)
def test_n_replays_are_n_rounds_with_the_bits_of_eager_ones(strategy: str, gamma: int) -> None:
    engine = gpu_engine()
    own = engine.round(strategy, gamma)
    own.plan()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        own.run()
    for prompt, params in ((LONG, GREEDY), (ONE, SAMPLED)):
        own.plan([engine.request(prompt, params)])
        eager = to_the_end(own, own.run)
        logits = own.pair.tensors.target_logits.clone()
        own.plan([engine.request(prompt, params)])
        replayed = to_the_end(own, graph.replay)
        assert replayed == eager
        assert torch.equal(own.pair.tensors.target_logits, logits)
        [output] = engine.generate(prompt, params, strategy=strategy, gamma=gamma or None)
        assert tokens_of(eager) == output.token_ids


@pytest.mark.parametrize(
    ("strategy", "gamma"), [pytest.param(*program, marks=NEEDS_GPU) for program in PROGRAMS]
)
def test_run_neither_allocates_nor_waits(strategy: str, gamma: int) -> None:
    engine = gpu_engine()
    own = engine.round(strategy, gamma)
    own.plan([engine.request(ONE, GREEDY)])
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            own.run(stream.cuda_stream)  # a foreign stream, by its handle
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    with torch.cuda.stream(stream):
        own.wait(1)


@pytest.mark.parametrize("gamma", [pytest.param(2, marks=NEEDS_GPU)])
def test_prefill_does_not_wait(gamma: int) -> None:
    pair = gpu_engine().round("sd", gamma).pair
    for _ in range(2):  # kernels are compiled the first time
        pair.start([Request(LONG, gamma=gamma, max_tokens=5)])
        torch.cuda.set_sync_debug_mode("error")
        try:
            pair.prefill()
            pair.verify()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert pair.wait(0).token_ids


@pytest.mark.parametrize("strategy", [pytest.param(name, marks=NEEDS_GPU) for name in ("sd", "pearl")])
def test_a_replayed_graph_and_a_child_node_give_the_same(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    import capture_in_your_graph as example

    engine = gpu_engine()
    with engine.round_graph(strategy, 4) as own:
        own.plan([engine.request(example.PROMPT, SamplingParams(max_tokens=8))])
        tokens = tokens_of(to_the_end(own, own.replay))
    [output] = engine.generate(example.PROMPT, SamplingParams(max_tokens=8), strategy="ar")
    assert tokens == output.token_ids
    assert example.a_child_node(engine) == tokens


@pytest.mark.parametrize("name", [pytest.param("start", marks=NEEDS_GPU)])
def test_what_waits_cannot_be_captured(name: str) -> None:
    engine = gpu_engine()
    own = engine.round("sd", 2)
    own.plan()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        own.run()
        with pytest.raises(RequestError, match=r"start\(\) waits for the device, which a capture cannot"):
            own.plan()
