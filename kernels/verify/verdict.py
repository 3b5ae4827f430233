"""The end of the second launch of judge and of verify: the last program of a sequence delivers its verdict.

`judge` has it written into Verdicts, `verify` committed to the state (commit.py). Knows no logits."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from .commit import commit


@triton.jit
def is_last(num_ended_ptr, sequence, real, num_programs):
    """Of each sequence, [X] or a scalar: whether this program is the last of num_programs to come here. It
    then reads what the others have stored."""
    tl.debug_barrier()  # what every thread has stored comes before the program is counted
    before = tl.atomic_add(num_ended_ptr + sequence, 1, mask=real, sem="acq_rel")
    last = real & (before == num_programs - 1)
    tl.debug_barrier()
    return last


@triton.jit
def deliver(sequence, real, verdict, windows, verdicts, commits, K, B, NS, WIDTH: tl.constexpr):
    """Commits a Verdict, or writes it out. sequence, real: [SEQS], or scalars."""
    if commits is not None:
        commit(sequence, real, verdict, windows, commits, K, B, NS, WIDTH)
    else:
        tl.store(verdicts.accept_len + sequence, verdict.accept_len, mask=real)
        tl.store(verdicts.next_token + sequence, verdict.token, mask=real)
        tl.store(verdicts.bad_row + sequence, tl.where(verdict.bad, verdict.accept_len, -1), mask=real)
