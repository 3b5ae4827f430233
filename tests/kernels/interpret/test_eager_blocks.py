"""KV blocks on the kernels, in the interpreter: requests wait for them, and pages go from one to another.

Pages without an owner are filled with NaN.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_eager_batches import LONG, MAX_LEN, ONE, PAIR, PLAIN, Gate, alone, finish, round_of

from pearl_rt import Engine, RequestError, SamplingParams
from pearl_rt.backends.cuda_lanes import CudaLanes
from pearl_rt.backends.interpret import InterpretBackend
from pearl_rt.device.host_gpu import HostStream
from pearl_rt.device.kv_pool import KvPool
from pearl_rt.device.model import DeviceModel
from pearl_rt.device.steps import LaneSteps
from pearl_rt.errors import ConfigError

BLOCK = 16
BRIEF = replace(PLAIN, max_tokens=3)  # a page; the others need two, which are all of a sequence
WHOLE, LATER = replace(PLAIN, prompt_ids=LONG), replace(PLAIN, prompt_ids=LONG[:16], max_tokens=2)


@pytest.fixture(scope="module")
def executor() -> Iterator[Engine]:
    with PAIR.engine(device="cpu", max_model_len=MAX_LEN, placement="shared", num_threads=1) as engine:
        yield engine


def poisoned(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """NaN in all pages of a request before its prompt is fed -> the pages of each that was fed."""
    feed_chunk = LaneSteps.prefill_chunk
    held: list[set[int]] = []

    def poisoning(self: LaneSteps) -> None:
        for slot, (start, end) in enumerate(self.chunk.tolist()):
            if start < end and start == 0:
                count = -(-int(self.state.whole.max_total_len[slot]) // BLOCK)
                own = self.state.block_table[slot, :count].tolist()
                held.append(set(own))
                for page in (*self.model.kv_cache.keys, *self.model.kv_cache.values):
                    page[own] = torch.nan
        feed_chunk(self)

    monkeypatch.setattr(LaneSteps, "prefill_chunk", poisoning)
    return held


def lanes_of(num_blocks: int, num_slots: int = 3) -> CudaLanes:
    models = [
        DeviceModel.pack(PAIR.config, tensors, device=torch.device("cpu"), name=name)
        for name, tensors in (("target", PAIR.target), ("draft", PAIR.draft))
    ]
    return InterpretBackend(num_slots).lanes("shared", *models, KvPool(BLOCK, num_blocks, MAX_LEN))


@pytest.mark.slow
def test_pages_go_from_one_to_another(executor: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slots over three pages: WHOLE waits for the first of two, in a slot that was idle all along, gets
    its pages in pieces, and a request for one page, which would be free, waits behind it.
    """
    held = poisoned(monkeypatch)
    lanes, strategy = lanes_of(3), "pearl"
    coordinator, requests = lanes.coordinator, [BRIEF, replace(BRIEF, max_tokens=6), WHOLE, LATER, BRIEF]
    with HostStream.steps:  # no step runs before all are there
        numbers = lanes.start_all(strategy, requests[:2], "coupled")
        assert coordinator.num_free_blocks == 1
        assert lanes.has_place(BRIEF) and not lanes.has_place(WHOLE)
        numbers += [lanes.submit(request) for request in requests[2:]]
        assert not lanes.has_place(BRIEF)
    found = finish(lanes)
    assert list(found) == numbers and coordinator.num_free_blocks == 3
    for number, request in zip(numbers, requests, strict=True):
        assert list(map(round_of, found[number])) == list(
            map(round_of, alone(executor, request, strategy, "coupled"))
        )
    assert {0, 2} in held  # in pieces


