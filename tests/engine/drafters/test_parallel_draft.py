"""A draft that fills a window in one pass, by a mask token: the text is that of plain decoding, and what
cannot be is refused by name.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from table_pairs import VOCAB, table_of, table_pair
from tiny_pairs import TINY, Pair, byte_tokenizer

from pearl_rt import CheckpointError, ConfigError, Engine, SamplingParams
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.loader import save_checkpoint
from pearl_rt.cli.commands import main
from pearl_rt.types.outputs import RequestOutput

MASK = 287
PROMPTS = [[7], [3, 1, 4, 1, 5, 9, 2, 6], list(range(40, 103)), [5] * 20]  # of 1, 8, 63 and 20 tokens
GREEDY, LOUD = SamplingParams(max_tokens=24), SamplingParams(temperature=1.0, max_tokens=24, seed=3)
SHAPED = SamplingParams(
    temperature=0.9,
    max_tokens=24,
    seed=5,
    top_k=12,
    top_p=0.95,
    repetition_penalty=1.3,
    presence_penalty=0.4,
    min_tokens=4,
    logit_bias={9: 2.0},
)
SHAPE: dict[str, Any] = {"max_model_len": 128, "num_threads": 2, "max_num_seqs": 4}
PROGRAMS = [("sd", "shared"), ("sd", "split"), ("pearl", "shared"), ("pearl", "split")]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair.make("half-right")


def engine_of(pair: Pair, pard_token: int = MASK, **options: Any) -> Engine:
    config = replace(pair.config, pard_token=pard_token)
    return Engine(pair.config, pair.target, config, pair.draft, **SHAPE | options)


def texts(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.token_ids for output in outputs]


@pytest.mark.parametrize("stop", ["none", "confidence:0.3", "marginal"])
def test_every_program_is_ar_to_the_bit(pair: Pair, stop: str) -> None:
    with engine_of(pair, judge="coupled", draft_stop=stop) as engine:
        for params in (GREEDY, LOUD, SHAPED):
            want = texts(engine.generate(PROMPTS, params, strategy="ar"))
            for number, (strategy, placement) in enumerate(PROGRAMS):
                program = {"strategy": strategy, "placement": placement, "gamma": (1, 3, 8, 16)[number]}
                got = engine.generate(PROMPTS, params, **program)
                assert texts(got) == want, program
        assert engine.stats()["drafter"]["kind"] == "parallel"


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_with_rounded_weights(pair: Pair, weights: str) -> None:
    rounded = {"weights": weights, "draft_weights": weights, "dtype": "bfloat16"}
    with engine_of(pair, judge="coupled", **rounded) as engine:
        want = texts(engine.generate(PROMPTS, LOUD, strategy="ar"))
        assert texts(engine.generate(PROMPTS, LOUD, strategy="pearl", gamma=5)) == want


def test_arrivals(pair: Pair) -> None:
    """Requests that come at any time, with windows that follow how many run, and prompts that begin alike."""
    rng = random.Random(4)
    with engine_of(pair, judge="coupled") as several, engine_of(pair, max_num_seqs=1) as alone:
        asked = []
        for number in range(60):
            prompt = [*range(50, 50 + rng.choice([1, 2, 17, 63])), number]
            params = replace(rng.choice([GREEDY, LOUD, SHAPED]), min_tokens=0, seed=number)
            params = replace(params, max_tokens=rng.choice([1, 2, 9, 30]))
            strategy, gamma = rng.choice(["ar", "sd", "pearl", None, None]), rng.choice([None, 1, 3, 8])
            asked.append((prompt, params, several.submit(prompt, params, strategy=strategy, gamma=gamma)))
            if rng.random() < 0.3:  # until some request has got on
                next(iter(rng.choice(asked)[2]), None)
        for prompt, params, handle in asked:
            [want] = alone.generate(prompt, params, strategy="ar", judge="coupled")
            assert handle.result(60).token_ids == want.token_ids, (prompt, params)


def test_a_seed_is_a_text(pair: Pair) -> None:
    """By rejection the tokens depend on the windows, and these on no neighbour and on nothing before."""
    program = {"strategy": "sd", "gamma": 6, "judge": "rejection"}
    with engine_of(pair) as engine:
        together = texts(engine.generate(PROMPTS, SHAPED, **program))
        alone = [texts(engine.generate(prompt, SHAPED, **program))[0] for prompt in reversed(PROMPTS)]
    assert alone[::-1] == together


@pytest.fixture
def one_word() -> tuple[Pair, int]:
    """A target that says one word again and again, by a table, and that word."""
    pair = table_pair(11, reach=2.0)
    word = 5
    table = table_of(pair.target)
    best = int(np.argmax(table[word]))
    table[word, [word, best]] = table[word, [best, word]]
    head = torch.from_numpy(table.T / VOCAB**0.5).float()
    pair.target["lm_head.weight"] = head
    return Pair(pair.config, pair.target, dict(pair.target)), word


def test_one_pass_fills_a_window(one_word: tuple[Pair, int]) -> None:
    """The word is the mask: each row of a window says it, and every draft stands."""
    pair, word = one_word
    shape = {"max_model_len": 64, "num_threads": 1, "max_num_seqs": 1}
    with engine_of(pair, word, **shape) as engine, pair.engine(**shape) as by_token:
        params = SamplingParams(max_tokens=40)
        found = {}
        for name, own in (("parallel", engine), ("model", by_token)):
            [output] = own.generate([word], params, strategy="sd", gamma=7)
            assert output.token_ids == [word] * 40 and output.metrics.acceptance_rate == 1.0
            found[name] = output.metrics.rounds
            assert own.stats()["drafter"]["kind"] == name
        assert found["parallel"] == found["model"] == 5
        times = engine.stats()["step_times"]["shared"]
        assert times["drafts_at_once"] and not by_token.stats()["step_times"]["shared"]["drafts_at_once"]


def test_a_target_that_is_its_own_parallel_draft(one_word: tuple[Pair, int]) -> None:
    """SDSAT, arXiv 2403.18647: the mask is the target's, and no layer is left out."""
    pair, word = one_word
    config = replace(pair.config, pard_token=word)
    shape = {"max_model_len": 64, "num_threads": 1, "max_num_seqs": 2}
    with Engine(config, pair.target, drafter="self", judge="coupled", **shape) as engine:
        [output] = engine.generate([word], SamplingParams(max_tokens=40), strategy="sd", gamma=7)
        assert output.token_ids == [word] * 40 and output.metrics.rounds == 5
        want = texts(engine.generate([[3], [9, 2]], LOUD, strategy="ar"))
        assert texts(engine.generate([[3], [9, 2]], LOUD, strategy="pearl", gamma=4)) == want
        assert engine.stats()["drafter"] | {"shared_layers": (0,)} == engine.stats()["drafter"]
    with pytest.raises(ConfigError, match="none are known for this target"):
        Engine(config, pair.target, drafter="self", draft_parallel=False, **shape)


