"""The verdict on windows of draft tokens, sequence by sequence, as pearl_rt/reference/judge.py defines it."""

from __future__ import annotations

import numpy as np
import torch

from pearl_rt.reference import judge as definition
from pearl_rt.reference.noise import Floats
from pearl_rt.reference.processors import inverse_temperature, scaled

from ..sampling.sample import filtered


def verdict(
    target: Floats,
    draft: Floats | None,
    candidates: list[int],
    positions: list[int],
    temperature: float,
    seed: int,
    kind: str,
    target_is_scaled: bool = False,
) -> tuple[int, int, int]:
    """accept_len, next_token, bad_row. target: [rows, V]; draft: [num_draft, Vd], or None: it was certain.

    Row by row, since positions need not follow each other.
    """
    if draft is None:
        draft = np.full((len(candidates), target.shape[1]), -np.inf, dtype=np.float32)
        known = [(r, token) for r, token in enumerate(candidates) if 0 <= token < target.shape[1]]
        draft[tuple(np.array(known, dtype=np.int64).reshape(-1, 2).T)] = 0.0
    if target_is_scaled and temperature > 0:  # then both are, bit for bit
        inverse, temperature = inverse_temperature(temperature), 1.0
        draft = np.stack([scaled(row, inverse) for row in draft]) if len(draft) else draft
    for row, position in enumerate(positions):
        window = slice(row, min(row + 1, len(candidates)))
        found = definition.judge(
            target[row : row + 1], draft[window], candidates[window], position, temperature, seed, kind
        )
        if found.bad_row >= 0:
            return row, -1, row
        if found.accept_len < 1:
            return row, found.next_token, -1
    return len(candidates), -1, -1


def judge(
    target_logits: torch.Tensor,
    draft_logits: torch.Tensor | None,
    draft_token_ids: torch.Tensor,
    num_draft_tokens: torch.Tensor,
    cu_num_logits: torch.Tensor,
    positions: torch.Tensor,
    temperature: torch.Tensor,
    seed: torch.Tensor,
    kind: str,
    accept_len: torch.Tensor,
    next_token: torch.Tensor,
    bad_row: torch.Tensor,
    workspace: torch.Tensor,
    idx_mapping: torch.Tensor | None = None,
    target_thresholds: torch.Tensor | None = None,
    draft_thresholds: torch.Tensor | None = None,
    target_is_scaled: bool = False,
) -> None:
    """Shapes and meaning as in kernels/verify/judge.py."""
    for b in range(len(draft_token_ids)):
        slot = b if idx_mapping is None else int(idx_mapping[b])
        first, last = cu_num_logits[b : b + 2].tolist()
        num_draft = min(int(num_draft_tokens[b]), last - first)
        target = filtered(
            target_logits[first:last], None if target_thresholds is None else target_thresholds[first:last]
        )
        draft = None
        if draft_logits is not None:
            kept = None if draft_thresholds is None else draft_thresholds[slot, :num_draft]
            draft = filtered(draft_logits[slot, :num_draft], kept)
        accept_len[b], next_token[b], bad_row[b] = verdict(
            target,
            draft,
            draft_token_ids[b, :num_draft].tolist(),
            positions[first:last].tolist(),
            float(temperature[slot]),
            int(seed[slot]),
            kind,
            target_is_scaled,
        )
