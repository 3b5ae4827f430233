"""The trainable Llama against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.shapes import tensor_shapes
from recipes.train.model.llama import KVCache, LlamaForCausalLM

transformers = pytest.importorskip("transformers")


TINY = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILY = {
    "llama-mha": ("Llama", {"num_key_value_heads": 6, "tie_word_embeddings": False}),
    "llama-gqa-tied": ("Llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama-llama3-rope": ("Llama", {"num_key_value_heads": 2, "rope_scaling": LLAMA3}),
    "llama-head-dim-12": ("Llama", {"num_key_value_heads": 1, "head_dim": 12}),
    "mistral": ("Mistral", {"num_key_value_heads": 2, "sliding_window": None}),
    "qwen2-bias-tied": ("Qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen3-qk-norm": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 16}),
}


@pytest.fixture(params=FAMILY, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path: Path):
    """A random checkpoint of transformers, no tensor at its default, and ours with the same weights."""
    kind, options = FAMILY[request.param]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**(TINY | options))
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for parameter in theirs.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    ours = LlamaForCausalLM(ModelConfig.from_pretrained(tmp_path)).eval()
    tied = {"lm_head.weight"} if ours.config.tie_word_embeddings else set()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k not in tied})
    return ours, theirs


def test_logits_and_gradients_are_those_of_transformers(pair) -> None:
    ours, theirs = pair
    token_ids = torch.randint(97, (2, 100))
    logits, expected = ours(token_ids), theirs(token_ids).logits
    assert (logits - expected).norm() <= 1e-5 * expected.norm()
    weights = torch.randn_like(expected)
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    for name, parameter in theirs.named_parameters():
        gradient = dict(ours.named_parameters())[name].grad
        assert (gradient - parameter.grad).norm() <= 1e-4 * parameter.grad.norm() + 1e-5, name


def test_tensor_shapes_are_those_of_the_state_dict(pair) -> None:
    ours, theirs = pair
    shapes = tensor_shapes(ours.config)
    assert shapes == {k: tuple(v.shape) for k, v in ours.state_dict().items()}
    tied = {"lm_head.weight"} if ours.config.tie_word_embeddings else set()
    assert set(shapes) == set(theirs.state_dict()) - tied


def test_a_cache_changes_nothing(pair) -> None:
    ours, _ = pair
    token_ids = torch.randint(97, (2, 20))
    cache = KVCache.empty(ours.config, 2, 20, ours.head_weight)
    with torch.no_grad():
        parts = [ours(token_ids[:, a:b], cache) for a, b in ((0, 7), (7, 8), (8, 14), (14, 15), (15, 20))]
        expected = ours(token_ids)
    assert (torch.cat(parts, 1) - expected).norm() <= 1e-5 * expected.norm()
