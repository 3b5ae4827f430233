"""Requests join and leave a run while it goes on: each is what it would be alone, and none waits for ever."""

import random
import threading
from typing import Any

import pytest
from scripted import CAPACITY, TIMEOUT_MS, VOCAB, Bench, expected_rounds, logits_after, rounds_of, tokens_of

from pearl_rt import _C
from pearl_rt.errors import RequestError
from pearl_rt.strategy.program import PLACEMENTS, STRATEGIES, program

TARGET = {"rule": 1}
DRAFT = {"rule": 1, "divergence": 0.4}
LONG = 700  # tokens of a long prompt: three chunks of 256


def random_request(rng: random.Random) -> dict[str, Any]:
    return {
        "prompt_ids": [rng.randrange(VOCAB) for _ in range(rng.choice([1, 2, 9, 30]))],
        "gamma": rng.randint(1, 8),
        "max_tokens": rng.choice([1, 2, 7, 20, 33]),
        "stop_ids": [rng.randrange(VOCAB)] if rng.random() < 0.5 else [],
        "temperature": rng.choice([0.0, 0.5, 1.0]),
        "seed": rng.randrange(2**64),
    }


def by_request(results: list[Any]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for result in results:
        found.setdefault(result.request_id, []).append(result)
    return found


def drain(bench: Bench) -> list[Any]:
    results = bench.finish()
    assert not bench.coordinator.running
    return results


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("judge", ["rejection", "coupled"])
def test_joining_changes_no_verdict(judge: str, strategy: str, placement: str) -> None:
    """Ten mixes of 12 requests over 3 slots, submitted at any moment of the run: round for round the rule."""
    rng = random.Random(5)
    rules = logits_after(**TARGET), logits_after(**DRAFT)
    delay = {"delay_us": (0, 30)}
    bench = Bench.build(placement, num_slots=3, target={**TARGET, **delay}, draft={**DRAFT, **delay})
    for _ in range(10):
        requests = [random_request(rng) for _ in range(12)]
        asked: dict[int, dict[str, Any]] = {}
        results: list[Any] = []
        while requests or bench.coordinator.running:
            if requests and (not bench.coordinator.running or rng.random() < 0.5):
                request = requests.pop()
                number = bench.coordinator.submit(_C.Request(**request))
                if number is None:  # the run has ended: its last results come first
                    results += drain(bench)
                    (number,) = bench.coordinator.start(
                        program(strategy, placement), [_C.Request(**request)], judge
                    )
                asked[number] = request
            else:
                results += bench.coordinator.next(1) or []
        results += drain(bench)
        found = by_request(results)
        assert found.keys() == asked.keys() and bench.coordinator.take_waiting() == []
        for number, request in asked.items():
            own = found[number]
            assert [r.round for r in own] == list(range(len(own)))
            assert len({r.slot for r in own}) == 1
            assert rounds_of(own, own[0].slot) == expected_rounds(strategy, *rules, request, judge)


def test_first_come_first_served() -> None:
    """With one slot, answers begin in the order of submission."""
    bench = Bench.build(num_slots=1, target=TARGET, draft=DRAFT, ring_capacity=2)  # held until it is read
    numbers = bench.coordinator.start(program("sd", "split"), [_C.Request([1], gamma=3, max_tokens=20)])
    numbers += [bench.coordinator.submit(_C.Request([2], gamma=2, max_tokens=3)) for _ in range(5)]
    seen = list(dict.fromkeys(result.request_id for result in drain(bench)))
    assert seen == numbers


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_long_prompt_delays_others_by_one_chunk_at_most(strategy: str) -> None:
    """While 700 tokens are fed, every round feeds 256 of them at most, and the other sequence gets on."""
    shape = {"max_model_len": 1024, "vocab_size": VOCAB}
    bench = Bench.build(
        num_slots=2,
        capacity=1024,
        target={**TARGET, **shape},
        draft={**DRAFT, **shape},
        ring_capacity=4,  # nothing ends while this thread is away
    )
    coordinator = bench.coordinator
    coordinator.start(program(strategy, "split"), [_C.Request([1], gamma=3, max_tokens=1000)])
    while not (results := coordinator.next(TIMEOUT_MS)):
        pass
    fed = bench.target.num_tokens
    number = coordinator.submit(_C.Request([1 + i % 7 for i in range(LONG)], gamma=3, max_tokens=4))
    while number not in by_request(results):
        results += coordinator.next(TIMEOUT_MS)
    at = next(place for place, result in enumerate(results) if result.request_id == number)
    other = [result for result in results[:at] if result.request_id != number]
    assert results[at].round == 0 and len(results[at].token_ids) == 1
    assert other[-1].round >= 3  # chunks of 256, 256 and 188 took three rounds of the other
    assert bench.target.num_tokens - fed >= LONG
    coordinator.stop()
    drain(bench)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_cancel_ends_one_request(strategy: str) -> None:
    """A running one within a round, a waiting one at once; the others are what they would be."""
    request = {"prompt_ids": [1, 2], "gamma": 3, "max_tokens": 50}
    full = tokens_of(Bench.build(target=TARGET).run("ar", _C.Request(**request)))
    bench = Bench.build(num_slots=2, target=TARGET, draft=DRAFT, ring_capacity=4)  # held until it is read
    first, second = bench.coordinator.start(program(strategy, "split"), [_C.Request(**request)] * 2)
    third, fourth = (bench.coordinator.submit(_C.Request(**request)) for _ in range(2))
    results: list[Any] = []
    while first not in by_request(results):
        results += bench.coordinator.next(TIMEOUT_MS)
    assert bench.coordinator.cancel(fourth) is True
    assert bench.coordinator.cancel(first) is False
    assert bench.coordinator.cancel(10**6) is False
    found = by_request(results + drain(bench))
    assert found.keys() == {first, second, third}
    assert found[first][-1].finish_reason == "abort" and not found[first][-1].token_ids
    cut = [token for result in found[first] for token in result.token_ids]
    assert cut == full[: len(cut)] and len(cut) < 50
    for number in (second, third):
        assert [token for result in found[number] for token in result.token_ids] == full


def test_bad_logits_end_one_request() -> None:
    """NaN in one row of a batch: that request ends with an error, the other is whole."""
    request = {"prompt_ids": [1, 2], "gamma": 3, "max_tokens": 30}
    full = tokens_of(Bench.build(target=TARGET).run("ar", _C.Request(**request)))
    hit = 0
    for lane in ("target", "draft"):
        for at in range(2, 12):
            scripts: dict[str, Any] = {"target": dict(TARGET), "draft": dict(DRAFT)}
            scripts[lane]["nan_at"] = at  # in the last row of that pass, which is slot 1's
            bench = Bench.build("shared", num_slots=2, **scripts)
            bench.start("pearl", _C.Request(**request), _C.Request(**request))
            results = bench.finish()
            assert tokens_of(results, 0) == full
            reasons = {r.slot: r.finish_reason for r in results if r.finish_reason}
            assert reasons[0] == "length" and reasons[1] in ("length", "error")
            if reasons[1] == "error":
                hit += 1
                error = next(r.error for r in results if r.error)
                assert f"of the {lane} lane, sequence 1, position" in error
    assert hit > 10


def test_submissions_from_many_threads() -> None:
    """Sixteen threads submit and cancel while one reads: every request ends exactly once."""
    bench = Bench.build(num_slots=4, target=TARGET, draft=DRAFT)
    coordinator = bench.coordinator
    request = _C.Request([1, 2, 3], gamma=4, max_tokens=20)
    (first,) = coordinator.start(program("pearl", "split"), [_C.Request([3], gamma=4, max_tokens=60)])
    numbers, forgotten, lock = [first], [], threading.Lock()

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(50):
            number = coordinator.submit(request)
            if number is None:
                return
            gone = rng.random() < 0.3 and coordinator.cancel(number)
            with lock:
                (forgotten if gone else numbers).append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    results: list[Any] = []
    while (more := coordinator.next(TIMEOUT_MS)) is not None:
        results += more
    for thread in threads:
        thread.join()
    ended = [r.request_id for r in results if r.finish_reason]
    assert sorted(ended) == sorted(numbers) and coordinator.take_waiting() == []
    assert not set(forgotten) & {r.request_id for r in results}


def test_stop_keeps_the_order_of_those_that_waited() -> None:
    bench = Bench.build(num_slots=1, target=TARGET, draft=DRAFT, ring_capacity=2)  # held until it is read
    coordinator = bench.coordinator
    coordinator.start(program("ar", "split"), [_C.Request([1], max_tokens=60)])
    waiting = [coordinator.submit(_C.Request([1], max_tokens=2)) for _ in range(3)]
    with pytest.raises(RequestError, match="may still get a slot"):
        coordinator.take_waiting()
    coordinator.stop()
    drain(bench)
    assert coordinator.take_waiting() == waiting
    assert coordinator.submit(_C.Request([1], max_tokens=2)) is None


def test_bad_submissions_are_refused() -> None:
    bench = Bench.build(num_slots=2, target=TARGET, draft=DRAFT, ring_capacity=2)  # held until it is read
    bench.start("pearl", _C.Request([1], gamma=2, max_tokens=10))
    with pytest.raises(RequestError, match="leaves no room"):
        bench.coordinator.submit(_C.Request([0] * CAPACITY))
    with pytest.raises(RequestError, match="gamma is 9"):
        bench.coordinator.submit(_C.Request([0], gamma=9))
    assert len(tokens_of(drain(bench))) == 10
