"""Prompts begin in pages that hold their tokens, on CUDA lanes over the fake driver: the verdicts are those
of a request that feeds all of its prompt, whatever joins, leaves or is in flight beside it.

A scripted row is a hash of all tokens up to it, so that a row of other tokens changes what follows.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import fake_cuda
import pytest
from scripted import VOCAB, expected_rounds, logits_after, rounds_of, tokens_of
from scripted_cuda import FORMS, HALF_RIGHT, TARGET, CudaBench, clean, clean_world
from test_cuda_joins import RULES, Crowd

from pearl_rt import _C
from pearl_rt.errors import RequestError
from pearl_rt.strategy.program import STRATEGIES, program

pytestmark = pytest.mark.skipif(not fake_cuda.has_compiler(), reason="no C++ compiler for the fake driver")
BLOCK = 16
PLACEMENTS = ("shared", "devices")
CHUNK = 6  # a pass that begins behind a block ends within it, and not at its end


@pytest.fixture
def fake() -> Iterator[Any]:
    """Two devices without delays; at the end nothing may have been illegal, and nothing be left."""
    yield from clean_world()


def build(placement: str = "shared", num_blocks: int = 12, **options: Any) -> CudaBench:
    known = {"num_slots": 3, "gammas": [0, 6], "gamma_max": 6, "target": TARGET, "draft": HALF_RIGHT}
    known |= {"prefill_chunk": CHUNK, "num_blocks": num_blocks, "coordinator": {"prefix_caching": True}}
    return CudaBench.build(placement, **known | options)


def request(prompt: list[int], **changes: Any) -> dict[str, Any]:
    return {"prompt_ids": prompt, "gamma": 6, "max_tokens": 7} | changes


def ids(count: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(VOCAB) for _ in range(count)]


def told(bench: CudaBench, strategy: str, *requests: dict[str, Any]) -> list[int]:
    """Runs requests one after the other, each as the rule says -> tokens that each found."""
    found = []
    for one in requests:
        results = bench.run(strategy, _C.Request(**one))
        assert rounds_of(results) == expected_rounds(strategy, *RULES, one)
        found.append(results[0].num_cached_tokens)
    return found


def ended(crowd: Crowd) -> None:
    """Reads to the end of the run; requests that have no slot are dropped."""
    while crowd.read(1000):
        pass
    crowd.bench.coordinator.take_waiting()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_chat_feeds_its_new_turn_only(fake: Any, strategy: str, placement: str, form: str) -> None:
    """Its first pages are those of the turn before, and it begins behind them."""
    bench = build(placement, form=form)
    text, pages = ids(20), None
    for turn in range(3):
        results = bench.run(strategy, _C.Request(**request(text)))
        assert rounds_of(results) == expected_rounds(strategy, *RULES, request(text))
        full = 0 if turn == 0 else (len(text) - 1) // BLOCK
        assert results[0].num_cached_tokens == full * BLOCK
        now = bench.arrays["block_table"][0].tolist()
        assert pages is None or now[:full] == pages[:full]
        text, pages = text + tokens_of(results) + ids(5, turn), now
    clean(bench)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_length_of_prompt_and_answer(fake: Any, strategy: str) -> None:
    """Answers that end before, at and behind the end of a page: the next turn goes on from each."""
    bench = build(num_blocks=100)
    for length in range(1, 34, 2):
        prompt = ids(length, length)
        answer = tokens_of(bench.run(strategy, _C.Request(**request(prompt, max_tokens=35 - length))))
        whole = prompt + answer
        [found] = told(bench, strategy, request([*whole, 1, 2, 3]))
        assert found == max(0, len(whole) - 2) // BLOCK * BLOCK
        assert told(bench, strategy, request(prompt)) == [(length - 1) // BLOCK * BLOCK]
    clean(bench)


@pytest.mark.parametrize("strategy", ["sd", "pearl"])
def test_drafts_that_were_rejected_are_not_known(fake: Any, strategy: str) -> None:
    """A prompt that goes on as the draft wished, over the end of a page, where the target did not."""
    draft = logits_after(**HALF_RIGHT)
    for seed in range(6):
        bench = build(num_blocks=40)
        prompt = ids(10 + seed, seed)
        answer = tokens_of(bench.run(strategy, _C.Request(**request(prompt, max_tokens=30))))
        for cut in range(0, len(answer), 5):
            wished = prompt + answer[:cut]
            while len(wished) <= len(prompt) + cut + 8:
                wished.append(int(draft(wished).argmax()))
            told(bench, strategy, request([*wished[:40], 3]))
        clean(bench)


def test_a_draft_with_no_rows_finds_none(fake: Any) -> None:
    """What was run without the draft is known to such runs only, until one with it has fed the text."""
    bench, one = build(num_blocks=40), request(ids(20), max_tokens=20)
    longer = request([*ids(20), *tokens_of(bench.run("ar", _C.Request(**one))), 1])
    assert told(bench, "ar", longer) == [32]
    assert told(bench, "sd", longer, longer) == [0, 32]
    clean(bench)


def joined(crowd: Crowd, bench: Any, requests: list[dict[str, Any]]) -> None:
    """Runs them all to their ends: they join one that waits in its third verdict."""
    bench.target.close_gate("verify", 3)
    crowd.start(request([1], max_tokens=30))
    bench.target.wait_for_gate()
    for one in requests:
        crowd.add(one)
    bench.target.open_gate()
    crowd.finish()
    assert crowd.joins == len(requests)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_equal_prompts_that_join_are_fed_once(fake: Any, placement: str, form: str) -> None:
    """The first's pages are known once its passes are queued."""
    bench = build(placement, form=form, num_blocks=40, num_slots=6)
    crowd, one = Crowd(bench, "sd", "coupled"), request(ids(40), max_tokens=20)
    joined(crowd, bench, [one] * 3)
    assert [crowd.results[number][0].num_cached_tokens for number in range(4)] == [0, 0, 32, 32]
    for number, asked in crowd.asked.items():
        found = crowd.results[number]
        assert rounds_of(found, found[0].slot) == expected_rounds("sd", *RULES, asked)
    clean(bench)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_private_request_neither_gives_nor_takes(
    fake: Any, strategy: str, placement: str, form: str
) -> None:
    """Neither the pages of its prompt nor those of its answer are known, and it looks for none."""
    bench, one = build(placement, form=form, num_blocks=40), request(ids(40), max_tokens=20)
    private = one | {"shares": False}
    assert told(bench, strategy, private, private, one, one, private) == [-1, -1, 0, 32, -1]
    whole = ids(40, 7)
    answer = tokens_of(bench.run(strategy, _C.Request(**request(whole, max_tokens=20, shares=False))))
    assert told(bench, strategy, request([*whole, *answer, 1, 2])) == [0]
    clean(bench)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_private_requests_that_join(fake: Any, placement: str, form: str) -> None:
    """Between others with their prompt."""
    bench = build(placement, form=form, num_blocks=40, num_slots=6)
    crowd, one = Crowd(bench, "pearl", "coupled"), request(ids(40), max_tokens=20)
    joined(crowd, bench, [one | {"shares": shares} for shares in (False, True, False, True, False)])
    assert [crowd.results[number][0].num_cached_tokens for number in range(6)] == [0, -1, 0, -1, 32, -1]
    for number, asked in crowd.asked.items():
        found = crowd.results[number]
        assert rounds_of(found, found[0].slot) == expected_rounds("pearl", *RULES, asked)
    clean(bench)


