"""KV blocks on the kernels, in the interpreter: who waits for them, and that pages go from one to another.

Pages that are nobody's are filled with NaN.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_eager_batches import LONG, MAX_LEN, ONE, PAIR, PLAIN, alone, finish, told

from pearl_rt import Engine, RequestError, SamplingParams
from pearl_rt.backends.interpret import DEVICE, InterpretLanes
from pearl_rt.device.kv_pool import KvPool
from pearl_rt.device.model import DeviceModel
from pearl_rt.device.pages import DevicePages
from pearl_rt.errors import ConfigError
from pearl_rt.strategy.program import program

BLOCK = 16
BRIEF = replace(PLAIN, max_tokens=3)  # a page; the others need two, which are all of a sequence
WHOLE, LATER = replace(PLAIN, prompt_ids=LONG), replace(PLAIN, prompt_ids=LONG[:16], max_tokens=2)


@pytest.fixture(scope="module")
def executor() -> Iterator[Engine]:
    with PAIR.engine(device="cpu", max_model_len=MAX_LEN, placement="shared", num_threads=1) as engine:
        yield engine


def poisoned(lanes: InterpretLanes, monkeypatch: pytest.MonkeyPatch) -> InterpretLanes:
    """NaN in all pages, and in those that are given back before anyone can take them."""
    assert lanes.pair.draft_steps is not None
    caches = [steps.model.kv_cache for steps in (lanes.pair.target_steps, lanes.pair.draft_steps)]
    pages = [page for cache in caches for page in (*cache.keys, *cache.values)]
    for page in pages:
        page.fill_(torch.nan)
    release = DevicePages.release

    def poisoning(self: DevicePages, slot: int) -> None:
        for page in pages:
            page[self._held.get(slot, [])] = torch.nan
        release(self, slot)

    monkeypatch.setattr(DevicePages, "release", poisoning)
    return lanes


def lanes_of(num_blocks: int, num_slots: int = 3) -> InterpretLanes:
    models = [
        DeviceModel.pack(PAIR.config, tensors, device=DEVICE, name=name)
        for name, tensors in (("target", PAIR.target), ("draft", PAIR.draft))
    ]
    return InterpretLanes("shared", *models, num_slots, KvPool(BLOCK, num_blocks, MAX_LEN))


def test_pages_go_from_one_to_another(executor: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slots over three pages: WHOLE waits for the first of two, in a slot that was idle all along, gets
    its pages in pieces, and who asks for one page, which would be free, waits behind it.
    """
    lanes, strategy = poisoned(lanes_of(3), monkeypatch), "pearl"
    coordinator, requests = lanes.coordinator, [BRIEF, replace(BRIEF, max_tokens=6), WHOLE, LATER, BRIEF]
    numbers = coordinator.start(program(strategy), requests[:2], "coupled")
    assert coordinator.num_free_blocks == 1
    assert coordinator.has_place(BRIEF) and not coordinator.has_place(WHOLE)
    numbers += [coordinator.submit(request) for request in requests[2:]]
    assert not coordinator.has_place(BRIEF)
    found = finish(lanes)
    assert list(found) == numbers and coordinator.num_free_blocks == 3
    for number, request in zip(numbers, requests, strict=True):
        assert list(map(told, found[number])) == list(
            map(told, alone(executor, request, strategy, "coupled"))
        )
    tables = lanes.pair.state.block_table.tolist()
    assert [0, 2] in tables or [2, 0] in tables


def test_who_is_cancelled_gives_its_pages_back(executor: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that runs, one whose prompt is being fed, and one that waits for pages."""
    lanes = poisoned(lanes_of(2, num_slots=2), monkeypatch)
    coordinator = lanes.coordinator
    [first] = coordinator.start(program("ar"), [WHOLE])
    fed, waiting, last = (coordinator.submit(request) for request in (WHOLE, WHOLE, BRIEF))
    coordinator.next()
    assert coordinator.cancel(waiting) is True and coordinator.cancel(first) is False
    results = coordinator.next()
    while results[-1].request_id != first or results[-1].finish_reason != "abort":
        results += coordinator.next()
    assert coordinator.cancel(fed) is False
    found = finish(lanes)
    assert list(map(told, found[fed])) == [(0, [], 0, 0, 0, "abort")] and found.keys() == {fed, last}
    assert list(map(told, found[last])) == list(map(told, alone(executor, BRIEF, "ar", "rejection")))


def test_what_can_never_run_is_refused() -> None:
    lanes = lanes_of(2)
    coordinator = lanes.coordinator
    with pytest.raises(
        RequestError, match="2 requests need 3 KV blocks of 16 tokens, and there are 2 together"
    ):
        coordinator.start(program("ar"), [WHOLE, BRIEF])
    with pytest.raises(
        RequestError, match="2 requests need 3 KV blocks of 16 tokens, and there are 2 together"
    ):
        lanes.pair.start([WHOLE, BRIEF])
    small = lanes_of(1)
    for call in (small.pair.start, lambda requests: small.coordinator.start(program("ar"), requests)):
        with pytest.raises(RequestError, match="21 tokens need 2 KV blocks of 16, and there are 1"):
            call([WHOLE])
    small.coordinator.start(program("ar"), [BRIEF])
    with pytest.raises(RequestError, match="need 2 KV blocks of 16, and there are 1"):
        small.coordinator.submit(WHOLE)
    assert len(finish(small)) == 1


def test_low_level_calls_and_the_coordinator_take_pages_from_each_other(executor: Engine) -> None:
    """Each gives all of them out anew, and only one of them has them."""
    lanes = lanes_of(3)
    expected = alone(executor, WHOLE, "ar", "rejection")

    def by_hand(slot: int) -> list[int]:
        pair = lanes.pair
        pair.start([replace(BRIEF, gamma=0)] * slot + [replace(WHOLE, gamma=0)])
        pair.prefill()
        pair.verify()
        pair.score()
        pair.verify()
        return pair.wait(0, slot).token_ids + pair.wait(1, slot).token_ids

    tokens = [token for result in expected for token in result.token_ids]
    assert by_hand(1) == tokens[:2]
    lanes.coordinator.start(program("ar"), [WHOLE], "rejection")
    [(_, rounds)] = finish(lanes).items()
    assert list(map(told, rounds)) == list(map(told, expected))
    assert by_hand(0) == tokens[:2]


def test_lanes_of_other_block_sizes_are_refused() -> None:
    """One table is for both caches."""
    from pearl_rt.device.steps import DraftSteps
    from pearl_rt.lowlevel.pair import DevicePair

    models = [DeviceModel.pack(PAIR.config, PAIR.target, device=DEVICE)] * 2
    one, other = (DevicePair.of_models(*models, max_model_len=MAX_LEN, block_size=size) for size in (16, 32))
    assert other.draft_steps is not None
    with pytest.raises(ConfigError, match="has blocks of 32 tokens, the state's are of 16"):
        DraftSteps(other.draft_steps.model, one.state)


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
