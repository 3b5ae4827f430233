"""The coordinator over scripted executors: all programs give the rule's rounds, in any schedule and state."""

import gc
import itertools
import os
import random
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import (
    CAPACITY,
    TIMEOUT_MS,
    VOCAB,
    Bench,
    expected_rounds,
    logits_after,
    num_threads,
    rounds_of,
    threads_end_at,
    tokens_of,
)

from pearl_rt import _C, _testing
from pearl_rt.errors import PearlError, RequestError, ResourceError
from pearl_rt.strategy.program import PLACEMENTS, STRATEGIES

HALF_RIGHT = {"rule": 1, "divergence": 0.4}
SPECULATIVE = [s for s in STRATEGIES if s != "ar"]


@st.composite
def cases(draw: Any) -> dict[str, Any]:
    temperature = draw(st.sampled_from([0.0, 0.0, 0.7, 1.5]))
    return {
        "request": {
            "prompt_ids": draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9)),
            "gamma": draw(st.integers(1, 8)),
            "max_tokens": draw(st.sampled_from([1, 2, 3, 5, 8, 13, 30, 1000])),
            "eos_ids": draw(st.lists(st.integers(0, VOCAB - 1), max_size=2)),
            "temperature": temperature,
            "seed": draw(st.integers(0, 2**64 - 1)) if temperature else 0,
        },
        "judge": draw(st.sampled_from(["rejection", "coupled"])),
        "strategy": draw(st.sampled_from(STRATEGIES)),
        "placement": draw(st.sampled_from(PLACEMENTS)),
        "rule": draw(st.integers(0, 1000)),
        "draft": draw(st.sampled_from(["equal", "half", "mostly", "unrelated"])),
        "draft_vocab": draw(st.sampled_from([VOCAB, VOCAB + 5, VOCAB - 5])),
        "delay": draw(st.sampled_from([0, 0, 20])),
    }


def draft_script(kind: str, rule: int) -> dict[str, Any]:
    divergence = {"equal": 0.0, "half": 0.5, "mostly": 0.1, "unrelated": 0.0}[kind]
    return {"rule": rule + 7777 if kind == "unrelated" else rule, "divergence": divergence}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(cases())
def test_rounds_are_the_rules(case: dict[str, Any]) -> None:
    """Token for token and verdict for verdict, at every temperature, with both judges."""
    target, request = {"rule": case["rule"]}, case["request"]
    draft = {**draft_script(case["draft"], case["rule"]), "vocab_size": case["draft_vocab"]}
    delay = {"delay_us": (0, case["delay"]), "delay_seed": case["rule"]}
    bench = Bench.build(
        case["placement"], target={**target, **delay}, draft={**draft, **delay}, gamma_max=request["gamma"]
    )
    results = bench.run(case["strategy"], _C.Request(**request), judge=case["judge"])
    expected = expected_rounds(
        case["strategy"], logits_after(**target), logits_after(**draft), request, case["judge"]
    )
    assert rounds_of(results) == expected
    assert [r.round for r in results] == list(range(len(expected)))
    limit = min(len(request["prompt_ids"]) + request["max_tokens"], CAPACITY)
    assert max(bench.target.max_position, bench.draft.max_position) < limit - 1


@pytest.mark.parametrize("draft", ["equal", "half", "unrelated"])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("gamma", [1, 2, 5, 8])
def test_coupled_tokens_depend_on_the_seed_only(gamma: int, placement: str, draft: str) -> None:
    bench = Bench.build(placement, target={"rule": 3}, draft=draft_script(draft, 3))
    for seed in range(8):
        request = _C.Request([1, 2], gamma=gamma, max_tokens=40, temperature=0.8, seed=seed, eos_ids=[0])
        tokens = [tokens_of(bench.run(strategy, request, judge="coupled")) for strategy in STRATEGIES]
        assert tokens[0] == tokens[1] == tokens[2]
        assert len(tokens[0]) in (40, 1 + [*tokens[0], 0].index(0))


@pytest.mark.parametrize("strategy", SPECULATIVE)
def test_rejection_with_an_equal_draft_accepts_all(strategy: str) -> None:
    bench = Bench.build("split", target={"rule": 5}, draft={"rule": 5})
    results = bench.run(
        strategy, _C.Request([3], gamma=4, max_tokens=50, temperature=1.0, seed=9), judge="rejection"
    )
    assert all(r.accept_len == r.num_judged for r in results)
    assert len(tokens_of(results)) == 50


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("judge", ["rejection", "coupled"])
def test_ragged_batch_of_four(judge: str, strategy: str, placement: str) -> None:
    """Every slot in another state, in 20 mixes: each sequence is what it would be alone."""
    rng = random.Random(11)
    target, draft = {"rule": 1}, HALF_RIGHT
    bench = Bench.build(placement, num_slots=4, target=target, draft=draft)
    rules = logits_after(**target), logits_after(**draft)
    for _ in range(20):
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


