"""Batches on the kernels, in the interpreter: requests join, leave or fail, and change no other.

The rounds of a request in a batch are held against the CPU executor's for it alone, one by one.
"""

import gc
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_pairs import SMALL, Pair

from pearl_rt import Engine, RequestError, SamplingParams
from pearl_rt.backends.cuda_lanes import CudaLanes
from pearl_rt.backends.interpret import InterpretBackend
from pearl_rt.device.host_gpu import HostStream
from pearl_rt.device.kv_pool import KvPool
from pearl_rt.device.model import DeviceModel
from pearl_rt.device.steps import TargetSteps
from pearl_rt.types.request import Request

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled in this process")
MAX_LEN = 24
ONE, LONG = [7], list(range(3, 20))  # LONG is a chunk and one token
NEAR = 2e-5  # of log-probabilities: logits that were summed in another order
PAIR = Pair.make("half-right", **SMALL)
PLAIN = Request(ONE, gamma=2, max_tokens=4)
PROCESSED = Request(
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


def lanes_of(placement: str = "shared", num_slots: int = 2, target: Any = None) -> CudaLanes:
    models = [
        DeviceModel.pack(PAIR.config, tensors, device=torch.device("cpu"), name=name)
        for name, tensors in (("target", target or PAIR.target), ("draft", PAIR.draft))
    ]
    return InterpretBackend(num_slots).lanes(placement, *models, KvPool(16, 2 * num_slots, MAX_LEN))


def round_of(result: Any) -> Round:
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


class Gate:
    """Holds the issuer's thread ahead of each call of a step of the target, until it is let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
        call = getattr(TargetSteps, method)
        self._arrived, self._passed = threading.Semaphore(0), threading.Semaphore(0)

        def held(*args: Any, **options: Any) -> None:
            self._arrived.release()
            assert self._passed.acquire(timeout=60)
            call(*args, **options)

        monkeypatch.setattr(TargetSteps, method, held)

    def wait(self) -> None:
        """Until the step is called."""
        assert self._arrived.acquire(timeout=60)

    def let(self, count: int) -> None:
        """Lets so many calls through, and waits for the one behind them."""
        for _ in range(count):
            self._passed.release()
            self.wait()

    def open(self) -> None:
        self._passed.release(10**6)


def finish(lanes: CudaLanes) -> dict[int, list[Any]]:
    """All that follows, by request."""
    found: dict[int, list[Any]] = {}
    while (results := lanes.coordinator.next()) is not None:
        for result in results:
            found.setdefault(result.request_id, []).append(result)
    assert not lanes.coordinator.running
    return found


# Ends early, and has the run made for all that others ask: a run takes no request that asks for more.
EARLY = Request(LONG[2:5], gamma=3, max_tokens=2, temperature=0.9, min_p=0.05, num_logprobs=1)
SAMPLED = replace(PLAIN, temperature=0.7, seed=5, num_logprobs=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "placement", "judge", "started", "joined"),
    [
        ("pearl", "split", "rejection", [EARLY, replace(PLAIN, max_tokens=9)], [PROCESSED, SAMPLED]),
        (
            "sd",
            "shared",
            "coupled",
            [EARLY],
            [replace(PROCESSED, min_p=0.0), replace(PLAIN, prompt_ids=LONG[:4])],
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
    """Two slots, and more requests. PROCESSED is fed in two rounds. PLAIN ends at an EOS inside a window."""
    eos = alone(executor, replace(PLAIN, max_tokens=9), "ar", judge)[2].token_ids[0]
    requests = [
        replace(request, eos_ids=[eos]) if request.max_tokens > 3 and not request.min_tokens else request
        for request in (*started, *joined)
    ]
    lanes = lanes_of(placement)
    with HostStream.steps:  # no step runs before all are there
        numbers = lanes.start_all(strategy, requests[: len(started)], judge)
        numbers += [lanes.submit(request) for request in requests[len(started) :]]
    found = finish(lanes)
    assert found.keys() == set(numbers)
    for number, request in zip(numbers, requests, strict=True):
        expected = alone(executor, request, strategy, judge)
        assert list(map(round_of, found[number])) == list(map(round_of, expected))
        check_logprobs(found[number], expected)
    assert "stop" in {rounds[-1].finish_reason for rounds in found.values()}
    assert {row.lane for row in lanes.trace()} == {"target", "draft"}


@pytest.mark.slow
def test_a_slot_keeps_nothing_of_the_request_before(executor: Engine) -> None:
    """A plain request takes the slot of a processed one, while another processed one goes on."""
    lanes = lanes_of()
    processed = replace(PROCESSED, prompt_ids=ONE, min_p=0.0)
    plain = replace(PLAIN, prompt_ids=LONG[:12], temperature=1.2, seed=1)
    requests = [replace(processed, max_tokens=2, top_p=0.8), replace(processed, max_tokens=6), plain]
    with HostStream.steps:
        numbers = lanes.start_all("ar", requests[:2], "rejection")
        numbers.append(lanes.submit(plain))
    found = finish(lanes)
    assert [found[number][0].slot for number in numbers] == [0, 1, 0]
    for number, request in zip(numbers, requests, strict=True):
        expected = alone(executor, request, "ar", "rejection")
        assert list(map(round_of, found[number])) == list(map(round_of, expected))
        check_logprobs(found[number], expected)


def test_a_request_that_asks_for_more_than_the_run_was_made_for_waits_for_the_next() -> None:
    lanes = lanes_of()
    with HostStream.steps:
        lanes.start("sd", PLAIN, "rejection")
        for more in ({"gamma": 3}, {"temperature": 1.0}, {"repetition_penalty": 1.5}, {"num_logprobs": 0}):
            request = replace(PLAIN, **more)
            assert not lanes.has_place(request) and lanes.submit(request) is None
        assert lanes.has_place(PLAIN)
    lanes.close()


@pytest.mark.slow
def test_cancel_ends_one_request(executor: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that runs, one whose prompt is being fed, one that waits; the others are whole."""
    gate, lanes = Gate(monkeypatch, "verify"), lanes_of()
    coordinator = lanes.coordinator
    request = replace(PLAIN, max_tokens=6)
    first, second = lanes.start_all("ar", [request] * 2, "rejection")
    fed, last, waiting = (lanes.submit(replace(request, prompt_ids=ids)) for ids in (LONG, ONE, ONE))
    with pytest.raises(RequestError, match="may still get a slot"):
        coordinator.take_waiting()
    gate.wait()
    gate.let(2)  # the first tokens, and a round of each
    assert coordinator.cancel(waiting) is True and coordinator.cancel(first) is False
    assert coordinator.cancel(10**6) is False
    gate.let(2)  # a round that `first` is still in, and one behind which `fed` has its slot
    assert coordinator.cancel(fed) is False
    gate.open()
    found = finish(lanes)
    expected = list(map(round_of, alone(executor, request, "ar", "rejection")))
    assert found.keys() == {first, second, fed, last}
    assert list(map(round_of, found[second])) == list(map(round_of, found[last])) == expected
    assert list(map(round_of, found[first])) == [*expected[:3], (3, [], 0, 0, 0, "abort")]
    assert list(map(round_of, found[fed])) == [(0, [], 0, 0, 0, "abort")]
    assert lanes.submit(request) is None and coordinator.take_waiting() == []


def test_stop_leaves_those_that_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, lanes = Gate(monkeypatch, "verify"), lanes_of()
    coordinator = lanes.coordinator
    with pytest.raises(RequestError, match="3 requests were started; this coordinator has 2 slots"):
        lanes.start_all("ar", [PLAIN] * 3, "rejection")
    assert lanes.submit(PLAIN) is None
    lanes.start_all("sd", [PLAIN] * 2, "rejection")
    waiting = [lanes.submit(PLAIN) for _ in range(2)]
    for wrong, said in (
        (replace(PLAIN, gamma=17), "gamma.* 17"),
        (replace(PLAIN, stop_ids=tuple(range(33))), "33 end-of-text and stop ids"),
        (replace(PLAIN, logit_bias=tuple((i, 1.0) for i in range(65))), "logit_bias has 65 ids; .* takes 64"),
    ):
        with pytest.raises(RequestError, match=said):
            lanes.submit(wrong)
    gate.wait()
    stopping = threading.Thread(target=coordinator.stop)  # it waits for the step that runs
    stopping.start()
    while coordinator.running:
        time.sleep(0.001)
    gate.open()
    stopping.join()
    assert coordinator.take_waiting() == waiting and lanes.submit(PLAIN) is None


def test_an_error_in_a_step_is_raised_as_it_is_and_lanes_go_on(
    executor: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes = lanes_of()
    with monkeypatch.context() as broken:

        def score(*_: Any, **__: Any) -> None:
            raise ZeroDivisionError("in score")

        broken.setattr(TargetSteps, "score", score)
        lanes.start("ar", PLAIN, "rejection")
        with pytest.raises(ZeroDivisionError, match="in score"):
            finish(lanes)
    number = lanes.start("ar", PLAIN, "rejection")
    expected = alone(executor, PLAIN, "ar", "rejection")
    assert list(map(round_of, finish(lanes)[number])) == list(map(round_of, expected))


def test_lanes_that_are_dropped_in_the_middle_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that drops them waits for the step, which needs the GIL."""
    gate, lanes = Gate(monkeypatch, "verify"), lanes_of()
    lanes.start("ar", PLAIN, "rejection")
    gate.wait()
    opening = threading.Timer(0.05, gate.open)
    opening.start()
    del lanes
    gc.collect()
    opening.join()


def test_logits_that_are_nan_end_their_own_request(executor: Engine) -> None:
    """A request that reads token 9 has no logits: beside a request from the start, and as one that joins. The
    prompts of requests that join together are fed in order.
    """
    target = dict(PAIR.target)
    target["model.embed_tokens.weight"] = target["model.embed_tokens.weight"].clone()
    target["model.embed_tokens.weight"][9] = torch.nan
    lanes, good, bad = (
        lanes_of(num_slots=3, target=target),
        replace(PLAIN, max_tokens=3),
        replace(PLAIN, prompt_ids=[9]),
    )
    with HostStream.steps:
        numbers = lanes.start_all("ar", [bad, good], "rejection")
        numbers += [lanes.submit(request) for request in (bad, good)]
    found = finish(lanes)
    assert list(found) == numbers
    for number in (numbers[0], numbers[2]):
        [only] = found[number]
        assert only.finish_reason == "error" and only.token_ids == []
        assert "in step prefill of the target lane, sequence 0, position 1" in only.error
    expected = list(map(round_of, alone(executor, good, "ar", "rejection")))
    assert 9 not in [token for _, ids, *_ in expected for token in ids]
    for number in (numbers[1], numbers[3]):
        assert list(map(round_of, found[number])) == expected


@pytest.mark.slow
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
