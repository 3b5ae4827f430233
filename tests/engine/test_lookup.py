"""An engine without a draft model looks up what was said before: the text is that of plain decoding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from scripted import TIMEOUT_MS
from tiny_pairs import Pair

from pearl_rt import _C, Engine, SamplingParams, _testing
from pearl_rt.cli.commands import main
from pearl_rt.strategy.program import program

CYCLE = [11, 12, 13, 14] * 8
LOUD = SamplingParams(temperature=1.0, seed=5, max_tokens=60)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair.make("equal")


@pytest.fixture
def engine(pair: Pair) -> Iterator[Engine]:
    with Engine(pair.config, pair.target, max_model_len=256, num_threads=1, strategy="sd", gamma=8) as made:
        yield made


def rounds(engine: Engine, params: SamplingParams, judge: str, prompt: list[int] | None = None) -> int:
    return engine.generate(prompt or [3, 4], params, judge=judge)[0].metrics.rounds


def test_it_is_what_an_engine_does_without_a_draft(pair: Pair) -> None:
    greedy = SamplingParams(max_tokens=100)
    with Engine(pair.config, pair.target, drafter="none", max_model_len=256) as plain:
        want = plain.generate([CYCLE, [7]], greedy)
    with Engine(pair.config, pair.target, max_model_len=256) as engine:
        got = engine.generate([CYCLE, [7]], greedy)
        assert [one.token_ids for one in got] == [one.token_ids for one in want]
        assert {one.metrics.strategy for one in got} <= {"sd", "ar"}
        assert engine.stats()["drafter"]["kind"] == "lookup"
    with Engine(pair.config, pair.target, max_model_len=256, strategy="sd", gamma=4) as engine:
        got = engine.generate([CYCLE, [7]], greedy)
        assert [one.token_ids for one in got] == [one.token_ids for one in want]
        stats = engine.stats()
    assert stats["drafter"]["kind"] == "lookup" and stats["dtype"] == {"target": "float32"}
    assert stats["drafter"]["tokens_per_round"] > 1.0
    judged, accepted = (sum(getattr(one.metrics, name) for one in got) for name in ("judged", "accepted"))
    assert judged > 0 and stats["drafter"]["acceptance"] == accepted / judged
    assert sum(one.metrics.judged for one in want) == 0


@pytest.mark.parametrize("prompt", [[5], [5] * 200, CYCLE, list(range(1, 100))], ids=len)
@pytest.mark.parametrize("strategy", ["sd", "pearl"])
def test_prompts_of_every_kind(pair: Pair, engine: Engine, prompt: list[int], strategy: str) -> None:
    for params in (SamplingParams(max_tokens=40), LOUD):
        [want] = engine.generate(prompt, params, strategy="ar", judge="coupled")
        [got] = engine.generate(prompt, params, strategy=strategy, judge="coupled")
        assert got.token_ids == want.token_ids


def test_earlier_answers_are_read_where_they_cannot_change_the_text(engine: Engine) -> None:
    first = rounds(engine, LOUD, "coupled")
    assert rounds(engine, LOUD, "coupled") < first / 2


def test_private_requests_of_an_engine(engine: Engine) -> None:
    """What a private one said is found by none, nor does it find anything, in text or KV cache; its own
    tokens are what they are.
    """
    private = replace(LOUD, private=True)
    prompt = CYCLE + list(range(1, 60))

    def told(params: SamplingParams) -> tuple[int, int | None]:
        [output] = engine.generate(prompt, params, judge="coupled")
        texts.append(output.token_ids)
        return output.metrics.rounds, output.num_cached_tokens

    texts: list[list[int]] = []
    first, none = told(private)
    assert none is None and told(private) == (first, None)
    assert told(LOUD) == (first, 0)  # it finds no answer and no prompt of theirs
    again, found = told(LOUD)
    assert again < first / 2 and found is not None and found >= 64
    assert told(private) == (first, None)
    assert all(text == texts[0] for text in texts)


def test_an_engine_without_a_pool(pair: Pair) -> None:
    options = {"max_model_len": 256, "num_threads": 1, "strategy": "sd", "gamma": 8, "lookup_pool": 0}
    with Engine(pair.config, pair.target, **options) as engine:
        assert rounds(engine, LOUD, "coupled") == rounds(engine, LOUD, "coupled")


def test_a_seed_is_a_text_whatever_was_said_before(engine: Engine) -> None:
    """By rejection the tokens depend on the drafts: earlier answers would change them, and the same seed
    twice would draft from its own noise.
    """
    [one] = engine.generate([3, 4], LOUD, judge="rejection")
    rounds(engine, SamplingParams(temperature=1.0, seed=6, max_tokens=60), "coupled")
    [other] = engine.generate([3, 4], LOUD, judge="rejection")
    assert (one.token_ids, one.metrics.rounds) == (other.token_ids, other.metrics.rounds)


@pytest.mark.parametrize("shares", [True, False])
def test_a_private_request_neither_gives_nor_takes(shares: bool) -> None:
    """By rounds: with the answer of the first in the pool, the second takes it in a few."""
    device = _C.Device([], 100)
    target = _testing.ScriptedExecutor(vocab_size=200, max_model_len=128, rule=3)
    drafter = _C.LookupDrafter(pool_tokens=512)
    lanes = [_C.CpuLane("target", target, device), _C.CpuLane("draft", drafter, device)]
    coordinator = _C.Coordinator(lanes, capacity=128, vocab_size=200)
    taken = []
    for mine in (shares, True, True, shares):
        request = _C.Request([1, 2], gamma=8, max_tokens=60, seed=taken.count(0), shares=mine)
        coordinator.start(program("sd"), [request], "coupled")
        count = 0
        while (more := coordinator.next(TIMEOUT_MS)) is not None:
            count += len(more)
        taken.append(count)
    if shares:
        assert taken[1] < taken[0] / 2
    else:
        assert taken[1] == taken[0] == taken[3] and taken[2] < taken[0] / 2


def test_memory_and_100_000_equal_tokens() -> None:
    """A drafter has no more than 20 bytes for a token of text, and none of its steps grows with the text."""
    length = 100_000
    device = _C.Device([], 100)
    target = _testing.ScriptedExecutor(vocab_size=8, max_model_len=length + 64, rule=3)
    drafter = _C.LookupDrafter()
    lanes = [_C.CpuLane("target", target, device), _C.CpuLane("draft", drafter, device)]
    coordinator = _C.Coordinator(lanes, capacity=length + 64, vocab_size=8)
    coordinator.start(program("sd"), [_C.Request([5] * length, gamma=8, max_tokens=20)], "coupled")
    while coordinator.next(TIMEOUT_MS) is not None:
        pass
    assert 12 * length < drafter.bytes <= 20 * length


def test_the_command_line_says_what_it_was_worth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, _ = Pair.make("equal").save(tmp_path)
    asked = ["generate", "--target", str(target), "--prompt", "abcabcabcabc", "--max-tokens", "40", "--stats"]
    assert main(asked) == 0
    by_default = capsys.readouterr()
    assert '"kind": "lookup"' in by_default.err and '"tokens_per_round"' in by_default.err
    assert main([*asked, "--draft", "none"]) == 0
    plain = capsys.readouterr()
    assert plain.out == by_default.out and '"kind": "none"' in plain.err
    assert main([*asked, "--draft", "lookup", "--lookup-pool", "0"]) == 0
    assert capsys.readouterr().out == plain.out
