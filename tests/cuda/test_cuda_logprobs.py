"""Log-probabilities of CUDA lanes on the fake driver: those of the CPU's lanes, in any schedule, and
of each request that asks, whichever requests run beside it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import fake_cuda
import pytest
from scripted import VOCAB, Bench
from scripted_cuda import FORMS, HALF_RIGHT, MAX_LOGPROBS, PLACEMENTS, TARGET, CudaBench, clean, clean_world

from pearl_rt import _C
from pearl_rt.errors import RequestError
from pearl_rt.strategy.program import STRATEGIES, program

pytestmark = pytest.mark.skipif(not fake_cuda.has_compiler(), reason="no C++ compiler for the fake driver")
SHAPES: tuple[dict[str, Any], ...] = (
    {},
    {"repetition_penalty": 1.5, "logit_bias": [(1, 3.0)], "min_tokens": 3, "top_k": 5, "top_p": 0.9},
)


@pytest.fixture
def fake() -> Iterator[Any]:
    """Two devices without delays; at the end nothing may have been illegal, and nothing be left."""
    yield from clean_world()


def rounds_of(results: list[Any], request_id: int | None = None) -> list[tuple[Any, ...]]:
    """Round by round: tokens, their log-probabilities, and how it ended."""
    return [
        (r.round, r.token_ids, r.logprobs, r.finish_reason)
        for r in results
        if request_id is None or r.request_id == request_id
    ]


def drawn(rng: random.Random, **known: Any) -> dict[str, Any]:
    """A request: perhaps sampled, with an end in the middle of a window, with what changes its logits."""
    request = {
        "prompt_ids": [rng.randrange(VOCAB) for _ in range(rng.choice([1, 4, 5, 9]))],
        "gamma": rng.randint(1, 5),
        "max_tokens": rng.choice([1, 3, 8, 30]),
        "stop_ids": [rng.randrange(VOCAB)] if rng.random() < 0.5 else [],
        "temperature": rng.choice([0.0, 0.8]),
        "seed": rng.randrange(2**64),
        "num_logprobs": rng.choice([-1, 0, 1, MAX_LOGPROBS]),
    }
    return request | rng.choice(SHAPES) | known


def native() -> Bench:
    return Bench.build("shared", target=TARGET, draft=HALF_RIGHT, gamma_max=5)


def alone(bench: Bench, strategy: str, request: dict[str, Any], judge: str) -> list[tuple[Any, ...]]:
    return rounds_of(bench.run(strategy, _C.Request(**request), judge=judge))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_they_are_the_cpus(fake: Any, placement: str) -> None:
    """Every program, judge and form; sequences in every state beside each other, some of which ask."""
    rng = random.Random(placement)
    cpu, num_reported = native(), 0
    for world in range(6):
        fake.reset(seed=world, max_delay_us=rng.choice([0, 20]))
        bench = CudaBench.build(
            placement,
            target=TARGET,
            draft=HALF_RIGHT,
            num_slots=3,
            gamma_max=5,
            form=FORMS[world % len(FORMS)],
            ring_size=4,  # a run of more rounds goes round it
            rounds_ahead=rng.choice([1, 2]),
        )
        for strategy in STRATEGIES:
            judge = rng.choice(["coupled", "rejection"])
            requests = [drawn(rng) for _ in range(3)]
            requests[0] |= {"num_logprobs": rng.choice([0, 2]), "max_tokens": 40}
            results = bench.run(strategy, *(_C.Request(**r) for r in requests), judge=judge)
            for slot, request in enumerate(requests):
                expected = alone(cpu, strategy, request, judge)
                assert rounds_of([r for r in results if r.slot == slot]) == expected, request
                asks = request["num_logprobs"] >= 0
                assert all(
                    (logprobs is not None) == (asks and tokens != []) for _, tokens, logprobs, _ in expected
                )
                num_reported += asks
        clean(bench)
        del bench
    assert num_reported >= 18


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_request_that_joins_gets_its_logprobs(fake: Any, placement: str, form: str) -> None:
    """Joiners take slots whose rounds, reported before, have the numbers that theirs will have."""
    rng = random.Random(5)
    bench = CudaBench.build(
        placement,
        target=TARGET,
        draft=HALF_RIGHT,
        num_slots=2,
        gamma_max=5,
        gammas=[0, 5],
        form=form,
        ring_size=4,
    )
    widest = {"gamma": 5, "temperature": 0.8, "top_k": 5}
    requests = {
        0: drawn(rng, **widest, num_logprobs=-1, max_tokens=30, stop_ids=[]),
        1: drawn(rng, **widest, num_logprobs=2, max_tokens=9),
    }
    bench.target.close_gate("verify", 1)
    bench.start("pearl", *(_C.Request(**r) for r in requests.values()), judge="coupled")
    bench.target.wait_for_gate()
    for wanted in (0, -1, MAX_LOGPROBS, 3):
        request = drawn(rng, num_logprobs=wanted, max_tokens=9)
        number = bench.coordinator.submit(_C.Request(**request))
        assert number is not None
        requests[number] = request
    bench.target.open_gate()
    results, cpu = bench.finish(), native()
    for number, request in requests.items():
        assert rounds_of(results, number) == alone(cpu, "pearl", request, "coupled"), request
    clean(bench)


def test_a_request_for_logprobs_starts_another_run_where_there_are_none(fake: Any) -> None:
    bench = CudaBench.build(num_slots=2, gamma_max=2, gammas=[2], target=TARGET, draft=HALF_RIGHT)
    bench.target.close_gate("verify", 1)
    bench.start("sd", _C.Request([1], gamma=2, max_tokens=20))
    bench.target.wait_for_gate()
    asking = _C.Request([1], gamma=2, num_logprobs=0)
    joined = bench.coordinator.has_place(asking), bench.coordinator.submit(asking)
    with pytest.raises(
        RequestError, match=r"of 6 likeliest tokens; the target lane reports 5: .* ask for fewer"
    ):
        bench.coordinator.submit(_C.Request([1], gamma=2, num_logprobs=6))
    bench.target.open_gate()
    assert joined == (False, None)
    bench.finish()
    with pytest.raises(RequestError, match="of 6 likeliest tokens; the target lane reports 5"):
        bench.start("sd", _C.Request([1], gamma=2, num_logprobs=6))
    assert bench.run("sd", asking)[0].logprobs is not None
    clean(bench)


def test_a_cancelled_request_gets_the_logprobs_of_verified_tokens(fake: Any) -> None:
    bench = CudaBench.build(num_slots=2, gamma_max=3, gammas=[3], target=TARGET, draft=HALF_RIGHT)
    request = {"prompt_ids": [1], "gamma": 3, "max_tokens": 40, "num_logprobs": 1}
    bench.target.close_gate("verify", 3)
    first, second = bench.coordinator.start(
        program("sd"), [_C.Request(**request), _C.Request(**{**request, "prompt_ids": [2]})], "coupled"
    )
    bench.target.wait_for_gate()
    bench.coordinator.cancel(second)
    bench.target.open_gate()
    results, cpu = bench.finish(), native()
    assert rounds_of(results, first) == alone(cpu, "sd", request, "coupled")
    found = rounds_of(results, second)
    assert found[-1][1:] == ([], None, "abort")
    assert found[:-1] == alone(cpu, "sd", {**request, "prompt_ids": [2]}, "coupled")[: len(found) - 1]
    clean(bench)


@pytest.mark.parametrize("form", FORMS)
def test_a_round_of_logits_that_cannot_be_used_has_none(fake: Any, form: str) -> None:
    """No tokens, and no log-probabilities: the host waits for none of it."""
    bench = CudaBench.build(target={**TARGET, "nan_at": 3}, draft=HALF_RIGHT, form=form)
    results = bench.run("ar", _C.Request([1, 2], max_tokens=30, num_logprobs=2))
    assert results[-1].finish_reason == "error" and results[-1].logprobs is None
    assert [len(r.logprobs) for r in results[:-1]] == [1, 1, 1]
    clean(bench)
