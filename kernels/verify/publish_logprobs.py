"""Log-probabilities of the tokens that a round committed, in a ring that the host reads: behind verify.

    row r of slot b   token_ids[b, before[b] + r], if that is below committed[b] and the slot asks for any
    ring[n % RING, b] n, then for each of them 1 + k entries: its own, then the k likeliest
    an entry          id, log-probability (its bits), rank, as kernels/sampling/logprobs.py computes them

n is the round that verify has judged, round[b] - 1; before is what committed was ahead of it. The fields are
stored first, then n by commit.py's `release`: a reader that loads n with acquire reads
them. The verdict's own entry is published by itself, earlier; nothing orders a reader between the two rings.

    asked_kernel  (slots,)  the token that each row is asked for, or -1
    logprobs      its three launches
    publish_kernel   (slots,)  one slot's entries, then its n

target_logits [B, G + 1, V] as they are, before penalties: fp32, fp16 or bf16, usable where a token was
committed. token_ids [B, C], before, committed, round, num_logprobs [B] int32, the last how many likeliest
tokens a slot wants with each, at most k, or -1 for nothing. ring [RING, B, 1 + R * (1 + k) * 3] int32,
R >= G + 1; perhaps pinned memory of the host. Slots that ask for nothing, or have committed nothing, cost
nothing and are left alone. Of a slot's entries only those that it wants are written. Mutates ring, workspace.

    before 3, committed 5, num_logprobs 0, round 2  ->  ring[1 % RING, b]: 1, then the first entry of two rows
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Annotated

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..base.checks import check_even_rows
from ..base.dependent import await_previous, dependent
from ..base.library import operator
from ..base.workspace import Part, carve, num_bytes
from ..sampling.logprobs import logprobs
from ..sampling.logprobs import workspace_size as logprobs_workspace
from ..sampling.sample import row_offset
from .commit import release

FIELDS = tl.constexpr(3)  # of an entry
OP = "publish_logprobs"


@triton.jit(do_not_specialize=["max_rows"])  # one binary for all windows
def asked_kernel(
    token_ids_ptr,  # [B, capacity]
    before_ptr,  # [B]
    committed_ptr,  # [B]
    num_logprobs_ptr,  # [B]
    asked_ptr,  # [B * max_rows], out
    capacity,
    max_rows,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    b = tl.program_id(0)
    before = tl.load(before_ptr + b)
    num_new = tl.load(committed_ptr + b) - before
    num_asked = tl.where(tl.load(num_logprobs_ptr + b) >= 0, tl.minimum(num_new, max_rows), 0)
    for first in range(0, max_rows, BLOCK):
        r = first + tl.arange(0, BLOCK)
        place = token_ids_ptr + row_offset(b, capacity) + before + r
        token = tl.load(place, mask=r < num_asked, other=-1)
        tl.store(asked_ptr + b * max_rows + r, token, mask=r < max_rows)


@triton.jit(do_not_specialize=["stride", "max_rows"])
def publish_kernel(
    ids_ptr,  # [B * max_rows, W]
    values_ptr,  # [B * max_rows, W] the bits of fp32
    ranks_ptr,  # [B * max_rows, W]
    before_ptr,  # [B]
    committed_ptr,  # [B]
    round_ptr,  # [B]
    num_logprobs_ptr,  # [B]
    ring_ptr,  # [RING, B, stride]
    stride,
    RING,
    B,
    max_rows,
    W: tl.constexpr,  # 1 + k
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    b = tl.program_id(0)
    num_new = tl.load(committed_ptr + b) - tl.load(before_ptr + b)
    wanted = tl.load(num_logprobs_ptr + b)
    if (wanted < 0) | (num_new <= 0):
        return
    number = tl.load(round_ptr + b) - 1
    out = ring_ptr + ((number % RING) * B + b).to(tl.int64) * stride
    num_entries = tl.minimum(num_new, max_rows) * W
    for first in range(0, num_entries * FIELDS, BLOCK):
        at = first + tl.arange(0, BLOCK)
        entry, field = at // FIELDS, at % FIELDS
        live = (entry < num_entries) & (entry % W <= wanted)
        place = row_offset(b, max_rows * W) + entry
        fields = tl.load(ids_ptr + place, mask=live & (field == 0), other=0)
        fields |= tl.load(values_ptr + place, mask=live & (field == 1), other=0)
        fields |= tl.load(ranks_ptr + place, mask=live & (field == 2), other=0)
        tl.store(out + 1 + at, fields, mask=live)
    release(out, number, num_new > 0)


def entry_size(max_rows: int, k: int) -> int:
    """int32 of one slot's entry in the ring."""
    return 1 + max_rows * (1 + k) * FIELDS.value


def _parts(slots: int, max_rows: int, vocab: int, k: int) -> list[Part]:
    rows = slots * max_rows
    published = (rows, 1 + k)
    own = ((logprobs_workspace(rows, vocab, k),), torch.uint8)
    return [
        ((rows,), torch.int32),
        (published, torch.int32),
        (published, torch.float32),
        (published, torch.int32),
        own,
    ]


def workspace_size(slots: int, max_rows: int, vocab: int, k: int) -> int:
    """Bytes of workspace."""
    return num_bytes(_parts(slots, max_rows, vocab, k))


@operator
def publish_logprobs(
    target_logits: Annotated[Tensor, "float [B, G, V] rows"],
    token_ids: Annotated[Tensor, "int32 [B, C]"],
    before: Annotated[Tensor, "int32 [B]"],
    committed: Annotated[Tensor, "int32 [B]"],
    round: Annotated[Tensor, "int32 [B]"],
    num_logprobs: Annotated[Tensor, "int32 [B]"],
    k: int,
    ring: Annotated[Tensor, "int32 [RING, B, W] out pinned"],
    workspace: Annotated[Tensor, "out"],
    pdl: bool = False,
) -> None:
    """Of what verify has committed, for every slot that asks; see above. pdl: kernels/base/dependent.py."""
    slots, max_rows, vocab = target_logits.shape
    check_even_rows(OP, "target_logits", target_logits)
    ring_size, _, stride = ring.shape
    if ring_size < 1 or stride < entry_size(max_rows, k):
        raise ValueError(
            f"{OP}: ring has {ring_size} rounds of {stride} int32 for a slot, expected at least 1 of "
            f"{entry_size(max_rows, k)} for {max_rows} rows of k {k}"
        )
    asked, ids, values, ranks, own = carve(OP, workspace, _parts(slots, max_rows, vocab, k))
    if slots == 0:
        return
    asked_kernel[(slots,)](
        *(token_ids, before, committed, num_logprobs, asked, token_ids.shape[1], max_rows),
        BLOCK=32,
        num_warps=1,
        **dependent(OP, pdl),
    )
    logprobs(target_logits.flatten(0, 1), asked, k, ids, values, ranks, own, pdl)
    publish_kernel[(slots,)](
        *(ids, values.view(torch.int32), ranks, before, committed, round, num_logprobs),
        *(ring, stride, ring_size, slots, max_rows),
        W=1 + k,
        BLOCK=256,
        num_warps=4,
        **dependent(OP, pdl),
    )
