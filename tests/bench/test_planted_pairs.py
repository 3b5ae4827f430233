"""Planted pairs that agree as asked, and prompts from files. No engine runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_fakes import TINY_SHAPES, planted_tensors

from bench.model_pairs import planted as pairs
from bench.model_pairs import planting
from bench.model_pairs.prompts import read_prompts
from bench.model_pairs.shapes import SHAPES, config_of, shape_named
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.shapes import tensor_shapes
from pearl_rt.errors import ConfigError, RequestError
from recipes.train.model.llama import LlamaForCausalLM

# name -> millions of parameters as published (with an untied head where the published one is tied)
PUBLISHED = {"68m": 68.0, "88m": 88.1, "1.1b": 1100.0, "7b": 6738.4, "8b": 8030.3, "13b": 13015.9}


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_have_the_published_size(name: str) -> None:
    shapes = tensor_shapes(config_of(shape_named(name))).values()
    num_params = sum(int(np.prod(shape)) for shape in shapes)
    assert num_params / 1e6 == pytest.approx(PUBLISHED[name], rel=0.002)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("88m+8m@0.8", "planted:TARGET"),
        ("planted:88m@0.8", "planted:TARGET"),
        ("planted:88m+9m@0.8", "there are 8m"),
        ("planted:88m+8m@1.0", "0.05 to 0.98"),
    ],
)
def test_bad_pairs_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        pairs.PairSpec.parse(text)


def torch_predict(
    config: ModelConfig, tensors: pairs.Tensors, sequences: list[list[int]]
) -> list[np.ndarray]:
    """pairs.Predict by the torch model in fp32."""
    model = LlamaForCausalLM(config)
    model.load_state_dict({name: t.float() for name, t in tensors.items()})
    with torch.no_grad():
        return list(model(torch.tensor(sequences)).argmax(-1).numpy())


@pytest.fixture(scope="module")
def tiny_pair() -> pairs.PlantedPair:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "88m", TINY_SHAPES["target"])
        patch.setitem(SHAPES, "8m", TINY_SHAPES["draft"])
        patch.setattr(planting, "POOL_SIZE", (1 << 20) + 7)
        return pairs.make_pair(pairs.PairSpec.parse("planted:88m+8m@0.7"), torch_predict, flops=2e10)


def test_planted_pair_agrees_as_asked(tiny_pair: pairs.PlantedPair) -> None:
    """Both texts are samples: 4 standard errors of their difference (false alarm 1 in 16,000; fixed seed)."""
    assert tiny_pair.rule_kept > 0.99
    assert abs(tiny_pair.alpha - 0.7) < 4 * 1.5 * tiny_pair.alpha_error


def test_planted_misses_come_independently(tiny_pair: pairs.PlantedPair) -> None:
    """Lag-one correlation of agreement within 4 / sqrt(n), and no sequence an outlier (fixed seed)."""
    pair = tiny_pair
    scoring = pairs.Scoring(pair.successor, torch_predict, 1e12)
    hits = scoring.hits(pair.configs[1], pair.tensors[1], seed=5)
    centred = hits - hits.mean()
    assert abs((centred[:, 1:] * centred[:, :-1]).mean() / (centred**2).mean()) < 4 / np.sqrt(hits.size)
    assert hits.mean(axis=1).std() < 2 * np.sqrt(hits.mean() * (1 - hits.mean()) / hits.shape[1])


def test_planted_text_never_loops(tiny_pair: pairs.PlantedPair) -> None:
    """The target keeps to the rule, and the rule's walk has no id twice."""
    (walk,) = pairs.walks(tiny_pair.successor, 1, seed=3)
    greedy = torch_predict(tiny_pair.configs[0], tiny_pair.tensors[0], [walk])[0]
    text = greedy[pairs.PROMPT_LEN - 1 :]
    assert np.mean(text[:-1] == walk[pairs.PROMPT_LEN :]) > 0.99
    assert len(set(text.tolist())) > 0.99 * len(text)


def test_planting_is_deterministic() -> None:
    config = config_of(TINY_SHAPES["draft"])
    first, again, other = (planted_tensors(config, 2.0, 3.0, seed) for seed in (4, 4, 5))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    layers = [first[f"model.layers.{i}.mlp.up_proj.weight"] for i in (0, 1)]
    assert not torch.equal(*layers)


def test_successor_is_one_cycle() -> None:
    successor, seen, token = planting.successor_cycle(512, 0), set(), 0
    while token not in seen:
        seen.add(token)
        token = int(successor[token])
    assert len(seen) == 512


def test_agreement_formula_inverts() -> None:
    assert planting.agreement_of_ratio(9.0, 8192) > 0.9999
    assert planting.agreement_of_ratio(planting.ratio_of_agreement(0.8, 8192), 8192) == pytest.approx(
        0.8, abs=1e-3
    )


# prompts


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "def f():\n    pass\n", ["def f():\n    pass"]),
        ("a.txt", "one\n---\ntwo\nlines\n", ["one", "two\nlines"]),
        ("humaneval.jsonl", json.dumps({"task_id": "HumanEval/0", "prompt": "def f():\n"}), ["def f():"]),
        ("gsm8k.jsonl", json.dumps({"question": "2+2?", "answer": "4"}), ["Question: 2+2?\n\nAnswer:"]),
        ("mt_bench.jsonl", json.dumps({"question_id": 81, "turns": ["Write.", "Again."]}), ["Write."]),
    ],
    ids=["text", "text-two", "humaneval", "gsm8k", "mt-bench"],
)
def test_prompts_are_read(tmp_path: Path, name: str, content: str, expected: list[str]) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert read_prompts(path) == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"text": "a"}', "a.jsonl:1 has none of the fields prompt, question, turns.*it has text"),
        ('{"prompt": "a"}\n{"prompt": ', "a.jsonl:2 is not JSON"),
        ("[1]", "JSON list"),
        ('{"prompt": "  "}', "holds no prompt"),
        ('{"turns": []}', "holds no prompt"),
        ("\n", "holds no prompts"),
    ],
)
def test_bad_prompts_say_where_and_what(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(RequestError, match=reason):
        read_prompts(path)
