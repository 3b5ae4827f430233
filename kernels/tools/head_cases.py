"""The launches of a head's operators that are compiled ahead of time: see kernels/tools/cases.py."""

from __future__ import annotations

import torch

from ..head.head_input import head_input
from ..head.keep_rows import keep_rows
from .record import Recorder, tensor

F32, BF16, I32, I64 = torch.float32, torch.bfloat16, torch.int32, torch.int64
HIDDEN, VOCAB, EPS = 4096, 128256, 1e-5
NUM_TAPS = 3


def keep_rows_launches(record: Recorder) -> None:
    """A tap, with a norm and without; a norm of all taps; features into pages; what a head left."""
    rows, taps, norm = tensor(F32, 1, HIDDEN), tensor(BF16, 1, NUM_TAPS * HIDDEN), tensor(BF16, HIDDEN)
    for own in (None, norm):
        with record(f"tap{'' if own is None else ' normed'}"):
            keep_rows(rows, taps[:, :HIDDEN], norm=own, eps=EPS)
        with record(f"last{'' if own is None else ' normed'}"):
            keep_rows(rows, tensor(F32, 1, HIDDEN), tensor(I32, 1), norm=own, eps=EPS)
    with record("all taps"):
        keep_rows(taps, tensor(BF16, 1, NUM_TAPS * HIDDEN), norm=tensor(BF16, NUM_TAPS * HIDDEN), eps=EPS)
    with record("features"):
        keep_rows(rows, tensor(BF16, 16, HIDDEN), places=tensor(I64, 1))


def head_input_launches(record: Recorder) -> None:
    """Of features in pages and of what the head left; of an embedding, and of one of 8 bits."""
    units = HIDDEN // 64
    tables = {
        "bf16": (tensor(BF16, VOCAB, HIDDEN), None),
        "8 bits": (tensor(torch.int8, VOCAB, HIDDEN), tensor(I32, units, VOCAB)),
    }
    norm, to = tensor(BF16, HIDDEN), (tensor(BF16, 1, 2 * HIDDEN), tensor(F32, 1, HIDDEN))
    for words, (table, scales) in tables.items():
        for keeps_norm in (False, True):
            named = f"{words}{', keeps the norm' if keeps_norm else ''}"
            with record(f"pages, {named}"):
                pages, places = tensor(BF16, 16, HIDDEN), tensor(I64, 1)
                one = tensor(I32, 1), table, pages, places, None, norm, norm
                head_input(*one, EPS, keeps_norm, *to, scales=scales)
            with record(f"last, {named}"):
                ends = tensor(I32, 2)
                two = tensor(I32, 1), table, tensor(F32, 1, HIDDEN), None, ends, norm, norm
                head_input(*two, EPS, keeps_norm, *to, scales=scales)
