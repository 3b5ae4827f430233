"""Prompts begin in KV blocks that hold their tokens: the verdicts are those of a request that feeds all of
its prompt, whatever runs, ends or fails beside it.

A scripted row is a hash of all tokens up to it, so that a row of other tokens changes what follows.
"""

import random
from contextlib import suppress
from typing import Any

import pytest
from scripted import TIMEOUT_MS, VOCAB, Bench, expected_rounds, logits_after, rounds_of, tokens_of
from test_batching import DRAFT, TARGET, by_request

from pearl_rt import _C, PearlError
from pearl_rt.strategy.program import PLACEMENTS, STRATEGIES, program

BLOCK = 16


def build(placement: str = "shared", num_blocks: int = 12, **options: Any) -> Bench:
    options = {"num_slots": 3, "target": TARGET, "draft": DRAFT} | options
    return Bench.build(placement, num_blocks=num_blocks, block_size=BLOCK, prefix_caching=True, **options)


def request(prompt: list[int], **changes: Any) -> dict[str, Any]:
    return {"prompt_ids": prompt, "gamma": 4, "max_tokens": 4} | changes


def ids(count: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(VOCAB) for _ in range(count)]


def cached(results: list[Any]) -> list[int]:
    """By request: tokens of the prompt that were found."""
    return [own[0].num_cached_tokens for _, own in sorted(by_request(results).items())]


def answer_of(results: list[Any]) -> list[int]:
    return [token for result in results for token in result.token_ids]


def told(bench: Bench, strategy: str, *requests: dict[str, Any]) -> list[int]:
    """Runs requests one after the other, each as the rule says -> tokens that each found."""
    rules = logits_after(**TARGET), logits_after(**DRAFT)
    found = []
    for one in requests:
        results = bench.run(strategy, _C.Request(**one))
        assert rounds_of(results) == expected_rounds(strategy, *rules, one)
        found += cached(results)
    return found


