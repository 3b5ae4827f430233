"""Answers with a form, whole: valid by jsonschema, and the same bits by every program; ends and refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from random_schemas import schema
from tiny_pairs import Pair

from pearl_rt import Engine, RequestError, SamplingParams, StructuredOutputsParams
from pearl_rt.strategy.program import JUDGES, STRATEGIES

EOS = 256
LIMIT = 700


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    pair = Pair.make("half-right", eos_token_ids=(EOS,))
    target, draft = pair.save(tmp_path_factory.mktemp("pair"))
    with Engine.from_pretrained(target, draft, device="cpu", max_model_len=1024, max_num_seqs=6) as made:
        yield made


@pytest.fixture(scope="module")
def lookup_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    pair = Pair.make("equal", eos_token_ids=(EOS,))
    target, _ = pair.save(tmp_path_factory.mktemp("pair"))
    with Engine.from_pretrained(target, "lookup", device="cpu", max_model_len=1024) as made:
        yield made


def params(form: dict[str, Any], **own: Any) -> SamplingParams:
    asked = StructuredOutputsParams(**form)
    return SamplingParams(**{"max_tokens": LIMIT, "structured_outputs": asked} | own)


def check_schema(engine: Engine, number: int, seed: int = 0, strategies: tuple[str, ...] = STRATEGIES) -> int:
    """One schema, sampled with a seed: valid by every program, and the same bits -> tokens of the answer."""
    wanted = schema(number)
    temperature = (0.0, 0.8, 1.5)[(number + seed) % 3]
    asked = params(
        {"json": wanted}, temperature=temperature, seed=number + 1000 * seed, top_k=(0, 20)[number % 2]
    )
    found = set()
    for strategy in strategies:
        gamma = None if strategy == "ar" else 2 + (number + seed) % 4
        for judge in JUDGES:
            [output] = engine.generate("x", asked, strategy=strategy, gamma=gamma, judge=judge)
            assert output.finish_reason == "stop", (number, seed, output.text)
            jsonschema.validate(json.loads(output.text), wanted)
            if judge == "coupled" or temperature == 0:
                found.add((tuple(output.token_ids), output.text))
    assert len(found) == 1, (number, seed)
    return len(found.pop()[0])


@pytest.mark.parametrize("first", range(0, 500, 50))
def test_random_schemas(engine: Engine, first: int, pytestconfig: pytest.Config) -> None:
    """500 schemas with two seeds each in the long form, a tenth of the schemas in every run."""
    is_long = pytestconfig.getoption("--long")
    numbers = range(first, first + (50 if is_long else 5))
    lengths = [check_schema(engine, number, seed) for number in numbers for seed in range(1 + is_long)]
    assert sum(lengths) > 10 * len(lengths)


def test_random_schemas_by_lookup(lookup_engine: Engine) -> None:
    for seed in range(6):
        check_schema(lookup_engine, seed, strategies=("ar", "sd"))


def test_a_batch_of_forms_and_free_text(engine: Engine) -> None:
    """Each has the answer that it has alone, submitted at once."""
    asked = [
        params({"json": schema(seed)}, temperature=0.9, seed=seed)
        if seed % 3
        else SamplingParams(max_tokens=40, seed=seed, temperature=0.9)
        for seed in range(12)
    ]
    options = {"strategy": "pearl", "gamma": 3, "judge": "coupled"}
    alone = [engine.generate("x", one, **options)[0].token_ids for one in asked]
    handles = [engine.submit("x", one, **options) for one in asked]
    assert [handle.result(120).token_ids for handle in handles] == alone


@pytest.mark.parametrize("judge", JUDGES)
def test_masks_change_no_answer(engine: Engine, judge: str) -> None:
    """A bias of nothing has all masks made and rows changed by them; else most greedy rows need none."""
    for seed in range(10):
        for strategy in STRATEGIES:
            options = {"strategy": strategy, "gamma": None if strategy == "ar" else 4, "judge": judge}
            asked = {"temperature": (0.0, 0.0, 1.2)[seed % 3], "seed": seed}
            [short] = engine.generate("x", params({"json": schema(seed)}, **asked), **options)
            [whole] = engine.generate(
                "x", params({"json": schema(seed)}, **asked, logit_bias={99: 0.0}), **options
            )
            assert short.token_ids == whole.token_ids


@pytest.mark.parametrize("judge", JUDGES)
def test_several_answers(engine: Engine, judge: str) -> None:
    outputs = engine.generate("x", params({"json": schema(4)}, n=5, temperature=1.5), judge=judge)
    for output in outputs:
        jsonschema.validate(json.loads(output.text), schema(4))
    assert len({output.text for output in outputs}) > 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_form(engine: Engine, strategy: str) -> None:
    options = {"strategy": strategy, "gamma": None if strategy == "ar" else 3}

    def text(form: dict[str, Any], **own: Any) -> str:
        [output] = engine.generate("x", params(form, **own), **options)
        assert output.finish_reason == "stop" and output.token_ids[-1] == EOS
        return output.text

    for seed in range(4):
        hot = {"temperature": 2.0, "seed": seed}
        assert text({"choice": ["yes", "no", "perhaps"]}, **hot) in ("yes", "no", "perhaps")
        assert re.fullmatch("[ab]{3,5}-[0-9]{2}", text({"regex": "[ab]{3,5}-[0-9]{2}"}, **hot))
        grammar = 'start: "(" (start | WORD) ")"\nWORD: /[xyz]{1,2}/'
        assert re.fullmatch(r"\(+[xyz]{1,2}\)+", text({"grammar": grammar}, logit_bias={40: -6.0}, **hot))


def test_a_limit_cuts_an_answer(engine: Engine) -> None:
    """It is then the beginning of one: also where no answer is as short as the limit."""
    whole = {"choice": ["a rather long text"]}
    for limit in range(1, 8):
        [output] = engine.generate("x", params(whole, max_tokens=limit))
        assert output.finish_reason == "length" and output.text == "a rather long text"[:limit]
    [output] = engine.generate("x", params({"json": {"type": "array", "minItems": 1000}}, max_tokens=9))
    assert output.finish_reason == "length" and output.text.startswith("[")


def test_the_end_of_text_is_where_the_form_ends(engine: Engine) -> None:
    """A bias that wants it at once, min_tokens that forbid it, and a stop string in the middle."""
    pushed = {"logit_bias": {EOS: 100.0}}
    [output] = engine.generate("x", params({"regex": "a{2,9}"}, **pushed))
    assert (output.text, output.finish_reason) == ("aa", "stop")
    [output] = engine.generate("x", params({"regex": "a{2,9}"}, min_tokens=5, **pushed))
    assert (output.text, output.finish_reason) == ("aaaaa", "stop")
    [output] = engine.generate("x", params({"regex": "a{2,4}"}, min_tokens=20, **pushed))
    assert (output.text, output.finish_reason) == ("aaaa", "stop")
    [output] = engine.generate("x", params({"choice": ["one two"]}, stop=" t"))
    assert (output.text, output.finish_reason, output.stop_reason) == ("one", "stop", " t")
    with pytest.raises(RequestError, match="ignore_eos and structured_outputs"):
        params({"regex": "a"}, ignore_eos=True)


def test_forced_text_is_drafted(engine: Engine) -> None:
    """Of a text with one spelling all drafts stand, whatever the draft model says, but one behind its end."""
    [output] = engine.generate(
        "x", params({"choice": ["a text of some length, of which there is one"]}), strategy="sd", gamma=5
    )
    metrics = output.metrics
    assert 0.95 < metrics.acceptance_rate <= 1.0 and metrics.rounds < len(output.token_ids) / 4


def test_log_probabilities_are_the_models_own(engine: Engine) -> None:
    """Before any mask."""
    [output] = engine.generate("x", params({"choice": ["ab"]}, logprobs=2))
    assert output.logprobs is not None and len(output.logprobs) == 3
    assert all(told[token].logprob < 0 for told, token in zip(output.logprobs, output.token_ids, strict=True))
    assert any(told[token].rank > 1 for told, token in zip(output.logprobs, output.token_ids, strict=True))


def test_a_form_that_becomes_too_complex_ends_alone(engine: Engine) -> None:
    grammar = 'start: "a" ("b" | tail)\ntail: "c" tail'
    handle = engine.submit("x", params({"grammar": grammar}, logit_bias={99: 100.0}))
    other = engine.submit("x", SamplingParams(max_tokens=20))
    with pytest.raises(RequestError, match="structured_outputs leaves no token at position"):
        handle.result(60)
    assert len(other.result(60).token_ids) == 20


def test_refused_before_anything_runs(engine: Engine) -> None:
    for call in (engine.generate, engine.submit):
        with pytest.raises(RequestError, match='keywords that are not supported: "not"'):
            call("x", params({"json": {"not": {}}}))
    assert engine.stats()["queue"]["running"] == 0


def test_refused_on_the_kernels() -> None:
    with (
        Pair.make("equal", eos_token_ids=(EOS,), vocab_size=288).engine(device="interpret") as engine,
        pytest.raises(RequestError, match=r"structured_outputs run on the CPU only: .*device='cpu'"),
    ):
        engine.generate([1], params({"regex": "a"}))
