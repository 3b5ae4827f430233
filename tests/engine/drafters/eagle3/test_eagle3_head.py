"""The executor of a head against its definition: rows of taps, rows of its own, and every kind of norm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tiny_heads import HEAD, TARGET, VOCAB, definition, random_head
from tiny_pairs import random_tensors

from pearl_rt import PearlError
from pearl_rt.backends.cpu import Model
from pearl_rt.checkpoint.source import ModelSource, pair_sources
from pearl_rt.checkpoint.views.eagle3 import Eagle3Config

QWEN3 = replace(HEAD.layer, model_type="qwen3", qk_norm=True, num_key_value_heads=2)
TENSORS = random_tensors(TARGET, 5)
TOKENS = [(7 * i + 3) % VOCAB for i in range(150)]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"norm_before_residual": True},
    {"norm_before_fc": True, "norm_output": True},
    {"fc_norm": True, "norm_before_residual": True, "norm_output": True},
    {"layer": QWEN3, "taps": (0, 4)},
    {"layer": replace(HEAD.layer, sliding_window=40)},
    {"layer": replace(QWEN3, max_position_embeddings=101, sliding_window=1000), "norm_output": True},
    {"layer": replace(HEAD.layer, sliding_window=1)},
]


def models(config: Eagle3Config, dtype: str, weights: str = "auto", **more: Any) -> tuple[Any, Any, Any]:
    """(executor of the target, executor of the head, its definition)."""
    tensors = random_head(config, 1, **more)
    sources = pair_sources(TARGET, TENSORS, config, tensors, dtype=dtype, draft_weights=weights)
    target = Model.pack(TARGET, TENSORS, dtype=dtype, isa=None, max_model_len=256)
    source: ModelSource = sources[1]
    assert source.head is not None
    head = target.with_head(source, source.head, max_model_len=256)
    return (
        target.executor([0], 2, taps=source.head.taps),
        head.executor([0], 2),
        definition(tensors, config, TARGET, TENSORS),
    )


@pytest.mark.parametrize(
    "config", [replace(HEAD, **v) for v in VARIANTS], ids=[str(list(v)) for v in VARIANTS]
)
@pytest.mark.parametrize(("dtype", "off"), [("float32", 2e-4), ("bfloat16", 0.25)])
def test_rows_are_those_of_the_definition(config: Eagle3Config, dtype: str, off: float) -> None:
    """A prompt, then rows of the head's own; fed in pieces, as a target goes through a prompt."""
    target, head, reference = models(config, dtype)
    taps = target.forward_taps(0, TOKENS, 0)
    assert taps.shape == (150, config.tap_size) and head.tap_size == config.tap_size
    for start, end in ((0, 100), (100, 140), (140, 149)):
        got = head.forward_head(1, TOKENS[start + 1 : end + 1], start, taps[start:end])
    tokens = list(TOKENS)
    for token in (5, 9, 30):
        want = reference.draft_row(tokens, 150, taps, VOCAB)[list(reference.target_ids)]
        assert np.abs(got - want).max() < off * np.abs(want).max()
        got = head.forward_head(1, [token], len(tokens) - 1)
        tokens.append(token)


def test_taps_are_the_inputs_of_layers() -> None:
    """Of layer 0 the embedding, of the last one and more what the layers leave, of all rows of a pass."""
    target = Model.pack(TARGET, TENSORS, dtype="float32", isa=None, max_model_len=256)
    taps = target.executor([0], taps=(0, 1, 4)).forward_taps(0, TOKENS, 0)
    embedded, first, last = np.split(taps, 3, axis=1)
    assert np.array_equal(embedded, TENSORS["model.embed_tokens.weight"].numpy()[TOKENS])
    one = target.view(replace(TARGET, num_hidden_layers=1), [0], max_model_len=256).executor([0], taps=[1])
    assert np.array_equal(first, one.forward_taps(0, TOKENS, 0))
    scale = 1 / np.sqrt((last * last).mean(axis=1, keepdims=True) + TARGET.rms_norm_eps)
    rows = target.executor([0]).forward(0, TOKENS, 0, len(TOKENS))
    assert np.abs(rows - last * scale @ TENSORS["lm_head.weight"].numpy().T).max() < 1e-3


@pytest.mark.parametrize("window", [None, 1, 33, 64])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_do_not_depend_on_others(dtype: str, window: int | None) -> None:
    """Alone, or behind another cut: the same bits."""
    config = replace(HEAD, layer=replace(HEAD.layer, sliding_window=window))
    target, head, _ = models(config, dtype)
    taps = target.forward_taps(0, TOKENS, 0)
    want = head.forward_head(0, TOKENS[1:], 0, taps[:-1])
    for place in range(149):
        got = head.forward_head(1, [TOKENS[place + 1]], place, taps[place : place + 1])
    assert np.array_equal(got, want)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_rounded_weights_are_near(weights: str) -> None:
    target, head, reference = models(HEAD, "bfloat16", weights)
    taps = target.forward_taps(0, TOKENS, 0)
    got = head.forward_head(0, TOKENS[1:], 0, taps[:-1])
    want = reference.draft_row(TOKENS, 150, taps, VOCAB)[list(reference.target_ids)]
    assert np.corrcoef(got, want)[0, 1] > (0.99 if weights == "int8" else 0.9)


def test_an_embedding_of_its_own() -> None:
    """Its rows may be of another width than the target's."""
    layer = replace(HEAD.layer, hidden_size=32)
    config = replace(HEAD, layer=layer)
    target, head, reference = models(config, "float32", has_embedding=True)
    taps = target.forward_taps(0, TOKENS, 0)
    got = head.forward_head(0, TOKENS[1:], 0, taps[:-1])
    want = reference.draft_row(TOKENS, 150, taps, VOCAB)[list(reference.target_ids)]
    assert np.abs(got - want).max() < 2e-4 * np.abs(want).max()


def test_what_an_executor_refuses() -> None:
    target, head, _ = models(HEAD, "float32")
    plain = Model.pack(TARGET, TENSORS, dtype="float32", isa=None, max_model_len=256)
    taps = target.forward_taps(0, [1, 2], 0)
    with pytest.raises((PearlError, ValueError), match="keeps no taps; make it with tap_layers"):
        plain.executor([0]).forward_taps(0, [1], 0)
    with pytest.raises((PearlError, ValueError), match="2 tokens without features; a head goes on by one"):
        head.forward_head(0, [1, 2], 0)
    with pytest.raises((PearlError, ValueError), match=r"features are not \[1, 192\]"):
        head.forward_head(0, [1], 0, taps)
    with pytest.raises((PearlError, ValueError), match="it has features, and the model is no head"):
        target.forward_head(0, [1, 2], 0, taps)
    for wrong in ([-1], [5], [2, 2], [3, 1]):
        with pytest.raises((PearlError, ValueError), match="a layer of the taps, which ascend"):
            plain.executor([0], taps=wrong)
    with pytest.raises((PearlError, ValueError), match=r"tensor 'model.layers.0.* is missing"):
        plain.weights.head(vars(HEAD.layer) | {"tap_size": 192}, {})
    with pytest.raises(PearlError, match="tap_size is 0; a head is fed 1 or more"):
        plain.weights.head(vars(HEAD.layer), {})