def test_ignore_eos_keeps_stop_ids() -> None:
    bench = Bench.build(target={"rule": 1}, draft=HALF_RIGHT)
    free = tokens_of(bench.run("pearl", _C.Request([1], gamma=3, max_tokens=40)))
    eos, stop = free[5], next(t for t in free if t not in free[:6])
    request = _C.Request([1], gamma=3, max_tokens=40, eos_ids=[eos], stop_ids=[stop], ignore_eos=True)
    results = bench.run("pearl", request)
    assert tokens_of(results) == free[: free.index(stop) + 1]
    assert results[-1].finish_reason == "stop"


def intervals(trace: list[tuple[str, str, int, int, int]], op: str) -> list[tuple[int, int]]:
    return [(begin, end) for _, kind, _, begin, end in trace if kind == op]


@pytest.mark.parametrize(
    ("strategy", "placement", "overlap"),
    [("pearl", "split", True), ("pearl", "shared", False), ("sd", "split", False), ("sd", "shared", False)],
)
def test_overlap_in_the_trace(strategy: str, placement: str, overlap: bool) -> None:
    # Longer than a thread waits for a core, where the two must meet.
    delays = {"delay_us": (20_000, 20_000) if overlap else (100, 100)}
    bench = Bench.build(placement, target={"rule": 1, **delays}, draft={**HALF_RIGHT, **delays})
    bench.run(strategy, _C.Request([1], gamma=2, max_tokens=12 if overlap else 30))
    trace = bench.coordinator.trace()
    drafts, scores = intervals(trace, "draft"), intervals(trace, "score")
    assert len(scores) > 3
    both = [(d, s) for d in drafts for s in scores if max(d[0], s[0]) < min(d[1], s[1])]
    assert bool(both) == overlap
    for lane in ("target", "draft"):
        rows = [row for row in trace if row[0] == lane]
        assert all(begin <= end for *_, begin, end in rows)
        assert all(a[4] <= b[3] for a, b in itertools.pairwise(rows))
        assert any(op == "wait" for _, op, *_ in rows)


@pytest.mark.slow
@pytest.mark.parametrize("spin_us", [0, 10, 300])
def test_a_thousand_random_schedules(spin_us: int) -> None:
    """Delays of 0 to 30 us on both lanes, waits that sleep or spin: none hangs, none changes a token."""
    expected = tokens_of(Bench.build(target={"rule": 1}).run("ar", _C.Request([1, 2], max_tokens=12)))
    for placement in PLACEMENTS:
        for lanes in ((0, 30), (30, 0), (8, 8), (2, 1)):
            bench = Bench.build(
                placement,
                target={"rule": 1, "delay_us": (0, lanes[0]), "delay_seed": lanes[0]},
                draft={**HALF_RIGHT, "delay_us": (0, lanes[1]), "delay_seed": lanes[1] + 1},
                spin_us=spin_us,
            )
            for i in range(50):
                for strategy in SPECULATIVE:
                    request = _C.Request([1, 2], gamma=1 + i % 8, max_tokens=12)
                    assert tokens_of(bench.run(strategy, request)) == expected


def test_parked_threads_use_no_time() -> None:
    bench = Bench.build(target={"rule": 1}, draft=HALF_RIGHT)
    bench.run("pearl", _C.Request([1], gamma=3, max_tokens=30))
    time.sleep(0.01)
    begin = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - begin < 0.02


