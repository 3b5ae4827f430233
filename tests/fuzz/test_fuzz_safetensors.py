"""Headers of safetensors files, mutated: every tensor can be read, or an error of ours says why not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from fuzzing import Fuzzer
from mutations import INTEGERS, json_bytes, mutated, mutated_bytes
from tiny_pairs import SMALL, TINY, random_tensors

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.loader import SINGLE, load_tensors, save_checkpoint

CONFIG = replace(TINY, **SMALL)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_checkpoint(path, CONFIG, random_tensors(CONFIG, 0))
    return path


def test_safetensors(fuzzer: Fuzzer, model: Path) -> None:
    data = (model / SINGLE).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    config = ModelConfig.from_pretrained(model)

    def draw(rng: Random) -> bytes:
        if rng.random() < 0.2:
            return mutated_bytes(data, rng, end=8 + length)
        told = json_bytes(mutated(header, rng), rng)
        size = (
            len(told) if rng.random() < 0.9 else rng.choice((*INTEGERS, len(told) + 1, len(told) - 1)) % 2**64
        )
        return (
            size.to_bytes(8, "little")
            + told
            + rest[: rng.choice((len(rest), len(rest), rng.randrange(len(rest))))]
        )

    def read(file: bytes) -> str:
        (model / SINGLE).write_bytes(file)
        tensors = load_tensors(model, config)
        tensors.places()
        for name in tensors:
            assert tensors[name].shape == tuple(header[name]["shape"])
        tensors.check_unchanged()
        return "read"

    outcomes = fuzzer.run(500, draw, read)
    assert fuzzer.is_alone or {"read", "CheckpointError"} <= outcomes.keys()
