"""One round's verdict and its commit, for every running slot of a batch: judge, then the state and the result
ring.

    candidates  token_ids[b, committed : committed + pending], then the window; as many as there are rows
    judge       as judge.py; row r is for position committed + r; behind the candidates, the bonus
    commit      as commit.py

Two launches, as judge's (phases.py); a slot's last program of the second merges its tiles and commits them.
Slots that do not run are untouched, their ring entries too, and nothing of theirs is read but finish_reason.
Round 0 judges no window: its one row is the prompt's, its token the target's alone.

target_logits [B, G + 1, V], draft_logits [B, S, Vd] or None (certain drafts), the row of position p at p %
S; fp32, fp16 or bf16. token_ids [B, C], committed, pending, finish_reason, round [B], ring [RING, B, 6 + G
+ 1], draft_token_ids [B, G], num_draft_tokens, num_rows, max_total_len [B], stop_token_ids [B, NS] int32;
temperature [B] fp32, seed [B] int64, target_thresholds [B, G + 1] and draft_thresholds [B, S] fp32 or
None. Requires C >= max_total_len, S >= 2 G. Mutates token_ids from committed on, committed, pending,
finish_reason, round, ring, workspace.

Reads for B 1, G 8, V 128256, fp32: 4.6 MB of target rows and, for rejection, 4.1 MB of draft rows, once from
memory; then one target and one draft row (rejection) or nine target rows (coupled) again, from L2.

    committed 9, pending 2, window [5, 6], 3 rows, all accepted  ->  committed 12, pending 1
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from pearl_rt.state import RING_HEADER

from ..base.checks import check, check_even_rows
from ..base.library import operator
from .arguments import Commits, TargetLogits, Windows
from .judge import workspace_size as judge_workspace_size
from .phases import Sizes, check_kind, draft_logits_of, launch


def workspace_size(num_slots: int, gamma_max: int, vocab: int, kind: str) -> int:
    """Bytes of workspace."""
    return judge_workspace_size(num_slots, gamma_max, vocab, kind)


@operator
def verify(
    target_logits: Annotated[Tensor, "float [B, R, V] rows"],
    draft_logits: Annotated[Tensor | None, "float [B, S, Vd] rows"],
    token_ids: Annotated[Tensor, "int32 [B, C] out"],
    committed: Annotated[Tensor, "int32 [B] out"],
    pending: Annotated[Tensor, "int32 [B] out"],
    finish_reason: Annotated[Tensor, "int32 [B] out"],
    round: Annotated[Tensor, "int32 [B] out"],
    ring: Annotated[Tensor, "int32 [RING, B, W] out pinned"],
    draft_token_ids: Annotated[Tensor, "int32 [B, R - 1]"],
    num_draft_tokens: Annotated[Tensor, "int32 [B]"],
    num_rows: Annotated[Tensor, "int32 [B]"],
    max_total_len: Annotated[Tensor, "int32 [B]"],
    stop_token_ids: Annotated[Tensor, "int32 [B, NS]"],
    temperature: Annotated[Tensor, "fp32 [B]"],
    seed: Annotated[Tensor, "int64 [B]"],
    kind: str,
    workspace: Annotated[Tensor, "out"],
    target_thresholds: Annotated[Tensor | None, "fp32 [B, R]"] = None,
    draft_thresholds: Annotated[Tensor | None, "fp32 [B, S]"] = None,
    pdl: bool = False,
) -> None:
    """Judges and commits one round of every running slot; see above. pdl: kernels/base/dependent.py."""
    slots, max_rows, vocab = target_logits.shape
    gamma = max_rows - 1
    check_kind("verify", kind, gamma)
    check_even_rows("verify", "target_logits", target_logits)
    if ring.shape[0] < 1:
        raise ValueError("verify: ring has 0 rounds: give it as many as are queued ahead, at least 1")
    steps = 1
    if draft_logits is not None:
        steps = draft_logits.shape[1]
        if steps < 2 * gamma:
            raise ValueError(
                f"verify: draft_logits has shape {list(draft_logits.shape)}, "
                f"expected [{slots}, >= {2 * gamma}, *]"
            )
    check("verify", "ring", ring, (None, slots, RING_HEADER + max_rows))
    windows = (num_rows, num_draft_tokens, committed, draft_token_ids)
    state = (token_ids, pending, finish_reason, round)
    launch(
        "verify",
        kind,
        Sizes(slots, max_rows, vocab, steps),
        Windows(*windows, *state, slots=None, capacity=token_ids.shape[1]),
        TargetLogits(target_logits, target_logits.stride(1), target_thresholds),
        draft_logits_of(draft_logits, draft_thresholds, vocab),
        temperature,
        seed,
        workspace,
        commits=Commits(ring, max_total_len, stop_token_ids, ring.shape[0]),
        pdl=pdl,
    )
