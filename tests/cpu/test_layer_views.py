"""Views of packed weights: some layers of a model, and layers of their own, are the model made of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_pairs import TINY, random_tensors

from pearl_rt import PearlError
from pearl_rt.backends.cpu import Model
from pearl_rt.checkpoint.config import ModelConfig

FOUR = replace(TINY, num_hidden_layers=4)
IDS = list(range(40, 111))
FORMS = [("float32", "auto"), ("bfloat16", "auto"), ("bfloat16", "int8"), ("float32", "int4")]


def renumbered(tensors: dict[str, torch.Tensor], layers: list[int]) -> dict[str, torch.Tensor]:
    """The tensors of a model of these layers of another."""
    found = {name: tensor for name, tensor in tensors.items() if ".layers." not in name}
    for place, layer in enumerate(layers):
        old, new = f"model.layers.{layer}.", f"model.layers.{place}."
        found |= {new + n.removeprefix(old): t for n, t in tensors.items() if n.startswith(old)}
    return found


def packed(config: ModelConfig, tensors: dict[str, torch.Tensor], dtype: str, weights: str = "auto") -> Model:
    return Model.pack(config, tensors, dtype=dtype, isa=None, max_model_len=128, weights=weights)


def logits(model: Model) -> np.ndarray:
    return model.executor([0]).forward(0, IDS, 0, len(IDS))


@pytest.mark.parametrize(("dtype", "weights"), FORMS, ids=str)
@pytest.mark.parametrize("layers", [[0], [3, 1], [0, 1, 2, 3], [2, 2, 0]], ids=str)
def test_some_layers(dtype: str, weights: str, layers: list[int]) -> None:
    """Also in another order, and one of them twice."""
    tensors = random_tensors(FOUR, 0)
    config = replace(FOUR, num_hidden_layers=len(layers))
    whole = packed(FOUR, tensors, dtype, weights)
    view = whole.view(config, layers, max_model_len=128)
    want = packed(config, renumbered(tensors, layers), dtype, weights)
    assert view.weights.memory_bytes == 0
    assert view.weights.weight_bytes == want.weights.weight_bytes
    del whole  # what it keeps lives on
    assert np.array_equal(logits(view), logits(want))


@pytest.mark.parametrize("inner", [48, 96, 136])
@pytest.mark.parametrize(("dtype", "weights"), FORMS, ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_a_layer_of_its_own(dtype: str, weights: str, inner: int, tied: bool) -> None:
    """Behind two of four: with an MLP as wide as the others, narrower or wider."""
    target = replace(FOUR, tie_word_embeddings=tied)
    tensors = random_tensors(target, 0)
    config = replace(target, num_hidden_layers=3, intermediate_size=inner)
    other = random_tensors(config, 1)
    other["model.norm.weight"] = other["model.norm.weight"] * 1.5
    own = {name: t for name, t in other.items() if ".layers.2." in name or name == "model.norm.weight"}
    whole = packed(target, tensors, dtype, weights)
    view = whole.view(config, [0, 1], own, max_model_len=128, weights=weights)
    assert 0 < view.weights.memory_bytes < whole.weights.memory_bytes
    # The same model without a view: a narrower MLP with zeros, or the others with zeros.
    wide = max(inner, target.intermediate_size)
    flat = renumbered(tensors, [0, 1]) | own
    for name, tensor in flat.items():
        if ".mlp." in name:
            rows, columns = (0, wide - tensor.shape[1]) if "down" in name else (wide - tensor.shape[0], 0)
            flat[name] = torch.nn.functional.pad(tensor, (0, columns, 0, rows))
    want = packed(replace(config, intermediate_size=wide), flat, dtype, weights)
    assert np.array_equal(logits(view), logits(want))


@pytest.mark.parametrize(
    ("layers", "own", "named"),
    [
        ([4], 0, r"layer 4 is not in \[0, 4\)"),
        ([-1], 0, "layer -1"),
        ([], 0, "num_hidden_layers"),
        ([0], 1, "tensor 'model.layers.1.self_attn.q_proj.weight' is missing"),
        ([0], -1, "layers of its own"),
    ],
    ids=str,
)
def test_views_that_cannot_be(layers: list[int], own: int, named: str) -> None:
    whole = packed(FOUR, random_tensors(FOUR, 0), "float32")
    with pytest.raises(PearlError, match=named):
        whole.view(replace(FOUR, num_hidden_layers=len(layers) + own), layers, max_model_len=128)
    with pytest.raises(ValueError, match=named):
        whole.weights.view(layers, num_own=own)
