"""Bad days of CUDA lanes, on the fake driver: each failing call is one exception with its name, what cannot
be run is refused before anything is, and all goes on or is rebuilt."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Iterator
from typing import Any

import fake_cuda
import numpy as np
import pytest
from scripted import CAPACITY, TIMEOUT_MS, VOCAB, tokens_of
from scripted_cuda import (
    FORMS,
    HALF_RIGHT,
    NAMES,
    OF_LOGPROBS,
    PLACEMENTS,
    TARGET,
    CudaBench,
    clean,
    clean_world,
    settled,
)

from pearl_rt import _C, _testing
from pearl_rt.errors import DeviceError, PearlError, RequestError, ResourceError
from pearl_rt.strategy.program import STRATEGIES, program

pytestmark = pytest.mark.skipif(not fake_cuda.has_compiler(), reason="no C++ compiler for the fake driver")
OUT_OF_MEMORY, ILLEGAL_ADDRESS, LAUNCH_FAILED = 2, 700, 719


@pytest.fixture
def fake() -> Iterator[Any]:
    """Two devices without delays; at the end nothing may have been illegal, and nothing be left."""
    yield from clean_world()


CALLS = ("cuMemcpyAsync", "cuGraphLaunch", "cuEventRecord", "cuStreamWaitEvent", "cuCtxSetCurrent")


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("code", [OUT_OF_MEMORY, LAUNCH_FAILED])
def test_each_failing_call_is_one_exception(placement: str, form: str, code: int) -> None:
    """Any call of a run, the first of its kind or a later one: its name in one exception; all can go on."""
    fake = fake_cuda.load()
    request = _C.Request([1, 2, 3], gamma=3, max_tokens=20)
    fake.reset()
    full = tokens_of(CudaBench.build(placement, target=TARGET, draft=HALF_RIGHT).run("pearl", request))
    others = ("cuEventCreate", "cuStreamQuery", "cuStreamSynchronize")
    nodes = ("cuGraphAddChildGraphNode", "cuGraphAddMemcpyNode")
    graphs = ("cuGraphCreate", *nodes, "cuGraphInstantiateWithFlags")
    seen = set()
    for call in (*CALLS, *others, *graphs):
        for nth in (1, 2, 5, 9):
            fake.reset()
            bench = CudaBench.build(placement, target=TARGET, draft=HALF_RIGHT, form=form, gammas=[3])
            before = fake.num_calls(call)
            fake.inject(call, nth, code)
            results: list[Any] = []
            bench.start("pearl", request)
            try:
                while (more := bench.coordinator.next(TIMEOUT_MS)) is not None:
                    assert more, "silence"
                    results += more
            except (DeviceError, ResourceError) as error:
                seen.add(call)
                name = "CUDA_ERROR_OUT_OF_MEMORY" if code == OUT_OF_MEMORY else "CUDA_ERROR_LAUNCH_FAILED"
                assert str(error).startswith(f"{call}: {name} ({code}), ")
                assert isinstance(error, ResourceError if code == OUT_OF_MEMORY else DeviceError)
                if code == LAUNCH_FAILED:
                    assert error.call == call and error.code == code
                    assert "start a new process" in str(error)
                failed = True
            else:  # the run has made fewer calls of that name
                assert fake.num_calls(call) - before < nth
                failed = False
            got = tokens_of(results)
            assert got == full[: len(got)]
            assert bench.coordinator.next(0) is None  # told once
            if failed and code == OUT_OF_MEMORY:  # the same coordinator works on
                assert tokens_of(bench.run("pearl", request)) == full
            bench.coordinator.stop()
            fake.synchronize()  # a context that is lost is not waited for, but here its kernels may go on
            del bench
            assert fake.violations() == [] and fake.live_handles() == [], (call, nth)
    assert seen >= {"cuMemcpyAsync", "cuGraphLaunch", "cuEventRecord", "cuStreamSynchronize"}
    assert ("cuGraphAddMemcpyNode" in seen) == (form != "events" and placement == "devices")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_kernel_that_faults(strategy: str, placement: str, form: str) -> None:
    """The context is lost: the run says so, another start says it again, and a new process would work."""
    fake = fake_cuda.load()
    request = _C.Request([1, 2, 3], gamma=3, max_tokens=20)
    for nth in (1, 2, 4, 7, 11):
        fake.reset(seed=nth, max_delay_us=10)
        bench = CudaBench.build(placement, target=TARGET, draft=HALF_RIGHT, form=form, gammas=[0, 3])
        fake.inject("kernel", nth, ILLEGAL_ADDRESS)
        for _ in range(2):
            with pytest.raises(DeviceError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS \(700\).*start a new process"):
                bench.run(strategy, request)
            assert bench.coordinator.next(0) is None
        fake.synchronize()
        del bench
        assert fake.violations() == [] and fake.live_handles() == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nan_names_step_and_position(fake: Any, strategy: str, placement: str, form: str) -> None:
    request = _C.Request([1, 2, 3], gamma=3, max_tokens=20)
    full = tokens_of(CudaBench.build(target=TARGET, draft=HALF_RIGHT).run(strategy, request))
    for lane in ("target",) if strategy == "ar" else ("target", "draft"):
        for at in range(1 if lane == "draft" else 0, 6):
            scripts = {"target": dict(TARGET), "draft": dict(HALF_RIGHT)}
            scripts[lane]["nan_at"] = at
            bench = CudaBench.build(placement, **scripts, form=form, gammas=[0, 3], prefill_chunk=16)
            results = bench.run(strategy, request)
            step = "draft" if lane == "draft" else "prefill" if at == 0 else "score"
            if results[-1].finish_reason == "error":
                error = results[-1].error
                assert re.search(rf"step {step} of the {lane} lane, sequence 0, position \d+", error)
                assert strategy != "ar" or f"position {3 + at};" in error
            else:  # the poisoned row lay behind a rejection: it was not read
                assert strategy != "ar" and at > 0
            got = tokens_of(results)
            assert got == full[: len(got)]
            assert tokens_of(bench.run(strategy, request)) == full
            clean(bench)


def test_what_was_not_captured_is_refused_before_anything_runs(fake: Any) -> None:
    bench = CudaBench.build(target=TARGET, draft=HALF_RIGHT, gammas=[0, 3], judges=("coupled",))
    launches = fake.num_calls("cuGraphLaunch")
    text = r"target lane has no step prefill logits for gamma 5.*gamma 0.*gamma 3"
    with pytest.raises(RequestError, match=text):
        bench.start("sd", _C.Request([1], gamma=5))
    with pytest.raises(RequestError, match="no step first for gamma 3, judge rejection"):
        bench.start("sd", _C.Request([1], gamma=3), judge="rejection")
    assert fake.num_calls("cuGraphLaunch") == launches
    assert not bench.coordinator.running
    assert len(tokens_of(bench.run("sd", _C.Request([1], gamma=3, max_tokens=7)))) == 7
    keeps = CudaBench.build(gammas=[3], judges=("coupled",))
    with pytest.raises(RequestError, match="no step is called 'dance'"):
        keeps.lane().add_step("dance", graph=1, exec=1)
    no_logits = {"op": "draft", "gamma": 3, "judge": "coupled"}
    for missing in (no_logits, {"op": "score"}, {"op": "prefill logits"}):
        with pytest.raises(RequestError, match="needs gamma"):
            keeps.lane().add_step(**missing, graph=1, exec=1)


def test_refused_requests_and_options(fake: Any) -> None:
    bench = CudaBench.build(target=TARGET, draft=HALF_RIGHT, gammas=[0, 3], num_stop_ids=2, ring_size=6)
    request = _C.Request([1], gamma=3, max_tokens=5)
    with pytest.raises(RequestError, match="3 end-of-text and stop ids; the target lane takes 2: pass fewer"):
        bench.start("sd", _C.Request([1], gamma=3, stop_ids=[1, 2], eos_ids=[3]))
    bench.run("sd", _C.Request([1], gamma=3, stop_ids=[1, 2], eos_ids=[3], ignore_eos=True, max_tokens=5))
    with pytest.raises(RequestError, match="rounds_ahead is 0; it must be at least 1"):
        bench.issuer.rounds_ahead = 0
    bench.issuer.rounds_ahead = 4
    with pytest.raises(RequestError, match="a verdict ring of 6 rounds takes 1 to 3"):
        bench.start("sd", request)
    bench.issuer.rounds_ahead = 3
    with pytest.raises(RequestError, match="form is 'spiral'; it must be 'events' or 'graph'"):
        bench.issuer.form = "spiral"
    bench.target.close_gate("verify", 2)
    bench.start("sd", request)
    bench.target.wait_for_gate()
    with pytest.raises(RequestError, match="a run is in flight: set the issuer's options before it"):
        bench.issuer.form = "graph"
    with pytest.raises(RequestError, match="the issuer is at work for another coordinator"):
        CudaBench.build(issuer=bench.issuer, gammas=[0, 3]).start("sd", request)
    bench.target.open_gate()
    bench.finish()


def test_staging_for_a_draft_on_the_host(fake: Any) -> None:
    bench = CudaBench.build("host", target=TARGET, draft=HALF_RIGHT, gammas=[3], host_logits=False)
    with pytest.raises(RequestError, match="no room for the draft's logits"):
        bench.start("sd", _C.Request([1], gamma=3, temperature=1.0), judge="rejection")
    bench.run("sd", _C.Request([1], gamma=3, temperature=1.0, max_tokens=9), judge="coupled")
    bench.run("sd", _C.Request([1], gamma=3, max_tokens=9), judge="rejection")


def test_lanes_that_do_not_fit_are_refused(fake: Any) -> None:
    bench = CudaBench.build(gammas=[])
    blocks = {"block_size": 16, "num_blocks": CAPACITY // 16}
    cpu = _C.CpuLane("target", _testing.ScriptedExecutor(vocab_size=VOCAB, **blocks), _C.Device([]))
    sizes = {"capacity": CAPACITY, "vocab_size": VOCAB, "gamma_max": 3}
    with pytest.raises(RequestError, match="the target's lane is on the host and the draft's on a GPU"):
        _C.Coordinator([cpu, bench.lane()], **sizes)
    for change, text in (
        ({"capacity": 32}, f"have capacity {CAPACITY}; the coordinator's is 32"),
        ({"num_slots": 2}, "have num_slots 1; the coordinator's is 2"),
        ({"gamma_max": 4}, "room for windows of 3 tokens; the coordinator's gamma_max is 4"),
        ({"vocab_size": 9}, f"have vocab_size {VOCAB}; the coordinator's is 9"),
    ):
        with pytest.raises(RequestError, match=text):
            _C.Coordinator([bench.lane()], **{**sizes, **change})
    other = CudaBench.build(gammas=[])
    with pytest.raises(RequestError, match="one issuer"):
        _C.Coordinator([bench.lane(), other.lane()], **sizes)
    with pytest.raises(RequestError, match="device 9 does not exist"):
        _C.CudaStream(_C.CudaDriver(str(fake.path)), 9)


def arrays() -> Any:
    """Of a lane that never runs."""
    plain = (*NAMES[: NAMES.index("repetition_penalty")], "chunk")
    addresses = {name: 16 for name in plain if name not in OF_LOGPROBS}
    sizes = {"num_slots": 1, "gamma_max": 3, "capacity": CAPACITY, "vocab_size": VOCAB}
    others = {"draft_vocab_size": VOCAB, "num_stop_ids": 4, "ring_size": 8, "prefill_chunk": 4}
    blocks = {"block_size": 16, "num_blocks": 8}
    return _C.DeviceArrays(addresses, **sizes, **others, **blocks, staging=np.zeros(1 << 16, np.uint8))


def test_a_verify_that_writes_no_verdict_is_told(fake: Any) -> None:
    bench = CudaBench.build(target=TARGET, draft=HALF_RIGHT, gammas=[3])
    lane = bench.lane()
    silent = bench.fake.graph(lambda: None)
    for op in ("score", "verify", "prefill logits"):
        lane.add_step(op, gamma=0, judge="coupled", slot=0, graph=silent.graph, exec=silent.exec)
    coordinator = _C.Coordinator([lane], capacity=CAPACITY, vocab_size=VOCAB, gamma_max=3)
    coordinator.start(program("ar"), [_C.Request([1])], "coupled")
    with pytest.raises(PearlError, match="the verdict of round 0 never came"):
        while coordinator.next(TIMEOUT_MS) is not None:
            pass


@pytest.mark.parametrize("form", FORMS)
def test_a_stream_at_work_that_is_said_to_be_idle_ends_no_run(fake: Any, form: str) -> None:
    """One wrong answer to the issuer's query: the next one, some time later, is right."""
    request = _C.Request([1, 2, 3], max_tokens=6)
    bench = CudaBench.build(target=TARGET, draft=HALF_RIGHT, form=form, gammas=[0])
    full = tokens_of(bench.run("ar", request))
    bench.target.close_gate("score", 2)
    bench.start("ar", request)
    bench.target.wait_for_gate()
    fake.say_idle(1)
    asked = fake.num_calls("cuStreamQuery")
    settled(lambda: min(fake.num_calls("cuStreamQuery"), asked + 3), least=asked + 3)
    bench.target.open_gate()
    assert tokens_of(bench.finish()) == full
    clean(bench)


