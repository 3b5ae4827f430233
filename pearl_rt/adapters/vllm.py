"""vLLM's `rejection_sample` and `gumbel_sample` (vllm/v1/worker/gpu, as of 0.33), on the kernels of pearl_rt.

What differs: the noise is Philox by (seed, position, purpose, index), so draft, accept test, recovered and
bonus tokens never share any; padding of `sampled` is -1, where vLLM leaves what was there; ids that only the
target has are kept where the draft's vocabulary is smaller. A row of NaN, +inf or nothing but -inf gives
token 0, as an id out of range would do harm and an exception would need the host. Windows are judged token by
token: other ways (by blocks, by entropy, at made-up rates, with watermarks) are refused. Errors are
ValueErrors, where vLLM asserts."""

from __future__ import annotations

import torch

from pearl_rt.adapters import operators
from pearl_rt.reference.noise import Purpose


def _refuse(op: str, **asked: object) -> None:
    """Raises ValueError if anything was asked for."""
    if names := [name for name, value in asked.items() if value is not None and value is not False]:
        raise ValueError(f"{op}: {', '.join(names)} given, and windows are judged token by token: leave out")


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
    contexts: torch.Tensor | None = None,
    watermarking: torch.Tensor | None = None,
    watermarking_skip_mask: torch.Tensor | None = None,
    watermark_key: int | None = None,
    fly_window_size: int = 0,
    fly_entropy_threshold: float = 0.3,
    fly_entropy_top_k: int = 3,
) -> tuple[torch.Tensor, torch.Tensor]:
    """sampled [R, K + 1] int64, num_sampled [R] int32: tokens that stand, then the recovered or bonus token.

    target_logits: [N, V], divided by the temperature already
    draft_logits: [slots, K, Vd], not divided; or None if the draft was certain of its tokens
    draft_sampled: [N], per request the last token and its draft tokens; -1 ends the window
    cu_num_logits: [R + 1], leading 0; pos: [N]; idx_mapping: [R], a request's slot
    expanded_idx_mapping, expanded_local_pos: [N], not read, as cu_num_logits says the same
    temperature: [slots] fp32, 0 is greedy; seed: [slots] int64; num_speculative_steps: K
    use_fp64 is not read: the fp32 noise is finest where a token wins. All behind it is refused, unless off.
    """
    _refuse(
        "rejection_sample",
        synthetic_conditional_rates=synthetic_conditional_rates,
        use_block_verification=use_block_verification,
        contexts=contexts,
        watermarking=watermarking,
        watermarking_skip_mask=watermarking_skip_mask,
        watermark_key=watermark_key,
        fly_window_size=fly_window_size or None,
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


def _keep(logits: torch.Tensor, slot: torch.Tensor, column: torch.Tensor, cache: torch.Tensor) -> None:
    """cache[slot, column, :V] = logits, [N, V], but for padding (slot -1); cache [slots, columns, >= V].

    Without asking the device: a row of padding writes again what the first row that is none does.
    """
    vocab, real = logits.shape[1], slot >= 0
    row = torch.where(real, torch.arange(len(slot), device=slot.device), real.int().argmax())
    place = slot[row].clamp(min=0), column.expand(len(slot))[row].long()
    kept = cache[..., :vocab]
    kept[place] = torch.where(real.any(), logits[row], kept[place])


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
    logits_cache_source: torch.Tensor | None = None,
) -> torch.Tensor:
    """One token per row: [N] int64; the argmax where the temperature is 0.

    logits: [N, V]; expanded_idx_mapping: [N], a row's slot, or -1 for padding; temperature: [slots] fp32;
    seed: [slots] int64; pos: [N]. apply_temperature: False if logits come divided by it. is_drafting: draft
    tokens have noise of their own. logits_cache: [slots, columns, >= V], gets the logits as they came, or
    logits_cache_source [N, V], at column logits_cache_col: [] or [N]. use_fp64 is not read.
    """
    slot = expanded_idx_mapping.long()
    if logits_cache is not None and logits_cache_col is not None:
        source = logits if logits_cache_source is None else logits_cache_source
        if source.shape != logits.shape or source.dtype != logits_cache.dtype:
            raise ValueError(
                f"gumbel_sample: logits to keep are {source.dtype} {list(source.shape)}, expected "
                f"{logits_cache.dtype}, as the cache, and {list(logits.shape)}"
            )
        if logits_cache.shape[-1] < logits.shape[1]:
            raise ValueError(
                f"gumbel_sample: logits_cache is narrower, {logits_cache.shape[-1]}, than the logits, "
                f"{logits.shape[1]}: widen it"
            )
        _keep(source, slot, logits_cache_col, logits_cache)
    elif not logits_cache is logits_cache_col is logits_cache_source is None:
        raise ValueError("gumbel_sample: logits_cache and logits_cache_col: pass both or neither")
    held = slot.clamp(min=0)
    heat = torch.where(slot >= 0, temperature.float()[held], 0.0)
    if not apply_temperature:
        heat = (heat > 0).float()
    purpose = Purpose.DRAFT if is_drafting else Purpose.BONUS
    tokens = operators.sample(logits, heat, seed.long()[held], pos.long().contiguous(), purpose)
    return tokens.clamp(min=0).long()
