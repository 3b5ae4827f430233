"""transformers on the values of a GGUF file writes what the engine writes on them in fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bench_fakes import TINY_SHAPES, planted_tensors

from bench.harness.peers import HuggingFace
from bench.model_pairs.shapes import config_of
from bench.model_pairs.weight_views import hugging_face_file
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.loader import load_tensors
from pearl_rt.engine import Engine
from pearl_rt.types.sampling_params import SamplingParams

gguf = pytest.importorskip("gguf")
pytest.importorskip("transformers")


def test_it_writes_our_tokens_plainly_and_by_lookup(tmp_path: Path) -> None:
    import gguf_files

    path = tmp_path / "model.gguf"
    config = config_of(TINY_SHAPES["target"])
    tensors = planted_tensors(config, 1.0, 3.0, 5)
    values = gguf_files.write(path, config, tensors, lambda _: gguf.GGMLQuantizationType.Q8_0)
    model = hugging_face_file(path)
    own = model.state_dict()
    assert all(
        torch.equal(own[name].float(), value.to(own[name].dtype).float()) for name, value in values.items()
    )
    peer = HuggingFace(model.float(), None, num_threads=2)
    prompt = [3, 14, 15, 92, 65, 3, 14, 15]
    read = ModelConfig.from_pretrained(path)
    with Engine(read, load_tensors(path, read), device="cpu", dtype="float32") as engine:
        params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
        [answer] = engine.generate([prompt], params, strategy="ar")
    programs = peer.programs(4)
    assert [(program.strategy, program.gamma) for program in programs] == [("hf ar", 0), ("hf lookup", 4)]
    for program in programs:
        assert peer.write(program, [prompt], 12, 20) == [answer.token_ids]
