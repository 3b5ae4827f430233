"""What judge and verify share: the sizes of a call, and its two launches.

Grids come from shapes only. judge_scan_kernel (window.py), then rejection_kernel (rejection.py) or
coupled_kernel (coupled.py), whose last program of a sequence has the verdict (verdict.py). Knows neither the
tensors of an operator nor what a verdict is for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from ..base.checks import interpreting
from ..base.dependent import dependent
from ..base.workspace import Part, carve
from ..sampling.noise import EXACT
from ..sampling.sample import config
from .arguments import Commits, DraftLogits, Keys, Scans, TargetLogits, Verdicts, Windows
from .coupled import coupled_kernel
from .rejection import rejection_kernel
from .window import judge_scan_kernel

KINDS = ("rejection", "coupled")
MAX_DRAFT_TOKENS = 63


@dataclass(frozen=True)
class Sizes:
    """What decides the grids and the workspace."""

    sequences: int
    max_rows: int  # of one sequence
    vocab: int
    draft_rows: int  # of logits, of one slot

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
        """The arrays between launches: tops, ats, keys, key_ats, counts; and what rejection needs more."""
        rows, of_each = (self.rows, self.tiles), self.rows if kind == "coupled" else self.sequences
        keys = (of_each, self.key_tiles)
        return [
            (rows, torch.float32),
            (rows, torch.int32),
            (keys, torch.float32),
            (keys, torch.int32),
            ((self.sequences,), torch.int32),
            *([(rows, torch.float32)] * 3 if kind == "rejection" else []),  # sums; tops and sums of the draft
            *([(keys, torch.float32), (keys, torch.int32)] if kind == "rejection" else []),  # the row's alone
        ]

    @property
    def reduction(self) -> dict[str, int]:
        """Constants of what reads all rows of a sequence."""
        padded = 16 if self.max_rows <= 16 else MAX_DRAFT_TOKENS + 1
        return {
            "RP": padded,
            "TP": triton.next_power_of_2(self.tiles),
            "KTP": triton.next_power_of_2(self.key_tiles),
            "WIDTH": 2 * padded,
        }


def draft_logits_of(logits: torch.Tensor | None, thresholds: torch.Tensor | None, vocab: int) -> DraftLogits:
    """Of logits [slots, S, Vd] or None, beside a target's vocabulary."""
    if logits is None:
        return DraftLogits(None, 0, 0, None, vocab)
    slot_stride, step_stride, _ = logits.stride()
    return DraftLogits(logits, slot_stride, step_stride, thresholds, min(vocab, logits.shape[2]))


def launch(
    op: str,
    kind: str,
    sizes: Sizes,
    windows: Windows,
    target: TargetLogits,
    draft: DraftLogits,
    temperature: torch.Tensor,
    seed: torch.Tensor,
    workspace: torch.Tensor,
    verdicts: Verdicts | None = None,
    commits: Commits | None = None,
    target_is_scaled: bool = False,
    pdl: bool = False,
) -> None:
    """Both launches: of `judge` into verdicts, of `verify` into the state. pdl:
    kernels/base/dependent.py.
    """
    parts = carve(op, workspace, sizes.parts(kind))
    if sizes.sequences == 0:
        return
    shape, B, K, S = config(sizes.vocab, sizes.rows), sizes.sequences, sizes.max_rows - 1, sizes.draft_rows
    options = {"num_warps": 2 * shape.num_warps, **dependent(op, pdl), **EXACT}
    top, at, best, best_at, num_ended, *others = parts
    rejection, keys = kind == "rejection", Keys(best, best_at)
    total, draft_top, draft_total = others[:3] if rejection else (None, None, None)
    scans = Scans(top, at, total, draft_top, draft_total, num_ended)
    scanned = draft if rejection else draft_logits_of(None, None, draft.vocab)
    scans_of = 1 if scanned.logits is None or K == 0 else 2  # rows of the target, and those of the draft
    judge_scan_kernel[(triton.cdiv(sizes.rows, shape.rows), sizes.tiles, scans_of)](
        *(windows, target, scanned, temperature, scans, sizes.rows, K, S, sizes.vocab, sizes.tiles),
        SCALED=target_is_scaled,
        ROWS=shape.rows,
        TILE=shape.tile,
        **options,
    )
    counts = (B, sizes.vocab, sizes.tiles, sizes.key_tiles, commits.stop_ids.shape[1] if commits else 0)
    last = {"SCALED": target_is_scaled, "TILE": shape.key_tile, **sizes.reduction, **options}
    if rejection:
        seqs = config(sizes.vocab, B).key_rows if interpreting() else 1
        rejection_kernel[(triton.cdiv(B, seqs), sizes.key_tiles)](
            *(windows, target, draft, temperature, seed, scans, keys, Keys(*others[3:]), verdicts, commits),
            *(K, S, *counts),
            SEQS=seqs,
            **last,
        )
        return
    rows = shape.key_rows if interpreting() else 1
    coupled_kernel[(triton.cdiv(sizes.rows, rows), sizes.key_tiles)](
        *(windows, target, temperature, seed, scans, keys, verdicts, commits, sizes.rows, K, *counts),
        ROWS=rows,
        **last,
    )


def check_kind(op: str, kind: str, num_draft_tokens: int) -> None:
    """Raises ValueError."""
    if kind not in KINDS:
        raise ValueError(f"{op}: kind is {kind!r}, expected {' or '.join(KINDS)}")
    if num_draft_tokens > MAX_DRAFT_TOKENS:
        raise ValueError(f"{op}: windows of {num_draft_tokens} draft tokens, the limit is {MAX_DRAFT_TOKENS}")
