"""config.json and generation_config.json, mutated: a configuration that is sound, or an error of ours."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from fuzzing import Fuzzer
from mutations import json_bytes, mutated
from tiny_pairs import TINY

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.rope import rope_frequencies
from pearl_rt.checkpoint.shapes import tensor_shapes
from pearl_rt.serve.completion_request import sampling_defaults

LLAMA: dict[str, Any] = replace(TINY, eos_token_ids=(2,), torch_dtype="bfloat16").to_dict()
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 16,
    "mscale": 0.7,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS: tuple[dict[str, Any], ...] = (
    LLAMA,
    LLAMA | {"rope_scaling": LLAMA3, "head_dim": 16},
    LLAMA | {"rope_parameters": YARN | {"rope_theta": 5e5}},
    LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}},
    replace(TINY, model_type="mistral", sliding_window=4096).to_dict(),
    replace(TINY, model_type="qwen2", attention_bias=True).to_dict()
    | {"layer_types": ["full_attention"] * 2},
    replace(TINY, model_type="qwen3", qk_norm=True).to_dict(),
    LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 4, "desc_act": False, "sym": True}},
    LLAMA | {"quantization_config": {"quant_method": "awq", "w_bit": 4, "version": "gemm"}},
    LLAMA | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    LLAMA
    | {
        "compression_config": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "sparsity_config": {},
            "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "actorder": None}}},
        }
    },
)
GENERATION = {
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "do_sample": True,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "max_new_tokens": 100,
}
Files = tuple[bytes, bytes]


def draw(rng: Random) -> Files:
    config, generation = rng.choice(CONFIGS), GENERATION
    files = [json.dumps(config).encode(), json.dumps(generation).encode()]
    place = rng.random() < 0.3
    files[place] = json_bytes(mutated((config, generation)[place], rng), rng)
    return files[0], files[1]


def test_config(fuzzer: Fuzzer, tmp_path: Path) -> None:
    def read(files: Files) -> str:
        for name, data in zip(("config.json", "generation_config.json"), files, strict=True):
            (tmp_path / name).write_bytes(data)
        config = ModelConfig.from_pretrained(tmp_path)
        sampling_defaults(tmp_path)
        assert config.default_max_model_len >= 1 and len(tensor_shapes(config)) > 3
        config.check_max_model_len(min(8, config.default_max_model_len))
        assert ModelConfig.from_dict(config.to_dict()) == config
        if config.head_dim <= 4096:
            frequencies, factor = rope_frequencies(config)
            assert torch.isfinite(frequencies).all() and 0 < factor < float("inf")
        return "read"

    outcomes = fuzzer.run(500, draw, read)
    assert fuzzer.is_alone or {"read", "CheckpointError", "ConfigError"} <= outcomes.keys()
