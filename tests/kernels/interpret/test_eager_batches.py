"""Batches on the kernels, in the interpreter: who joins, leaves or fails, and that others never notice.

The rounds of a request in a batch are held against the CPU executor's for it alone, one by one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_pairs import SMALL, Pair

from pearl_rt import Engine, RequestError, SamplingParams
from pearl_rt.backends.eager_coordinator import RoundResult
from pearl_rt.backends.interpret import DEVICE, InterpretLanes
from pearl_rt.device.kv_pool import KvPool
from pearl_rt.device.model import DeviceModel
from pearl_rt.strategy.program import program
from pearl_rt.types.request import Request

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled in this process")
MAX_LEN = 24
ONE, LONG = [7], list(range(3, 20))  # LONG is a chunk and one token
NEAR = 2e-5  # of log-probabilities: logits that were summed in another order
PAIR = Pair.make("half-right", **SMALL)
PLAIN = Request(ONE, gamma=2, max_tokens=4)
SHAPED = Request(
    LONG,
    gamma=3,
    max_tokens=4,
    temperature=1.2,
    seed=2**64 - 5,
    min_p=0.05,
    repetition_penalty=1.5,
    frequency_penalty=0.6,
    logit_bias=((3, 2.5), (9, -100.0)),
    min_tokens=3,
    stop_ids=tuple(range(0, 32, 2)),
    num_logprobs=3,
)
Round = tuple[Any, ...]


@pytest.fixture(scope="module")
def executor() -> Iterator[Engine]:
    with PAIR.engine(device="cpu", max_model_len=MAX_LEN, placement="shared", num_threads=1) as engine:
        yield engine


def lanes_of(placement: str = "shared", num_slots: int = 2, target: Any = None) -> InterpretLanes:
    models = [
        DeviceModel.pack(PAIR.config, tensors, device=DEVICE, name=name)
        for name, tensors in (("target", target or PAIR.target), ("draft", PAIR.draft))
    ]
    return InterpretLanes(placement, *models, num_slots, KvPool(16, 2 * num_slots, MAX_LEN))


def told(result: Any) -> Round:
    """What a round says but for times, slots and log-probabilities."""
    return (
        *(result.round, result.token_ids, result.accept_len, result.num_judged, result.pending_before),
        result.finish_reason,
    )


def check_logprobs(found: Sequence[Any], expected: Sequence[Any]) -> None:
    """Ids and ranks are equal, values within NEAR."""
    for one, other in zip(found, expected, strict=True):
        assert (one.logprobs is None) == (other.logprobs is None)
        for entries, wanted in zip(one.logprobs or (), other.logprobs or (), strict=True):
            assert [entry[::2] for entry in entries] == [entry[::2] for entry in wanted]
            assert [entry[1] for entry in entries] == pytest.approx([entry[1] for entry in wanted], abs=NEAR)


def alone(executor: Engine, request: Request, strategy: str, judge: str) -> list[Any]:
    lanes = executor.lanes["shared"]
    lanes.start(strategy, request, judge)
    rounds: list[Any] = []
    while (results := lanes.coordinator.next(-1)) is not None:
        rounds += results
    return rounds


def finish(lanes: InterpretLanes) -> dict[int, list[RoundResult]]:
    """All that follows, by request."""
    found: dict[int, list[RoundResult]] = {}
    while (results := lanes.coordinator.next()) is not None:
        for result in results:
            found.setdefault(result.request_id, []).append(result)
    assert not lanes.coordinator.running
    return found


EARLY = Request(LONG[2:5], gamma=1, max_tokens=2)
SAMPLED = replace(PLAIN, temperature=0.7, seed=5, num_logprobs=0)


@pytest.mark.parametrize(
    ("strategy", "placement", "judge", "started", "joined"),
    [
        ("pearl", "split", "rejection", [EARLY, replace(PLAIN, max_tokens=9)], [SHAPED, SAMPLED]),
        (
            "sd",
            "shared",
            "coupled",
            [EARLY],
            [replace(SHAPED, min_p=0.0), replace(PLAIN, prompt_ids=LONG[:4])],
        ),
    ],
)
def test_every_request_has_the_rounds_that_it_has_alone(
    executor: Engine,
    strategy: str,
    placement: str,
    judge: str,
    started: list[Request],
    joined: list[Request],
) -> None:
    """Two slots, and more requests. SHAPED needs what the run lacks, a wider window, kept logits, filters and
    penalties, and two rounds of feeding. PLAIN ends at an EOS inside a window.
    """
    eos = alone(executor, replace(PLAIN, max_tokens=9), "ar", judge)[2].token_ids[0]
    requests = [
        replace(request, eos_ids=[eos]) if request.max_tokens > 3 and not request.min_tokens else request
        for request in (*started, *joined)
    ]
    lanes = lanes_of(placement)
    numbers = lanes.coordinator.start(program(strategy, placement), requests[: len(started)], judge)
    numbers += [lanes.coordinator.submit(request) for request in requests[len(started) :]]
    found = finish(lanes)
    assert found.keys() == set(numbers)
    for number, request in zip(numbers, requests, strict=True):
        expected = alone(executor, request, strategy, judge)
        assert list(map(told, found[number])) == list(map(told, expected))
        check_logprobs(found[number], expected)
    assert "stop" in {rounds[-1].finish_reason for rounds in found.values()}
    assert {row.lane for row in lanes.trace()} == {"target", "draft"}


def test_a_slot_keeps_nothing_of_the_request_before(executor: Engine) -> None:
    """A plain request takes the slot of a shaped one, while another shaped one goes on."""
    lanes = lanes_of()
    shaped = replace(SHAPED, prompt_ids=ONE, min_p=0.0)
    plain = replace(PLAIN, prompt_ids=LONG[:12], temperature=1.2, seed=1)
    requests = [replace(shaped, max_tokens=2, top_p=0.8), replace(shaped, max_tokens=6), plain]
    numbers = lanes.coordinator.start(program("ar"), requests[:2], "rejection")
    numbers.append(lanes.coordinator.submit(plain))
    found = finish(lanes)
    assert [found[number][0].slot for number in numbers] == [0, 1, 0]
    for number, request in zip(numbers, requests, strict=True):
        expected = alone(executor, request, "ar", "rejection")
        assert list(map(told, found[number])) == list(map(told, expected))
        check_logprobs(found[number], expected)


def test_cancel_ends_one_request(executor: Engine) -> None:
    """One that runs, one whose prompt is being fed, one that waits; the others are whole."""
    lanes = lanes_of()
    coordinator = lanes.coordinator
    request = replace(PLAIN, max_tokens=6)
    first, second = coordinator.start(program("ar"), [request] * 2)
    fed, last, waiting = (coordinator.submit(replace(request, prompt_ids=ids)) for ids in (LONG, ONE, ONE))
    with pytest.raises(RequestError, match="may still get a slot"):
        coordinator.take_waiting()
    results = coordinator.next(min_results=4)  # the first tokens, and a round of each
    assert coordinator.cancel(waiting) is True and coordinator.cancel(first) is False
    assert coordinator.cancel(10**6) is False
    results += coordinator.next(min_results=3)  # `first` has left, and `fed` has its slot
    assert coordinator.cancel(fed) is False
    found: dict[int, list[Any]] = {}
    for result in results:
        found.setdefault(result.request_id, []).append(result)
    for number, rounds in finish(lanes).items():
        found.setdefault(number, []).extend(rounds)
    expected = list(map(told, alone(executor, request, "ar", "rejection")))
    assert found.keys() == {first, second, fed, last}
    assert list(map(told, found[second])) == list(map(told, found[last])) == expected
    assert list(map(told, found[first])) == [*expected[:2], (2, [], 0, 0, 0, "abort")]
    assert list(map(told, found[fed])) == [(0, [], 0, 0, 0, "abort")]
    assert coordinator.submit(request) is None and coordinator.take_waiting() == []


def test_stop_leaves_those_that_waited(executor: Engine) -> None:
    coordinator = lanes_of(num_slots=1).coordinator
    with pytest.raises(RequestError, match="2 requests for 1 slots: start fewer"):
        coordinator.start(program("ar"), [PLAIN] * 2)
    assert coordinator.submit(PLAIN) is None
    coordinator.start(program("sd"), [PLAIN])
    waiting = [coordinator.submit(PLAIN) for _ in range(2)]
    for wrong, said in (
        (replace(PLAIN, gamma=17), "gamma 17 is out of range"),
        (replace(PLAIN, stop_ids=tuple(range(33))), "33 end-of-text and stop ids"),
        (replace(PLAIN, logit_bias=tuple((i, 1.0) for i in range(65))), "logit_bias has 65 ids; .* takes 64"),
    ):
        with pytest.raises(RequestError, match=said):
            coordinator.submit(wrong)
    coordinator.stop()
    assert coordinator.take_waiting() == waiting and coordinator.submit(PLAIN) is None


def test_logits_that_are_nan_end_their_own_request(executor: Engine) -> None:
    """Whoever reads token 9 has no logits: beside a request from the start, and as one that joins. Prompts of
    those that join together are fed in order.
    """
    target = dict(PAIR.target)
    target["model.embed_tokens.weight"] = target["model.embed_tokens.weight"].clone()
    target["model.embed_tokens.weight"][9] = torch.nan
    lanes, good, bad = (
        lanes_of(num_slots=3, target=target),
        replace(PLAIN, max_tokens=3),
        replace(PLAIN, prompt_ids=[9]),
    )
    numbers = lanes.coordinator.start(program("ar"), [bad, good])
    numbers += [lanes.coordinator.submit(request) for request in (bad, good)]
    found = finish(lanes)
    assert list(found) == numbers
    for number in (numbers[0], numbers[2]):
        [only] = found[number]
        assert only.finish_reason == "error" and only.token_ids == []
        assert "in step prefill of the target lane, sequence 0, position 1" in only.error
    expected = list(map(told, alone(executor, good, "ar", "rejection")))
    assert 9 not in [token for _, ids, *_ in expected for token in ids]
    for number in (numbers[1], numbers[3]):
        assert list(map(told, found[number])) == expected


def test_an_engine_in_batches(executor: Engine) -> None:
    """Lists and n answers of generate(), submitted requests of which one is cancelled, and stream()."""
    prompts = [ONE, LONG]
    params = SamplingParams(temperature=0.8, seed=3, n=2, max_tokens=2, logprobs=2)
    options: dict[str, Any] = {"strategy": "ar", "judge": "coupled"}
    with PAIR.engine(device="interpret", max_model_len=MAX_LEN, max_num_seqs=3) as engine:
        outputs = engine.generate(prompts, params, **options)
        for one, other in zip(outputs, executor.generate(prompts, params, **options), strict=True):
            assert (one.token_ids, one.index) == (other.token_ids, other.index)
            for entries, wanted in zip(one.logprobs, other.logprobs, strict=True):
                assert {i: entry.rank for i, entry in entries.items()} == {
                    i: entry.rank for i, entry in wanted.items()
                }
                assert [e.logprob for e in entries.values()] == pytest.approx(
                    [e.logprob for e in wanted.values()], abs=NEAR
                )
        long, short = SamplingParams(max_tokens=20), SamplingParams(max_tokens=2)
        given_up = engine.submit(ONE, long, strategy="ar")
        handles = [engine.submit(prompt, short, strategy="ar") for prompt in prompts]
        given_up.cancel()
        expected = executor.generate(prompts, short, strategy="ar")
        assert [handle.result().token_ids for handle in handles] == [output.token_ids for output in expected]
        assert given_up.result().finish_reason == "abort"
        chunks = list(engine.stream(ONE, short, strategy="ar"))
        assert [token for chunk in chunks for token in chunk.token_ids] == expected[0].token_ids
