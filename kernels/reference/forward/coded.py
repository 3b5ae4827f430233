"""The values of a weight that is held as codes of 8 or 4 bits, as kernels/forward/weight_tile.py has them."""

from __future__ import annotations

import torch

UNIT = 64  # inputs


def values_of(weight: torch.Tensor, scales: torch.Tensor | None, group: int, K: int) -> torch.Tensor:
    """weight: [N, K], or codes: int8 [N, 64 * units], uint8 [N, 32 * units]; scales: int32 [W, N], two fp16
    each; group: inputs that share a scale -> [N, K], of codes fp32: scale * code + minimum, rounded no more.
    """
    if scales is None:
        return weight
    N, units = weight.shape[0], -(-K // UNIT)
    codes = weight.view(N, units, -1)
    if weight.dtype == torch.uint8:  # of the halves of a unit, one lies in the low bits of its bytes
        codes = torch.cat([codes & 15, codes >> 4], dim=-1)
    words = scales.t().clone(memory_format=torch.contiguous_format)
    halves = words.view(torch.float16).float().view(N, -1)  # the low half of a word first
    num_groups = units * UNIT // group
    values = codes.float().view(N, num_groups, group)
    if halves.shape[1] == 2 * num_groups:  # scale and minimum
        scale, minimum = halves.view(N, num_groups, 2).chunk(2, dim=-1)
        found = values * scale + minimum
    else:  # scales of a unit's first half, each beside one of its second
        found = values * halves.view(N, units, -1, 2).transpose(2, 3).reshape(N, num_groups, 1)
    return found.view(N, -1)[:, :K]
