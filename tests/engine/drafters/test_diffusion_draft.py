"""A draft that fills a window in a few passes: the text is that of plain decoding, and what cannot be is
refused by name.
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

from pearl_rt import CheckpointError, ConfigError, Engine, RequestError, SamplingParams
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
KEYS = {"diffusion_mask_token": MASK, "diffusion_passes": 2}


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair.make("half-right")


def engine_of(pair: Pair, mask: int = MASK, passes: int | None = None, **options: Any) -> Engine:
    config = replace(pair.config, diffusion_mask_token=mask, diffusion_passes=passes)
    return Engine(pair.config, pair.target, config, pair.draft, **SHAPE | options)


def texts(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.token_ids for output in outputs]


@pytest.mark.parametrize("passes", [1, None, 16])
def test_every_program_is_ar_to_the_bit(pair: Pair, passes: int | None) -> None:
    with engine_of(pair, passes=passes, judge="coupled") as engine:
        for params in (GREEDY, LOUD, SHAPED):
            want = texts(engine.generate(PROMPTS, params, strategy="ar"))
            for number, (strategy, placement) in enumerate(PROGRAMS):
                program = {"strategy": strategy, "placement": placement, "gamma": (1, 3, 8, 16)[number]}
                got = engine.generate(PROMPTS, params, **program)
                assert texts(got) == want, program
                assert all(output.metrics.sampled.judged > 0 for output in got)
                assert all(output.metrics.looked_up.judged == 0 for output in got)
        assert engine.stats()["drafter"]["kind"] == "diffusion"


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


@pytest.mark.parametrize("strategy", ["sd", "pearl"])
def test_a_seed_is_a_text(pair: Pair, strategy: str) -> None:
    """By rejection the tokens depend on the windows, and these on no neighbour and on nothing before."""
    program = {"strategy": strategy, "gamma": 6, "judge": "rejection"}
    with engine_of(pair, passes=3) as engine:
        together = texts(engine.generate(PROMPTS, SHAPED, **program))
        alone = [texts(engine.generate(prompt, SHAPED, **program))[0] for prompt in reversed(PROMPTS)]
    assert alone[::-1] == together


def test_a_word_that_follows_itself() -> None:
    """The word is the mask: each row of a window says it, and every draft stands."""
    pair, word = table_pair(11, reach=2.0), 5
    table = table_of(pair.target)
    best = int(np.argmax(table[word]))
    table[word, [word, best]] = table[word, [best, word]]
    pair.target["lm_head.weight"] = torch.from_numpy(table.T / VOCAB**0.5).float()
    same = Pair(pair.config, pair.target, dict(pair.target))
    with engine_of(same, word, max_model_len=64, num_threads=1, max_num_seqs=1) as engine:
        [output] = engine.generate([word], SamplingParams(max_tokens=40), strategy="sd", gamma=7)
        assert output.token_ids == [word] * 40 and output.metrics.acceptance_rate == 1.0
        assert output.metrics.rounds == 5
        assert engine.stats()["step_times"]["shared"]["drafts_at_once"]


def test_answers_that_have_a_form(pair: Pair, tmp_path: Path) -> None:
    """Whatever a window has, the answer keeps its form, and what is forced is drafted on top of it."""
    form = {"regex": "(red|green) (apples?|pears) and [a-z]{3,9} then the same again"}
    ends = Pair(replace(pair.config, eos_token_ids=(0,)), pair.target, pair.draft)
    with Engine.from_pretrained(*save(tmp_path, ends, **KEYS), judge="coupled", **SHAPE) as engine:
        for seed in range(4):
            params = SamplingParams(temperature=1.0, seed=seed, max_tokens=60, structured_outputs=form)
            [want] = engine.generate("Say", params, strategy="ar")
            for strategy in ("sd", "pearl"):
                [got] = engine.generate("Say", params, strategy=strategy, gamma=5)
                assert got.token_ids == want.token_ids and got.metrics.judged > 5


def save(path: Path, pair: Pair, **draft: object) -> list[str]:
    """[target, draft] as directories. draft: changes to its config.json."""
    target, own = pair.save(path)
    file = own / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | draft))
    return [str(target), str(own)]


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"diffusion_mask_token": 288}, "diffusion_mask_token 288 is not in the vocabulary, whose ids are 0"),
        ({"diffusion_mask_token": -1}, "diffusion_mask_token must be an integer from 0 on, got -1: give the"),
        ({"diffusion_mask_token": True}, "diffusion_mask_token must be an integer from 0 on, got True"),
        ({"diffusion_mask_token": "287"}, "diffusion_mask_token must be an integer from 0 on, got '287'"),
        ({"diffusion_passes": 0}, "diffusion_passes must be an integer from 1 to 16, got 0: give the passes"),
        ({"diffusion_passes": -3}, "diffusion_passes must be an integer from 1 to 16, got -3"),
        ({"diffusion_passes": 17}, "diffusion_passes must be an integer from 1 to 16, got 17"),
        ({"diffusion_passes": 1.5}, r"diffusion_passes must be an integer from 1 to 16, got 1\.5"),
        ({"diffusion_mask_token": None}, "diffusion_passes 2 wants a diffusion_mask_token"),
        (
            {"pard_token": 3},
            "pard_token 3 fills windows in one pass, and diffusion_mask_token 287 in several",
        ),
    ],
    ids=str,
)
def test_keys_that_cannot_be(pair: Pair, tmp_path: Path, keys: dict[str, object], named: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {named}"):
        Engine.from_pretrained(*save(tmp_path, pair, **KEYS | keys))


def test_a_config_keeps_its_masks() -> None:
    config = replace(TINY, diffusion_mask_token=3, diffusion_passes=4)
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert ModelConfig.from_dict(TINY.to_dict() | {"diffusion_mask_token": 3}).diffusion_passes is None
    assert not {"diffusion_mask_token", "diffusion_passes"} & TINY.to_dict().keys()
    assert config.without_masks() == TINY
    for passes in (0, 17):
        with pytest.raises(CheckpointError, match=f"diffusion_passes {passes} wants"):
            replace(config, diffusion_passes=passes)


def test_where_it_cannot_run(pair: Pair, tmp_path: Path) -> None:
    paths = save(tmp_path, pair, **KEYS)
    named = r"'diffusion' .*a diffusion_mask_token.*CPU only so far.*'interpret': pass draft_parallel=False"
    with pytest.raises(ConfigError, match=named):
        Engine.from_pretrained(*paths, device="interpret")
    with pytest.raises(ConfigError, match="drafter 'lookup' was asked for, and a draft model was given"):
        Engine.from_pretrained(*paths, drafter="lookup")
    named = "draft_stop 'adaedl' ends windows that are drafted from their front, and a draft 'diffusion'"
    with pytest.raises(ConfigError, match=named):
        Engine.from_pretrained(*paths, draft_stop="adaedl")
    with Engine.from_pretrained(*paths, **SHAPE) as engine, pytest.raises(RequestError, match=named):
        engine.generate("a", SamplingParams(draft_stop="adaedl"))


def test_a_draft_of_other_tokens(pair: Pair) -> None:
    config = replace(TINY, vocab_size=300, diffusion_mask_token=299)
    draft = {name: tensor for name, tensor in pair.draft.items() if "layers" in name or "norm" in name}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        draft[name] = torch.randn(300, TINY.hidden_size)
    with pytest.raises(ConfigError, match="the draft has a vocabulary of 300, the target one of 288"):
        Engine(pair.config, pair.target, config, draft, **SHAPE)


def test_the_command_line_turns_it_off(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A draft whose vocabulary has one id more than the target's, which is the mask."""
    wider = dict(pair.draft)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        wider[name] = torch.cat((wider[name], torch.randn(1, TINY.hidden_size)))
    target, draft = pair.save(tmp_path)
    save_checkpoint(draft, replace(TINY, vocab_size=289, diffusion_mask_token=288), wider)
    byte_tokenizer().save(str(draft / "tokenizer.json"))
    asked = ["generate", "--target", str(target), "--prompt", "abcd", "--max-tokens", "12", "--stats"]
    asked += ["--max-model-len", "64", "--threads", "1", "--strategy", "sd", "--gamma", "4"]
    said = {}
    for name, own in (("diffusion", []), ("model", ["--no-draft-parallel"])):
        assert main([*asked, "--draft", str(draft), *own]) == 0
        found = capsys.readouterr()
        assert f'"kind": "{name}"' in found.err
        said[name] = found.out
    assert said["diffusion"] == said["model"]
