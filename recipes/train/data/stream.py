"""Documents packed into rows of a fixed length, in an order that is a pure function of the seed.

Row k is the same on every machine and after every restart, so a run's place in the data is one number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class PackedStream:
    """Rows of `length + 1` tokens: epochs of shuffled documents, end to end, cut and shuffled again.

    An epoch includes a document with the chance that its weight gives. Neighbouring rows of a batch come from
    unrelated documents: rows cut from one file would make a batch's gradient that of one file.
    """

    def __init__(
        self, documents: Sequence[np.ndarray], weights: Sequence[float], length: int, seed: int
    ) -> None:
        self.documents = documents
        self.weights = np.asarray(weights)
        self.length = length
        self.seed = seed
        self._epoch = -1  # the one that _tokens and _starts belong to
        self._first_row = 0
        self._tokens = np.empty(0, dtype=np.int64)
        self._starts = np.empty(0, dtype=np.int64)

    def _enter(self, epoch: int) -> None:
        rng = np.random.default_rng([self.seed, epoch])
        chosen = np.flatnonzero(rng.random(len(self.documents)) < self.weights)
        chosen = chosen if len(chosen) else np.arange(len(self.documents))
        parts = [self.documents[i] for i in rng.permutation(chosen)]
        tokens = np.concatenate(parts)
        if len(tokens) <= self.length:
            tokens = np.tile(tokens, self.length // len(tokens) + 2)
        shift = int(rng.integers(min(self.length, len(tokens) - self.length)))
        starts = np.arange(shift, len(tokens) - self.length, self.length)
        self._first_row = self._first_row + len(self._starts) if epoch else 0
        self._tokens, self._starts, self._epoch = tokens, rng.permutation(starts), epoch

    def _row(self, index: int) -> np.ndarray:
        if self._epoch < 0 or index < self._first_row:
            self._epoch, self._starts = -1, np.empty(0, dtype=np.int64)
            self._enter(0)
        while index >= self._first_row + len(self._starts):
            self._enter(self._epoch + 1)
        start = self._starts[index - self._first_row]
        return self._tokens[start : start + self.length + 1]

    def batch(self, first_row: int, num_rows: int) -> Tensor:
        """Rows first_row and following: [num_rows, length + 1] int64."""
        rows = [self._row(first_row + i) for i in range(num_rows)]
        return torch.from_numpy(np.stack(rows).astype(np.int64))
