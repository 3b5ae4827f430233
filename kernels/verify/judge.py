"""The verdict on windows of draft tokens, ragged and fused: how many are accepted, and which token follows.

    rejection  row r is accepted if u * q(x) / sum q <= p(x) / sum p; else a token is recovered from
               norm(max(p - q, 0))
    coupled    row r is accepted if it is the target's own token under the noise that the draft had
    greedy     (temperature 0, either kind) row r is accepted if it is the target's argmax
    accept_len = first row that is not accepted, or num_draft; a row more than that gives a bonus token

`pearl_rt.reference.judge.judge` is the definition: greedy and coupled verdicts are its bits; rejection's
sums are
fp32 within a tile and fp64 over tiles, where it adds in fp64 throughout. Three launches, grids from shapes
only:

    judge_scan_kernel  (row blocks, tiles, 1 or 2)   one tile of a target or draft row (window.py)
    residual_kernel    (sequence blocks, key tiles)  rejection: decides; one tile's best key of the ending row
    own_key_kernel     (row blocks, key tiles)       coupled: one tile's best key of a row
    *_verdict_kernel   (sequence blocks,)            the best of the tiles; the verdict

Sequence b has rows cu_num_logits[b] .. cu_num_logits[b + 1] of target_logits, K + 1 at most; row r is
judged with draft_token_ids[b, r] while r < num_draft_tokens[b], and with draft_logits[slot, r],
temperature[slot], seed[slot], slot = idx_mapping[b] (or b). Draft logits None: the draft was certain of
its tokens. Thresholds: entries below them count as -inf. bad_row: -1, or the row with NaN, +inf, nothing
but -inf, or a candidate outside the vocabulary; then accept_len is that row and next_token -1. next_token
is -1 too where all are accepted and there is no bonus row.

target_logits [N, V], draft_logits [slots, K, Vd], each fp32, fp16 or bf16 at any row stride; computed in
fp32. draft_token_ids [B, K], num_draft_tokens [B], cu_num_logits [B + 1], idx_mapping [B] int32, positions
[N] int64, temperature [slots] fp32, seed [slots] int64, target_thresholds [N], draft_thresholds [slots, K]
fp32; out: accept_len, next_token, bad_row [B] int32. Mutates these three and the workspace.

    greedy, argmaxes [3, 7, 5], draft_token_ids [[3, 4]], num_draft_tokens [2]  ->  accept_len 1, next_token 7
"""

from __future__ import annotations

import torch

from ..base.library import check, check_all, on_their_device, register
from ..base.workspace import num_bytes
from ..sampling.sample import check_logits
from .arguments import TargetLogits, Verdicts, Windows
from .phases import Sizes, check_kind, draft_logits_of, launch


def workspace_size(sequences: int, num_draft_tokens: int, vocab: int, kind: str) -> int:
    """Bytes of workspace, for windows of at most num_draft_tokens."""
    return num_bytes(Sizes(sequences, num_draft_tokens + 1, vocab).parts(kind))


@on_their_device
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
    """The verdicts into accept_len, next_token and bad_row; see above.

    target_is_scaled: target_logits of sampled sequences come divided by the temperature."""
    check_logits("judge", "target_logits", target_logits, 2)
    num_logits, vocab = target_logits.shape
    check("judge", "draft_token_ids", draft_token_ids, (None, None), torch.int32)
    sequences, most = draft_token_ids.shape
    check_kind("judge", kind, most)
    check("judge", "temperature", temperature, (None,), torch.float32)
    slots = len(temperature)
    if idx_mapping is None and slots != sequences:
        raise ValueError(f"judge: {slots} temperatures for {sequences} sequences: pass idx_mapping")
    if draft_logits is not None:
        check_logits("judge", "draft_logits", draft_logits, 3)
        if draft_logits.shape[:2] != (slots, most):
            raise ValueError(
                f"judge: draft_logits has shape {list(draft_logits.shape)}, expected [{slots}, {most}, *]"
            )
    check_all(
        "judge",
        target_logits=(target_logits,),
        draft_logits=(draft_logits,),
        draft_token_ids=(draft_token_ids,),
        num_draft_tokens=(num_draft_tokens, (sequences,), torch.int32),
        cu_num_logits=(cu_num_logits, (sequences + 1,), torch.int32),
        positions=(positions, (num_logits,), torch.int64),
        temperature=(temperature,),
        seed=(seed, (slots,), torch.int64),
        accept_len=(accept_len, (sequences,), torch.int32),
        next_token=(next_token, (sequences,), torch.int32),
        bad_row=(bad_row, (sequences,), torch.int32),
        workspace=(workspace,),
        idx_mapping=(idx_mapping, (sequences,), torch.int32),
        target_thresholds=(target_thresholds, (num_logits,), torch.float32),
        draft_thresholds=(draft_thresholds, (slots, most), torch.float32),
    )
    ragged = (cu_num_logits, num_draft_tokens, positions, draft_token_ids)
    launch(
        "judge",
        kind,
        Sizes(sequences, most + 1, vocab),
        Windows(*ragged, None, None, None, None, idx_mapping, capacity=0, K=most, S=max(most, 1)),
        TargetLogits(target_logits, target_logits.stride(0), target_thresholds),
        draft_logits_of(draft_logits, draft_thresholds, vocab),
        temperature,
        seed,
        workspace,
        verdicts=Verdicts(accept_len, next_token, bad_row),
        target_is_scaled=target_is_scaled,
    )


register(
    "judge(Tensor target_logits, Tensor? draft_logits, Tensor draft_token_ids, Tensor num_draft_tokens, "
    "Tensor cu_num_logits, Tensor positions, Tensor temperature, Tensor seed, str kind, "
    "Tensor(a!) accept_len, Tensor(b!) next_token, Tensor(c!) bad_row, Tensor(d!) workspace, "
    "Tensor? idx_mapping=None, Tensor? target_thresholds=None, Tensor? draft_thresholds=None, "
    "bool target_is_scaled=False) -> ()",
    judge,
)
