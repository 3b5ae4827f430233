"""Llama pairs whose logits depend on the last token alone, so that a table is the whole model.

The checkpoint is a real one: token t is one axis of the hidden space, attention and MLP add nothing, and the
head has row t of the table for it. Executors run it; the table says what they must find.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tiny_pairs import TINY, Pair, random_tensors

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.reference.noise import Floats

VOCAB = 32
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": VOCAB,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


def logits_behind(token_ids: torch.Tensor, embedding: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """Rows of the table, [T, V] fp32. Exact: of every sum one term is not 0."""
    hidden = embedding[token_ids]
    return (hidden / hidden.square().mean(dim=1, keepdim=True).sqrt()) @ head.T


def table_of(tensors: dict[str, torch.Tensor]) -> Floats:
    """The logits behind each token, [V, V]."""
    embedding, head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    return logits_behind(torch.arange(len(embedding)), embedding, head).numpy()


def _tensors(config: ModelConfig, table: Floats) -> dict[str, torch.Tensor]:
    tensors = random_tensors(config, seed=0)
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.zero_()
    scale = VOCAB**0.5
    tensors["model.embed_tokens.weight"] = scale * torch.eye(VOCAB)
    tensors["lm_head.weight"] = torch.from_numpy(table.T / scale).float()
    return tensors


def table_pair(seed: int, *, reach: float, eos_token_ids: tuple[int, ...] = ()) -> Pair:
    """Logits of the target are evenly spaced from -reach to reach, in another order behind each token: none
    are nearly equal. The draft's are as a rule near to them.
    """
    config = replace(TINY, **SIZES, eos_token_ids=eos_token_ids)
    rng = np.random.default_rng(seed)
    grid = np.linspace(-reach, reach, VOCAB)
    target, other = (np.stack([rng.permutation(grid) for _ in range(VOCAB)]) for _ in range(2))
    return Pair(config, _tensors(config, target), _tensors(config, 0.93 * target + 0.14 * other))
