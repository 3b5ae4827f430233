"""The end of a round, inside kernels: a verdict becomes its slot's state and an entry of the result ring.

    tokens   accept_len candidates, then the token that follows; cut at the first stop id, else at
             max_total_len; finish_reason 2 stop, 3 length, 4 bad logits
    pending  what was drafted behind the candidates that were judged, if all of them stood, else 0
    ring     the round's entry (pearl_rt/state.py), its number last: a store with release at system scope

`pearl_rt.reference.round.advance` and `cut` are the definition. Knows nothing of logits and judges. Slots
that do not run are untouched, their ring entries too.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from pearl_rt import state

from ..base.checks import interpreting
from ..sampling.sample import beside
from .window import RUNNING

HEADER = tl.constexpr(state.RING_HEADER)
STOPPED = tl.constexpr(state.STOP)
AT_LENGTH = tl.constexpr(state.LENGTH)
BAD_LOGITS = tl.constexpr(state.BAD_LOGITS)
INTERPRETED = tl.constexpr(interpreting())
STORE = tl.constexpr("""{
    .reg .pred first, stores;
    .reg .u32 thread;
    mov.u32 thread, %tid.x;
    setp.eq.u32 first, thread, 0;
    setp.ne.s32 stores, $3, 0;
    and.pred stores, stores, first;
    @stores st.release.sys.global.b32 [$1], $2;
    mov.u32 $0, 0;
}""")


@triton.jit
def release(place, value, real):
    """Stores one int32, if real, behind all that the program has stored: a reader anywhere that loads it with
    acquire sees the rest.

    A store is posted, where an atomic on the host's memory goes over the bus and back; and such atomics are
    promised by few hosts. The interpreter runs no assembly: there it is an exchange, of any number of places.
    """
    tl.debug_barrier()  # what every thread has stored comes before the release of one
    if INTERPRETED:
        tl.atomic_xchg(place, value, mask=real, sem="release", scope="sys")
    else:
        tl.static_assert(place.numel == 1, "one thread stores")
        given = [place.to(tl.int64), value.to(tl.int32), real.to(tl.int32)]
        tl.inline_asm_elementwise(STORE, "=r,l,r,r", given, dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def commit(
    b,  # [SEQS] slots, or a scalar
    real,  # likewise
    verdict,  # Verdict
    windows,  # Windows, of a state
    commits,  # Commits
    K,
    B,
    NS,
    WIDTH: tl.constexpr,  # power of two, >= 2 * K
):
    accept_len, token, bad, num_draft = verdict
    real = real & (tl.load(windows.finish_reason + b, mask=real, other=0) == RUNNING)
    base = tl.load(windows.positions + b, mask=real, other=0)
    pending = tl.load(windows.pending + b, mask=real, other=0)
    number = tl.load(windows.round + b, mask=real, other=0)
    window = tl.where(number == 0, 0, tl.load(windows.num_draft + b, mask=real, other=0))
    room = tl.maximum(tl.load(commits.max_total_len + b, mask=real, other=0) - base, 1)

    # The tokens from `committed` on, as they are after this round.
    j = tl.arange(0, WIDTH)
    follows = (j == beside(accept_len)) & beside(token >= 0)
    behind = j - beside(pending)
    drafted = beside(real) & (behind >= 0) & (behind < beside(window))
    place = windows.token_ids + (beside(b.to(tl.int64) * windows.capacity + base) + j)
    tokens = tl.load(place, mask=beside(real) & (behind < 0), other=-1)
    drafts = tl.load(windows.draft_ids + (beside(b * K) + behind), mask=drafted, other=-1)
    tokens = tl.where(follows, beside(token), tl.where(drafted, drafts, tokens))

    new = tl.where(bad, 0, accept_len + (token >= 0).to(tl.int32))
    hit = tokens * 0
    for i in range(NS):
        stop = tl.load(commits.stop_ids + b * NS + i, mask=real, other=-1)
        hit = hit | ((tokens == beside(stop)) & beside(stop >= 0)).to(tl.int32)
    first = tl.min(tl.where(hit != 0, j, WIDTH), axis=-1)
    stopped = (first < new) & (first < room)
    kept = tl.where(stopped, first + 1, tl.minimum(new, room))
    reason = tl.where(stopped, STOPPED, tl.where(room <= new, AT_LENGTH, RUNNING))
    reason = tl.where(bad, BAD_LOGITS, reason)
    left = tl.where((token >= 0) | (reason != RUNNING), 0, pending + window - num_draft)

    tl.debug_barrier()  # every warp has read what is overwritten now
    tl.store(place, tokens, mask=beside(real & (bad == 0)) & (follows | drafted))
    tl.store(windows.positions + b, base + kept, mask=real)
    tl.store(windows.pending + b, left, mask=real)
    tl.store(windows.finish_reason + b, reason, mask=real)
    tl.store(windows.round + b, number + 1, mask=real)
    slot = (number % commits.ring_size) * B + b
    entry = commits.ring + slot.to(tl.int64) * (HEADER + K + 1)
    tl.store(entry + 1, accept_len, mask=real)
    tl.store(entry + 2, num_draft, mask=real)
    tl.store(entry + 3, pending, mask=real)
    tl.store(entry + 4, reason, mask=real)
    tl.store(entry + 5, kept, mask=real)
    unusable = beside(bad != 0) & (j == beside(accept_len))
    tl.store(beside(entry) + (HEADER + j), tokens, mask=beside(real) & ((j < beside(kept)) | unusable))
    release(entry, number, real)