def test_a_cancelled_request_gives_its_pages_back(executor: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that runs, one whose prompt is being fed, and one that waits for pages."""
    poisoned(monkeypatch)
    gate, lanes = Gate(monkeypatch, "prefill_chunk"), lanes_of(2, num_slots=2)
    coordinator = lanes.coordinator
    first = lanes.start("ar", WHOLE, "rejection")
    fed, waiting, last = (lanes.submit(request) for request in (WHOLE, WHOLE, BRIEF))
    gate.wait()
    assert coordinator.cancel(waiting) is True and coordinator.cancel(first) is False
    gate.let(2)  # both chunks of `first`; the next one is of `fed`
    assert coordinator.cancel(fed) is False
    gate.open()
    found = finish(lanes)
    assert [result.finish_reason for result in found[first]] == ["", "abort"]
    assert list(map(round_of, found[fed])) == [(0, [], 0, 0, 0, "abort")] and found.keys() == {
        first,
        fed,
        last,
    }
    assert list(map(round_of, found[last])) == list(map(round_of, alone(executor, BRIEF, "ar", "rejection")))


def test_what_can_never_run_is_refused() -> None:
    lanes, small = lanes_of(2), lanes_of(1)
    assert lanes.pair is not None and small.pair is not None
    for start in (lanes.pair.start, lambda requests: lanes.start_all("ar", requests, "rejection")):
        with pytest.raises(RequestError, match="2 requests need 3 KV blocks of 16 tokens"):
            start([WHOLE, BRIEF])
    for start in (small.pair.start, lambda requests: small.start_all("ar", requests, "rejection")):
        with pytest.raises(RequestError, match="2 KV blocks of 16"):
            start([WHOLE])
    small.start("ar", BRIEF, "rejection")
    with pytest.raises(RequestError, match="2 KV blocks of 16"):
        small.submit(WHOLE)
    assert len(finish(small)) == 1


@pytest.mark.slow
def test_low_level_calls_and_the_coordinator_take_pages_from_each_other(executor: Engine) -> None:
    """Each gives all of them out anew, and only one of them has them."""
    lanes = lanes_of(3)
    expected = alone(executor, WHOLE, "ar", "rejection")

    def by_hand(slot: int) -> list[int]:
        pair = lanes.pair
        assert pair is not None
        pair.start([replace(BRIEF, gamma=0)] * slot + [replace(WHOLE, gamma=0)])
        pair.prefill()
        pair.verify()
        pair.score()
        pair.verify()
        return pair.wait(0, slot).token_ids + pair.wait(1, slot).token_ids

    tokens = [token for result in expected for token in result.token_ids]
    assert by_hand(1) == tokens[:2]
    lanes.start("ar", WHOLE, "rejection")
    [(_, rounds)] = finish(lanes).items()
    assert list(map(round_of, rounds)) == list(map(round_of, expected))
    assert by_hand(0) == tokens[:2]


def test_lanes_of_other_block_sizes_are_refused() -> None:
    """One table is for both caches."""
    from pearl_rt.device.steps import DraftSteps
    from pearl_rt.lowlevel.pair import DevicePair

    models = [DeviceModel.pack(PAIR.config, PAIR.target, device=torch.device("cpu"))] * 2
    one, other = (DevicePair.of_models(*models, max_model_len=MAX_LEN, block_size=size) for size in (16, 32))
    assert other.draft_steps is not None
    with pytest.raises(ConfigError, match="has blocks of 32 tokens, the state's are of 16"):
        DraftSteps(other.draft_steps.model, one.state)


@pytest.mark.slow
def test_an_engine_counts_its_blocks(executor: Engine) -> None:
    """More sequences at once than whole ones would fit; one that never fits is refused before it runs."""
    options: dict[str, Any] = {"device": "interpret", "max_model_len": MAX_LEN, "max_num_seqs": 3}
    params = SamplingParams(max_tokens=3)
    with PAIR.engine(kv_cache_tokens=17, **options) as engine:
        assert engine.stats()["kv_blocks"] == {"block_size": 16, "total": 2, "free": 2}
        outputs = engine.generate([ONE, ONE, LONG], params, strategy="ar")
        expected = executor.generate([ONE, ONE, LONG], params, strategy="ar")
        assert [output.token_ids for output in outputs] == [output.token_ids for output in expected]
        assert engine.stats()["kv_blocks"]["free"] == 2
    with PAIR.engine(kv_cache_tokens=16, **options) as engine:
        for call in (engine.submit, engine.generate, engine.stream):
            with pytest.raises(
                RequestError, match="20 tokens need 2 KV blocks of 16, and there are 1: lower"
            ):
                call(LONG, params)  # type: ignore[operator]
    with PAIR.engine(**options) as engine:
        assert engine.stats()["kv_blocks"]["total"] == 6
