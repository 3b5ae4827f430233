"""Matrices in 8 bits in the checkpoint of a draft: NAME, int8 [n, k], and NAME_scale, fp16 [n, ceil(k / 32)],
one for 32 inputs. They run as they lie. Knows tensors; no device.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import numpy as np

from pearl_rt.errors import CheckpointError
from pearl_rt.reference.groups import Groups

if TYPE_CHECKING:
    import torch

SCALES = "_scale"


def with_groups(stored: "Mapping[str, torch.Tensor]", source: str) -> "dict[str, torch.Tensor]":
    """The tensors of a file, those with codes as Groups, which are packed as tensors are. Raises
    CheckpointError for codes without scales, and for scales that are none.
    """
    import torch

    found: dict[str, torch.Tensor | Groups] = {}
    coded = {name for name, tensor in stored.items() if tensor.dtype == torch.int8}
    for name, tensor in stored.items():
        if name in coded:
            scales = stored.get(name + SCALES)
            if scales is None or tensor.dim() != 2:
                raise CheckpointError(f"tensor {name!r} of {source} has int8 codes and no {name + SCALES!r}")
            try:
                found[name] = Groups(tensor.numpy(), scales.numpy())
            except CheckpointError as error:
                raise CheckpointError(f"tensor {name!r} of {source}: {error}") from None
        elif name.removesuffix(SCALES) not in coded:
            found[name] = tensor
    return cast("dict[str, torch.Tensor]", found)


def stored(tensors: "Mapping[str, torch.Tensor | Groups]") -> "dict[str, torch.Tensor]":
    """What a file holds of them: with_groups() reads it back."""
    import torch

    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, Groups):
            found[name] = torch.from_numpy(np.ascontiguousarray(tensor.codes))
            found[name + SCALES] = torch.from_numpy(np.ascontiguousarray(tensor.scales))
        else:
            found[name] = tensor.detach().cpu().clone().contiguous()
    return found


def rounded(tensors: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """All matrices of floats in 8 bits, as Groups."""
    found = {
        name: Groups.quantize(tensor.detach().float().cpu().numpy(), 8)
        if tensor.dim() == 2 and tensor.is_floating_point()
        else tensor
        for name, tensor in tensors.items()
    }
    return cast("dict[str, torch.Tensor]", found)