@pytest.mark.parametrize("strategy", ["sd", "pearl"])
def test_an_answer_without_windows(fake: Any, strategy: str) -> None:
    """It leaves no row in the draft's cache, beside others that draft: its prompt alone is known."""
    bench = build(num_blocks=40)
    crowd, one = Crowd(bench, strategy, "coupled"), request(ids(40), max_tokens=20, gamma=0)
    bench.target.close_gate("verify", 3)
    crowd.start(request([1], max_tokens=30))
    bench.target.wait_for_gate()
    crowd.add(one)
    bench.target.open_gate()
    crowd.finish()
    found = crowd.results[1]
    assert crowd.joins == 1 and rounds_of(found, found[0].slot) == expected_rounds("ar", *RULES, one)
    whole = [*one["prompt_ids"], *tokens_of(found, found[0].slot)]
    assert told(bench, strategy, request([*whole[:55], 1]), request([*whole[:55], 1])) == [32, 48]
    clean(bench)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_random_texts_that_share_prefixes(fake: Any, strategy: str, request: Any) -> None:
    """Joins, cancels and stops in any schedule, over five blocks for three slots or over forty."""
    rng = random.Random(f"{strategy} begins alike")
    hits = 0
    for world in range(max(16, request.config.getoption("--schedules") // 20)):
        fake.reset(seed=world, max_delay_us=rng.choice([0, 3, 20, 60]))
        bench = build(
            PLACEMENTS[world % 2],
            num_blocks := (5, 7, 12, 40)[world // 4 % 4],
            form=FORMS[world // 2 % 2],
            rounds_ahead=rng.randint(1, 4),
            spin_us=rng.choice([0, 20]),
            prefill_chunk=rng.choice([4, 6, 16, 64]),
        )
        crowd = Crowd(bench, strategy, "coupled")
        texts = [ids(24, 1), ids(44, 2)]
        for _ in range(25):
            base = list(rng.choice(texts))
            prompt = base[: rng.choice([len(base), rng.randint(0, len(base))])][:44]
            if prompt and rng.random() < 0.2:
                prompt[rng.randrange(len(prompt))] = rng.randrange(VOCAB)
            prompt += ids(rng.randint(0 if prompt else 1, 9), rng.randrange(999))
            one = {"prompt_ids": prompt, "gamma": rng.choice([6, 6, 2]), "max_tokens": rng.randint(1, 17)}
            one |= {"temperature": rng.choice([0.0, 0.0, 1.0]), "seed": rng.randrange(99)}
            crowd.add(one)
            time.sleep(rng.choice([0, 0, 0.001]))
            crowd.read(rng.choice([0, 0, 3]))
            for number, found in crowd.results.items():
                texts.append(crowd.asked[number]["prompt_ids"] + tokens_of(found, found[0].slot))
            if rng.random() < 0.15:
                crowd.cancel(rng.choice(sorted(crowd.asked)))
            if rng.random() < 0.05:
                bench.coordinator.stop()
                ended(crowd)
        ended(crowd)
        assert bench.coordinator.num_free_blocks == num_blocks
        for number, found in crowd.results.items():
            asked = crowd.asked[number]
            assert 0 <= found[0].num_cached_tokens < len(asked["prompt_ids"])
            hits += found[0].num_cached_tokens > 0
            is_cut = found[-1].finish_reason in ("abort", "")
            own = [row for one in found for row in rounds_of([one], one.slot) if row.finish_reason != "abort"]
            expected = expected_rounds(strategy, *RULES, asked)
            assert own == (expected[: len(own)] if is_cut else expected)
        clean(bench)
        del bench, crowd
    assert hits > 30


def test_pages_that_others_wrote_to(fake: Any) -> None:
    """They are forgotten, also those of slots that a stop left; and not while a run goes on."""
    bench, one = build(), request(ids(40))
    assert told(bench, "pearl", one, one) == [0, 32]
    bench.target.close_gate("verify", 2)
    bench.coordinator.start(program("pearl", "shared"), [_C.Request(**one)], "coupled")
    bench.target.wait_for_gate()
    with pytest.raises(RequestError, match="a request is running"):
        bench.coordinator.forget_prefixes()
    bench.target.open_gate()
    bench.coordinator.stop()
    bench.coordinator.forget_prefixes()
    bench.finish()
    assert told(bench, "pearl", one, one) == [0, 32]
    clean(bench)


def test_beside_a_draft_on_the_host_prompts_are_fed_whole(fake: Any) -> None:
    bench, one = build("host"), request(ids(40))
    assert not bench.coordinator.finds_prefixes
    assert told(bench, "sd", one, one) == [-1, -1]
    clean(bench)
