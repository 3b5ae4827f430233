"""The coordinator over CUDA lanes on the fake driver: every program, placement and form gives the rule's
rounds, in any schedule; nothing is left behind."""

from __future__ import annotations

import gc
import itertools
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import fake_cuda
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import (
    CAPACITY,
    TIMEOUT_MS,
    VOCAB,
    expected_rounds,
    logits_after,
    num_threads,
    rounds_of,
    threads_end_at,
    tokens_of,
)
from scripted_cuda import FORMS, HALF_RIGHT, PLACEMENTS, TARGET, CudaBench, clean, clean_world, settled

from pearl_rt import _C
from pearl_rt.errors import PearlError
from pearl_rt.strategy.program import STRATEGIES, LaneProgram, Program, program

pytestmark = pytest.mark.skipif(not fake_cuda.has_compiler(), reason="no C++ compiler for the fake driver")
SPECULATIVE = [s for s in STRATEGIES if s != "ar"]


@pytest.fixture
def fake() -> Iterator[Any]:
    """Two devices without delays; at the end nothing may have been illegal, and nothing be left."""
    yield from clean_world()


REQUESTS = st.fixed_dictionaries(
    {
        "prompt_ids": st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9),
        "gamma": st.integers(1, 8),
        "max_tokens": st.sampled_from([1, 2, 3, 5, 8, 13, 30, 1000]),
        "eos_ids": st.lists(st.integers(0, VOCAB - 1), max_size=2),
        "temperature": st.sampled_from([0.0, 0.0, 0.7, 1.5]),
        "seed": st.integers(0, 2**64 - 1),
    }
)
DRAFTS = {
    "equal": lambda rule: {"rule": rule},
    "half": lambda rule: {"rule": rule, "divergence": 0.5},
    "mostly": lambda rule: {"rule": rule, "divergence": 0.1},
    "unrelated": lambda rule: {"rule": rule + 7777},
}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    REQUESTS,
    st.sampled_from(["rejection", "coupled"]),
    st.sampled_from(STRATEGIES),
    st.sampled_from(PLACEMENTS),
    st.sampled_from(FORMS),
    st.sampled_from(sorted(DRAFTS)),
    st.sampled_from([VOCAB, VOCAB + 5, VOCAB - 5]),
    st.sampled_from([1, 2, 3]),
    st.integers(0, 1000),
)
def test_rounds_are_the_rules(
    request_: dict[str, Any],
    judge: str,
    strategy: str,
    placement: str,
    form: str,
    kind: str,
    draft_vocab: int,
    rounds_ahead: int,
    rule: int,
) -> None:
    """Token for token and verdict for verdict, at every temperature, with both judges."""
    fake = fake_cuda.load()
    fake.reset(seed=rule, max_delay_us=rule % 3 * 10)
    draft = {**DRAFTS[kind](rule), "vocab_size": draft_vocab}
    gamma = request_["gamma"]
    bench = CudaBench.build(
        placement,
        target={"rule": rule},
        draft=draft,
        gamma_max=gamma,
        gammas=sorted({0, gamma}),
        form=form,
        rounds_ahead=rounds_ahead,
    )
    results = bench.run(strategy, _C.Request(**request_), judge=judge)
    rules = logits_after(rule=rule), logits_after(**draft)
    assert rounds_of(results) == expected_rounds(strategy, *rules, request_, judge)
    assert [r.round for r in results] == list(range(len(results)))
    limit = min(len(request_["prompt_ids"]) + request_["max_tokens"], CAPACITY)
    assert max(bench.target.max_position, bench.draft.max_position) < limit - 1
    clean(bench)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("judge", ["rejection", "coupled"])
