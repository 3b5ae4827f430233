"""FlashInfer's `chain_speculative_sampling`, on the kernels of pearl_rt.

What differs: every row has noise of its own from its seed, or from its place in the batch if one seed is
given for all, and positions offset .. offset + K within it; draft ids in a row that cannot be used (NaN,
negative or all zero) end its window with -1. Results never depend on timing, with or without
`deterministic`."""

from __future__ import annotations

import torch

from pearl_rt.adapters import operators
from pearl_rt.kernels.reference.sampling import noise
from pearl_rt.noise import Purpose


def _places(
    seed: int | torch.Tensor | None,
    offset: int | torch.Tensor | None,
    generator: torch.Generator | None,
    sequences: int,
    rows: int,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """seed [B], positions [B * rows]: no two rows of a batch share a (seed, position)."""
    if seed is None or offset is None:
        drawn = torch.randint(
            -(2**63), 2**63 - 1, (1,), generator=generator, dtype=torch.int64, device=device
        )
        seed, offset = drawn, 0
    if isinstance(seed, int) and seed >= 2**63:
        seed -= 2**64
    seeds = torch.as_tensor(seed, device=device).long().reshape(-1)
    starts = torch.as_tensor(offset, device=device).long().reshape(-1, 1)
    places = torch.arange(rows, device=device).expand(sequences, rows)
    if len(seeds) != sequences or sequences == 1:
        places = places + torch.arange(sequences, device=device)[:, None] * rows
        seeds, starts = seeds[:1], starts[:1]
    return seeds.expand(sequences).contiguous(), (starts + places).reshape(-1)


def chain_speculative_sampling(
    draft_probs: torch.Tensor,
    draft_token_ids: torch.Tensor,
    target_probs: torch.Tensor,
    maybe_output_accepted_token_num: torch.Tensor | None = None,
    maybe_output_emitted_draft_token_num: torch.Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    seed: int | torch.Tensor | None = None,
    offset: int | torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """output_token_ids [B, K + 1], output_accepted_token_num [B], output_emitted_draft_token_num [B], int32.

    draft_probs: [B, K, V]; draft_token_ids: [B, K]; target_probs: [B, K + 1, V]
    output_token_ids: draft tokens that stand, the recovered or bonus token, then -1
    accepted: draft tokens that would stand each on its own; emitted: those that do. Both are added to the
    tensors given. seed: one, or one per row; without seed and offset they are drawn from the generator.
    """
    sequences, most = draft_token_ids.shape
    vocab, device = target_probs.shape[-1], target_probs.device
    seeds, positions = _places(seed, offset, generator, sequences, most + 1, device)
    ids = draft_token_ids.int()
    verdicts = operators.judge(
        target_probs.float().log().reshape(-1, vocab),
        draft_logits=draft_probs.float().log(),
        draft_token_ids=ids,
        num_draft_tokens=torch.full((sequences,), most, dtype=torch.int32, device=device),
        cu_num_logits=torch.arange(sequences + 1, dtype=torch.int32, device=device) * (most + 1),
        positions=positions,
        temperature=torch.ones(sequences, device=device),
        seed=seeds,
    )
    inside = ids.long().clamp(0, vocab - 1)[..., None]
    p, q = (probs.float().gather(2, inside)[..., 0] for probs in (target_probs[:, :most], draft_probs))
    drafted = positions.view(sequences, most + 1)[:, :most].reshape(-1)
    u = noise.uniform(noise.words(seeds.repeat_interleave(most), drafted, Purpose.ACCEPT, 1))
    alone = ((u.view(sequences, most) * q <= p) & (p > 0)).sum(1).int()
    outputs = []
    for count, given in (
        (torch.maximum(alone, verdicts.accept_len), maybe_output_accepted_token_num),
        (verdicts.accept_len, maybe_output_emitted_draft_token_num),
    ):
        outputs.append(count if given is None else given.add_(count))
    return verdicts.tokens(ids), outputs[0], outputs[1]
