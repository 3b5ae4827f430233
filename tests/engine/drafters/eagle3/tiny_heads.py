"""Tiny EAGLE-3 heads: random ones, and planted ones that often draft what their planted target says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tiny_pairs import TINY, random_tensors

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.rope import rope_tables
from pearl_rt.checkpoint.views.eagle3 import OFFSETS, Eagle3Config, check_eagle3, eagle3_shapes
from pearl_rt.reference.drafters.eagle3 import EagleHead

Tensors = dict[str, torch.Tensor]
VOCAB, IDS = 48, 40
TARGET = replace(TINY, num_hidden_layers=4, vocab_size=VOCAB)
LAYER = replace(TINY, num_hidden_layers=1, vocab_size=VOCAB, num_key_value_heads=1, head_dim=8)
HEAD = Eagle3Config(LAYER, draft_vocab_size=IDS, target_hidden_size=TINY.hidden_size, taps=(1, 2, 4))


def random_head(config: Eagle3Config, seed: int, *, has_embedding: bool = False) -> Tensors:
    """Of random weights, for random ids of its target."""
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for name, shape in eagle3_shapes(config, has_embedding=has_embedding).items():
        if len(shape) == 1:
            tensors[name] = 1 + 0.3 * torch.randn(shape, generator=generator)
        else:
            spread = 1.0 if "embed" in name else 1.5 / shape[-1] ** 0.5
            tensors[name] = torch.randn(shape, generator=generator) * spread
    order = torch.randperm(config.layer.vocab_size, generator=generator)[: config.draft_vocab_size]
    tensors[OFFSETS] = order.sort().values - torch.arange(config.draft_vocab_size)
    return tensors


def definition(
    tensors: Tensors, config: Eagle3Config, target: ModelConfig, target_tensors: Tensors
) -> EagleHead:
    """The head as pearl_rt/reference/drafters/eagle3.py has it."""
    embedding = {"model.embed_tokens.weight": target_tensors["model.embed_tokens.weight"]}
    cos, sin = rope_tables(config.layer, 640)
    return EagleHead(
        {name: t.float().numpy() for name, t in (embedding | tensors).items() if name != OFFSETS},
        config.layer.num_attention_heads,
        config.layer.num_key_value_heads,
        config.layer.rms_norm_eps,
        cos.numpy(),
        sin.numpy(),
        check_eagle3(tensors, config, target, "the draft"),
        config.num_norms,
        config.norm_before_residual,
        config.norm_output,
        config.layer.default_max_model_len,
    )


def following(seed: int) -> list[int]:
    """The token that mostly follows each one: one cycle through all of them."""
    order = np.random.default_rng(seed).permutation(VOCAB)
    after = [0] * VOCAB
    for place, token in enumerate(order):
        after[token] = int(order[(place + 1) % VOCAB])
    return after


def chosen(rows: Sequence[int], columns: Sequence[int], shape: tuple[int, int]) -> torch.Tensor:
    """A matrix of zeros, but for ones at these places."""
    matrix = torch.zeros(shape)
    matrix[list(rows), list(columns)] = 1
    return matrix


def planted_target(seed: int = 0) -> Tensors:
    """A token is one axis of the hidden space, and what follows it mostly, likely. Layers add a little."""
    tensors = random_tensors(TARGET, seed)
    hidden, generator = TARGET.hidden_size, torch.Generator().manual_seed(seed)
    for name in tensors:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] = 0.1 * tensors[name]
    tensors["model.embed_tokens.weight"] = 8 * torch.eye(VOCAB, hidden)
    noise = 0.15 * torch.randn((VOCAB, hidden), generator=generator)
    tensors["lm_head.weight"] = 0.6 * chosen(following(seed), range(VOCAB), (VOCAB, hidden)) + noise
    return tensors


def planted_head(seed: int = 0, **changes: Any) -> tuple[Eagle3Config, Tensors]:
    """fc has, of the first tap, the token behind the one of its place, and the layer the token behind that,
    for three tokens of four: so a row is right where its feature is of its place.
    """
    config = replace(HEAD, **changes)
    hidden, inner = TARGET.hidden_size, config.layer.intermediate_size
    after = following(seed)
    wrong = [after[token] if token % 4 else token for token in range(VOCAB)]
    tensors = random_head(config, seed)
    ids = (tensors[OFFSETS] + torch.arange(IDS)).tolist()
    step = chosen(after, range(VOCAB), (hidden, hidden))
    fuse = torch.zeros((hidden, config.tap_size))
    fuse[:, :hidden] = chosen(wrong, range(VOCAB), (hidden, hidden))
    layer = "model.layers.0."
    for name in [name for name in tensors if name.endswith("norm.weight")]:
        tensors[name] = torch.ones_like(tensors[name])
    up, down = torch.zeros((inner, hidden)), torch.zeros((hidden, inner))
    up[:hidden], down[:, :hidden] = step, torch.eye(hidden)
    return config, tensors | {
        "fc.weight": fuse,
        f"{layer}self_attn.o_proj.weight": 0.1 * tensors[f"{layer}self_attn.o_proj.weight"],
        f"{layer}mlp.gate_proj.weight": torch.ones((inner, hidden)),
        f"{layer}mlp.up_proj.weight": up,
        f"{layer}mlp.down_proj.weight": down,
        "lm_head.weight": 0.6 * chosen(range(IDS), ids, (IDS, hidden)) + 0.05 * tensors["lm_head.weight"],
    }
