"""KV blocks decide which requests join a run of CUDA lanes, on the fake driver: in order,
no block owned twice, each answer what it is alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import fake_cuda
import pytest
from scripted import Bench
from scripted_cuda import FORMS, HALF_RIGHT, TARGET, CudaBench, clean, clean_world
from test_cuda_joins import PLACEMENTS, Crowd, company, greedy

from pearl_rt import _C
from pearl_rt.errors import RequestError
from pearl_rt.strategy.program import STRATEGIES

pytestmark = pytest.mark.skipif(not fake_cuda.has_compiler(), reason="no C++ compiler for the fake driver")


@pytest.fixture
def fake() -> Iterator[Any]:
    """Two devices without delays; at the end nothing may have been illegal, and nothing be left."""
    yield from clean_world()


def native(gamma_max: int = 3) -> Bench:
    return Bench.build("shared", target=TARGET, draft=HALF_RIGHT, gamma_max=gamma_max, num_slots=1)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_random_schedules_over_few_blocks(fake: Any, strategy: str, request: pytest.FixtureRequest) -> None:
    """Four slots over blocks for little more than one: a block in two tables, or lost, would change logits,
    or be missing. Requests come at random times, and some are given up wherever they are.
    """
    worlds = max(6, request.config.getoption("--schedules") // 30)
    rng = random.Random(f"{strategy} in little room")
    joins = 0
    for world in range(worlds):
        fake.reset(seed=world, max_delay_us=rng.choice([0, 3, 20, 60]))
        num_blocks = rng.choice([4, 5, 7])
        bench = CudaBench.build(
            PLACEMENTS[world % 2],
            target=TARGET,
            draft=HALF_RIGHT,
            form=FORMS[world // 2 % 2],
            num_slots=4,
            num_blocks=num_blocks,
            gammas=[0, 6],
            gamma_max=6,
            rounds_ahead=rng.randint(1, 4),
            spin_us=rng.choice([0, 20]),
        )
        crowd = Crowd(bench, strategy, rng.choice(["coupled", "rejection"]))
        crowd.mingle(rng, 14, 0.3)
        assert bench.coordinator.num_free_blocks == num_blocks
        crowd.check(native(6))
        joins += crowd.joins
        clean(bench)
        del bench, crowd
        assert fake.live_handles() == []
    assert joins >= 2 * worlds


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_requests_start_in_their_order(fake: Any, placement: str, form: str) -> None:
    """A request for all blocks waits behind small ones, and a small one behind it, though it would fit."""
    bench = company(placement, form=form, num_blocks=4)
    crowd = Crowd(bench, "pearl", "coupled")
    small, big = greedy([1], max_tokens=15), greedy([2], max_tokens=63)
    bench.target.close_gate("verify", 3)
    crowd.start(small, small)
    bench.target.wait_for_gate()
    assert bench.coordinator.num_free_blocks == 2
    assert bench.coordinator.has_place(_C.Request(**small))
    crowd.add(big)
    assert not bench.coordinator.has_place(_C.Request(**small))
    crowd.add(small)
    bench.target.open_gate()
    results = bench.finish()
    order = [max(result.request_id, 1) for result in results]  # 0 and 1 run beside each other
    assert crowd.joins == 2 and order == sorted(order) and set(order) == {1, 2, 3}
    for result in results:
        crowd.results.setdefault(result.request_id, []).append(result)
    crowd.check(native())
    clean(bench)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_blocks_of_a_joiner_lie_where_others_have_left(fake: Any, placement: str, form: str) -> None:
    """Two leave, one by its end and one by a cancel, and one stays between them: the table of the next is in
    two pieces, behind which stands what is never read.
    """
    bench = company(placement, form=form, num_blocks=4)
    crowd = Crowd(bench, "sd", "coupled")
    bench.target.close_gate("verify", 3)  # of eight tokens and more, five at most are committed
    crowd.start(greedy([1], max_tokens=8), greedy([2], max_tokens=30), greedy([4], max_tokens=15))
    bench.target.wait_for_gate()
    tables = bench.arrays["block_table"]
    assert tables.tolist() == [[0, 0, 0, 0], [1, 2, 0, 0], [3, 0, 0, 0]]
    crowd.cancel(2)
    crowd.add(greedy([3] * 9, max_tokens=20))
    bench.target.open_gate()
    crowd.finish()
    [slot] = {result.slot for result in crowd.results[3]}
    assert crowd.joins == 1 and tables[slot].tolist() in ([0, 3, 0, 0], [3, 0, 0, 0])
    assert bench.coordinator.num_free_blocks == 4
    crowd.check(native())
    clean(bench)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_prompt_that_is_given_up_gives_its_blocks_back(fake: Any, placement: str) -> None:
    """Its passes are queued, perhaps not run; the next one's prompt lies in the same blocks."""
    bench = company(placement, num_blocks=2, rounds_ahead=4)
    crowd = Crowd(bench, "pearl", "coupled")
    bench.target.close_gate("verify", 2)
    crowd.start(greedy([1], max_tokens=15))
    bench.target.wait_for_gate()
    for number, prompt in ((1, [5] * 12), (2, [6] * 12), (3, [7] * 12)):
        crowd.add(greedy(prompt, max_tokens=4))
        if number < 3:
            crowd.cancel(number)
    bench.target.open_gate()
    crowd.finish()
    assert bench.coordinator.num_free_blocks == 2
    crowd.check(native())
    clean(bench)


