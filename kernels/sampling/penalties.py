"""min_tokens, logit bias and penalties, in place on rows of logits; fp32, in
pearl_rt/reference/processors.py's order.

    masked ids  x = -inf                             while the row has fewer than min_tokens tokens before it
    bias ids    x = x + bias
    in prompt or answer   x = x / repetition if x > 0, else x * repetition
    in the answer         x = x - frequency * times - presence

Row r of slot b, of L rows, is for position committed + r (target: step -1), or committed + pending + step (a
draft's, L = 1); it sees all tokens before its position: token_ids[b, p] for p < committed + pending, then
window[b, p - committed - pending]. So a row inside a window sees the candidates before it. NaN and +inf stay,
so that such a row is still found; -inf stays; other results are kept within fp32. Rows of slots that do not
run, and rows past num_rows (target), are left alone. Two launches, grids from shapes only:

    count_kernel  (slots, tiles of C)  counts[b, token] of what all rows of a slot share: times in the answer,
                                       and one bit for the prompt
    apply_kernel  (slots * L, tiles of V)  one tile of a row; candidates before the row are compared with it

logits [B * L, V] fp32, fp16 or bf16, rows at any stride; token_ids [B, C], window [B, G] at any strides,
committed, pending, finish_reason, prompt_len, num_rows (or None), min_tokens [B], masked_ids [B, NM],
bias_ids [B, NB] int32 (-1 ends a list); bias [B, NB], repetition, frequency, presence [B] fp32. Mutates
logits and the workspace. Bound by memory: reads and writes the rows, and counts once.

    repetition [2], prompt [3], answer [1], logits [4, 4, -4, -4]  ->  [4, 2, -4, -8]
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pearl_rt import state

from ..base import interpreter  # noqa: F401
from ..base.library import check, check_all, on_their_device, register
from ..base.workspace import Part, carve, num_bytes
from .noise import EXACT
from .sample import INFINITY, check_logits, row_offset

RUNNING = tl.constexpr(state.RUNNING)
IN_PROMPT = tl.constexpr(1 << 30)  # the bit of a count
MOST = tl.constexpr(3.4028234663852886e38)
TOKENS = 256  # of a counting program
TARGET_ROWS = -1  # as `step`
Tensor = torch.Tensor


@triton.jit
def is_penalised(repetition_ptr, frequency_ptr, presence_ptr, b):
    """Whether a slot's request has any penalty on."""
    off = (tl.load(repetition_ptr + b) == 1.0) & (tl.load(frequency_ptr + b) == 0.0)
    return (off & (tl.load(presence_ptr + b) == 0.0)) == 0


@triton.jit
def length_of(list_ptr, most, MOST_PADDED: tl.constexpr):
    """Of a list of ids that -1 ends."""
    place = tl.arange(0, MOST_PADDED)
    ids = tl.load(list_ptr + place, mask=place < most, other=-1)
    return tl.sum((ids >= 0).to(tl.int32), axis=0)


@triton.jit
def count_kernel(
    token_ids_ptr,  # [B, C] int32
    window_ptr,  # [B, G] int32
    window_stride_b,
    window_stride_g,
    committed_ptr,  # [B] int32
    pending_ptr,  # [B] int32
    finish_ptr,  # [B] int32
    prompt_len_ptr,  # [B] int32
    repetition_ptr,  # [B] fp32
    frequency_ptr,  # [B] fp32
    presence_ptr,  # [B] fp32
    counts_ptr,  # [B, V] int32, zeros; mutated
    C,
    V,
    step,
    TILE: tl.constexpr,
):
    b = tl.program_id(0)
    if tl.load(finish_ptr + b) != RUNNING:
        return
    if is_penalised(repetition_ptr, frequency_ptr, presence_ptr, b) == 0:
        return
    committed = tl.load(committed_ptr + b)
    known = committed + tl.load(pending_ptr + b)
    length = tl.where(step >= 0, known + step, committed)
    place = tl.program_id(1) * TILE + tl.arange(0, TILE)
    if tl.program_id(1) * TILE >= length:
        return
    fed = (place < length) & (place < C)
    old = tl.load(token_ids_ptr + row_offset(b, C) + place, mask=fed & (place < known), other=-1)
    drafted = fed & (place >= known)
    new = window_ptr + b * window_stride_b + (place - known) * window_stride_g
    token = tl.where(drafted, tl.load(new, mask=drafted, other=-1), old)
    counted = fed & (token >= 0) & (token < V)
    cell = counts_ptr + row_offset(b, V) + token
    answer = place >= tl.load(prompt_len_ptr + b)
    tl.atomic_add(cell, 1, mask=counted & answer)
    tl.atomic_or(cell, IN_PROMPT, mask=counted & (answer == 0))


