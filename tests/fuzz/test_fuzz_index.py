"""The index of a checkpoint in several files, mutated: all tensors are found, or an error of ours tells."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from fuzzing import Fuzzer
from mutations import json_bytes, mutated
from safetensors.torch import save_file
from tiny_pairs import SMALL, TINY, random_tensors

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.loader import INDEX, load_tensors

CONFIG = replace(TINY, **SMALL)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, tensors = tmp_path_factory.mktemp("model"), random_tensors(CONFIG, 0)
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, path / f"model-{number}.safetensors")
    (path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    (path / "folder.safetensors").mkdir()
    return path


def test_index(fuzzer: Fuzzer, model: Path) -> None:
    names = sorted(random_tensors(CONFIG, 0))
    files = {name: f"model-{place % 2}.safetensors" for place, name in enumerate(names)}
    index = {"metadata": {"total_size": 1234}, "weight_map": files}
    config = ModelConfig.from_pretrained(model)

    def draw(rng: Random) -> bytes:
        changed = mutated(index, rng)
        if rng.random() < 0.2 and isinstance(changed, dict) and isinstance(changed.get("weight_map"), dict):
            odd = rng.choice(
                ("folder.safetensors", ".", "..", "/etc/passwd", "config.json", "a\x00b", "é" * 200)
            )
            changed["weight_map"][rng.choice(names)] = odd
        return json_bytes(changed, rng)

    def read(file: bytes) -> str:
        (model / INDEX).write_bytes(file)
        tensors = load_tensors(model, config)
        assert sorted(tensors) == names
        for name in tensors:
            assert tensors[name].numel()
        return "read"

    outcomes = fuzzer.run(500, draw, read)
    assert fuzzer.is_alone or {"read", "CheckpointError"} <= outcomes.keys()
