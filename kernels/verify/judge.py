"""The verdict on windows of draft tokens, ragged and fused: how many stand, and which token follows them.

    rejection  row r stands if u * q(x) / sum q <= p(x) / sum p; else a token from norm(max(p - q, 0))
    coupled    row r stands if it is the target's own token under the noise that the draft had
    greedy     (temperature 0, either kind) row r stands if it is the target's argmax
    accept_len = first row that does not stand, or num_draft; a row more than that gives a bonus token

`pearl_rt.judge.judge` is the definition: greedy and coupled verdicts are its bits; rejection's sums are
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
is -1 too where all stand and no row is left.

target_logits [N, V], draft_logits [slots, K, Vd], each fp32, fp16 or bf16 at any row stride; computed in
fp32. draft_token_ids [B, K], num_draft_tokens [B], cu_num_logits [B + 1], idx_mapping [B] int32, positions
[N] int64, temperature [slots] fp32, seed [slots] int64, target_thresholds [N], draft_thresholds [slots, K]
fp32; out: accept_len, next_token, bad_row [B] int32. Mutates these three and the workspace.

    greedy, argmaxes [3, 7, 5], draft_token_ids [[3, 4]], num_draft_tokens [2]  ->  accept_len 1, next_token 7
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ..base.library import check, check_device, on_their_device, register
from ..base.workspace import carve, num_bytes
from ..sampling.noise import EXACT
from ..sampling.sample import check_logits, config
from .coupled import coupled_verdict
from .phases import Sizes, check_kind, launch_phases
from .rejection import rejection_verdict
from .window import locate, slot_of


@triton.jit
def rejection_verdict_kernel(
    decision_ptr,  # [B, 4]
    key_ptr,  # [B, KT]
    key_at_ptr,
    own_ptr,
    own_at_ptr,
    accept_len_ptr,  # [B] int32, out
    next_token_ptr,  # [B] int32, out
    bad_row_ptr,  # [B] int32, out
    B,
    KT,
    SEQS: tl.constexpr,
    KTP: tl.constexpr,
):
    sequence = tl.program_id(0) * SEQS + tl.arange(0, SEQS)
    real = sequence < B
    accept_len, token, bad, _num_draft = rejection_verdict(
        decision_ptr, key_ptr, key_at_ptr, own_ptr, own_at_ptr, sequence, real, KT, KTP
    )
    tl.store(accept_len_ptr + sequence, accept_len, mask=real)
    tl.store(next_token_ptr + sequence, token, mask=real)
    tl.store(bad_row_ptr + sequence, tl.where(bad, accept_len, -1), mask=real)


@triton.jit
def coupled_verdict_kernel(
    rows_ptr,  # [B + 1]
    num_draft_ptr,  # [B]
    positions_ptr,  # [N]
    draft_ids_ptr,  # [B, K]
    K,
    slots_ptr,  # [B] or None
    temperature_ptr,  # [slots]
    top_ptr,  # [B * MAX_ROWS, T]
    at_ptr,
    key_ptr,  # [B * MAX_ROWS, KT]
    key_at_ptr,
    accept_len_ptr,  # [B] int32, out
    next_token_ptr,  # [B] int32, out
    bad_row_ptr,  # [B] int32, out
    B,
    V,
    T,
    KT,
    MAX_ROWS: tl.constexpr,
    SEQS: tl.constexpr,
    RP: tl.constexpr,
    TP: tl.constexpr,
    KTP: tl.constexpr,
):
    index = tl.arange(0, SEQS * RP)
    b = tl.program_id(0) * SEQS + index // RP
    r = index % RP
    live = (b < B) & (r < MAX_ROWS)
    rows, num_draft, _target_row, _position, _step, candidate = locate(
        b,
        r,
        live,
        rows_ptr,
        num_draft_ptr,
        positions_ptr,
        draft_ids_ptr,
        None,
        None,
        None,
        None,
        0,
        K,
        K,
        MAX_ROWS,
        False,
    )
    live = live & (r < rows)
    temperature = tl.load(temperature_ptr + slot_of(slots_ptr, b, live), mask=live, other=0.0)
    accept_len, token, bad, _num_draft = coupled_verdict(
        b,
        r,
        live,
        num_draft,
        candidate,
        temperature,
        top_ptr,
        at_ptr,
        key_ptr,
        key_at_ptr,
        V,
        T,
        KT,
        MAX_ROWS,
        SEQS,
        RP,
        TP,
        KTP,
    )
    sequence = tl.program_id(0) * SEQS + tl.arange(0, SEQS)
    real = sequence < B
    tl.store(accept_len_ptr + sequence, accept_len, mask=real)
    tl.store(next_token_ptr + sequence, token, mask=real)
    tl.store(bad_row_ptr + sequence, tl.where(bad, accept_len, -1), mask=real)


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
    for name, tensor, size, dtype in (
        ("num_draft_tokens", num_draft_tokens, sequences, torch.int32),
        ("cu_num_logits", cu_num_logits, sequences + 1, torch.int32),
        ("positions", positions, num_logits, torch.int64),
        ("seed", seed, slots, torch.int64),
        ("accept_len", accept_len, sequences, torch.int32),
        ("next_token", next_token, sequences, torch.int32),
        ("bad_row", bad_row, sequences, torch.int32),
    ):
        check("judge", name, tensor, (size,), dtype)
    if idx_mapping is not None:
        check("judge", "idx_mapping", idx_mapping, (sequences,), torch.int32)
    elif slots != sequences:
        raise ValueError(f"judge: {slots} temperatures for {sequences} sequences: pass idx_mapping")
    if target_thresholds is not None:
        check("judge", "target_thresholds", target_thresholds, (num_logits,), torch.float32)
    draft: tuple[Any, ...] = (None, 0, 0, None, vocab)
    if draft_logits is not None:
        check_logits("judge", "draft_logits", draft_logits, 3)
        if draft_logits.shape[:2] != (slots, most):
            raise ValueError(
                f"judge: draft_logits has shape {list(draft_logits.shape)}, expected [{slots}, {most}, *]"
            )
        if draft_thresholds is not None:
            check("judge", "draft_thresholds", draft_thresholds, (slots, most), torch.float32)
        strides = draft_logits.stride(0), draft_logits.stride(1)
        draft = (draft_logits, *strides, draft_thresholds, min(vocab, draft_logits.shape[2]))
    check_device(
        "judge",
        target_logits=target_logits,
        draft_logits=draft_logits,
        draft_token_ids=draft_token_ids,
        num_draft_tokens=num_draft_tokens,
        cu_num_logits=cu_num_logits,
        positions=positions,
        temperature=temperature,
        seed=seed,
        accept_len=accept_len,
        next_token=next_token,
        bad_row=bad_row,
        workspace=workspace,
        idx_mapping=idx_mapping,
        target_thresholds=target_thresholds,
        draft_thresholds=draft_thresholds,
    )
    sizes = Sizes(sequences, most + 1, vocab)
    parts = carve("judge", workspace, sizes.parts(kind))
    if sequences == 0:
        return
    ragged = (cu_num_logits, num_draft_tokens, positions, draft_token_ids)
    where = (*ragged, None, None, None, None, 0, most, max(most, 1), idx_mapping)
    target = (target_logits, target_logits.stride(0), target_thresholds)
    launch_phases(sizes, kind, where, target, draft, temperature, seed, parts, target_is_scaled, state=False)
    constants = sizes.reduction
    options = {"KTP": triton.next_power_of_2(sizes.key_tiles), "num_warps": config(vocab).num_warps, **EXACT}
    grid = (triton.cdiv(sequences, constants["SEQS"]),)
    outputs = (accept_len, next_token, bad_row, sequences)
    if kind == "rejection":
        _, _, key, key_at, *_, own, own_at, decision = parts
        rejection_verdict_kernel[grid](
            decision, key, key_at, own, own_at, *outputs, sizes.key_tiles, SEQS=constants["SEQS"], **options
        )
    else:
        coupled_verdict_kernel[grid](
            *ragged,
            most,
            idx_mapping,
            temperature,
            *parts,
            *outputs,
            vocab,
            sizes.tiles,
            sizes.key_tiles,
            **constants,
            **options,
        )


register(
    "judge(Tensor target_logits, Tensor? draft_logits, Tensor draft_token_ids, Tensor num_draft_tokens, "
    "Tensor cu_num_logits, Tensor positions, Tensor temperature, Tensor seed, str kind, "
    "Tensor(a!) accept_len, Tensor(b!) next_token, Tensor(c!) bad_row, Tensor(d!) workspace, "
    "Tensor? idx_mapping=None, Tensor? target_thresholds=None, Tensor? draft_thresholds=None, "
    "bool target_is_scaled=False) -> ()",
    judge,
)
