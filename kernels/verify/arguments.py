"""What the kernels of a verdict are given: tuples of addresses and sizes, one for each thing.

Launchers build them, kernels and device functions read their fields. A field that is None is a constant to
the compiler: what depends on it is not compiled. So is an integer of a tuple that is 1: K, the draft tokens
of a sequence at most, and S, the rows of draft logits of a slot, are arguments of their own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

Tensor = torch.Tensor


class Windows(NamedTuple):
    """Where the rows and the candidates of B sequences are. Ragged, or the state of a running batch: then
    token_ids and what follows it up to `round` are given."""

    num_rows: Tensor  # cu_num_logits [B + 1]; of a state: num_rows [B]
    num_draft: Tensor  # [B]; of a state: the window's length
    positions: Tensor  # [N] int64; of a state: committed [B] int32
    draft_ids: Tensor  # [B, K]; of a state: the window
    token_ids: Tensor | None  # [B, capacity]
    pending: Tensor | None  # [B]
    finish_reason: Tensor | None  # [B]
    round: Tensor | None  # [B]
    slots: Tensor | None  # [B] where a sequence has its draft logits, temperature and seed; None: at b
    capacity: int


class TargetLogits(NamedTuple):
    """Rows of V entries."""

    logits: Tensor  # [N, V]
    stride: int  # between rows
    thresholds: Tensor | None  # [N]


class DraftLogits(NamedTuple):
    """Rows that the draft sampled from."""

    logits: Tensor | None  # [slots, S, Vd]; None: the draft was certain of its tokens
    slot_stride: int
    step_stride: int
    thresholds: Tensor | None  # [slots, S]
    vocab: int  # entries that it sampled from: min(V, Vd)


class Scans(NamedTuple):
    """Of every tile of a row, from the first launch: [B * (K + 1), T]; three for rejection."""

    top: Tensor  # fp32, the maximum; +inf: an entry cannot be used
    at: Tensor  # int32, where it is
    total: Tensor | None  # fp32, the sum of exp((x - top) / temperature)
    draft_top: Tensor | None
    draft_total: Tensor | None
    num_ended: Tensor  # [B] int32: programs of the second launch; the first one writes 0


class Keys(NamedTuple):
    """Of every key tile of a row, from the second launch: [rows, KT]."""

    best: Tensor  # fp32, the largest key
    at: Tensor  # int32, where it is


class Verdicts(NamedTuple):
    """What `judge` writes: [B] int32 each."""

    accept_len: Tensor
    next_token: Tensor
    bad_row: Tensor


class Commits(NamedTuple):
    """What `verify` needs to commit a verdict, beside the windows."""

    ring: Tensor  # [RING, B, RING_HEADER + K + 1]
    max_total_len: Tensor  # [B]
    stop_ids: Tensor  # [B, NS]
    ring_size: int