def test_exit_in_the_middle_of_a_run() -> None:
    """The interpreter ends with lanes at work and no reader: a clean exit."""
    script = (
        "from scripted import Bench, _C\n"
        "bench = Bench.build(target={'delay_us': (50, 50)}, ring_capacity=2)\n"
        "bench.start('pearl', _C.Request([1], gamma=4, max_tokens=60))\n"
    )
    paths = [os.path.dirname(__file__), *sys.path]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    subprocess.run([sys.executable, "-c", script], env=env, check=True, timeout=60)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_stop_in_the_middle(strategy: str) -> None:
    scripts = {"target": {"rule": 1, "delay_us": (50, 50)}, "draft": {**HALF_RIGHT, "delay_us": (20, 20)}}
    bench = Bench.build("split", **scripts)
    full = tokens_of(bench.run(strategy, _C.Request([1], gamma=4, max_tokens=60)))
    for wait_ms in (0, 0, 1, 2, 3):
        bench.start(strategy, _C.Request([1], gamma=4, max_tokens=60))
        time.sleep(wait_ms / 1000)
        bench.coordinator.stop()
        assert not bench.coordinator.running
        got = tokens_of(bench.finish())
        assert got == full[: len(got)]
        forwards = bench.target.num_forwards + bench.draft.num_forwards
        time.sleep(0.005)
        assert bench.target.num_forwards + bench.draft.num_forwards == forwards, "a lane still runs"
    assert tokens_of(bench.run(strategy, _C.Request([1], gamma=4, max_tokens=60))) == full


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_full_ring_holds_the_target_back(placement: str, strategy: str) -> None:
    bench = Bench.build(placement, target={"rule": 1}, draft=HALF_RIGHT, ring_capacity=2)
    request = _C.Request([1], gamma=3, max_tokens=60)
    full = tokens_of(Bench.build(target={"rule": 1}).run("ar", request))
    bench.start(strategy, request)
    read = bench.coordinator.next(TIMEOUT_MS)
    time.sleep(0.02)
    assert bench.target.num_forwards < 6 + len(read) and bench.coordinator.running
    bench.coordinator.stop()  # no poll since then
    got = tokens_of(read + bench.finish())
    assert 0 < len(got) < 30 and got == full[: len(got)]
    assert tokens_of(bench.run(strategy, request)) == full  # and with a reader it flows


def test_a_patient_reader_gets_all_at_once() -> None:
    bench = Bench.build(target={"rule": 1, "delay_us": (100, 100)}, draft=HALF_RIGHT)
    bench.start("pearl", _C.Request([1], gamma=3, max_tokens=30))
    results = bench.coordinator.next(TIMEOUT_MS, min_results=10**6)
    assert results[-1].finish_reason == "length"
    assert bench.coordinator.next(0) is None
    bench.start("pearl", _C.Request([1], gamma=3, max_tokens=30))
    assert bench.coordinator.next(0) is not None  # time is up at once: perhaps nothing, not the end
    bench.finish()


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nan_names_step_and_position(strategy: str, placement: str) -> None:
    clean = Bench.build(placement, target={"rule": 1}, draft=HALF_RIGHT)
    request = _C.Request([1, 2, 3], gamma=3, max_tokens=20)
    full = tokens_of(clean.run(strategy, request))
    lanes = ("target",) if strategy == "ar" else ("target", "draft")
    for lane in lanes:
        for at in range(1 if lane == "draft" else 0, 6):
            scripts = {"target": {"rule": 1}, "draft": dict(HALF_RIGHT)}
            scripts[lane]["nan_at"] = at
            bench = Bench.build(placement, **scripts)
            bench.start(strategy, request)
            results = bench.finish()
            step = "draft" if lane == "draft" else "prefill" if at == 0 else "score"
            named = rf"step {step} of the {lane} lane, sequence 0, position \d+"
            if results[-1].finish_reason == "error":
                assert re.search(named, results[-1].error)
                assert strategy != "ar" or f"position {3 + at};" in results[-1].error
            else:  # the poisoned row lay behind a rejection: it was not read
                assert strategy != "ar" and lane == "target" and at > 0
            got = tokens_of(results)
            assert got == full[: len(got)]
            assert tokens_of(bench.run(strategy, request)) == full


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        ("memory", ResourceError, "out of memory"),
        ("disk on fire", PearlError, "disk on fire"),
        ("foreign", PearlError, "an unknown exception"),
    ],
)
@pytest.mark.parametrize("lane", ["target", "draft"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_executor_exceptions_end_all_lanes(
    placement: str, lane: str, error: str, kind: type, text: str
) -> None:
    request = _C.Request([1, 2, 3], gamma=3, max_tokens=20)
    full = tokens_of(Bench.build(target={"rule": 1}).run("ar", request))
    for at in range(6):
        scripts = {"target": {"rule": 1}, "draft": dict(HALF_RIGHT)}
        scripts[lane] |= {"throw_at": at, "error": error}
        bench = Bench.build(placement, **scripts)
        with pytest.raises(kind, match=rf"{text} \(in step \w+ of the {lane} lane, round \d+\)"):
            bench.run("pearl", request)
        assert bench.coordinator.next(0) is None
        assert tokens_of(bench.run("pearl", request)) == full


@pytest.mark.parametrize("moment_ms", [0, 1, 5])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_destruction_at_any_time(placement: str, moment_ms: int) -> None:
    gc.collect()
    threads = num_threads()
    for _ in range(6):
        bench = Bench.build(
            placement, target={"rule": 1, "delay_us": (0, 90)}, draft=HALF_RIGHT, ring_capacity=2
        )
        bench.start("pearl", _C.Request([1], gamma=4, max_tokens=60))
        time.sleep(moment_ms / 1000)
        del bench
    assert threads_end_at(threads)


def test_a_second_thread_is_refused() -> None:
    bench = Bench.build(target={"rule": 1, "delay_us": (100_000, 100_000)}, draft=HALF_RIGHT)
    bench.start("pearl", _C.Request([1], gamma=2, max_tokens=60))  # seconds
    with pytest.raises(RequestError, match="a request is running"):
        bench.start("pearl", _C.Request([1], gamma=2, max_tokens=60))

    def read() -> None:
        while True:
            with suppress(RequestError):  # we may be in it just now
                bench.coordinator.next(TIMEOUT_MS, min_results=10**6)
                return

    reader = threading.Thread(target=read)
    reader.start()
    with pytest.raises(RequestError, match="in use by another thread"):
        while True:
            bench.coordinator.next(0)
            time.sleep(0.001)
    bench.coordinator.stop()  # from any thread
    reader.join(60)
    assert not reader.is_alive()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"prompt_ids": []}, "prompt is empty"),
        ({"prompt_ids": [0] * CAPACITY}, "leaves no room"),
        ({"prompt_ids": [1, VOCAB]}, r"prompt_token_ids\[1\] is 12; the vocabulary has ids 0 to 11"),
        ({"prompt_ids": [-1]}, r"prompt_token_ids\[0\] is -1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"gamma": 9}, "gamma is 9; this coordinator takes 0 to 8"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"temperature": float("nan")}, "temperature is"),
    ],
)
def test_bad_requests_are_refused(change: dict[str, Any], text: str) -> None:
    bench = Bench.build(target={"rule": 1}, draft=HALF_RIGHT)
    good = {"prompt_ids": [1], "gamma": 2, "max_tokens": 5}
    with pytest.raises(RequestError, match=text):
        bench.start("pearl", _C.Request(**{**good, **change}))
    assert len(tokens_of(bench.run("pearl", _C.Request(**good)))) == 5


