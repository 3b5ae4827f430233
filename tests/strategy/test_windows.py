"""Windows that follow how many sequences run: no token changes, and the draft's cache is never behind."""

import random
from typing import Any

import pytest
from scripted import TIMEOUT_MS, VOCAB, Bench, logits_after, tokens_of

from pearl_rt import _C
from pearl_rt.errors import RequestError
from pearl_rt.strategy.program import PLACEMENTS, program

TARGET = {"rule": 1}


def alone(request: dict[str, Any], judge: str) -> list[int]:
    return tokens_of(Bench.build(target=TARGET).run("ar", _C.Request(**request), judge=judge))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("strategy", ["sd", "pearl"])
def test_windows_change_no_token(strategy: str, placement: str) -> None:
    """Ten runs of 9 requests over 3 slots, whose table changes at any moment, to 0 and back."""
    rng = random.Random(7)
    draft = {"rule": 1, "divergence": 0.3, "delay_us": (0, 20)}
    bench = Bench.build(placement, num_slots=3, target={**TARGET, "delay_us": (0, 20)}, draft=draft)
    coordinator = bench.coordinator
    for _ in range(10):
        waiting = [
            {
                "prompt_ids": [rng.randrange(VOCAB) for _ in range(rng.choice([1, 2, 17]))],
                "gamma": 8,
                "max_tokens": rng.choice([1, 5, 40]),
                "temperature": rng.choice([0.0, 0.8]),
                "seed": rng.randrange(2**64),
                "adapts": rng.random() < 0.8,
            }
            for _ in range(9)
        ]
        windows = [rng.randint(0, 8) for _ in range(4)]
        first = waiting.pop()
        (number,) = coordinator.start(
            program(strategy, placement), [_C.Request(**first)], "coupled", windows=windows
        )
        asked, found = {number: first}, {number: []}
        results: list[Any] | None = []
        while results is not None:
            for result in results:
                found[result.request_id] += result.token_ids
            if waiting and (number := coordinator.submit(_C.Request(**waiting[-1]))) is not None:
                asked[number], found[number] = waiting.pop(), []
            if rng.random() < 0.3:
                coordinator.set_windows([rng.choice([0, 0, 1, 8]) for _ in range(4)])
            results = coordinator.next(TIMEOUT_MS)
        for number, request in asked.items():
            assert found[number] == alone(request, "coupled")


@pytest.mark.parametrize("strategy", ["sd", "pearl"])
def test_a_draft_that_pauses_catches_up(strategy: str) -> None:
    """A draft that is the target, told to pause for 600 tokens: every token that it drafts afterwards is
    right, so its cache has all of the text again; and no pass of it feeds more than a chunk and a window."""
    long = {"max_model_len": 2048, "vocab_size": VOCAB}
    both = {"target": {**TARGET, **long}, "draft": {**TARGET, **long}}
    bench = Bench.build("shared", capacity=2048, ring_capacity=8, **both)  # no further ahead of this reader
    coordinator, request = bench.coordinator, {"prompt_ids": [1, 2, 3], "gamma": 4, "max_tokens": 1500}
    coordinator.start(
        program(strategy, "shared"), [_C.Request(**request, adapts=True)], "coupled", windows=[4, 4]
    )
    results: list[Any] = []
    state = "before"
    while (more := coordinator.next(TIMEOUT_MS)) is not None:
        results += more
        count = sum(len(result.token_ids) for result in results)
        if state == "before" and count > 20:
            coordinator.set_windows([0, 0])
            state, paused_at = "paused", count
        if state == "paused" and count > paused_at + 600:
            coordinator.set_windows([4, 4])
            state = "after"
    assert state == "after" and len(tokens_of(results)) == 1500
    assert all(result.accept_len == result.num_judged for result in results), "the draft is always right"
    judged = [result.num_judged for result in results]
    begin = judged.index(0, 2)
    end = next(place for place in range(begin, len(judged)) if judged[place])
    assert end - begin >= 500, "nothing was drafted meanwhile"
    assert sum(judged[end:]) > 400, "and much of it behind that"


def test_a_rejected_draft_is_fed_again_after_a_pause() -> None:
    """Windows of 8 after pauses of a few rounds: as many drafts stand as the draft says after the true text,
    so nothing that was rejected before a pause is left in its cache."""
    rng = random.Random(2)
    script = {"rule": 1, "divergence": 0.35}
    draft, length = logits_after(**script), 240
    size = {"max_model_len": 256}
    bench = Bench.build(
        "shared", capacity=256, ring_capacity=2, target={**TARGET, **size}, draft={**script, **size}
    )
    coordinator = bench.coordinator
    request = _C.Request([1, 2, 3], gamma=8, max_tokens=length, adapts=True)
    coordinator.start(program("sd", "shared"), [request], "coupled", windows=[8, 8])
    text, drafted, after_a_pause, paused = [1, 2, 3], 0, 0, False
    while (results := coordinator.next(TIMEOUT_MS)) is not None:
        for result in results:
            guess = list(text)
            for place in range(result.num_judged):
                guess.append(int(draft(guess).argmax()))
                stands = place < result.accept_len
                said = place < len(result.token_ids) and guess[-1] == result.token_ids[place]
                if place <= result.accept_len and not result.finish_reason:
                    assert said == stands, "another draft than after the true text"
            drafted += result.num_judged
            after_a_pause += bool(result.num_judged and paused)
            paused = result.num_judged == 0
            text += result.token_ids
        coordinator.set_windows([0, rng.choice([0, 0, 8])])
    assert len(text) == length + 3 and drafted > 50 and after_a_pause > 5


def test_only_those_that_adapt_do() -> None:
    bench = Bench.build("shared", num_slots=2, target=TARGET, draft=TARGET)
    requests = [
        _C.Request([1, 2], gamma=5, max_tokens=61),
        _C.Request([1, 2], gamma=5, max_tokens=61, adapts=True),
    ]
    coordinator = bench.coordinator
    coordinator.start(program("sd", "shared"), requests, "coupled", windows=[5, 5, 2])
    results = bench.finish()
    fixed = [result.num_judged for result in results if result.slot == 0 and result.round > 0]
    bound = [result.num_judged for result in results if result.slot == 1 and result.round > 0]
    assert max(fixed) == 5 and fixed[0] == 5
    both = len(fixed)
    assert set(bound[: both - 1]) == {2} and max(bound[both + 1 :]) == 5, "alone, it may go further again"


def test_tables_are_checked() -> None:
    bench = Bench.build(num_slots=2, target=TARGET, draft=TARGET)
    request = _C.Request([1], gamma=2, max_tokens=4)
    for windows, told in (([1, 1], "2 windows were given; 2 slots"), ([1, 1, 9], "a window is 9")):
        with pytest.raises(RequestError, match=told):
            bench.coordinator.start(program("sd", "split"), [request], windows=windows)
        with pytest.raises(RequestError, match=told):
            bench.coordinator.set_windows(windows)
    assert len(tokens_of(bench.run("sd", request))) == 4
