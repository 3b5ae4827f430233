"""What judge and verify share: the sizes of a call, and its three launches.

Grids come from shapes only. Rejection: judge_scan_kernel (window.py), residual_kernel (rejection.py),
rejection_verdict_kernel (verdict.py). Coupled: judge_scan_kernel, own_key_kernel (coupled.py),
coupled_verdict_kernel (verdict.py). Knows neither the tensors of an operator nor what a verdict is for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from ..base.checks import interpreting
from ..base.workspace import Part, carve
from ..sampling.noise import EXACT
from ..sampling.sample import config
from .arguments import Commits, Decision, DraftLogits, Keys, Scans, TargetLogits, Verdicts, Windows
from .coupled import own_key_kernel
from .rejection import residual_kernel
from .verdict import coupled_verdict_kernel, rejection_verdict_kernel
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
            "SEQS": config(self.vocab, self.sequences).key_rows if interpreting() else 1,
            "RP": 16 if self.max_rows <= 16 else MAX_DRAFT_TOKENS + 1,
            "TP": triton.next_power_of_2(self.tiles),
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
) -> None:
    """All three launches: of `judge` into verdicts, of `verify` into the state."""
    parts = carve(op, workspace, sizes.parts(kind))
    if sizes.sequences == 0:
        return
    shape, reduction = config(sizes.vocab, sizes.rows), sizes.reduction
    K, S = sizes.max_rows - 1, sizes.draft_rows
    options = {"num_warps": shape.num_warps, **EXACT}
    top, at, best, best_at, *others = parts
    rejection, keys = kind == "rejection", Keys(best, best_at)
    scans = Scans(top, at, *(others[:3] if rejection else (None, None, None)))
    scanned = draft if rejection else draft_logits_of(None, None, draft.vocab)
    judge_scan_kernel[(triton.cdiv(sizes.rows, shape.rows), sizes.tiles, 1 if scanned.logits is None else 2)](
        *(windows, target, scanned, temperature, scans, sizes.rows, K, S, sizes.vocab, sizes.tiles),
        SCALED=target_is_scaled,
        ROWS=shape.rows,
        TILE=shape.tile,
        **options,
    )
    blocks = triton.cdiv(sizes.sequences, reduction["SEQS"])
    counts = (sizes.vocab, sizes.tiles, sizes.key_tiles)
    last = {
        "KTP": triton.next_power_of_2(sizes.key_tiles),
        "NS": commits.stop_ids.shape[1] if commits else 0,
        "WIDTH": 2 * reduction["RP"],
    }
    if rejection:
        own, own_at, ended = others[3:]
        decision = Decision(ended, Keys(own, own_at))
        residual_kernel[(blocks, sizes.key_tiles)](
            *(windows, target, draft, temperature, seed, scans, keys, decision, K, S),
            *(sizes.sequences, *counts),
            SCALED=target_is_scaled,
            TILE=shape.key_tile,
            **reduction,
            **options,
        )
        rejection_verdict_kernel[(blocks,)](
            *(windows if commits else None, keys, decision, verdicts, commits),
            *(K, sizes.sequences, sizes.key_tiles),
            SEQS=reduction["SEQS"],
            **last,
            **options,
        )
        return
    own_key_kernel[(triton.cdiv(sizes.rows, shape.key_rows), sizes.key_tiles)](
        *(windows, target, temperature, seed, scans, keys, sizes.rows, K, *counts),
        SCALED=target_is_scaled,
        TP=reduction["TP"],
        ROWS=shape.key_rows,
        TILE=shape.key_tile,
        **options,
    )
    coupled_verdict_kernel[(blocks,)](
        *(windows, temperature, scans, keys, verdicts, commits, K, sizes.sequences, *counts),
        **reduction,
        **last,
        **options,
    )


def check_kind(op: str, kind: str, num_draft_tokens: int) -> None:
    """Raises ValueError."""
    if kind not in KINDS:
        raise ValueError(f"{op}: kind is {kind!r}, expected {' or '.join(KINDS)}")
    if num_draft_tokens > MAX_DRAFT_TOKENS:
        raise ValueError(f"{op}: windows of {num_draft_tokens} draft tokens, the limit is {MAX_DRAFT_TOKENS}")
