"""vLLM's `rejection_sample` and `gumbel_sample` (vllm/v1/worker/gpu), on the kernels of pearl_rt.

What differs, each time for the better: the noise is Philox by (seed, position, purpose, index), so draft,
accept test, recovered and bonus tokens never share any; padding of `sampled` is -1, where vLLM leaves what
was there; nothing is sampled from the residual behind a placeholder (a draft id of -1), which ends the
window as if it were shorter; ids that only the target has are kept where the draft's vocabulary is
smaller. A row of NaN, +inf or nothing but -inf gives token 0, as an id out of range would do harm and an
exception would need the host."""

from __future__ import annotations

import torch

from pearl_rt.adapters import operators
from pearl_rt.noise import Purpose


def rejection_sample(
    target_logits: torch.Tensor,
    draft_logits: torch.Tensor | None,
    draft_sampled: torch.Tensor,
    cu_num_logits: torch.Tensor,
    pos: torch.Tensor,
    idx_mapping: torch.Tensor,
    expanded_idx_mapping: torch.Tensor,
    expanded_local_pos: torch.Tensor,
    temperature: torch.Tensor,
    seed: torch.Tensor,
    num_speculative_steps: int,
    synthetic_conditional_rates: torch.Tensor | None = None,
    use_fp64: bool = False,
    use_block_verification: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """sampled [R, K + 1] int64, num_sampled [R] int32: tokens that stand, then the recovered or bonus token.

    target_logits: [N, V], divided by the temperature already
    draft_logits: [slots, K, Vd], not divided; or None if the draft was certain of its tokens
    draft_sampled: [N], per request the last token and its draft tokens; -1 ends the window
    cu_num_logits: [R + 1], leading 0; pos: [N]; idx_mapping: [R], a request's slot
    expanded_idx_mapping, expanded_local_pos: [N], not read, as cu_num_logits says the same
    temperature: [slots] fp32, 0 is greedy; seed: [slots] int64; num_speculative_steps: K
    use_fp64 is not read: the fp32 noise is finest where a token wins.
    """
    if synthetic_conditional_rates is not None or use_block_verification:
        raise ValueError(
            "rejection_sample: only token by token, without synthetic_conditional_rates or blocks"
        )
    step = torch.arange(num_speculative_steps, device=target_logits.device)
    first, rows = cu_num_logits[:-1].long(), cu_num_logits.diff()
    place = (first[:, None] + 1 + step).clamp(max=len(draft_sampled) - 1)
    given = step < rows[:, None] - 1
    ids = torch.where(given, draft_sampled[place], -1).int()
    num_draft = (ids >= 0).cumprod(1).sum(1).int()
    if draft_logits is not None:
        draft_logits = draft_logits[:, :num_speculative_steps]
    verdicts = operators.judge(
        target_logits,
        draft_logits=draft_logits,
        draft_token_ids=ids,
        num_draft_tokens=num_draft,
        cu_num_logits=cu_num_logits.int(),
        positions=pos.long(),
        temperature=temperature.float(),
        seed=seed.long(),
        idx_mapping=idx_mapping.int(),
        target_is_scaled=True,
    )
    sampled = verdicts.tokens(ids).long()
    bad = torch.arange(num_speculative_steps + 1, device=ids.device) == verdicts.bad_row[:, None]
    return sampled.masked_fill(bad, 0), torch.where(rows > 0, verdicts.accept_len + 1, 0).int()


def gumbel_sample(
    logits: torch.Tensor,
    expanded_idx_mapping: torch.Tensor,
    temperature: torch.Tensor,
    seed: torch.Tensor,
    pos: torch.Tensor,
    apply_temperature: bool,
    is_drafting: bool,
    logits_cache: torch.Tensor | None = None,
    logits_cache_col: torch.Tensor | None = None,
    use_fp64: bool = False,
) -> torch.Tensor:
    """One token per row: [N] int64; the argmax where the temperature is 0.

    logits: [N, V]; expanded_idx_mapping: [N], a row's slot, or -1 for padding; temperature: [slots] fp32;
    seed: [slots] int64; pos: [N]. apply_temperature: False if logits come divided by it. is_drafting: draft
    tokens have noise of their own. use_fp64 is not read.
    """
    if logits_cache is not None or logits_cache_col is not None:
        raise ValueError(
            "gumbel_sample: logits_cache is not supported: keep the logits with a copy of your own"
        )
    slot = expanded_idx_mapping.long()
    held = slot.clamp(min=0)
    heat = torch.where(slot >= 0, temperature.float()[held], 0.0)
    if not apply_temperature:
        heat = (heat > 0).float()
    purpose = Purpose.DRAFT if is_drafting else Purpose.BONUS
    tokens = operators.sample(logits, heat, seed.long()[held], pos.long().contiguous(), purpose)
    return tokens.clamp(min=0).long()
