"""The verdict on windows of draft tokens, sequence by sequence and row by row."""

from __future__ import annotations

import torch

from ..sampling import noise
from ..sampling.sample import filtered, scaled, tokens, usable

ACCEPT, RESIDUAL, BONUS, TARGET = 1, 2, 3, 4


def one_token(logits: torch.Tensor, temperature: float, seed: int, position: int, purpose: int) -> int:
    """Of one row [V]; -1 if it cannot be used."""
    heat, key, place = (
        torch.tensor([value], device=logits.device) for value in (temperature, seed, position)
    )
    return int(tokens(logits[None], heat, key, place, purpose)[0])


def verdict(
    target: torch.Tensor,
    draft: torch.Tensor | None,
    candidates: list[int],
    positions: list[int],
    temperature: float,
    seed: int,
    kind: str,
    target_temperature: float,
) -> tuple[int, int, int]:
    """accept_len, next_token, bad_row. target: [rows, V]; draft: [num_draft, V], -inf beyond its own."""
    by_ratio = kind == "rejection" and temperature > 0
    own = TARGET if kind == "coupled" else BONUS
    for row, logits in enumerate(target):
        if not usable(logits):
            return row, -1, row
        bonus = row == len(candidates)
        if not bonus and not 0 <= candidates[row] < len(logits):
            return row, -1, row
        if bonus or not by_ratio:
            token = one_token(logits, target_temperature, seed, positions[row], own)
            if bonus or token != candidates[row]:
                return row, token, -1
            continue
        x = candidates[row]
        inverse, target_inverse = (
            noise.inverse_temperature(torch.tensor(t, device=logits.device))
            for t in (temperature, target_temperature)
        )
        p = noise.exp(scaled(logits, target_inverse))
        if draft is None:
            q = torch.zeros_like(p)
            q[x] = 1.0
        elif usable(draft[row]):
            q = noise.exp(scaled(draft[row], inverse))
        else:
            return row, -1, row
        p_sum, q_sum = p.double().sum(), q.double().sum()
        key, place = (torch.tensor([value], device=logits.device) for value in (seed, positions[row]))
        u = noise.uniform(noise.words(key, place, ACCEPT, 1))[0, 0].double()
        if p[x] > 0 and u * q[x].double() * p_sum <= p[x].double() * q_sum:
            continue
        left = (p * (1 / p_sum).float() - q * (1 / q_sum).float()).clamp(min=0)
        keys = left / noise.exponential(noise.uniform(noise.words(key, place, RESIDUAL, len(p))))[0]
        if keys.max() > 0:
            return row, int((keys == keys.max()).nonzero()[0]), -1
        return row, one_token(logits, target_temperature, seed, positions[row], RESIDUAL), -1
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
    vocab = target_logits.shape[1]
    for b in range(len(draft_token_ids)):
        slot = b if idx_mapping is None else int(idx_mapping[b])
        first, last = cu_num_logits[b : b + 2].tolist()
        num_draft = min(int(num_draft_tokens[b]), last - first)
        target = filtered(
            target_logits[first:last], None if target_thresholds is None else target_thresholds[first:last]
        )
        draft = None
        if draft_logits is not None:
            rows = draft_logits[slot, :num_draft, :vocab]
            rows = filtered(rows, None if draft_thresholds is None else draft_thresholds[slot, :num_draft])
            draft = rows.new_full((num_draft, vocab), -torch.inf)
            draft[:, : rows.shape[1]] = rows
        t = float(temperature[slot])
        accept_len[b], next_token[b], bad_row[b] = verdict(
            target,
            draft,
            draft_token_ids[b, :num_draft].tolist(),
            positions[first:last].tolist(),
            t,
            int(seed[slot]),
            kind,
            1.0 if target_is_scaled and t > 0 else t,
        )
