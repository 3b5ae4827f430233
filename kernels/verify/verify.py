"""One round's verdict and its commit, for every running slot of a batch: judge, then the state and the result
ring.

    candidates  token_ids[b, committed : committed + pending], then the window; as many as there are rows
    judge       as judge.py; row r is for position committed + r; behind the candidates, the bonus
    commit      as commit.py

Three launches, as judge's (phases.py); a program of the last one merges its slots' tiles and commits them.
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

import torch

from pearl_rt.state import RING_HEADER

from ..base.library import check, check_all, on_their_device, register
from ..sampling.sample import check_logits
from .arguments import Commits, TargetLogits, Windows
from .judge import workspace_size as judge_workspace_size
from .phases import Sizes, check_kind, draft_logits_of, launch


def workspace_size(num_slots: int, gamma_max: int, vocab: int, kind: str) -> int:
    """Bytes of workspace."""
    return judge_workspace_size(num_slots, gamma_max, vocab, kind)


@on_their_device
def verify(
    target_logits: torch.Tensor,
    draft_logits: torch.Tensor | None,
    token_ids: torch.Tensor,
    committed: torch.Tensor,
    pending: torch.Tensor,
    finish_reason: torch.Tensor,
    round: torch.Tensor,
    ring: torch.Tensor,
    draft_token_ids: torch.Tensor,
    num_draft_tokens: torch.Tensor,
    num_rows: torch.Tensor,
    max_total_len: torch.Tensor,
    stop_token_ids: torch.Tensor,
    temperature: torch.Tensor,
    seed: torch.Tensor,
    kind: str,
    workspace: torch.Tensor,
    target_thresholds: torch.Tensor | None = None,
    draft_thresholds: torch.Tensor | None = None,
) -> None:
    """Judges and commits one round of every running slot; see above."""
    check_logits("verify", "target_logits", target_logits, 3)
    slots, max_rows, vocab = target_logits.shape
    gamma = max_rows - 1
    check_kind("verify", kind, gamma)
    if target_logits.stride(0) != max_rows * target_logits.stride(1):
        raise ValueError(f"verify: target_logits has strides {target_logits.stride()}: rows must lie evenly")
    capacity = token_ids.shape[-1]
    ring_size, num_stops = ring.shape[0], stop_token_ids.shape[-1]
    if ring_size < 1:
        raise ValueError("verify: ring has 0 rounds: give it as many as are queued ahead, at least 1")
    steps = 1
    if draft_logits is not None:
        check_logits("verify", "draft_logits", draft_logits, 3)
        steps = draft_logits.shape[1]
        if draft_logits.shape[0] != slots or steps < 2 * gamma:
            raise ValueError(
                f"verify: draft_logits has shape {list(draft_logits.shape)}, "
                f"expected [{slots}, >= {2 * gamma}, *]"
            )
    check("verify", "ring", ring, (ring_size, slots, RING_HEADER + max_rows), torch.int32)
    check_all(
        "verify",
        target_logits=(target_logits,),
        draft_logits=(draft_logits,),
        token_ids=(token_ids, (slots, capacity), torch.int32),
        committed=(committed, (slots,), torch.int32),
        pending=(pending, (slots,), torch.int32),
        finish_reason=(finish_reason, (slots,), torch.int32),
        round=(round, (slots,), torch.int32),
        draft_token_ids=(draft_token_ids, (slots, gamma), torch.int32),
        num_draft_tokens=(num_draft_tokens, (slots,), torch.int32),
        num_rows=(num_rows, (slots,), torch.int32),
        max_total_len=(max_total_len, (slots,), torch.int32),
        stop_token_ids=(stop_token_ids, (slots, num_stops), torch.int32),
        temperature=(temperature, (slots,), torch.float32),
        seed=(seed, (slots,), torch.int64),
        workspace=(workspace,),
        target_thresholds=(target_thresholds, (slots, max_rows), torch.float32),
        draft_thresholds=(draft_thresholds, (slots, steps), torch.float32),
    )
    if ring.device != token_ids.device and not ring.is_pinned():
        raise ValueError(
            f"verify: ring on {ring.device}, expected {token_ids.device}, or pinned memory of the host"
        )
    windows = (num_rows, num_draft_tokens, committed, draft_token_ids)
    state = (token_ids, pending, finish_reason, round)
    launch(
        "verify",
        kind,
        Sizes(slots, max_rows, vocab),
        Windows(*windows, *state, slots=None, capacity=capacity, K=gamma, S=steps),
        TargetLogits(target_logits, target_logits.stride(1), target_thresholds),
        draft_logits_of(draft_logits, draft_thresholds, vocab),
        temperature,
        seed,
        workspace,
        commits=Commits(ring, max_total_len, stop_token_ids, ring_size),
    )


register(
    "verify(Tensor target_logits, Tensor? draft_logits, Tensor(a!) token_ids, Tensor(b!) committed, "
    "Tensor(c!) pending, Tensor(d!) finish_reason, Tensor(e!) round, Tensor(f!) ring, "
    "Tensor draft_token_ids, Tensor num_draft_tokens, Tensor num_rows, Tensor max_total_len, "
    "Tensor stop_token_ids, Tensor temperature, Tensor seed, str kind, Tensor(g!) workspace, "
    "Tensor? target_thresholds=None, Tensor? draft_thresholds=None) -> ()",
    verify,
)
