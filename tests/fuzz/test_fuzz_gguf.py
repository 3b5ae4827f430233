"""Headers of GGUF files, mutated: a model, or an error of ours; in memory of some times the file."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
import torch
from fuzzing import Fuzzer
from gguf_files import Type, byte_vocabulary, write
from mutations import mutated_bytes
from tiny_pairs import TINY, random_tensors

from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.gguf.header import GgufHeader
from pearl_rt.checkpoint.loader import load_tensors
from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.errors import PearlError


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "model.gguf"

    def vocabulary(writer: object) -> None:
        byte_vocabulary(writer)  # type: ignore[arg-type]
        writer.add_token_types([3 if place == 7 else 1 for place in range(257)])  # type: ignore[attr-defined]
        writer.add_bos_token_id(7)  # type: ignore[attr-defined]
        writer.add_eos_token_id(7)  # type: ignore[attr-defined]
        writer.add_chat_template("{{ messages[0].content }}")  # type: ignore[attr-defined]

    write(
        path,
        TINY,
        random_tensors(TINY, 0),
        lambda name: Type.Q8_0 if "mlp" in name else Type.F32,
        vocabulary=vocabulary,
    )
    return path


def marks_of(data: bytes, header: GgufHeader) -> list[int]:
    """Behind each name: the type of a value and its bytes, the dimensions, type and place of a tensor."""
    found = []
    for name in (*header.keys(), *header.tensors):
        at = data.index(len(name.encode()).to_bytes(8, "little") + name.encode())
        end = at + 8 + len(name.encode())
        found += [at, *range(end, end + 28, 4)]
    return found


def test_gguf(fuzzer: Fuzzer, file: Path) -> None:
    good = file.read_bytes()
    header = GgufHeader(file)
    end = min(entry.begin for entry in header.tensors.values())
    marks: Sequence[int] = (*marks_of(good, header), 4, 8, 16)

    def draw(rng: Random) -> bytes:
        return mutated_bytes(good, rng, marks, end)

    def read(data: bytes) -> str:
        file.write_bytes(data)
        try:
            config = ModelConfig.from_pretrained(file)
            tensors = load_tensors(file, config)
            for name in list(tensors)[:3]:
                tensors.read(name, torch.bfloat16)
            Tokenizer.from_pretrained(file)
            ChatTemplate.from_pretrained(file)
        except PearlError as error:
            assert str(file) in str(error)
            raise
        return "read"

    tracemalloc.start()
    outcomes = fuzzer.run(200, draw, read)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * len(good) + 2**20
    assert fuzzer.is_alone or {"read", "CheckpointError"} <= outcomes.keys()
