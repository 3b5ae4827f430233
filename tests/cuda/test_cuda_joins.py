"""Requests that join a run of CUDA lanes on the fake driver, and leave it: each gets what it gets alone, in
any schedule, and costs the others no wait."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import fake_cuda
import pytest
from scripted import TIMEOUT_MS, VOCAB, Bench, expected_rounds, logits_after, rounds_of, tokens_of
from scripted_cuda import FORMS, HALF_RIGHT, TARGET, CudaBench, clean, clean_world, settled

from pearl_rt import _C
from pearl_rt.errors import PearlError, RequestError
from pearl_rt.strategy.program import STRATEGIES, program

pytestmark = pytest.mark.skipif(not fake_cuda.has_compiler(), reason="no C++ compiler for the fake driver")
PLACEMENTS = ("shared", "devices", "host")
RULES = logits_after(**TARGET), logits_after(**HALF_RIGHT)


@pytest.fixture
def fake() -> Iterator[Any]:
    """Two devices without delays; at the end nothing may have been illegal, and nothing be left."""
    yield from clean_world()


def drawn(rng: random.Random, *, processed: bool) -> dict[str, Any]:
    """A request: perhaps sampled, perhaps with what changes its logits."""
    request: dict[str, Any] = {
        "prompt_ids": [rng.randrange(VOCAB) for _ in range(rng.choice([1, 2, 4, 5, 9, 14]))],
        "gamma": rng.randint(1, 6),
        "max_tokens": rng.choice([1, 2, 7, 20, 40]),
        "stop_ids": [rng.randrange(VOCAB)] if rng.random() < 0.3 else [],
        "temperature": rng.choice([0.0, 0.7, 1.3]),
        "seed": rng.randrange(2**64),
    }
    if processed:
        request |= {
            "top_k": rng.choice([0, 5]),
            "top_p": rng.choice([1.0, 0.8]),
            "min_p": rng.choice([0.0, 0.05]),
            "repetition_penalty": rng.choice([1.0, 1.5]),
            "frequency_penalty": rng.choice([0.0, 0.6]),
            "presence_penalty": rng.choice([0.0, -0.4]),
            "logit_bias": [(i, rng.uniform(-4, 4)) for i in rng.sample(range(VOCAB), rng.randint(0, 3))],
            "min_tokens": rng.choice([0, 3]),
        }
    return request


def alone(strategy: str, request: dict[str, Any], judge: str, native: Bench) -> list[Any]:
    """Its rounds, by the rule; where logits are changed, by CPU lanes."""
    if "top_k" in request:
        return rounds_of(native.run(strategy, _C.Request(**request), judge=judge))
    return expected_rounds(strategy, *RULES, request, judge)


class Crowd:
    """Requests that come and go on one coordinator, and what became of each."""

    def __init__(self, bench: CudaBench, strategy: str, judge: str) -> None:
        self.bench, self.strategy, self.judge = bench, strategy, judge
        self.asked: dict[int, dict[str, Any]] = {}
        self.results: dict[int, list[Any]] = {}
        self.cancelled: set[int] = set()
        self.forgotten: set[int] = set()  # cancelled before they had a slot
        self.joins = 0

    def start(self, *requests: dict[str, Any]) -> None:
        chosen = program(self.strategy, self.bench.placement)
        ids = self.bench.coordinator.start(chosen, [_C.Request(**r) for r in requests], self.judge)
        self.asked |= dict(zip(ids, requests, strict=True))

    def add(self, request: dict[str, Any]) -> None:
        """Joins, or starts the next run."""
        number = self.bench.coordinator.submit(_C.Request(**request))
        if number is not None:
            self.asked[number] = request
            self.joins += 1
            return
        self.finish()
        self.start(request | {"gamma": 6})  # the window that there are steps for

    def cancel(self, number: int) -> None:
        self.cancelled.add(number)
        if self.bench.coordinator.cancel(number):
            self.forgotten.add(number)

    def read(self, timeout_ms: int = 0) -> bool:
        """Whether the run goes on."""
        results = self.bench.coordinator.next(timeout_ms)
        for result in results or ():
            self.results.setdefault(result.request_id, []).append(result)
        return results is not None

    def mingle(self, rng: random.Random, num: int, processed: float) -> None:
        """Starts with the widest request and two that join; then so many more, some cancelled, to the end.
        processed: the share of those that change their logits."""
        widest = {"gamma": 6, "temperature": 0.7, "max_tokens": 40, "stop_ids": []}
        self.bench.target.close_gate("verify", rng.randint(1, 3))
        self.start(drawn(rng, processed=True) | widest | {"top_k": 5})
        self.bench.target.wait_for_gate()
        self.add(drawn(rng, processed=True))  # a request that comes now joins, however slow this thread is
        self.add(drawn(rng, processed=False))
        self.bench.target.open_gate()
        for _ in range(num):
            time.sleep(rng.choice([0, 0, 0.0005, 0.002]))
            self.add(
                drawn(rng, processed=rng.random() < processed) | ({"gamma": 6} if rng.random() < 0.5 else {})
            )
            self.read()
            assert 0 <= self.bench.coordinator.num_free_blocks <= self.bench.coordinator.num_blocks
            if rng.random() < 0.3:
                self.cancel(rng.choice(sorted(self.asked)))
        self.finish()

    def finish(self) -> None:
        begin = time.monotonic()
        while self.read(1000):
            assert time.monotonic() - begin < TIMEOUT_MS / 1000, "silence"
        assert self.bench.coordinator.take_waiting() == []

    def check(self, native: Bench) -> None:
        for number, request in self.asked.items():
            expected = alone(self.strategy, request, self.judge, native)
            found = self.results.get(number, [])
            assert [r.round for r in found] == list(range(len(found))), request
            rounds = [row for r in found for row in rounds_of([r], r.slot)]
            if number in self.forgotten:
                assert rounds == [], request
            elif number in self.cancelled and rounds[-1].finish_reason == "abort":
                assert rounds[-1].token_ids == () and rounds[:-1] == expected[: len(rounds) - 1], request
            else:
                assert rounds == expected, (number, request)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_random_joins_and_cancels(fake: Any, strategy: str, request: pytest.FixtureRequest) -> None:
    """Streams of random pace; requests come at random times, to slots that others have just left."""
    worlds = max(6, request.config.getoption("--schedules") // 30)
    rng = random.Random(f"{strategy} in company")
    joins = 0
    for world in range(worlds):
        fake.reset(seed=world, max_delay_us=rng.choice([0, 3, 20, 60]))
        num_slots, judge = rng.choice([2, 3, 4]), rng.choice(["coupled", "rejection"])
        bench = CudaBench.build(
            PLACEMENTS[world % 3],
            target=TARGET,
            draft=HALF_RIGHT,
            form=FORMS[world % 2],
            num_slots=num_slots,
            gammas=[0, 6],
            gamma_max=6,
            rounds_ahead=rng.randint(1, 4),
            spin_us=rng.choice([0, 20]),
            ring_capacity=rng.choice([2, 1024]),
        )
        crowd = Crowd(bench, strategy, judge)
        crowd.mingle(rng, 10, 0.5)
        native = Bench.build("shared", target=TARGET, draft=HALF_RIGHT, gamma_max=6, num_slots=1)
        crowd.check(native)
        joins += crowd.joins
        clean(bench)
        del bench, crowd
        assert fake.live_handles() == []
    assert joins >= 2 * worlds


def company(placement: str = "shared", **options: Any) -> CudaBench:
    """Room for three, with windows of three."""
    known = {"num_slots": 3, "gammas": [0, 3], "gamma_max": 3, "target": TARGET, "draft": HALF_RIGHT}
    return CudaBench.build(placement, **{**known, **options})


def greedy(prompt: list[int], **options: Any) -> dict[str, Any]:
    return {"prompt_ids": prompt, "gamma": 3, "max_tokens": 30, **options}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_join_waits_for_no_device(fake: Any, placement: str, form: str) -> None:
    """The prompt, longer than a pass, and its verdict are queued: streams are drained at the end alone."""
    bench = company(placement, form=form, rounds_ahead=4)
    crowd = Crowd(bench, "pearl", "coupled")
    bench.target.close_gate("verify", 3)
    before = fake.num_calls("cuStreamSynchronize")
    crowd.start(greedy([1, 2]))
    bench.target.wait_for_gate()
    crowd.add(greedy([3] * 9))
    bench.target.open_gate()
    crowd.finish()
    lanes = 1 if placement == "host" else 2
    assert crowd.joins == 1 and fake.num_calls("cuStreamSynchronize") - before == lanes
    crowd.check(Bench.build("shared", target=TARGET, draft=HALF_RIGHT, gamma_max=3))
    clean(bench)


@pytest.mark.parametrize("form", ["events", "graph"])
@pytest.mark.parametrize("placement", ["shared", "devices"])
def test_unread_results_of_others_do_not_delay_a_join(fake: Any, placement: str, form: str) -> None:
    """Rounds are queued as far ahead as results find room; room is kept for those of a request that joins."""
    for seed in range(3):
        fake.reset(seed=seed, max_delay_us=60)
        bench = company(placement, form=form, ring_capacity=8, ring_size=16, rounds_ahead=4, capacity=400)
        crowd = Crowd(bench, "ar", "coupled")
        crowd.start(greedy([1], max_tokens=200), greedy([2], max_tokens=200))
        order: list[int] = []
        added = 0
        while (results := bench.coordinator.next(TIMEOUT_MS)) is not None:
            order += [result.request_id for result in results]
            if not added and len(order) > 50:
                crowd.add(greedy([3, 3, 3], max_tokens=2))
                added = len(order)
        assert crowd.joins == 1 and order.index(2) - added < 20
        clean(bench)
        del bench, crowd


@pytest.mark.parametrize("stays", [True, False])
@pytest.mark.parametrize("judge", ["coupled", "rejection"])
def test_a_draft_on_the_host_is_fed_a_long_prompt_in_chunks(fake: Any, judge: str, stays: bool) -> None:
    """Of 256 tokens, of which none is drafted before: windows, and so what is sampled, are those of a run
    alone. Once no other request runs, rounds go on for it."""
    bench = company("host", capacity=900, rounds_ahead=1)
    crowd = Crowd(bench, "pearl", judge)
    bench.target.close_gate("verify", 2)
    crowd.start(greedy([1, 2], temperature=0.9, max_tokens=40 if stays else 2))
    bench.target.wait_for_gate()
    for length in (257, 258, 700):
        crowd.add(greedy([i % VOCAB for i in range(length)], temperature=0.9, seed=length, max_tokens=12))
    bench.target.open_gate()
    crowd.finish()
    assert crowd.joins == 3
    native = Bench.build("shared", target=TARGET, draft=HALF_RIGHT, gamma_max=3, capacity=900)
    for number, request in crowd.asked.items():
        expected = rounds_of(native.run("pearl", _C.Request(**request), judge=judge))
        assert [row for r in crowd.results[number] for row in rounds_of([r], r.slot)] == expected
    clean(bench)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_cancelled_request_leaves_within_the_queued_rounds(fake: Any, placement: str, form: str) -> None:
    bench = company(placement, form=form, rounds_ahead=2)
    crowd = Crowd(bench, "sd", "coupled")
    bench.target.close_gate("verify", 3)  # round 2: rounds 3 and, once it was read, 4 may be queued
    crowd.start(greedy([1]), greedy([2]), greedy([5]))
    bench.target.wait_for_gate()
    crowd.add(greedy([3] * 9))
    crowd.add(greedy([4]))
    for number in (1, 4):
        crowd.cancel(number)
    assert crowd.forgotten == {4}
    bench.target.open_gate()
    crowd.finish()
    assert crowd.results[1][-1].finish_reason == "abort" and crowd.results[1][-1].round <= 5
    assert crowd.results[3][-1].slot == 1
    crowd.check(Bench.build("shared", target=TARGET, draft=HALF_RIGHT, gamma_max=3))
    clean(bench)


@pytest.mark.parametrize("form", FORMS)
def test_the_end_of_a_cancelled_request_has_room(fake: Any, form: str) -> None:
    """Four results find room, and no result is read while the other request goes on."""
    bench = company("shared", form=form, num_slots=2, ring_capacity=4)
    crowd = Crowd(bench, "ar", "coupled")
    crowd.start(greedy([1]), greedy([2]))
    settled(lambda: fake.num_calls("cuGraphLaunch"), 3)
    crowd.cancel(0)
    crowd.read()
    settled(lambda: fake.num_calls("cuGraphLaunch"))
    crowd.finish()
    assert crowd.results[0][-1].finish_reason == "abort"
    crowd.check(Bench.build("shared", target=TARGET, draft=HALF_RIGHT, gamma_max=3))
    clean(bench)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_request_for_more_than_was_captured_starts_another_run(fake: Any, placement: str) -> None:
    bench = company(placement, gammas=[2])
    bench.target.close_gate("verify", 1)
    bench.start("sd", _C.Request([1], gamma=2, max_tokens=20), judge="rejection")
    bench.target.wait_for_gate()
    submit = bench.coordinator.submit
    for refused in ({"gamma": 3}, {"temperature": 0.5}, {"min_tokens": 1}, {"logit_bias": [(1, 2.0)]}):
        assert submit(_C.Request([1], **{"gamma": 2, **refused})) is None
    assert submit(_C.Request([1], gamma=2, top_k=3, max_tokens=2)) is not None  # greedy: filters do nothing
    with pytest.raises(RequestError, match="5 end-of-text and stop ids; the target lane takes 4"):
        submit(_C.Request([1], gamma=2, stop_ids=[1, 2, 3, 4, 5]))
    with pytest.raises(RequestError, match="logit_bias has 4 ids; the target lane takes 3: pass fewer"):
        submit(_C.Request([1], gamma=2, logit_bias=[(i, 1.0) for i in range(4)]))
    bench.target.open_gate()
    bench.finish()
    clean(bench)


def test_one_slot_takes_no_joins(fake: Any) -> None:
    bench = company(num_slots=1)
    bench.target.close_gate("verify", 1)
    bench.start("sd", _C.Request([1], gamma=3, max_tokens=20))
    bench.target.wait_for_gate()
    assert bench.coordinator.submit(_C.Request([1], gamma=3)) is None
    bench.target.open_gate()
    bench.finish()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_fault_during_a_join_is_one_exception(placement: str, form: str) -> None:
    """Whatever call fails, or kernel: all that run are told once, and verified tokens stand."""
    fake = fake_cuda.load()
    rounds = expected_rounds("pearl", *RULES, greedy([1, 2]), "coupled")
    expected, failed = [token for row in rounds for token in row.token_ids], 0
    for call, code in (("cuMemcpyAsync", 2), ("cuGraphLaunch", 719), ("cuEventRecord", 2), ("kernel", 700)):
        for nth in (1, 3, 6, 9, 14):
            fake.reset(seed=nth, max_delay_us=5)
            bench = company(placement, form=form)
            crowd = Crowd(bench, "pearl", "coupled")
            bench.target.close_gate("verify", 2)
            crowd.start(greedy([1, 2]))
            bench.target.wait_for_gate()
            fake.inject(call, nth, code)
            try:
                crowd.add(greedy([3] * 9))
                bench.target.open_gate()
                crowd.finish()
                crowd.check(Bench.build("shared", target=TARGET, draft=HALF_RIGHT, gamma_max=3))
            except PearlError:
                failed += 1
                bench.target.open_gate()
                assert bench.coordinator.next(0) is None  # told once
                got = tokens_of(crowd.results.get(0, []))  # rounds may differ: a draft's GPU that fails
                assert got == expected[: len(got)]  # leaves a window of before to one that does not
                bench.coordinator.take_waiting()
            fake.synchronize()
            del bench, crowd
            assert fake.violations() == [] and fake.live_handles() == [], (call, nth)
    assert failed > 10


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("prefix_caching", [False, True])
def test_a_lookup_on_the_host_in_any_schedule(fake: Any, prefix_caching: bool, seed: int) -> None:
    """Requests come, are cancelled and end; most of them ask for one of a few things, so that windows are
    found among earlier answers. Each has its own text, or the front of it.
    """
    rng = random.Random(seed)
    options = {"prefix_caching": prefix_caching}
    bench = CudaBench.build(
        "lookup",
        target=TARGET,
        num_slots=3,
        gammas=[0, 6],
        gamma_max=6,
        judges=("coupled",),
        coordinator=options,
    )
    known = [drawn(rng, processed=False) | {"gamma": 6, "stop_ids": []} for _ in range(5)]
    crowd = Crowd(bench, "sd", "coupled")
    crowd.start(known[0] | {"max_tokens": 40})
    for _ in range(40):
        crowd.add(rng.choice(known))
        crowd.read()
        if rng.random() < 0.2:
            crowd.cancel(rng.choice(sorted(crowd.asked)))
    crowd.finish()
    clean(bench)
    assert bench.coordinator.num_free_blocks == bench.coordinator.num_blocks
    rule = logits_after(**TARGET)
    stood = 0
    for number, request in crowd.asked.items():
        results = crowd.results.get(number, [])
        rounds = expected_rounds("ar", rule, rule, request, "coupled")
        wanted = [token for one in rounds for token in one.token_ids]
        text = [token for result in results for token in result.token_ids]
        stood += sum(result.accept_len for result in results)
        assert text == (wanted[: len(text)] if number in crowd.cancelled else wanted), request
    assert stood > 10 and crowd.joins > 5
