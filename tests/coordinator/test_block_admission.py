"""KV blocks decide which requests run, in order; no block is owned twice, each answer is what it is alone."""

import random
from typing import Any

import pytest
from scripted import TIMEOUT_MS, Bench, expected_rounds, logits_after, rounds_of
from test_batching import DRAFT, TARGET, by_request, drain, random_request

from pearl_rt import _C, _testing
from pearl_rt.errors import RequestError
from pearl_rt.strategy.program import PLACEMENTS, STRATEGIES, program


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_random_joins_cancels_and_faults(strategy: str, placement: str) -> None:
    """Six slots over five blocks: a block in two tables, or lost, would change logits, or be missing."""
    rng = random.Random(8)
    rules = logits_after(**TARGET), logits_after(**DRAFT)
    cancels = faults = 0
    for _ in range(12):
        scripts: dict[str, Any] = {"target": {**TARGET, "delay_us": (0, 30)}, "draft": dict(DRAFT)}
        scripts["target"]["nan_at"], scripts["draft"]["nan_at"] = rng.randint(2, 12), rng.randint(2, 99)
        bench = Bench.build(placement, num_slots=6, num_blocks=5, block_size=16, **scripts)
        coordinator = bench.coordinator
        requests = [random_request(rng) for _ in range(14)]
        asked: dict[int, dict[str, Any]] = {}
        forgotten: list[int] = []
        results: list[Any] = []
        while requests or coordinator.running:
            if requests and (not coordinator.running or rng.random() < 0.6):
                request = requests.pop()
                number = coordinator.submit(_C.Request(**request))
                if number is None:  # the run has ended: its last results come first
                    results += drain(bench)
                    (number,) = coordinator.start(
                        program(strategy, placement), [_C.Request(**request)], "coupled"
                    )
                asked[number] = request
                if rng.random() < 0.2:
                    cancels += 1
                    number = rng.choice(list(asked))
                    if coordinator.cancel(number):
                        forgotten.append(number)
            else:
                results += coordinator.next(1) or []
            assert 0 <= coordinator.num_free_blocks <= 5
        results += drain(bench)
        assert coordinator.num_free_blocks == 5 and coordinator.take_waiting() == []
        found = by_request(results)
        begun = [number for number, own in found.items() if own[0].token_ids]
        assert begun == sorted(begun)  # first come first served
        assert found.keys() == asked.keys() - set(forgotten)
        for number, own in found.items():
            expected = expected_rounds(strategy, *rules, asked[number])
            reason = own[-1].finish_reason
            if reason in ("abort", "error"):
                faults += reason == "error"
                own, expected = own[:-1], expected[: len(own) - 1]
            assert rounds_of(own, own[0].slot if own else 0) == expected
    assert cancels > 10 and faults > 2


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_requests_start_in_their_order(strategy: str) -> None:
    """A request for all blocks waits behind small ones, and small ones that keep coming wait behind it."""
    small, big = (_C.Request([1], gamma=3, max_tokens=count, ignore_eos=True) for count in (15, 63))
    numbers: list[int | None] = [None]
    for delay in (1_000, 30_000, 300_000):  # until the machine was fast enough to submit before the run's end
        slow = {**TARGET, "delay_us": (delay, delay)}
        bench = Bench.build(num_slots=3, num_blocks=4, block_size=16, target=slow, draft=DRAFT)
        coordinator = bench.coordinator
        numbers = [*coordinator.start(program(strategy, "split"), [small, small])]
        numbers += [coordinator.submit(request) for request in (big, small)]
        if None not in numbers:
            break
    assert None not in numbers
    results: list[Any] = []
    while not any(result.request_id == numbers[2] for result in results):
        more = coordinator.next(TIMEOUT_MS)
        assert more, "the lanes fell silent"
        results += more
        if len(numbers) < 12:
            numbers.append(coordinator.submit(small))
    results += drain(bench)
    assert list(by_request(results)) == numbers  # begun in the order of submission
    first = [number in numbers[:2] for number in (result.request_id for result in results)]
    own = [result.request_id == numbers[2] for result in results]
    behind = [result.request_id in numbers[3:] for result in results]
    # It had the whole pool: those before it had ended, and those behind it had not begun.
    assert max(at for at, is_first in enumerate(first) if is_first) < own.index(True)
    assert max(at for at, is_own in enumerate(own) if is_own) < behind.index(True)


def test_slots_may_be_more_than_whole_ones() -> None:
    """Eight short sequences at once in the memory of two whole ones."""
    bench = Bench.build(num_slots=8, num_blocks=8, block_size=16, target=TARGET, draft=DRAFT)
    results = bench.run("pearl", *[_C.Request([slot], gamma=2, max_tokens=15) for slot in range(8)])
    assert {r.slot for r in results if r.finish_reason} == set(range(8))
    assert bench.coordinator.num_free_blocks == bench.coordinator.num_blocks == 8


def test_room_counts_those_that_wait() -> None:
    slow = {**TARGET, "delay_us": (100_000, 100_000)}
    bench = Bench.build(num_slots=8, num_blocks=4, block_size=16, target=slow)
    coordinator = bench.coordinator

    def fits(total: int) -> bool:
        return bool(coordinator.has_place(_C.Request([1], max_tokens=total - 1)))

    assert fits(64)
    coordinator.start(program("ar", "split"), [_C.Request([1], max_tokens=40)])  # three blocks
    assert (coordinator.num_free_blocks, coordinator.block_size) == (1, 16)
    assert fits(16) and not fits(17)
    waiting = coordinator.submit(_C.Request([1], max_tokens=30))  # two
    assert not fits(2)
    assert coordinator.cancel(waiting) is True
    assert fits(16)
    coordinator.stop()
    assert coordinator.num_free_blocks == 4


def test_what_can_never_run_is_refused_with_its_numbers() -> None:
    bench = Bench.build(num_slots=3, num_blocks=3, block_size=16, target=TARGET, draft=DRAFT)
    with pytest.raises(
        RequestError, match="grow to 50 tokens, which need 4 KV blocks of 16 tokens, and there are 3"
    ):
        bench.start("ar", _C.Request([1], max_tokens=49))
    with pytest.raises(
        RequestError, match="2 requests need 4 KV blocks of 16 tokens, and there are 3 together"
    ):
        bench.start("ar", *[_C.Request([1], max_tokens=20)] * 2)
    bench.start("ar", _C.Request([1], max_tokens=47))
    with pytest.raises(RequestError, match="grow to 64 tokens, which need 4 KV blocks"):
        bench.coordinator.submit(_C.Request([1], max_tokens=1000))
    assert len(drain(bench)) == 47


def test_caches_and_state_must_agree() -> None:
    executor = _testing.ScriptedExecutor(max_model_len=64, num_blocks=4, block_size=16)
    lane = _C.CpuLane("target", executor, _C.Device([]))
    sizes = {"capacity": 64, "vocab_size": 16}
    with pytest.raises(RequestError, match="has 4 KV blocks of 16 tokens; 5 of 16 were asked for"):
        _C.Coordinator([lane], num_blocks=5, **sizes)
    with pytest.raises(RequestError, match="4 KV blocks of 16 tokens; 2 of 32"):
        _C.Coordinator([lane], block_size=32, **sizes)
    for wrong, text in (({"num_blocks": 0}, "num_blocks is 0"), ({"block_size": 20}, "block_size is 20")):
        with pytest.raises(RequestError, match=text):
            _C.Coordinator([lane], **sizes, **wrong)
    assert _C.Coordinator([lane], **sizes).num_blocks == 4