@triton.jit
def apply_kernel(
    logits_ptr,  # [B * L, V], rows at `stride`; mutated
    stride,
    token_ids_ptr,  # [B, C] int32
    window_ptr,  # [B, G] int32
    window_stride_b,
    window_stride_g,
    committed_ptr,  # [B] int32
    pending_ptr,  # [B] int32
    finish_ptr,  # [B] int32
    prompt_len_ptr,  # [B] int32
    num_rows_ptr,  # [B] int32, or None
    repetition_ptr,  # [B] fp32
    frequency_ptr,  # [B] fp32
    presence_ptr,  # [B] fp32
    min_tokens_ptr,  # [B] int32
    masked_ids_ptr,  # [B, NM] int32, -1 ends
    bias_ids_ptr,  # [B, NB] int32, -1 ends
    bias_ptr,  # [B, NB] fp32
    counts_ptr,  # [B, V] int32
    C,
    V,
    L,
    NM,
    NB,
    step,
    NMP: tl.constexpr,  # powers of two, >= NM and NB
    NBP: tl.constexpr,
    TILE: tl.constexpr,
):
    b = tl.program_id(0) // L
    r = tl.program_id(0) % L
    if tl.load(finish_ptr + b) != RUNNING:
        return
    rows = L
    if num_rows_ptr is not None:
        rows = tl.load(num_rows_ptr + b)
    if r >= rows:
        return
    penalised = is_penalised(repetition_ptr, frequency_ptr, presence_ptr, b)
    committed = tl.load(committed_ptr + b)
    known = committed + tl.load(pending_ptr + b)
    shared = tl.where(step >= 0, known + step, committed)  # tokens that count_kernel has counted
    generated = shared + r - tl.load(prompt_len_ptr + b)
    early = generated < tl.load(min_tokens_ptr + b)
    num_masked = tl.where(early, length_of(masked_ids_ptr + b * NM, NM, NMP), 0)
    num_biased = length_of(bias_ids_ptr + b * NB, NB, NBP)
    if (penalised | (num_masked > 0) | (num_biased > 0)) == 0:
        return

    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    live = column < V
    place = logits_ptr + row_offset(tl.program_id(0), stride) + column
    x = tl.load(place, mask=live, other=0.0).to(tl.float32)
    y = x
    for i in range(num_masked):
        y = tl.where(column == tl.load(masked_ids_ptr + b * NM + i), -INFINITY, y)
    for i in range(num_biased):
        y = tl.where(column == tl.load(bias_ids_ptr + b * NB + i), y + tl.load(bias_ptr + b * NB + i), y)
    if penalised:
        cell = tl.load(counts_ptr + row_offset(b, V) + column, mask=live, other=0)
        times = cell & (IN_PROMPT - 1)
        for i in range(r):  # candidates before the row; r is 0 for a draft's step
            at = committed + i
            if at < known:
                token = tl.load(token_ids_ptr + row_offset(b, C) + at)
            else:
                token = tl.load(window_ptr + b * window_stride_b + (at - known) * window_stride_g)
            times += (column == token).to(tl.int32)
        repetition = tl.load(repetition_ptr + b)
        divided = tl.div_rn(y, tl.full([TILE], 1.0, tl.float32) * repetition)
        z = tl.where(y > 0.0, divided, y * repetition)
        z = z - tl.load(frequency_ptr + b) * times.to(tl.float32)
        z = z - tl.where(times > 0, tl.load(presence_ptr + b), 0.0)
        z = tl.minimum(tl.maximum(z, -MOST), MOST)
        y = tl.where(((times > 0) | (cell >= IN_PROMPT)) & (y > -INFINITY), z, y)
    tl.store(place, tl.where(x < INFINITY, y, x), mask=live)