def test_bad_set_ups_are_refused() -> None:
    bench = Bench.build(target={"rule": 1}, draft=HALF_RIGHT)
    request = _C.Request([1], gamma=2)
    with pytest.raises(RequestError, match="2 requests were started; this coordinator has 1 slots"):
        bench.start("pearl", request, request)
    with pytest.raises(RequestError, match="judge is 'jury'"):
        bench.start("pearl", request, judge="jury")
    lonely = scripted_coordinator(_testing.ScriptedExecutor(), 64)
    with pytest.raises(RequestError, match="the program has 2 lanes; this coordinator has 1"):
        Bench(lonely, None, None, "split").start("sd", request)
    with pytest.raises(RequestError, match="1 sequences of 256 tokens; 1 of 512 were asked for"):
        scripted_coordinator(_testing.ScriptedExecutor(), 512)
    with pytest.raises(RequestError, match="has a vocabulary of 17; the coordinator expects 16"):
        scripted_coordinator(_testing.ScriptedExecutor(vocab_size=17), 64)
    for lanes, text in (([], "0 lanes were given"), ([None], "a lane is None")):
        with pytest.raises(RequestError, match=text):
            _C.Coordinator(lanes, capacity=64, vocab_size=16)
    with pytest.raises(ResourceError, match="core 100000 cannot be used"):
        _C.Device([100000])


def scripted_coordinator(executor: Any, capacity: int) -> Any:
    return _C.Coordinator([_C.CpuLane("target", executor, _C.Device([]))], capacity=capacity, vocab_size=16)


def test_a_lane_is_one_coordinators_at_a_time() -> None:
    lane = _C.CpuLane("target", _testing.ScriptedExecutor(), _C.Device([]))
    with pytest.raises(RequestError, match="256 tokens"):
        _C.Coordinator([lane], capacity=512, vocab_size=16)  # and gives it back
    first = _C.Coordinator([lane], capacity=64, vocab_size=16)
    with pytest.raises(RequestError, match="the target lane belongs to another coordinator"):
        _C.Coordinator([lane], capacity=64, vocab_size=16)
    del first
    gc.collect()
    _C.Coordinator([lane], capacity=64, vocab_size=16)
