"""What judge and verify share: the sizes of a call, and its first two launches.

Two launches with grids from shapes only; the third is the caller's own, which reads what these leave in the
workspace. Rejection: judge_scan_kernel (window.py), then residual_kernel (residual.py). Coupled:
judge_scan_kernel, then own_key_kernel (coupled.py). Knows neither outputs nor what a verdict is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton

from ..base.library import interpreting
from ..base.workspace import Part
from ..sampling.noise import EXACT
from ..sampling.sample import config
from .coupled import own_key_kernel
from .rejection import residual_kernel
from .window import judge_scan_kernel

KINDS = ("rejection", "coupled")
MAX_DRAFT_TOKENS = 63


@dataclass(frozen=True)
class Sizes:
    """What decides the grids and the workspace."""

    sequences: int
    max_rows: int  # of one sequence
    vocab: int

    @property
    def rows(self) -> int:
        return self.sequences * self.max_rows

    @property
    def tiles(self) -> int:
        return triton.cdiv(self.vocab, config(self.vocab).tile)

    @property
    def key_tiles(self) -> int:
        return triton.cdiv(self.vocab, config(self.vocab).key_tile)

    def parts(self, kind: str) -> list[Part]:
        """The arrays between launches: tops, ats, keys, key_ats; and what rejection needs more."""
        scans, keys = (self.rows, self.tiles), (self.rows, self.key_tiles)
        if kind == "coupled":
            return [(scans, torch.float32), (scans, torch.int32), (keys, torch.float32), (keys, torch.int32)]
        keys = (self.sequences, self.key_tiles)
        return [
            (scans, torch.float32),
            (scans, torch.int32),
            (keys, torch.float32),
            (keys, torch.int32),
            (scans, torch.float32),  # sums
            (scans, torch.float32),  # tops of the draft
            (scans, torch.float32),  # sums of the draft
            (keys, torch.float32),  # keys of the row alone
            (keys, torch.int32),
            ((self.sequences, 4), torch.int32),  # decision
        ]

    @property
    def reduction(self) -> dict[str, int]:
        """Constants of the kernels that read all rows of a sequence; one sequence to a program on a GPU."""
        return {
            "MAX_ROWS": self.max_rows,
            "SEQS": config(self.vocab, self.sequences).key_rows if interpreting() else 1,
            "RP": triton.next_power_of_2(self.max_rows),
            "TP": triton.next_power_of_2(self.tiles),
        }


def launch_phases(
    sizes: Sizes,
    kind: str,
    where: tuple[Any, ...],
    target: tuple[Any, ...],
    draft: tuple[Any, ...],
    temperature: torch.Tensor,
    seed: torch.Tensor,
    parts: list[torch.Tensor],
    scaled: bool,
    state: bool,
) -> None:
    """The first two launches of judge and verify. where: locate's arguments after `live`, to S, then slots;
    target: logits, stride, thresholds; draft: logits, two strides, thresholds, vocabulary."""
    rejection = kind == "rejection"
    shape = config(sizes.vocab, sizes.rows)
    options = {"num_warps": shape.num_warps, **EXACT}
    top, at, key, key_at = parts[:4]
    sums, draft_top, draft_sums, own, own_at, decision = parts[4:] if rejection else [None] * 6
    *draft_rows, draft_vocab = draft
    with_draft = rejection and draft_rows[0] is not None
    judge_scan_kernel[(triton.cdiv(sizes.rows, shape.rows), sizes.tiles, 1 + with_draft)](
        *where,
        *target,
        *(draft_rows if with_draft else (None, 0, 0, None)),
        temperature,
        top,
        at,
        sums,
        draft_top,
        draft_sums,
        sizes.rows,
        sizes.vocab,
        draft_vocab,
        sizes.tiles,
        SUM=rejection,
        SCALED=scaled,
        MAX_ROWS=sizes.max_rows,
        STATE=state,
        ROWS=shape.rows,
        TILE=shape.tile,
        **options,
    )
    if rejection:
        constants = sizes.reduction
        residual_kernel[(triton.cdiv(sizes.sequences, constants["SEQS"]), sizes.key_tiles)](
            *where,
            *target,
            *draft_rows,
            temperature,
            seed,
            top,
            at,
            sums,
            draft_top,
            draft_sums,
            key,
            key_at,
            own,
            own_at,
            decision,
            sizes.sequences,
            sizes.vocab,
            draft_vocab,
            sizes.tiles,
            sizes.key_tiles,
            SCALED=scaled,
            STATE=state,
            TILE=shape.key_tile,
            **constants,
            **options,
        )
    else:
        own_key_kernel[(triton.cdiv(sizes.rows, shape.key_rows), sizes.key_tiles)](
            *where,
            *target,
            temperature,
            seed,
            top,
            key,
            key_at,
            sizes.rows,
            sizes.vocab,
            sizes.tiles,
            sizes.key_tiles,
            SCALED=scaled,
            MAX_ROWS=sizes.max_rows,
            STATE=state,
            TP=triton.next_power_of_2(sizes.tiles),
            ROWS=shape.key_rows,
            TILE=shape.key_tile,
            **options,
        )


def check_kind(op: str, kind: str, num_draft_tokens: int) -> None:
    """Raises ValueError."""
    if kind not in KINDS:
        raise ValueError(f"{op}: kind is {kind!r}, expected {' or '.join(KINDS)}")
    if num_draft_tokens > MAX_DRAFT_TOKENS:
        raise ValueError(f"{op}: windows of {num_draft_tokens} draft tokens, the limit is {MAX_DRAFT_TOKENS}")
