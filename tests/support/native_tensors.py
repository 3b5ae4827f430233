"""Tensors of a checkpoint for random calls: right ones, or with one wrong shape, type or size."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from native_arguments import World


def codes(w: World, name: str) -> tuple[Any, ...]:
    """A matrix of codes in place of this one, as _C takes Groups; or nearly."""
    n, k = w.tensors[name][2]
    bits, group = w.rng.choice([(8, 32), (8, 16), (4, 32)])
    halves = np.ones((n, -(-k // group)), np.float16)
    matrix = [np.ones((n, k), np.int8), halves, w.rng.choice([None, halves]), bits, group, [n, k]]
    if w.rng.random() < w.oddness:
        matrix[w.rng.randrange(6)] = w.rng.choice(
            [None, 0, -1, bytes(3), halves[:1], [n], [n, 0], [2**40, k]]
        )
    return tuple(matrix)


@cache
def zeros() -> int:
    """An open file that has as many zeros as one reads."""
    return os.open("/dev/zero", os.O_RDONLY)


def blocks(w: World, name: str) -> tuple[Any, ...]:
    """A matrix of a GGUF file in place of this one; or nearly. A block of another type may not fill a row."""
    kind = w.rng.choice(["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "float16"])
    shape, head_rows = w.tensors[name][2], w.rng.choice([1, 1, 2, 8])
    matrix = [zeros(), "/dev/zero", 0, kind, shape, name, head_rows, w.rng.random() < 0.7]
    if w.rng.random() < w.oddness:
        odd = [-1, 0, 3, 2**40, 2**62, 2**63 - 1, "Q9", "float64", [], [-1, 32], [2**40, 32], None]
        matrix[w.rng.randrange(8)] = w.rng.choice(odd)
    return tuple(matrix)


def made(w: World, name: str) -> tuple[Any, ...]:
    """A function that makes this matrix when its turn comes; or nearly."""
    data, dtype, shape = w.tensors[name]
    if w.rng.random() < 0.5:
        matrix = codes(w, name)
        form = (matrix[3], matrix[4], matrix[2] is not None)
    else:
        matrix, form = (data, dtype, shape), None
    if w.rng.random() < w.oddness:
        nested = (lambda: matrix, shape, form)
        others = (data, dtype, [1, 1]), (data.ravel()[1:], dtype, shape), blocks(w, name), nested, None, 5
        given = w.rng.choice(others)
        return (lambda: given, shape, w.rng.choice([form, (8, 32, False), (3, 32, True), None]))
    return (lambda: matrix, shape, form)


def tensors(w: World) -> Any:
    changed: dict[str, Any] = dict(w.tensors)
    if w.rng.random() < 0.3:
        name = w.rng.choice([name for name, (_, _, shape) in w.tensors.items() if len(shape) == 2])
        changed[name] = w.rng.choice([codes, blocks, made])(w, name)
        return changed
    if w.rng.random() < w.oddness:
        name = w.rng.choice(list(changed))
        data, dtype, shape = changed[name]
        other = (data.ravel()[1:], data.T, bytes(3), data.tobytes(), data.astype(np.float16), 5)
        kinds = ((w.rng.choice(other), dtype, shape), (data, "float16", shape), (data, dtype, [*shape, 1]))
        changed[name] = w.rng.choice([*kinds, (data, dtype, [-1]), (data, dtype, [2**40, 2**40])])
    return changed


def head_tensors(w: World) -> Any:
    """Of a head for such a model, which is fed 96 taps."""
    shapes = {name: list(shape) for name, (_, _, shape) in w.tensors.items()}
    for name in ("q", "k", "v"):
        shapes[f"model.layers.0.self_attn.{name}_proj.weight"][1] *= 2  # fed an embedding and a feature
    shapes |= {"fc.weight": [32, 96], "model.layers.0.hidden_norm.weight": [32]}
    shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    if w.rng.random() < w.oddness:
        shapes[w.rng.choice(list(shapes))] = [1, 1]
    return {name: (np.ones(shape, np.float32), "float32", shape) for name, shape in shapes.items()}


def head_config(w: World) -> Any:
    odd = {w.rng.choice(["tap_size", "num_tap_norms", "logits_size"]): w.rng.choice(w.wrong)}
    return w.config() | {"tap_size": 96} | (odd if w.rng.random() < w.oddness else {})


OF_HEADS = {"LlamaWeights.head.tensors": head_tensors, "LlamaWeights.head.config": head_config}
