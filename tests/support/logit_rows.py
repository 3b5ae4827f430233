"""Rows of logits of every awkward kind."""

import numpy as np

SHAPES = ("normal", "ties", "masked", "one", "huge", "flat")


def row_of(shape: str, vocab: int, rng: np.random.Generator) -> np.ndarray:
    """[vocab] fp32 logits of a kind."""
    row = rng.normal(0, 3, vocab)
    if shape == "ties":
        row = rng.integers(-2, 3, vocab) * 0.5
    elif shape == "masked":
        row[rng.random(vocab) < 0.7] = -np.inf
        row[rng.integers(vocab)] = 1.0
    elif shape == "one":
        row[:] = -np.inf
        row[rng.integers(vocab)] = -4.0
    elif shape == "huge":
        row = row * 1e37
    elif shape == "flat":
        row = np.where(rng.random(vocab) < 0.5, -0.0, 0.0)
    return row.astype(np.float32)