def test_what_can_never_run_is_refused_and_nothing_is_lost(fake: Any) -> None:
    bench = company(num_blocks=3)
    crowd = Crowd(bench, "pearl", "coupled")
    with pytest.raises(
        RequestError, match="grow to 50 tokens, which need 4 KV blocks of 16 tokens, and there"
    ):
        bench.coordinator.submit(_C.Request([1], gamma=3, max_tokens=49))
    with pytest.raises(
        RequestError, match="2 requests need 4 KV blocks of 16 tokens, and there are 3 together"
    ):
        crowd.start(greedy([1], max_tokens=20), greedy([1], max_tokens=20))
    bench.target.close_gate("verify", 2)
    crowd.start(greedy([1], max_tokens=40))
    bench.target.wait_for_gate()
    with pytest.raises(RequestError, match="need 4 KV blocks"):
        bench.coordinator.submit(_C.Request([1], gamma=3, max_tokens=49))
    crowd.add(greedy([2], max_tokens=47))
    bench.target.open_gate()
    crowd.finish()
    assert crowd.joins == 1 and bench.coordinator.num_free_blocks == 3
    crowd.check(native())
    clean(bench)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_run_that_was_stopped_keeps_no_block(fake: Any, placement: str) -> None:
    bench = company(placement, num_blocks=4)
    bench.target.close_gate("verify", 2)
    bench.start("pearl", _C.Request([1], gamma=3, max_tokens=40))
    bench.target.wait_for_gate()
    asked = _C.Request([2], gamma=3, max_tokens=40)
    assert not bench.coordinator.has_place(asked)
    bench.target.open_gate()
    bench.coordinator.stop()
    assert bench.coordinator.num_free_blocks == 4 and bench.coordinator.has_place(asked)
    clean(bench)


def test_caches_and_state_must_agree(fake: Any) -> None:
    """Both lanes' caches have the coordinator's blocks, in size and, at least, in number."""
    for sizes in ({"block_size": 32}, {"num_blocks": 5}):
        with pytest.raises(
            RequestError, match="the arrays of the target lane have 4 KV blocks of 16 tokens; "
        ):
            company(num_blocks=4, coordinator=sizes)
    for sizes, text in (({"block_size": 24}, "block_size is 24"), ({"num_blocks": 0}, "num_blocks is 0")):
        with pytest.raises(RequestError, match=text):
            company(coordinator=sizes)