def save(path: Path, pair: Pair, **draft: object) -> list[str]:
    """[target, draft] as directories. draft: changes to its config.json."""
    target, own = pair.save(path)
    file = own / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | draft))
    return [str(target), str(own)]


@pytest.mark.parametrize(
    ("token", "named"),
    [
        (288, "pard_token 288 is not in the vocabulary, whose ids are 0 to 287: give the mask token"),
        (-1, "pard_token must be an integer from 0 on, got -1: give the id of the mask token, or leave"),
        (True, "pard_token must be an integer from 0 on, got True"),
        ("287", "pard_token must be an integer from 0 on, got '287'"),
        (1.5, "pard_token must be an integer from 0 on, got 1.5"),
        ([287], r"pard_token must be an integer from 0 on, got \[287\]"),
        (2**40, "pard_token must be an integer from 0 on"),
    ],
    ids=str,
)
def test_tokens_that_are_no_mask(pair: Pair, tmp_path: Path, token: object, named: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {named}"):
        Engine.from_pretrained(*save(tmp_path, pair, pard_token=token))


def test_a_config_keeps_its_mask() -> None:
    config = replace(TINY, pard_token=3)
    assert ModelConfig.from_dict(config.to_dict()).pard_token == 3
    assert "pard_token" not in TINY.to_dict()
    assert ModelConfig.from_dict(TINY.to_dict() | {"pard_token": None}).pard_token is None


def test_where_it_cannot_run(pair: Pair, tmp_path: Path) -> None:
    paths = save(tmp_path, pair, pard_token=MASK)
    with pytest.raises(ConfigError, match="drafter 'lookup' was asked for, and a draft model was given"):
        Engine.from_pretrained(*paths, drafter="lookup")
    with pytest.raises(ConfigError, match="draft_parallel"):
        Engine.from_pretrained(*paths, draft_parallel="no")


def test_the_command_line_turns_it_off(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A draft whose vocabulary has one id more than the target's, which is the mask."""
    wider = dict(pair.draft)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        wider[name] = torch.cat((wider[name], torch.randn(1, TINY.hidden_size)))
    target, draft = pair.save(tmp_path)
    save_checkpoint(draft, replace(TINY, vocab_size=289, pard_token=288), wider)
    byte_tokenizer().save(str(draft / "tokenizer.json"))
    asked = ["generate", "--target", str(target), "--prompt", "abcd", "--max-tokens", "12", "--stats"]
    asked += ["--max-model-len", "64", "--threads", "1", "--strategy", "sd", "--gamma", "4"]
    said = {}
    for name, own in (("parallel", []), ("model", ["--no-draft-parallel"])):
        assert main([*asked, "--draft", str(draft), *own]) == 0
        found = capsys.readouterr()
        assert f'"kind": "{name}"' in found.err
        said[name] = found.out
    assert said["parallel"] == said["model"]
