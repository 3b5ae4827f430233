"""The verdict on windows of draft tokens, ragged and fused: how many are accepted, and which token follows.

    rejection  row r is accepted if u * q(x) / sum q <= p(x) / sum p; else a token is recovered from
               norm(max(p - q, 0))
    coupled    row r is accepted if it is the target's own token under the noise that the draft had
    greedy     (temperature 0, either kind) row r is accepted if it is the target's argmax
    accept_len = first row that is not accepted, or num_draft; a row more than that gives a bonus token

`pearl_rt.reference.judge.judge` is the definition: greedy and coupled verdicts are its bits; rejection's
sums are
fp32, where it adds in fp64. Two launches, grids from shapes only:

    judge_scan_kernel  (row blocks, tiles, 1 or 2)   one tile of a target or draft row (window.py)
    rejection_kernel   (sequence blocks, key tiles)  decides; one tile's best key of the ending row
    coupled_kernel     (row blocks, key tiles)       or: one tile's best key of a row

A sequence's last program of the second launch takes the best of the tiles, and has the verdict.

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

from typing import Annotated

from torch import Tensor

from ..base.checks import check
from ..base.library import operator
from ..base.workspace import num_bytes
from .arguments import TargetLogits, Verdicts, Windows
from .phases import Sizes, check_kind, draft_logits_of, launch


def workspace_size(sequences: int, num_draft_tokens: int, vocab: int, kind: str) -> int:
    """Bytes of workspace, for windows of at most num_draft_tokens."""
    return num_bytes(Sizes(sequences, num_draft_tokens + 1, vocab, 0).parts(kind))


@operator
def judge(
    target_logits: Annotated[Tensor, "float [N, V] rows"],
    draft_logits: Annotated[Tensor | None, "float [Sd, Kd, Vd] rows"],
    draft_token_ids: Annotated[Tensor, "int32 [B, K]"],
    num_draft_tokens: Annotated[Tensor, "int32 [B]"],
    cu_num_logits: Annotated[Tensor, "int32 [B + 1]"],
    positions: Annotated[Tensor, "int64 [N]"],
    temperature: Annotated[Tensor, "fp32 [S]"],
    seed: Annotated[Tensor, "int64 [S]"],
    kind: str,
    accept_len: Annotated[Tensor, "int32 [B] out"],
    next_token: Annotated[Tensor, "int32 [B] out"],
    bad_row: Annotated[Tensor, "int32 [B] out"],
    workspace: Annotated[Tensor, "out"],
    idx_mapping: Annotated[Tensor | None, "int32 [B]"] = None,
    target_thresholds: Annotated[Tensor | None, "fp32 [N]"] = None,
    draft_thresholds: Annotated[Tensor | None, "fp32 [S, K]"] = None,
    target_is_scaled: bool = False,
) -> None:
    """The verdicts into accept_len, next_token and bad_row; see above.

    target_is_scaled: target_logits of sampled sequences come divided by the temperature."""
    vocab, slots = target_logits.shape[1], len(temperature)
    sequences, most = draft_token_ids.shape
    check_kind("judge", kind, most)
    if idx_mapping is None and slots != sequences:
        raise ValueError(f"judge: {slots} temperatures for {sequences} sequences: pass idx_mapping")
    if draft_logits is not None:
        check("judge", "draft_logits", draft_logits, (slots, most, None), contiguous=False)
    ragged = (cu_num_logits, num_draft_tokens, positions, draft_token_ids)
    launch(
        "judge",
        kind,
        Sizes(sequences, most + 1, vocab, max(most, 1)),
        Windows(*ragged, None, None, None, None, idx_mapping, capacity=0),
        TargetLogits(target_logits, target_logits.stride(0), target_thresholds),
        draft_logits_of(draft_logits, draft_thresholds, vocab),
        temperature,
        seed,
        workspace,
        verdicts=Verdicts(accept_len, next_token, bad_row),
        target_is_scaled=target_is_scaled,
    )
