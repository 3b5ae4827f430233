"""Several sequences at once, from the front door: every answer is what it would be alone."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_pairs import Pair

from pearl_rt import ConfigError, Engine, NumericsError, ResourceError, SamplingParams
from pearl_rt.strategy.program import STRATEGIES

LENGTH = 32768  # so that no answer ends by itself while a test looks away
ENDLESS = SamplingParams(max_tokens=LENGTH, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    pair = Pair.make("half-right", max_position_embeddings=LENGTH)
    target, draft = pair.save(tmp_path_factory.mktemp("pair"))
    with Engine.from_pretrained(
        target, draft, max_model_len=LENGTH, max_num_seqs=4, judge="coupled"
    ) as built:
        yield built


def mixed(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        max_tokens=rng.choice([1, 2, 9, 40, 90]),
        temperature=rng.choice([0.0, 0.7, 1.2]),
        seed=rng.randrange(2**64),
        top_k=rng.choice([0, 5]),
        top_p=rng.choice([1.0, 0.8]),
        repetition_penalty=rng.choice([1.0, 1.3]),
        presence_penalty=rng.choice([0.0, 0.5]),
        logprobs=rng.choice([None, 2]),
    )


def prompts_of(rng: random.Random, count: int) -> list[list[int]]:
    """Of 1 to 600 tokens: some are fed in several chunks."""
    return [[rng.randrange(1, 250) for _ in range(rng.choice([1, 2, 17, 300, 600]))] for _ in range(count)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_generate_in_a_batch_is_generate_alone(engine: Engine, strategy: str) -> None:
    """Greedy and coupled: eleven prompts over four slots, against each by itself with ar."""
    rng = random.Random(3)
    prompts = prompts_of(rng, 11)
    for temperature in (0.0, 0.8):
        params = SamplingParams(max_tokens=40, temperature=temperature, seed=7, logprobs=1)
        alone = [engine.generate(prompt, params, strategy="ar")[0] for prompt in prompts]
        together = engine.generate(prompts, params, strategy=strategy, gamma=None if strategy == "ar" else 3)
        assert [o.token_ids for o in together] == [o.token_ids for o in alone]
        assert [o.text for o in together] == [o.text for o in alone]
        assert [o.logprobs for o in together] == [o.logprobs for o in alone]
        assert [o.finish_reason for o in together] == [o.finish_reason for o in alone]


@pytest.mark.parametrize("strategy", ("sd", "pearl"))
def test_rejection_in_a_batch_is_the_same_program_alone(engine: Engine, strategy: str) -> None:
    rng = random.Random(4)
    prompts = prompts_of(rng, 6)
    params = SamplingParams(max_tokens=30, temperature=0.9, seed=11)
    options: dict[str, Any] = {"strategy": strategy, "gamma": 4, "judge": "rejection"}
    alone = [engine.generate(prompt, params, **options)[0].token_ids for prompt in prompts]
    assert [o.token_ids for o in engine.generate(prompts, params, **options)] == alone


def test_submissions_of_every_kind_at_once(engine: Engine) -> None:
    """Forty requests with strategies and parameters of their own, from four threads: each as ar alone."""
    rng = random.Random(9)
    prompts = prompts_of(rng, 40)
    params = [mixed(rng) for _ in prompts]
    strategies = [rng.choice([None, "ar", "sd", "pearl"]) for _ in prompts]
    alone = [engine.generate(p, q, strategy="ar")[0] for p, q in zip(prompts, params, strict=True)]
    found: dict[int, Any] = {}

    def work(mine: range) -> None:
        handles = {i: engine.submit(prompts[i], params[i], strategy=strategies[i]) for i in mine}
        found.update({i: handle.result(60) for i, handle in handles.items()})

    threads = [threading.Thread(target=work, args=(range(start, 40, 4),)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, expected in enumerate(alone):
        assert found[i].token_ids == expected.token_ids, (i, params[i], strategies[i])
        assert found[i].text == expected.text
        assert found[i].logprobs == expected.logprobs


def test_one_that_wants_another_program_is_not_starved(engine: Engine) -> None:
    """It waits for those before it, and holds back those behind it until it has run."""
    short = SamplingParams(max_tokens=20)
    first = [engine.submit([n + 1], SamplingParams(max_tokens=300), strategy="ar") for n in range(2)]
    other = engine.submit([9], short, strategy="sd", gamma=3)
    behind = [engine.submit([n + 20], short, strategy="ar") for n in range(4)]

    def spans(handles: list[Any]) -> list[tuple[float, float]]:
        """When each began to run and had its last token, in seconds of one clock."""
        found = [handle.result(60).metrics for handle in handles]
        return [(m.start_ns * 1e-9 + m.queue_time, m.start_ns * 1e-9 + m.token_times[-1]) for m in found]

    [(begin, end)] = spans([other])
    assert begin >= max(ended for _, ended in spans(first))
    assert min(begun for begun, _ in spans(behind)) >= end


def test_cancel_and_stop_strings_leave_the_others(engine: Engine) -> None:
    params = SamplingParams(max_tokens=60)
    free = engine.generate([7], params)[0]
    word = free.text[10:12]
    cut = engine.generate([7], SamplingParams(max_tokens=60, stop=[word]))[0]
    endless = engine.submit([5], ENDLESS)
    handles = [
        engine.submit([7], params if n % 2 else SamplingParams(max_tokens=60, stop=[word])) for n in range(6)
    ]
    next(iter(endless))
    endless.cancel()
    assert endless.result(20).finish_reason == "abort"
    for n, handle in enumerate(handles):
        output, expected = handle.result(20), free if n % 2 else cut
        assert (output.text, output.finish_reason) == (expected.text, expected.finish_reason)
        assert output.token_ids == expected.token_ids


def test_a_fault_in_one_of_a_batch() -> None:
    pair = Pair.make("equal")
    pair.target["model.embed_tokens.weight"][200] = float("nan")
    with Engine(pair.config, pair.target, max_model_len=64, max_num_seqs=4) as engine:
        few = SamplingParams(max_tokens=30)
        expected = engine.generate([5, 6], few)[0].token_ids
        handles = [engine.submit(prompt, few) for prompt in ([5, 6], [1, 200, 2], [5, 6])]
        assert handles[0].result(10).token_ids == handles[2].result(10).token_ids == expected
        with pytest.raises(NumericsError, match="NaN or infinite logits in step prefill of the target lane"):
            handles[1].result(10)
        with pytest.raises(NumericsError, match="NaN"):
            engine.generate([[5, 6], [200]], few)
        assert engine.generate([5, 6], few)[0].token_ids == expected


def test_bad_sizes_of_a_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pair = Pair.make("equal")
    for wrong, text in ((0, "max_num_seqs 0 is out of range"), (2.5, "max_num_seqs must be an integer")):
        with pytest.raises(ConfigError, match=text):
            pair.engine(max_num_seqs=wrong)
    monkeypatch.setattr("pearl_rt.backends.cpu.available_memory", lambda: 100_000)
    with pytest.raises(ResourceError, match=r"512 tokens of KV cache.* lower max_num_seqs"):
        pair.engine(max_model_len=64)
