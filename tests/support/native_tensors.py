"""Tensors of a checkpoint for random calls: right ones, or with one wrong shape, type or size."""

from __future__ import annotations

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


def tensors(w: World) -> Any:
    changed: dict[str, Any] = dict(w.tensors)
    if w.rng.random() < 0.3:
        name = w.rng.choice([name for name, (_, _, shape) in w.tensors.items() if len(shape) == 2])
        changed[name] = codes(w, name)
        return changed
    if w.rng.random() < w.oddness:
        name = w.rng.choice(list(changed))
        data, dtype, shape = changed[name]
        other = (data.ravel()[1:], data.T, bytes(3), data.tobytes(), data.astype(np.float16), 5)
        kinds = ((w.rng.choice(other), dtype, shape), (data, "float16", shape), (data, dtype, [*shape, 1]))
        changed[name] = w.rng.choice([*kinds, (data, dtype, [-1]), (data, dtype, [2**40, 2**40])])
    return changed