def test_a_lane_owns_its_stream(fake: Any) -> None:
    bench = CudaBench.build(gammas=[3])
    made, gone = (fake.num_calls(call) for call in ("cuStreamCreateWithPriority", "cuStreamDestroy"))
    assert (made, gone) == (2, 0)
    stream = _C.CudaStream(_C.CudaDriver(str(fake.path)), 0, -1)
    lane = _C.CudaLane("target", bench.issuer, stream, arrays())
    del stream
    gc.collect()
    assert fake.num_calls("cuStreamDestroy") == 0
    del lane
    gc.collect()
    assert fake.num_calls("cuStreamDestroy") == 1
    del bench
    gc.collect()
    assert fake.num_calls("cuStreamDestroy") == 3


def test_owners_live_as_long_as_the_lanes(fake: Any) -> None:
    """Graphs and tensors that Python drops stay until their lane goes, on whatever thread."""

    class Owner:
        pass

    bench = CudaBench.build(gammas=[3])
    lane, owner = bench.lane(), Owner()
    gone = weakref.ref(owner)
    graph = fake.graph(lambda: None)
    lane.add_step("score", gamma=3, graph=graph.graph, exec=graph.exec, owner=owner)
    coordinator = _C.Coordinator([lane], capacity=CAPACITY, vocab_size=VOCAB, gamma_max=3)
    del owner, lane
    gc.collect()
    assert gone() is not None
    del coordinator
    gc.collect()
    assert gone() is None
