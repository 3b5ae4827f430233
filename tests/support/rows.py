"""Tensors that show what was read or written beside them."""

import numpy as np
import torch


def poisoned(num_bytes: int, device: torch.device) -> torch.Tensor:
    """A workspace of NaN."""
    return torch.full((num_bytes,), 0xFF, dtype=torch.uint8, device=device)


class Canary:
    """A tensor between two guards; `check` says that nothing was written into them."""

    VALUE = 2147480000

    def __init__(self, *shape: int, device: torch.device, dtype: torch.dtype = torch.int32) -> None:
        size = int(np.prod(shape))
        self._all = torch.full((size + 64,), self.VALUE, dtype=dtype, device=device)
        self.tensor = self._all[32 : 32 + size].view(shape)

    def check(self) -> None:
        assert (self._all[:32] == self.VALUE).all() and (self._all[-32:] == self.VALUE).all()


def among_nan(*shape: int, dtype: torch.dtype, device: torch.device, seed: int) -> torch.Tensor:
    """Normal values in the middle of a buffer of NaN."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    whole = torch.full((values.numel() + 2048,), torch.nan, dtype=dtype, device=device)
    middle = whole[1024 : 1024 + values.numel()].view(shape)
    return middle.copy_(values)
