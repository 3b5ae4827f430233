"""The last launch of judge and of verify: the best of the tiles, and what becomes of the verdict.

    rejection_verdict_kernel  (sequence blocks,)  from residual_kernel's keys and decision (rejection.py)
    coupled_verdict_kernel    (sequence blocks,)  from own_key_kernel's keys (coupled.py)

`judge` has it written into Verdicts, `verify` committed to the state (commit.py)."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from .commit import commit
from .coupled import coupled_verdict
from .rejection import rejection_verdict
from .window import locate, slot_of


@triton.jit
def deliver(sequence, real, verdict, windows, verdicts, commits, K, B, NS, WIDTH: tl.constexpr):
    """Commits a Verdict, or writes it out. sequence, real: [SEQS]."""
    if commits is not None:
        commit(sequence, real, verdict, windows, commits, K, B, NS, WIDTH)
    else:
        tl.store(verdicts.accept_len + sequence, verdict.accept_len, mask=real)
        tl.store(verdicts.next_token + sequence, verdict.token, mask=real)
        tl.store(verdicts.bad_row + sequence, tl.where(verdict.bad, verdict.accept_len, -1), mask=real)


@triton.jit(do_not_specialize=["K", "NS"])  # one binary for all windows
def rejection_verdict_kernel(
    windows,  # Windows, to commit
    keys,  # Keys [B, KT]
    decision,  # Decision
    verdicts,  # Verdicts, out; or None
    commits,  # Commits; or None
    K,
    B,
    KT,
    NS,  # stop ids of a slot
    SEQS: tl.constexpr,
    KTP: tl.constexpr,
    WIDTH: tl.constexpr,  # as in commit
):
    sequence = tl.program_id(0) * SEQS + tl.arange(0, SEQS)
    real = sequence < B
    verdict = rejection_verdict(decision, keys, sequence, real, KT, KTP)
    deliver(sequence, real, verdict, windows, verdicts, commits, K, B, NS, WIDTH)


@triton.jit(do_not_specialize=["K", "NS"])
def coupled_verdict_kernel(
    windows,  # Windows
    temperature_ptr,  # [slots]
    scans,  # Scans
    keys,  # Keys [B * (K + 1), KT]
    verdicts,  # Verdicts, out; or None
    commits,  # Commits; or None
    K,
    B,
    V,
    T,
    KT,
    NS,
    SEQS: tl.constexpr,
    RP: tl.constexpr,
    TP: tl.constexpr,
    KTP: tl.constexpr,
    WIDTH: tl.constexpr,
):
    index = tl.arange(0, SEQS * RP)
    b = tl.program_id(0) * SEQS + index // RP
    r = index % RP
    live = (b < B) & (r <= K)
    row = locate(b, r, live, windows, K, 1)
    live = live & (r < row.rows)
    temperature = tl.load(temperature_ptr + slot_of(windows.slots, b, live), mask=live, other=0.0)
    verdict = coupled_verdict(b, r, live, row, temperature, scans, keys, K, V, T, KT, SEQS, RP, TP, KTP)
    sequence = tl.program_id(0) * SEQS + tl.arange(0, SEQS)
    deliver(sequence, sequence < B, verdict, windows, verdicts, commits, K, B, NS, WIDTH)