def _tile(vocab: int) -> int:
    return min(1024, max(16, triton.next_power_of_2(vocab)))


def _parts(slots: int, vocab: int) -> list[Part]:
    return [((slots, vocab), torch.int32)]


def workspace_size(slots: int, vocab: int) -> int:
    """Bytes of workspace."""
    return num_bytes(_parts(slots, vocab))


@on_their_device
def penalties(
    logits: Tensor,
    token_ids: Tensor,
    window: Tensor,
    committed: Tensor,
    pending: Tensor,
    finish_reason: Tensor,
    prompt_len: Tensor,
    num_rows: Tensor | None,
    step: int,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
    min_tokens: Tensor,
    masked_ids: Tensor,
    bias_ids: Tensor,
    bias: Tensor,
    workspace: Tensor,
) -> None:
    """Rows as requests transform them, in place; see above. step: TARGET_ROWS, or the draft's."""
    check_logits("penalties", "logits", logits, 2)
    rows, vocab = logits.shape
    check("penalties", "token_ids", token_ids, (None, None), torch.int32)
    slots, capacity = token_ids.shape
    if slots < 1 or rows % slots or (step != TARGET_ROWS and rows != slots):
        raise ValueError(f"penalties: {rows} rows of {slots} slots at step {step}, expected as many of each")
    if step < TARGET_ROWS:
        raise ValueError(
            f"penalties: step is {step}, expected 0 or more, or {TARGET_ROWS} for a target's rows"
        )
    if window.dim() != 2 or window.shape[0] != slots or window.dtype != torch.int32:
        raise ValueError(
            f"penalties: window is {window.dtype} {list(window.shape)}, expected int32 [{slots}, *]"
        )
    if not masked_ids.numel() or not bias_ids.numel():
        raise ValueError("penalties: masked_ids or bias_ids has no column: give each one of -1 at least")
    check_all(
        "penalties",
        logits=(logits,),
        token_ids=(token_ids,),
        window=(window,),
        committed=(committed, (slots,), torch.int32),
        pending=(pending, (slots,), torch.int32),
        finish_reason=(finish_reason, (slots,), torch.int32),
        prompt_len=(prompt_len, (slots,), torch.int32),
        num_rows=(num_rows, (slots,), torch.int32),
        repetition=(repetition, (slots,), torch.float32),
        frequency=(frequency, (slots,), torch.float32),
        presence=(presence, (slots,), torch.float32),
        min_tokens=(min_tokens, (slots,), torch.int32),
        masked_ids=(masked_ids, (slots, None), torch.int32),
        bias_ids=(bias_ids, (slots, None), torch.int32),
        bias=(bias, (slots, bias_ids.shape[-1]), torch.float32),
        workspace=(workspace,),
    )
    (counts,) = carve("penalties", workspace, _parts(slots, vocab))
    if rows == 0:
        return
    counts.zero_()
    where = (token_ids, window, *window.stride(), committed, pending, finish_reason, prompt_len)
    amounts = (repetition, frequency, presence)
    grid = (slots, triton.cdiv(capacity, TOKENS))
    count_kernel[grid](*where, *amounts, counts, capacity, vocab, step, TILE=TOKENS, **EXACT)
    tile = _tile(vocab)
    lists = (min_tokens, masked_ids, bias_ids, bias, counts)
    padded = {"NMP": triton.next_power_of_2(masked_ids.shape[1])}
    padded["NBP"] = triton.next_power_of_2(bias_ids.shape[1])
    sizes = (capacity, vocab, rows // slots, masked_ids.shape[1], bias_ids.shape[1], step)
    apply_kernel[(rows, triton.cdiv(vocab, tile))](
        logits, logits.stride(0), *where, num_rows, *amounts, *lists, *sizes, **padded, TILE=tile, **EXACT
    )


register(
    "penalties(Tensor(a!) logits, Tensor token_ids, Tensor window, Tensor committed, Tensor pending, "
    "Tensor finish_reason, Tensor prompt_len, Tensor? num_rows, int step, Tensor repetition, "
    "Tensor frequency, Tensor presence, Tensor min_tokens, Tensor masked_ids, Tensor bias_ids, Tensor bias, "
    "Tensor(b!) workspace) -> ()",
    penalties,
)
