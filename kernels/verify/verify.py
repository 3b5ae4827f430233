"""One round's verdict and its commit, for every running slot of a batch: judge, then the state and the result
ring.

    candidates  token_ids[b, committed : committed + pending], then the window; as many as there are rows
    judge       as judge.py; row r is for position committed + r; behind the candidates, the bonus
    commit      as commit.py

Three launches, as judge's, the last of which is verify_*_kernel: grid (slot blocks,), a program merges its
slots' tiles and commits them. Slots that do not run are untouched, their ring entries too, and nothing of
theirs is read but finish_reason. Round 0 judges no window: its one row is the prompt's, its token the
target's alone.

target_logits [B, G + 1, V], draft_logits [B, S, Vd] or None (certain drafts), the row of position p at p %
S; fp32, fp16 or bf16. token_ids [B, C], committed, pending, finish_reason, round [B], ring [RING, B, 6 + G
+ 1], draft_token_ids [B, G], num_draft_tokens, num_rows, max_total_len [B], stop_token_ids [B, NS] int32;
temperature [B] fp32, seed [B] int64, target_thresholds [B, G + 1] and draft_thresholds [B, S] fp32 or
None. Requires C >= max_total_len, S >= 2 G. Mutates token_ids from committed on, committed, pending,
finish_reason, round, ring, workspace.

Reads for B 1, G 8, V 128256, fp32: 4.6 MB of target rows and, for rejection, 4.1 MB of draft rows, once from
memory; then one target and one draft row (rejection) or nine target rows (coupled) again, from L2.

    committed 9, pending 2, window [5, 6], 3 rows, all stand  ->  committed 12, pending 1
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ..base.library import check, check_device, on_their_device, register
from ..base.state import RING_HEADER
from ..base.workspace import carve
from ..sampling.noise import EXACT
from ..sampling.sample import check_logits, config
from .commit import commit
from .coupled import coupled_verdict
from .judge import workspace_size as judge_workspace_size
from .phases import Sizes, check_kind, launch_phases
from .rejection import rejection_verdict
from .window import locate


@triton.jit
def verify_rejection_kernel(
    decision_ptr,  # [B, 4]
    key_ptr,  # [B, KT]
    key_at_ptr,
    own_ptr,
    own_at_ptr,
    token_ids_ptr,  # the state's, as in commit
    committed_ptr,
    pending_ptr,
    finish_ptr,
    round_ptr,
    ring_ptr,
    draft_ids_ptr,
    num_draft_ptr,
    max_total_len_ptr,
    stop_ids_ptr,
    capacity,
    K,
    RING,
    B,
    KT,
    SEQS: tl.constexpr,
    KTP: tl.constexpr,
    NS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    sequence = tl.program_id(0) * SEQS + tl.arange(0, SEQS)
    real = sequence < B
    accept_len, token, bad, num_draft = rejection_verdict(
        decision_ptr, key_ptr, key_at_ptr, own_ptr, own_at_ptr, sequence, real, KT, KTP
    )
    commit(
        sequence,
        real,
        accept_len,
        token,
        bad,
        num_draft,
        token_ids_ptr,
        committed_ptr,
        pending_ptr,
        finish_ptr,
        round_ptr,
        ring_ptr,
        draft_ids_ptr,
        num_draft_ptr,
        max_total_len_ptr,
        stop_ids_ptr,
        capacity,
        K,
        RING,
        B,
        NS,
        WIDTH,
    )


@triton.jit
def verify_coupled_kernel(
    num_rows_ptr,  # [B]
    temperature_ptr,  # [B]
    top_ptr,  # [B * MAX_ROWS, T]
    at_ptr,
    key_ptr,  # [B * MAX_ROWS, KT]
    key_at_ptr,
    token_ids_ptr,  # the state's, as in commit
    committed_ptr,
    pending_ptr,
    finish_ptr,
    round_ptr,
    ring_ptr,
    draft_ids_ptr,
    num_draft_ptr,
    max_total_len_ptr,
    stop_ids_ptr,
    capacity,
    K,
    RING,
    B,
    V,
    T,
    KT,
    MAX_ROWS: tl.constexpr,
    SEQS: tl.constexpr,
    RP: tl.constexpr,
    TP: tl.constexpr,
    KTP: tl.constexpr,
    NS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    index = tl.arange(0, SEQS * RP)
    b = tl.program_id(0) * SEQS + index // RP
    r = index % RP
    live = (b < B) & (r < MAX_ROWS)
    rows, num_draft, _target_row, _position, _step, candidate = locate(
        b,
        r,
        live,
        num_rows_ptr,
        num_draft_ptr,
        committed_ptr,
        draft_ids_ptr,
        token_ids_ptr,
        pending_ptr,
        finish_ptr,
        round_ptr,
        capacity,
        K,
        1,
        MAX_ROWS,
        True,
    )
    live = live & (r < rows)
    temperature = tl.load(temperature_ptr + b, mask=live, other=0.0)
    accept_len, token, bad, num_draft = coupled_verdict(
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
    commit(
        sequence,
        sequence < B,
        accept_len,
        token,
        bad,
        num_draft,
        token_ids_ptr,
        committed_ptr,
        pending_ptr,
        finish_ptr,
        round_ptr,
        ring_ptr,
        draft_ids_ptr,
        num_draft_ptr,
        max_total_len_ptr,
        stop_ids_ptr,
        capacity,
        K,
        RING,
        B,
        NS,
        WIDTH,
    )


def workspace_size(num_slots: int, gamma_max: int, vocab: int, kind: str) -> int:
    """Bytes of workspace."""
    return judge_workspace_size(num_slots, gamma_max, vocab, kind)


@on_their_device
def verify(
    target_logits: torch.Tensor,
    draft_logits: torch.Tensor | None,
    token_ids: torch.Tensor,
    committed: torch.Tensor,
    pending: torch.Tensor,
    finish_reason: torch.Tensor,
    round: torch.Tensor,
    ring: torch.Tensor,
    draft_token_ids: torch.Tensor,
    num_draft_tokens: torch.Tensor,
    num_rows: torch.Tensor,
    max_total_len: torch.Tensor,
    stop_token_ids: torch.Tensor,
    temperature: torch.Tensor,
    seed: torch.Tensor,
    kind: str,
    workspace: torch.Tensor,
    target_thresholds: torch.Tensor | None = None,
    draft_thresholds: torch.Tensor | None = None,
) -> None:
    """Judges and commits one round of every running slot; see above."""
    check_logits("verify", "target_logits", target_logits, 3)
    slots, max_rows, vocab = target_logits.shape
    gamma = max_rows - 1
    check_kind("verify", kind, gamma)
    if target_logits.stride(0) != max_rows * target_logits.stride(1):
        raise ValueError(f"verify: target_logits has strides {target_logits.stride()}: rows must lie evenly")
    capacity = token_ids.shape[-1]
    ring_size, num_stops = ring.shape[0], stop_token_ids.shape[-1]
    if ring_size < 1:
        raise ValueError("verify: ring has 0 rounds: give it as many as are queued ahead, at least 1")
    for name, tensor, shape, dtype in (
        ("token_ids", token_ids, (slots, capacity), torch.int32),
        ("committed", committed, (slots,), torch.int32),
        ("pending", pending, (slots,), torch.int32),
        ("finish_reason", finish_reason, (slots,), torch.int32),
        ("round", round, (slots,), torch.int32),
        ("ring", ring, (ring_size, slots, RING_HEADER + max_rows), torch.int32),
        ("draft_token_ids", draft_token_ids, (slots, gamma), torch.int32),
        ("num_draft_tokens", num_draft_tokens, (slots,), torch.int32),
        ("num_rows", num_rows, (slots,), torch.int32),
        ("max_total_len", max_total_len, (slots,), torch.int32),
        ("stop_token_ids", stop_token_ids, (slots, num_stops), torch.int32),
        ("temperature", temperature, (slots,), torch.float32),
        ("seed", seed, (slots,), torch.int64),
    ):
        check("verify", name, tensor, shape, dtype)
    if target_thresholds is not None:
        check("verify", "target_thresholds", target_thresholds, (slots, max_rows), torch.float32)
    steps = 1
    draft: tuple[Any, ...] = (None, 0, 0, None, vocab)
    if draft_logits is not None:
        check_logits("verify", "draft_logits", draft_logits, 3)
        steps = draft_logits.shape[1]
        if draft_logits.shape[0] != slots or steps < 2 * gamma:
            raise ValueError(
                f"verify: draft_logits has shape {list(draft_logits.shape)}, "
                f"expected [{slots}, >= {2 * gamma}, *]"
            )
        if draft_thresholds is not None:
            check("verify", "draft_thresholds", draft_thresholds, (slots, steps), torch.float32)
        strides = draft_logits.stride(0), draft_logits.stride(1)
        draft = (draft_logits, *strides, draft_thresholds, min(vocab, draft_logits.shape[2]))
    state = (token_ids, committed, pending, finish_reason, round, ring)
    check_device(
        "verify",
        target_logits=target_logits,
        draft_logits=draft_logits,
        **dict(zip(("token_ids", "committed", "pending", "finish_reason", "round"), state, strict=False)),
        draft_token_ids=draft_token_ids,
        num_draft_tokens=num_draft_tokens,
        num_rows=num_rows,
        max_total_len=max_total_len,
        stop_token_ids=stop_token_ids,
        temperature=temperature,
        seed=seed,
        workspace=workspace,
        target_thresholds=target_thresholds,
        draft_thresholds=draft_thresholds,
    )
    if ring.device != token_ids.device and not ring.is_pinned():
        raise ValueError(
            f"verify: ring on {ring.device}, expected {token_ids.device}, or pinned memory of the host"
        )
    sizes = Sizes(slots, max_rows, vocab)
    parts = carve("verify", workspace, sizes.parts(kind))
    if slots == 0:
        return
    where = (
        *(num_rows, num_draft_tokens, committed, draft_token_ids, token_ids, pending, finish_reason, round),
        *(capacity, gamma, steps, None),
    )
    target = (target_logits, target_logits.stride(1), target_thresholds)
    launch_phases(sizes, kind, where, target, draft, temperature, seed, parts, scaled=False, state=True)
    constants = sizes.reduction
    constants["KTP"] = triton.next_power_of_2(sizes.key_tiles)
    constants["NS"] = num_stops
    constants["WIDTH"] = triton.next_power_of_2(max(2 * gamma, 1))
    grid = (triton.cdiv(slots, constants["SEQS"]),)
    options = {"num_warps": config(vocab).num_warps, **EXACT}
    window = (draft_token_ids, num_draft_tokens, max_total_len, stop_token_ids)
    numbers = (capacity, gamma, ring_size, slots)
    if kind == "rejection":
        _, _, key, key_at, *_, own, own_at, decision = parts
        constants = {name: constants[name] for name in ("SEQS", "KTP", "NS", "WIDTH")}
        verify_rejection_kernel[grid](
            decision,
            key,
            key_at,
            own,
            own_at,
            *state,
            *window,
            *numbers,
            sizes.key_tiles,
            **constants,
            **options,
        )
    else:
        verify_coupled_kernel[grid](
            num_rows,
            temperature,
            *parts,
            *state,
            *window,
            *numbers,
            vocab,
            sizes.tiles,
            sizes.key_tiles,
            **constants,
            **options,
        )


register(
    "verify(Tensor target_logits, Tensor? draft_logits, Tensor(a!) token_ids, Tensor(b!) committed, "
    "Tensor(c!) pending, Tensor(d!) finish_reason, Tensor(e!) round, Tensor(f!) ring, "
    "Tensor draft_token_ids, Tensor num_draft_tokens, Tensor num_rows, Tensor max_total_len, "
    "Tensor stop_token_ids, Tensor temperature, Tensor seed, str kind, Tensor(g!) workspace, "
    "Tensor? target_thresholds=None, Tensor? draft_thresholds=None) -> ()",
    verify,
)