def test_ragged_batch_of_four(fake: Any, judge: str, placement: str, form: str) -> None:
    """Every slot in another state, windows of their own in a run of the largest: each is what it is alone."""
    rng = random.Random(11)
    bench = CudaBench.build(placement, num_slots=4, target=TARGET, draft=HALF_RIGHT, form=form)
    rules = logits_after(**TARGET), logits_after(**HALF_RIGHT)
    for strategy in STRATEGIES:
        for _ in range(6):
            requests = [
                {
                    "prompt_ids": [rng.randrange(VOCAB) for _ in range(rng.randint(1, 9))],
                    "gamma": rng.randint(1, 8),
                    "max_tokens": rng.choice([1, 2, 7, 20, 100]),
                    "stop_ids": [rng.randrange(VOCAB)] if rng.random() < 0.5 else [],
                    "temperature": rng.choice([0.0, 0.5, 1.0]),
                    "seed": rng.randrange(2**64),
                }
                for _ in range(rng.randint(1, 4))
            ]
            results = bench.run(strategy, *(_C.Request(**request) for request in requests), judge=judge)
            for slot, request in enumerate(requests):
                assert rounds_of(results, slot) == expected_rounds(strategy, *rules, request, judge)
    clean(bench)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_random_schedules(fake: Any, strategy: str, request: pytest.FixtureRequest) -> None:
    """Streams of random pace, every placement and form, windows and ends: the rule's rounds in each of them.

    `make schedules` runs 10,000 of each program."""
    num_schedules, rng = request.config.getoption("--schedules"), random.Random(strategy)
    rules = logits_after(**TARGET), logits_after(**HALF_RIGHT)
    per_world = 20
    for world in range(max(1, num_schedules // per_world)):
        fake.reset(seed=world, max_delay_us=rng.choice([0, 3, 20, 60]))
        bench = CudaBench.build(
            PLACEMENTS[world % 3],
            target=TARGET,
            draft=HALF_RIGHT,
            form=FORMS[world % 2],  # all pairs in six worlds
            rounds_ahead=rng.randint(1, 4),
            spin_us=rng.choice([0, 20]),
            ring_capacity=rng.choice([2, 5, 1024]),
        )
        for _ in range(per_world):
            case = {
                "prompt_ids": [rng.randrange(VOCAB) for _ in range(rng.randint(1, 9))],
                "gamma": rng.randint(1, 8),
                "max_tokens": rng.choice([1, 3, 8, 13, 21]),
                "stop_ids": [rng.randrange(VOCAB)] if rng.random() < 0.3 else [],
            }
            results = bench.run(strategy, _C.Request(**case))
            assert rounds_of(results) == expected_rounds(strategy, *rules, case), (world, case)
        clean(bench)
        del bench
        assert fake.live_handles() == []


@pytest.mark.parametrize(("form", "launches"), [("events", {"ar": 2, "sd": 3, "pearl": 3}), ("graph", None)])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rounds_ahead", [1, 2, 4])
def test_rounds_are_queued_ahead_and_no_further(
    fake: Any, strategy: str, form: str, launches: dict[str, int] | None, rounds_ahead: int
) -> None:
    """While the GPU is held in a verify, the host queues the rounds behind it: it would never idle."""
    bench = CudaBench.build(target=TARGET, draft=HALF_RIGHT, form=form, rounds_ahead=rounds_ahead)
    full = tokens_of(bench.run(strategy, _C.Request([1], gamma=3, max_tokens=40)))
    bench.target.close_gate("verify", 5)  # round 4
    before = fake.num_calls("cuGraphLaunch")
    bench.start(strategy, _C.Request([1], gamma=3, max_tokens=40))
    bench.target.wait_for_gate()
    per_round = launches[strategy] if launches else 1
    prologue = 3  # a chunk of one token and its logits, first; the draft has no context to feed
    # The verdict of round 3 was read: rounds 4 to 3 + rounds_ahead are queued.
    expected = prologue + (3 + rounds_ahead) * per_round
    assert settled(lambda: fake.num_calls("cuGraphLaunch") - before, expected) == expected
    bench.target.open_gate()
    assert tokens_of(bench.finish()) == full
    clean(bench)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_full_ring_holds_the_target_back(fake: Any, strategy: str, placement: str, form: str) -> None:
    bench = CudaBench.build(placement, target=TARGET, draft=HALF_RIGHT, ring_capacity=2, form=form)
    request = _C.Request([1], gamma=3, max_tokens=40)
    full = tokens_of(bench.run(strategy, request))
    before = fake.num_calls("kernel")
    bench.start(strategy, request)
    read = bench.coordinator.next(TIMEOUT_MS)
    kernels = settled(lambda: fake.num_calls("kernel"))
    assert kernels - before < 16 + 3 * (len(read) + 1) and bench.coordinator.running
    begin = time.process_time()
    time.sleep(0.1)
    assert time.process_time() - begin < 0.05  # no thread polls for a state that only the reader can change
    bench.coordinator.stop()  # no read since then
    got = tokens_of(read + bench.finish())
    assert 0 < len(got) < 30 and got == full[: len(got)]
    assert tokens_of(bench.run(strategy, request)) == full
    clean(bench)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_stop_in_the_middle(strategy: str, placement: str, form: str) -> None:
    fake = fake_cuda.load()
    fake.reset(seed=5, max_delay_us=60)
    bench = CudaBench.build(placement, target=TARGET, draft=HALF_RIGHT, form=form)
    request = _C.Request([1, 2, 3], gamma=4, max_tokens=50)
    full = tokens_of(bench.run(strategy, request))
    for wait_ms in (0, 0, 1, 2, 4):
        bench.start(strategy, request)
        time.sleep(wait_ms / 1000)
        bench.coordinator.stop()
        assert not bench.coordinator.running
        kernels = fake.num_calls("kernel")
        got = tokens_of(bench.finish())
        assert got == full[: len(got)]
        time.sleep(0.002)
        assert fake.num_calls("kernel") == kernels, "a stream is still at work"
    assert tokens_of(bench.run(strategy, request)) == full
    clean(bench)


@pytest.mark.parametrize("moment_ms", [0, 1, 3])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_destruction_in_any_order(placement: str, moment_ms: int) -> None:
    """Whatever Python drops first: work in flight ends before its owners do."""
    fake = fake_cuda.load()
    rng = random.Random(moment_ms)
    gc.collect()
    threads = num_threads()
    for seed in range(12):
        fake.reset(seed=seed, max_delay_us=50)
        bench = CudaBench.build(placement, target=TARGET, draft=HALF_RIGHT, form=FORMS[seed % 2], gammas=[4])
        bench.start("pearl", _C.Request([1], gamma=4, max_tokens=50))
        time.sleep(moment_ms / 1000)
        parts = ["coordinator", "issuer"]
        rng.shuffle(parts)
        for part in parts:
            setattr(bench, part, None)
        assert fake.violations() == [] and fake.live_handles() == []
        del bench
    fake.reset()
    assert threads_end_at(threads)


def test_exit_in_the_middle_of_a_run() -> None:
    """The interpreter ends with work in flight and no reader: a clean exit."""
    script = (
        "import fake_cuda\n"
        "fake_cuda.load().reset(max_delay_us=100)\n"
        "from scripted_cuda import CudaBench, _C\n"
        "bench = CudaBench.build(gammas=[4])\n"
        "bench.start('pearl', _C.Request([1], gamma=4, max_tokens=60))\n"
    )
    paths = [os.path.dirname(__file__), *sys.path]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    subprocess.run([sys.executable, "-c", script], env=env, check=True, timeout=60)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_timed_traces(strategy: str, placement: str, form: str) -> None:
    fake = fake_cuda.load()
    fake.reset(seed=3, max_delay_us=40)
    bench = CudaBench.build(placement, target=TARGET, draft=HALF_RIGHT, form=form, timed=True)
    begin = time.monotonic_ns()
    results = bench.run(strategy, _C.Request([1, 2, 3, 4, 5, 6], gamma=3, max_tokens=20))
    end = time.monotonic_ns()
    trace = bench.coordinator.trace()
    rounds = results[-1].round
    as_graph = form == "graph" and (placement != "host" or strategy == "ar")
    for lane in ("target", "draft"):
        rows = [row for row in trace if row[0] == lane]
        assert all(begin - 10**9 <= row[3] <= row[4] <= end + 10**9 for row in rows)
        assert all(a[4] <= b[3] + 1000 for a, b in itertools.pairwise(rows))  # the clock's step
    ops = [(op, number) for lane, op, number, *_ in trace if lane == "target"]
    for number in range(1, rounds + 1):
        assert (("round" if as_graph else "verify"), number) in ops
    assert ("prefill", 0) in ops and ("first", 0) in ops
    bench.issuer.timed = False
    bench.run(strategy, _C.Request([1], gamma=3, max_tokens=5))
    assert not [row for row in bench.coordinator.trace() if row[0] == "target"]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_forms_follow_each_other(fake: Any, placement: str) -> None:
    bench = CudaBench.build(placement, target=TARGET, draft=HALF_RIGHT, gammas=[3])
    request: dict[str, Any] = {"prompt_ids": [1, 2], "gamma": 3, "max_tokens": 30}
    expected = expected_rounds("pearl", logits_after(**TARGET), logits_after(**HALF_RIGHT), request)
    for form in ("events", "graph", "events", "graph"):
        bench.issuer.form = form
        assert bench.issuer.form == form
        assert rounds_of(bench.run("pearl", _C.Request(**request))) == expected
    clean(bench)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_another_thread_may_capture(fake: Any, placement: str, form: str) -> None:
    """In the global mode, as torch does it unless told: looks at streams and events are forbidden to threads
    that have not stood aside."""
    bench = CudaBench.build(placement, target=TARGET, draft=HALF_RIGHT, form=form, gammas=[4], num_slots=2)
    bench.target.close_gate("verify", 2)
    bench.start("pearl", _C.Request([1, 2], gamma=4, max_tokens=30))
    bench.target.wait_for_gate()
    other = fake.stream(0)
    fake.capture(other, True)
    bench.target.open_gate()
    bench.finish()
    fake.capture(other, False)
    clean(bench)


def test_several_coordinators_at_once(fake: Any) -> None:
    """Each with an issuer of its own, in threads; and two that take turns with one issuer."""
    request = _C.Request([1, 2], gamma=4, max_tokens=40)
    expected = tokens_of(CudaBench.build(target=TARGET, draft=HALF_RIGHT).run("ar", request))
    benches = [
        CudaBench.build(placement, target=TARGET, draft=HALF_RIGHT, form=form)
        for placement in PLACEMENTS
        for form in FORMS
    ]
    answers: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda b=bench: answers.append(tokens_of(b.run("pearl", request))))
        for bench in benches
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [expected] * len(benches)
    first = benches[0]
    second = CudaBench.build("devices", target=TARGET, draft=HALF_RIGHT, issuer=first.issuer)
    for bench in (first, second, first):
        assert tokens_of(bench.run("sd", request)) == expected
        clean(bench)


def without(base: Program, lane: int, event: str) -> Program:
    lanes = list(base.lanes)
    body = tuple(op for op in lanes[lane].body if (op.kind, op.event) != ("wait", event))
    lanes[lane] = LaneProgram(lanes[lane].prologue, body)
    return replace(base, lanes=tuple(lanes))


@pytest.mark.skipif(fake_cuda.SANITIZE == "thread", reason="ThreadSanitizer reports it, as sanitize.py tests")
@pytest.mark.parametrize(
    ("placement", "form"), [("shared", "events"), ("devices", "events"), ("devices", "graph")]
)
@pytest.mark.parametrize(("lane", "event"), [(0, "d"), (1, "v")])
@pytest.mark.parametrize("strategy", SPECULATIVE)
def test_a_missing_wait_changes_the_answer(
    strategy: str, lane: int, event: str, placement: str, form: str
) -> None:
    """The tests above can fail: without one wait, some schedule gives other rounds, or a step complains."""
    fake = fake_cuda.load()
    racy = without(program(strategy, placement), lane, event)
    case = {"prompt_ids": [1, 2], "gamma": 4, "max_tokens": 40}
    expected = expected_rounds(strategy, logits_after(**TARGET), logits_after(**HALF_RIGHT), case)
    caught, seed = False, 0
    while not caught and seed < 300:
        seed += 1
        fake.reset(seed=seed, max_delay_us=40)
        bench = CudaBench.build(placement, target=TARGET, draft=HALF_RIGHT, gammas=[4], form=form)
        try:
            wrong = rounds_of(bench.run(racy, _C.Request(**case), is_ordered=False)) != expected
        except PearlError:
            wrong = True
        caught = wrong or bool(bench.errors())
        del bench
    assert caught
