"""Engines of weights of 8 and 4 bits on the kernels: every strategy writes the tokens of ar."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import Type, write
from tiny_pairs import SMALL, TINY, Pair, random_tensors

from pearl_rt import CheckpointError, Engine, SamplingParams
from pearl_rt.checkpoint.loader import load_tensors
from pearl_rt.checkpoint.shapes import HEADS
from pearl_rt.device.model import DeviceModel
from pearl_rt.lowlevel.pair import DevicePair
from pearl_rt.model.coded_matrix import CodedMatrix
from pearl_rt.model.llama import LlamaWeights
from pearl_rt.reference.groups import Groups

PROMPT = [7, 3]
PROGRAMS: list[dict[str, Any]] = [{"strategy": "sd", "gamma": 2}, {"strategy": "pearl", "gamma": 1}]
OPTIONS: dict[str, Any] = {"device": "interpret", "placement": "shared", "judge": "coupled"}
SAMPLED = SamplingParams(max_tokens=4, temperature=1.0, seed=3)


def tokens(engine: Engine, **program: Any) -> list[int]:
    [output] = engine.generate(PROMPT, SAMPLED, **program)
    return output.token_ids


def packed(model: object) -> LlamaWeights:
    assert isinstance(model, DeviceModel)
    return model.weights


def check_programs(engine: Engine) -> None:
    expected = tokens(engine, strategy="ar")
    for program in PROGRAMS:
        assert tokens(engine, **program) == expected, program


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_every_program_is_ar(weights: str) -> None:
    """The draft in 4 bits. K is less than a unit, and rows of 16 end within a group."""
    pair = Pair.make("half-right", **SMALL)
    with pair.engine(weights=weights, draft_weights="int4", **OPTIONS) as engine:
        check_programs(engine)
        assert engine.stats()["weights"] == {"target": weights, "draft": "int4"}


@pytest.mark.slow
def test_rounded_weights_are_those_of_the_rounded_model() -> None:
    """The tokens of an engine of the values that codes stand for: another order of the same sums."""
    pair = Pair.make("equal", **SMALL)
    values = dict(pair.target)
    for name, tensor in pair.target.items():
        if tensor.dim() == 2:
            rounded = Groups.quantize(tensor.numpy(), 8 if name in HEADS else 4)
            values[name] = torch.from_numpy(rounded.dequantize())
    found = []
    for tensors, weights in ((pair.target, "int4"), (values, "auto")):
        with Engine(pair.config, tensors, weights=weights, drafter="none", **OPTIONS) as engine:
            found.append(tokens(engine))
            assert isinstance(packed(engine.target).lm_head, CodedMatrix) == (weights == "int4")
    assert found[0] == found[1]


def next_of(turn: Iterator[str], _: str) -> Type:
    return Type[next(turn)]


@pytest.mark.slow
def test_a_file_and_a_draft_of_other_types(tmp_path: Path) -> None:
    """GGUF: codes of both models stay codes."""
    config = replace(TINY, num_hidden_layers=1, num_key_value_heads=1, num_attention_heads=2, vocab_size=257)
    config = replace(config, hidden_size=32, intermediate_size=64, max_position_embeddings=24)
    for name, kinds in (("target", ("Q8_0", "Q4_1", "Q5_1")), ("draft", ("Q4_0",))):
        turn = cycle(kinds)
        write(tmp_path / f"{name}.gguf", config, random_tensors(config, 0), partial(next_of, turn))
    with Engine.from_pretrained(tmp_path / "target.gguf", tmp_path / "draft.gguf", **OPTIONS) as engine:
        check_programs(engine)
        for model in (engine.target, engine.draft):
            weights = packed(model)
            assert all(isinstance(m, CodedMatrix) for m in (weights.lm_head, weights.layers[0].qkv_proj))
    pair = DevicePair.from_pretrained(
        tmp_path / "target.gguf", device="cpu", max_model_len=16, weights="int4"
    )
    narrow = pair.target_steps.model.weights.layers[0].o_proj
    assert isinstance(narrow, CodedMatrix) and narrow.codes.dtype == torch.uint8


def test_damage_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    config = replace(TINY, num_hidden_layers=1, vocab_size=257)
    write(tmp_path / "model.gguf", config, random_tensors(config, 0), lambda _: Type.Q8_0)
    raw = bytearray((tmp_path / "model.gguf").read_bytes())
    stored: Any = load_tensors(tmp_path / "model.gguf", config)._stored["model.layers.0.mlp.up_proj.weight"]
    values = stored.groups()
    at = raw.index(values.scales[0, :1].tobytes() + values.codes[0, :32].tobytes())
    raw[at : at + 2] = b"\x00\x7e"  # NaN
    (tmp_path / "model.gguf").write_bytes(raw)
    with pytest.raises(
        CheckpointError, match=r"'blk\.0\.ffn_up\.weight' has a scale that is NaN or infinite"
    ):
        Engine.from_pretrained(tmp_path / "model.gguf", **OPTIONS)
    pair = Pair.make("equal", **SMALL)
    broken = pair.target | {"lm_head.weight": pair.target["lm_head.weight"] * torch.inf}
    with pytest.raises(CheckpointError, match=r"'lm_head\.weight' has weights that are NaN, infinite"):
        Engine(pair.config, broken, weights="int8", drafter="none", **OPTIONS)
