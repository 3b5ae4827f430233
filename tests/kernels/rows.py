"""Rows of logits of every awkward kind, and tensors that show what was written beside them."""

import numpy as np
import torch

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


def poisoned(num_bytes: int, device: torch.device) -> torch.Tensor:
    """A workspace of NaN."""
    return torch.full((num_bytes,), 0xFF, dtype=torch.uint8, device=device)


class Canary:
    """A tensor between two guards; `check` says that nobody wrote into them."""

    VALUE = 2147480000

    def __init__(self, *shape: int, device: torch.device, dtype: torch.dtype = torch.int32) -> None:
        size = int(np.prod(shape))
        self._all = torch.full((size + 64,), self.VALUE, dtype=dtype, device=device)
        self.tensor = self._all[32 : 32 + size].view(shape)

    def check(self) -> None:
        assert (self._all[:32] == self.VALUE).all() and (self._all[-32:] == self.VALUE).all()
