"""Form "while" on the fake driver: a generation is one launch, as far as its results have room, and ends
where somebody stops it, joins or leaves.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import fake_cuda
import pytest
from scripted import TIMEOUT_MS, Bench, expected_rounds, logits_after, rounds_of, tokens_of
from scripted_cuda import HALF_RIGHT, LOOP_ALLOWED, TARGET, CudaBench, clean, clean_world, comes, settled
from test_cuda_joins import Crowd, company, greedy

from pearl_rt import _C
from pearl_rt.errors import ResourceError
from pearl_rt.strategy.program import STRATEGIES

pytestmark = pytest.mark.skipif(not fake_cuda.has_compiler(), reason="no C++ compiler for the fake driver")
RULES = logits_after(**TARGET), logits_after(**HALF_RIGHT)
LONG: dict[str, Any] = {"prompt_ids": [1, 2], "gamma": 3, "max_tokens": 60}
RAN, ENDED = 32, 33  # as LOOP_ALLOWED
PROLOGUE = {"ar": 3, "sd": 4, "pearl": 4}  # launches: a chunk, its logits, first; the draft's context


@pytest.fixture
def fake() -> Iterator[Any]:
    """Two devices without delays; at the end nothing may have been illegal, and nothing be left."""
    yield from clean_world()


def looping(**options: Any) -> CudaBench:
    known = {"target": TARGET, "draft": HALF_RIGHT, "gammas": [0, 3], "form": "while"}
    return CudaBench.build(**{**known, **options})


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_generation_is_one_launch(fake: Any, strategy: str) -> None:
    """Where the verdict ring takes all of it, whatever the host does; the device counts the rounds."""
    bench = looping(ring_size=128)
    expected = expected_rounds(strategy, *RULES, LONG)
    for _ in range(2):  # the second run finds the graph made
        before = fake.num_calls("cuGraphLaunch"), fake.num_calls("kernel")
        assert rounds_of(bench.run(strategy, _C.Request(**LONG))) == expected
        launches = fake.num_calls("cuGraphLaunch") - before[0]
        assert launches == PROLOGUE[strategy] + 1 and bench.issuer.host_ns_per_round > 0
        num_rounds, host = len(expected) - 1, bench.arrays["loop_host"]
        assert (host[RAN], host[ENDED]) == (num_rounds, 1)
        steps = {"ar": 2, "sd": 3, "pearl": 3}[strategy]
        assert fake.num_calls("kernel") - before[1] == PROLOGUE[strategy] + 2 + num_rounds * (steps + 2)
    assert fake.num_calls("cuModuleLoadData") == 1 and fake.num_calls("cuGraphAddNode") == 1
    clean(bench)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("ring_size", [2, 3, 8])
def test_a_generation_is_longer_than_the_ring(strategy: str, ring_size: int) -> None:
    """The host gives rounds as it reads; where it is late the loop ends, and another follows."""
    fake = fake_cuda.load()
    for seed in range(4):
        fake.reset(seed=seed, max_delay_us=seed * 5)
        bench = looping(ring_size=ring_size, rounds_ahead=1, spin_us=20 * (seed % 2))
        assert rounds_of(bench.run(strategy, _C.Request(**LONG))) == expected_rounds(strategy, *RULES, LONG)
        clean(bench)
        del bench


def test_forms_follow_each_other(fake: Any) -> None:
    bench = looping()
    expected = expected_rounds("pearl", *RULES, LONG)
    for form in ("events", "while", "graph", "while", "events"):
        bench.issuer.form = form
        assert bench.issuer.form == form
        assert rounds_of(bench.run("pearl", _C.Request(**LONG))) == expected
    clean(bench)


def test_no_more_rounds_are_allowed_than_a_request_can_take(fake: Any) -> None:
    bench = looping(ring_size=128)
    bench.run("ar", _C.Request([1, 2], max_tokens=9))
    assert bench.arrays["loop_host"][LOOP_ALLOWED] == 9 and bench.arrays["loop_host"][RAN] == 8
    clean(bench)


def test_rounds_wait_for_a_slow_reader(fake: Any) -> None:
    """Nobody reads: the loop ends by itself where results have no room, and goes on behind the reader."""
    bench = looping(ring_capacity=5, ring_size=16)
    request = _C.Request(**LONG)
    bench.start("ar", request)
    host = bench.arrays["loop_host"]
    assert comes(lambda: host[ENDED] > 0 and host[RAN] == 4)  # with the first token, five results
    kernels = settled(lambda: fake.num_calls("kernel"))
    begin = time.process_time()
    time.sleep(0.1)
    assert time.process_time() - begin < 0.05 and fake.num_calls("kernel") == kernels
    assert rounds_of(bench.finish()) == expected_rounds("ar", *RULES, LONG)
    clean(bench)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_stop_ends_the_loop_within_two_rounds(fake: Any, strategy: str) -> None:
    """The round that it is in, and the one behind it if its peek had run before."""
    bench = looping(ring_size=128)
    full = tokens_of(bench.run(strategy, _C.Request(**LONG)))
    bench.target.close_gate("verify", 5)  # round 4
    bench.start(strategy, _C.Request(**LONG))
    bench.target.wait_for_gate()
    stopping = threading.Thread(target=bench.coordinator.stop)
    stopping.start()
    host = bench.arrays["loop_host"]
    assert comes(lambda: host[LOOP_ALLOWED] == 0)
    bench.target.open_gate()
    stopping.join(20)
    assert not stopping.is_alive() and host[RAN] in (4, 5) and host[ENDED] == 1
    got = tokens_of(bench.finish())
    assert got == full[: len(got)]
    assert tokens_of(bench.run(strategy, _C.Request(**LONG))) == full
    clean(bench)


def test_who_joins_ends_the_loop_and_another_takes_both(fake: Any) -> None:
    """Rounds that a prompt is fed in front of are launched one by one: a pass of four tokens each."""
    bench = company(form="while", ring_size=128)
    crowd = Crowd(bench, "ar", "coupled")
    bench.target.close_gate("verify", 3)
    before = fake.num_calls("cuGraphLaunch")
    crowd.start(greedy([1, 2], max_tokens=40))
    bench.target.wait_for_gate()
    crowd.add(greedy([3] * 9))
    assert comes(lambda: bench.arrays["loop_host"][LOOP_ALLOWED] == 0)
    bench.target.open_gate()
    crowd.finish()
    crowd.check(Bench.build("shared", target=TARGET, draft=HALF_RIGHT, gamma_max=3))
    assert crowd.joins == 1 and bench.arrays["loop_host"][ENDED] == 2
    # The prologue, two loops; three passes with a round behind each but the last; logits and verdict.
    assert fake.num_calls("cuGraphLaunch") - before == PROLOGUE["ar"] + 2 + 3 + 2 + 2
    clean(bench)


def test_who_waits_for_blocks_ends_no_loop(fake: Any) -> None:
    """Of four blocks the first has three: the loop goes on to its end, and the next begins with the other."""
    bench = company(form="while", ring_size=128, num_blocks=4)
    crowd = Crowd(bench, "ar", "coupled")
    bench.target.close_gate("verify", 3)
    before = fake.num_calls("cuGraphLaunch")
    crowd.start(greedy([1, 2], max_tokens=40))
    bench.target.wait_for_gate()
    crowd.add(greedy([3] * 9, max_tokens=40))
    assert not bench.coordinator.has_place(_C.Request([1], gamma=3))
    bench.target.open_gate()
    crowd.finish()
    crowd.check(Bench.build("shared", target=TARGET, draft=HALF_RIGHT, gamma_max=3))
    assert crowd.joins == 1 and bench.arrays["loop_host"][ENDED] == 2
    assert fake.num_calls("cuGraphLaunch") - before == PROLOGUE["ar"] + 2 + 3 + 2
    clean(bench)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_who_leaves_has_exactly_the_rounds_that_ran(fake: Any, strategy: str) -> None:
    bench = company(form="while", ring_size=128)
    crowd = Crowd(bench, strategy, "coupled")
    bench.target.close_gate("verify", 3)  # round 2
    crowd.start(greedy([1], max_tokens=40), greedy([2], max_tokens=40))
    bench.target.wait_for_gate()
    crowd.cancel(1)
    assert comes(lambda: bench.arrays["loop_host"][LOOP_ALLOWED] == 0)
    bench.target.open_gate()
    crowd.finish()
    assert crowd.results[1][-1].finish_reason == "abort" and crowd.results[1][-1].round in (3, 4)
    crowd.check(Bench.build("shared", target=TARGET, draft=HALF_RIGHT, gamma_max=3))
    clean(bench)


@pytest.mark.parametrize("placement", ["devices", "host"])
def test_what_a_loop_cannot_hold_is_launched_round_by_round(fake: Any, placement: str) -> None:
    bench = looping(placement=placement)
    assert rounds_of(bench.run("pearl", _C.Request(**LONG))) == expected_rounds("pearl", *RULES, LONG)
    assert fake.num_calls("cuGraphAddNode") == 0
    assert rounds_of(bench.run("ar", _C.Request(**LONG))) == expected_rounds("ar", *RULES, LONG)
    assert fake.num_calls("cuGraphAddNode") == 1  # the target's rounds alone are on one device
    clean(bench)


@pytest.mark.parametrize(
    ("world", "lacking"),
    [
        ({"version": 12020}, r"CUDA 12.2\) lacks cuGraphConditionalHandleCreate of version 12030: "),
        ({"version": 12000}, r"12.0\) lacks cuGraphAddNode of version 12020, cuGraphConditionalHandleCreate"),
        ({"hidden": ("cuGraphAddNode",)}, r"CUDA 13.0\) lacks cuGraphAddNode of version 12020: "),
    ],
)
def test_an_older_driver_runs_the_other_forms(fake: Any, world: dict[str, Any], lacking: str) -> None:
    fake.reset(**world)
    bench = looping(form="graph")
    with pytest.raises(
        ResourceError, match=f"form 'while' needs conditional nodes.*12.3.*{lacking}.*pass form"
    ):
        bench.issuer.form = "while"
    assert bench.issuer.form == "graph"
    assert rounds_of(bench.run("sd", _C.Request(**LONG))) == expected_rounds("sd", *RULES, LONG)
    clean(bench)


def test_a_loop_that_is_stopped_by_a_fault_is_told(fake: Any) -> None:
    """The kernel that ends a round faults: what was verified before stands."""
    bench = looping(ring_size=128)
    full = tokens_of(bench.run("ar", _C.Request(**LONG)))
    fake.inject("kernel", PROLOGUE["ar"] + 2 + 3 * 4 + 4, 700)  # the turn of the fourth round
    bench.start("ar", _C.Request(**LONG))
    results: list[Any] = []
    with pytest.raises(Exception, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        while (more := bench.coordinator.next(TIMEOUT_MS)) is not None:
            results += more
    got = tokens_of(results)
    assert got == full[: len(got)]
    fake.synchronize()


def test_the_end_of_who_leaves_has_room_beside_a_loop(fake: Any) -> None:
    """Four results find room, and nobody reads while the other one goes on."""
    bench = company("shared", form="while", num_slots=2, ring_capacity=4)
    crowd = Crowd(bench, "ar", "coupled")
    crowd.start(greedy([1]), greedy([2]))
    settled(lambda: fake.num_calls("cuGraphLaunch"), PROLOGUE["ar"] + 1)
    crowd.cancel(0)
    crowd.read()
    settled(lambda: fake.num_calls("cuGraphLaunch"))
    crowd.finish()
    assert crowd.results[0][-1].finish_reason == "abort"
    crowd.check(Bench.build("shared", target=TARGET, draft=HALF_RIGHT, gamma_max=3))
    clean(bench)
