"""Model shapes by name: the pair that ships, and what a draft of another target may look like."""

from __future__ import annotations

from dataclasses import replace

import torch

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.errors import RequestError
from pearl_rt.kernels.base.shapes import MODELS
from recipes.train.model.llama import LlamaForCausalLM

HEAD_DIM = 64
# name -> hidden, intermediate, layers, heads, KV heads
SIZES = {
    "13m": (384, 1024, 7, 6, 2),
    "6m": (384, 1024, 3, 6, 2),
    "3m": (256, 768, 2, 4, 2),
    "2m": (192, 512, 3, 3, 1),
    "tiny": (64, 128, 2, 1, 1),
    "30m": (512, 1408, 9, 8, 4),
}
SIZES |= {  # shapes that kernels and benchmarks know too; their heads are 64 wide as well
    name: (model.hidden, model.intermediate, model.layers, model.heads, model.kv_heads)
    for name, model in MODELS.items()
    if name in ("88m", "135m")
}


def sized_config(name: str, vocab_size: int, eos_id: int, max_position_embeddings: int = 2048) -> ModelConfig:
    """A Llama of the given size, with a tied head. Up to 30m, names count parameters at 4096 tokens."""
    if name not in SIZES:
        raise RequestError(f"--size {name!r} is not known: give one of {', '.join(SIZES)}")
    hidden, intermediate, layers, heads, kv_heads = SIZES[name]
    return ModelConfig(
        model_type="llama",
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=HEAD_DIM,
        rms_norm_eps=1e-5,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=True,
        eos_token_ids=(eos_id,),
    )


def draft_config(name: str, target: ModelConfig) -> ModelConfig:
    """A draft that fits `target`: its vocabulary, its special tokens, its longest sequence."""
    eos_id = target.eos_token_ids[0] if target.eos_token_ids else 0
    config = sized_config(name, target.vocab_size, eos_id, target.max_position_embeddings)
    return replace(config, eos_token_ids=target.eos_token_ids, bos_token_id=target.bos_token_id)


def new_model(config: ModelConfig, device: torch.device, seed: int = 0) -> LlamaForCausalLM:
    """Random weights, the same ones for a seed on every device."""
    model = LlamaForCausalLM(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model.to(device)