def next_prompt(rng: random.Random, texts: list[list[int]]) -> list[int]:
    """What goes on from an earlier text, or from a part of it; now and then with one token changed."""
    base = list(rng.choice(texts)) if texts else []
    prompt = base[: rng.choice([len(base), rng.randint(0, len(base))])][:44]
    if prompt and rng.random() < 0.2:
        prompt[rng.randrange(len(prompt))] = rng.randrange(VOCAB)
    return prompt + [rng.randrange(VOCAB) for _ in range(rng.randint(0 if prompt else 1, 9))]


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("strategy", [*STRATEGIES, "lookup"])
def test_random_texts_that_share_prefixes(strategy: str, placement: str) -> None:
    """Joins, cancels, stops and bad logits, over five blocks for three slots or over forty."""
    rng = random.Random(11)
    options: dict[str, Any] = {"lookup_pool": 0} if strategy == "lookup" else {}
    name = "sd" if strategy == "lookup" else strategy
    rules = logits_after(**TARGET), logits_after(**DRAFT)
    hits = ends = 0
    for num_blocks in (5, 7, 12, 40) * 3:
        scripts: dict[str, Any] = {"target": {**TARGET, "delay_us": (0, 30)}, "draft": dict(DRAFT)}
        if rng.random() < 0.7:
            scripts["target"]["nan_at"], scripts["draft"]["nan_at"] = rng.randint(5, 60), rng.randint(5, 99)
        bench = build(placement, num_blocks, **scripts, **options)
        coordinator = bench.coordinator
        asked: dict[int, dict[str, Any]] = {}
        results: list[Any] = []
        texts: list[list[int]] = []
        left, dropped = 40, set()
        while left or coordinator.running:
            if left and (not coordinator.running or rng.random() < 0.5):
                left -= 1
                one = request(next_prompt(rng, texts), gamma=rng.randint(1, 6), max_tokens=rng.randint(1, 17))
                one |= {"temperature": rng.choice([0.0, 0.0, 1.0]), "seed": rng.randrange(99)}
                number = coordinator.submit(_C.Request(**one))
                if number is None:
                    results += bench.finish()
                    dropped |= set(coordinator.take_waiting())
                    [number] = coordinator.start(program(name, placement), [_C.Request(**one)], "coupled")
                asked[number] = one
                if rng.random() < 0.1 and coordinator.cancel(chosen := rng.choice(list(asked))):
                    dropped.add(chosen)
                if rng.random() < 0.05:
                    coordinator.stop()
            else:
                more = coordinator.next(1) or []
                results += more
                for number in {result.request_id for result in more}:
                    texts.append(asked[number]["prompt_ids"] + answer_of(by_request(results)[number]))
        results += bench.finish()
        dropped |= set(coordinator.take_waiting())
        assert coordinator.num_free_blocks == num_blocks
        for number, own in by_request(results).items():
            assert number not in dropped
            one = asked[number]
            count = own[0].num_cached_tokens
            assert count % BLOCK == 0 and 0 <= count < len(one["prompt_ids"])
            hits += count > 0
            reason = own[-1].finish_reason
            whole = own[:-1] if reason in ("abort", "error") else own
            ends += reason in ("abort", "error", "")
            if strategy == "lookup":
                expected = [token for made in expected_rounds("ar", *rules, one) for token in made.token_ids]
                assert answer_of(whole) == expected[: len(answer_of(whole))]
                continue
            verdicts = expected_rounds(name, *rules, one)
            if reason in ("abort", "error", ""):
                verdicts = verdicts[: len(whole)]
            assert rounds_of(whole, own[0].slot) == verdicts
    assert hits > 8 and ends > 0  # how many a stop reaches in time, the machine says


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_chat_feeds_its_new_turn_only(strategy: str) -> None:
    bench = build()
    text, fed = ids(20), bench.target.num_tokens
    rules = logits_after(**TARGET), logits_after(**DRAFT)
    for turn in range(3):
        before = bench.target.num_tokens
        one = request(text, max_tokens=7)
        results = bench.run(strategy, _C.Request(**one))
        assert rounds_of(results) == expected_rounds(strategy, *rules, one)
        full = 0 if turn == 0 else (len(text) - 1) // BLOCK * BLOCK
        assert cached(results) == [full]
        fed = bench.target.num_tokens - before
        assert fed < len(text) - full + 7 * 6
        text = text + tokens_of(results) + ids(5, turn)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_length_of_prompt_and_answer(strategy: str) -> None:
    """Answers that end before, at and behind the end of a block: the next turn goes on from each."""
    for length in range(1, 34):
        bench = build()
        prompt = ids(length, length)
        answer = tokens_of(bench.run(strategy, _C.Request(**request(prompt, max_tokens=33 - length + 2))))
        whole = prompt + answer
        [found] = told(bench, strategy, request([*whole, 1, 2, 3]))
        assert found == max(0, min(len(whole) - 2, length + len(answer) - 2)) // BLOCK * BLOCK
        assert told(bench, strategy, request(prompt)) == [(length - 1) // BLOCK * BLOCK]


@pytest.mark.parametrize("strategy", ["sd", "pearl"])
def test_drafts_that_were_rejected_are_not_known(strategy: str) -> None:
    """A prompt that goes on as the draft wished, over the end of a block, where the target did not."""
    draft = logits_after(**DRAFT)
    rejected = 0
    for seed in range(40):
        bench = build()
        prompt = ids(10 + seed % 6, seed)
        answer = tokens_of(bench.run(strategy, _C.Request(**request(prompt, gamma=8, max_tokens=30))))
        for cut in range(len(answer)):
            wished = prompt + answer[:cut]
            while len(wished) <= len(prompt) + cut + 8:
                wished.append(int(draft(wished).argmax()))
            rejected += wished[: len(prompt) + len(answer)] != (prompt + answer)[: len(wished)]
            told(bench, strategy, request([*wished[:40], 3]))
    assert rejected > 100


def test_one_token_that_differs() -> None:
    """At any place of a prompt: what is found ends before its block."""
    bench, prompt = build(num_blocks=40), ids(40)
    assert told(bench, "sd", request(prompt)) == [0]
    for place in range(40):
        other = list(prompt)
        other[place] = (other[place] + 1) % VOCAB
        assert told(bench, "sd", request(other)) == [min(place // BLOCK, 2) * BLOCK]
        assert told(bench, "sd", request(prompt)) == [32]


def test_equal_blocks_behind_unlike_ones() -> None:
    bench, [a, b, c] = build(num_blocks=40), [ids(BLOCK, seed) for seed in (1, 2, 3)]
    assert told(bench, "pearl", request([*a, *b, 1])) == [0]
    assert told(bench, "pearl", request([*c, *b, 1])) == [0]
    assert told(bench, "pearl", request([*b, *a, 1])) == [0]
    assert told(bench, "pearl", request([*a, *b, 2]), request([*c, *b, 2])) == [32, 32]


def test_the_last_token_is_always_fed() -> None:
    bench, prompt = build(), ids(33)
    assert told(bench, "ar", request(prompt)) == [0]
    for length, count in ((33, 32), (32, 16), (31, 16), (17, 16), (16, 0), (1, 0)):
        assert told(bench, "ar", request(prompt[:length])) == [count]


def test_what_was_used_last_stays() -> None:
    """Four blocks: two texts of two. The one that was asked for again outlives the other."""
    bench = build(num_blocks=4, num_slots=1)
    first, second, third = (ids(18, seed) for seed in (1, 2, 3))
    assert told(bench, "ar", request(first), request(second), request(first)) == [0, 0, 16]
    assert told(bench, "ar", request(third)) == [0]
    assert told(bench, "ar", request(ids(40, 4))) == [0]
    assert told(bench, "ar", request(first)) == [0]
    assert told(bench, "ar", request(first)) == [16]


def test_a_block_in_use_is_not_given_out() -> None:
    """One sequence reads a block that it found, while others want all the rest."""
    bench = build(num_blocks=6, ring_capacity=6, target={**TARGET, "delay_us": (50, 100)})
    prompt = ids(17)
    told(bench, "sd", request(prompt))
    long = request(prompt, max_tokens=40, gamma=2)
    [held] = bench.coordinator.start(program("sd", "shared"), [_C.Request(**long)], "coupled")
    asked = {held: long}
    for seed in range(8):
        one = request(ids(20, 50 + seed), max_tokens=3)
        number = bench.coordinator.submit(_C.Request(**one))
        assert number is not None
        asked[number] = one
    results = bench.finish()
    assert by_request(results)[held][0].num_cached_tokens == 16
    rules = logits_after(**TARGET), logits_after(**DRAFT)
    for number, own in by_request(results).items():
        assert rounds_of(own, own[0].slot) == expected_rounds("sd", *rules, asked[number])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_equal_prompts_that_join_are_fed_once(strategy: str) -> None:
    """Those that wait while the first is fed find its blocks, also where they were admitted before."""
    one, numbers = request(ids(40), max_tokens=12), [None]
    while None in numbers:  # the first request ended before the others were submitted
        slow = {**TARGET, "delay_us": (300, 500)}
        bench = build(num_blocks=40, num_slots=6, ring_capacity=12, target=slow)
        coordinator = bench.coordinator
        coordinator.start(program(strategy, "shared"), [_C.Request(**request([1]))], "coupled")
        numbers = [coordinator.submit(_C.Request(**one)) for _ in range(5)]
    results = bench.finish()
    assert cached(results) == [0, 0, 32, 32, 32, 32]
    rules = logits_after(**TARGET), logits_after(**DRAFT)
    for own in list(by_request(results).values())[1:]:
        assert rounds_of(own, own[0].slot) == expected_rounds(strategy, *rules, one)


def test_requests_that_start_together() -> None:
    """Each feeds its own prompt; afterwards one of the equal blocks is kept."""
    bench, one = build(num_blocks=9), request(ids(33), max_tokens=4)
    assert cached(bench.run("sd", *[_C.Request(**one)] * 3)) == [0, 0, 0]
    assert cached(bench.run("sd", *[_C.Request(**one)] * 3)) == [32, 32, 32]
    assert told(bench, "sd", request(ids(64 - 14, 9))) == [0]  # takes four of the seven others
    assert told(bench, "sd", one) == [32]


def test_a_draft_with_no_rows_finds_none() -> None:
    """What was run without the draft is known to such runs only, until one with it has fed the text."""
    bench, one = build(), request(ids(40))
    assert told(bench, "ar", one, one) == [0, 32]
    assert told(bench, "sd", one, one) == [0, 32]
    assert told(bench, "ar", one) == [32]


@pytest.mark.parametrize(("strategy", "gamma"), [("ar", 0), ("sd", 4), ("pearl", 4)])
def test_an_answer_of_one_token(strategy: str, gamma: int) -> None:
    """Its run ends before a round: what its prompt fed is found all the same."""
    bench, one = build(), request(ids(40), max_tokens=1, gamma=gamma)
    bench.run(strategy, _C.Request(**one))
    assert told(bench, strategy, request(ids(40), gamma=gamma))[0] in ((32,) if strategy == "ar" else (0, 32))


def test_log_probabilities_of_a_prompt_are_computed() -> None:
    bench, prompt = build(), ids(40)
    plain = bench.run("ar", _C.Request(**request(prompt, num_prompt_logprobs=2)))
    again = bench.run("ar", _C.Request(**request(prompt, num_prompt_logprobs=2)))
    assert cached(plain) == cached(again) == [-1]
    assert plain[0].prompt_logprobs(40) == again[0].prompt_logprobs(40)
    assert told(bench, "ar", request(prompt)) == [32]


def test_a_request_that_does_not_share() -> None:
    bench, prompt = build(), ids(40)
    assert told(bench, "ar", request(prompt, shares=False), request(prompt)) == [-1, 0]
    assert told(bench, "ar", request(prompt, shares=False), request(prompt)) == [-1, 32]


@pytest.mark.parametrize("lane", ["target", "draft"])
@pytest.mark.parametrize("strategy", ["sd", "pearl"])
def test_after_a_lane_that_threw(strategy: str, lane: str) -> None:
    """At any call: what is found afterwards was written before."""
    rules = logits_after(**TARGET), logits_after(**DRAFT)
    for call in range(0, 40, 3):
        script = {"target": dict(TARGET), "draft": dict(DRAFT)}
        script[lane] |= {"throw_at": call, "error": "broken"}
        bench = build(**script)
        one = request(ids(40), max_tokens=20)
        for _ in range(8):  # each takes fewer calls than the first: the call that throws is among them
            with suppress(PearlError):
                bench.run(strategy, _C.Request(**one))
        results = bench.run(strategy, _C.Request(**one))
        assert rounds_of(results) == expected_rounds(strategy, *rules, one) and cached(results) == [32]


def test_a_run_that_is_stopped_in_its_prompt() -> None:
    """Chunks that were not fed are not known."""
    long = {"max_model_len": 1024, "vocab_size": VOCAB, "delay_us": (300, 500)}
    bench = build(capacity=1024, num_blocks=200, target={**TARGET, **long}, draft={**DRAFT, **long})
    prompt = [place % 11 for place in range(900)]
    want = tokens_of(
        Bench.build(capacity=1024, target={**TARGET, **long}).run("ar", _C.Request(prompt, max_tokens=4))
    )
    for wait_ms in (0, 1, 2, 0, 1):
        bench.coordinator.start(program("sd", "shared"), [_C.Request(prompt, gamma=4, max_tokens=4)])
        bench.coordinator.next(wait_ms)
        bench.coordinator.stop()
        bench.finish()
    assert tokens_of(bench.run("sd", _C.Request(prompt, gamma=4, max_tokens=4))) == want
    assert bench.coordinator.next(TIMEOUT_MS) is None


def test_off_by_default_and_told() -> None:
    bench = Bench.build(num_blocks=12, block_size=BLOCK, target=TARGET, draft=DRAFT)
    assert not bench.coordinator.finds_prefixes and build().coordinator.finds_prefixes
    assert told(bench, "sd", request(ids(40)), request(ids(40))) == [-1, -1]
