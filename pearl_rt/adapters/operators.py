"""What the adapters call: the operators with outputs and workspace allocated, on whatever device the tensors
are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pearl_rt.kernels.base.checks import interpreting
from pearl_rt.kernels.reference.sampling import sample as sample_reference
from pearl_rt.kernels.reference.verify import judge as judge_reference
from pearl_rt.kernels.sampling import sample as sample_kernel
from pearl_rt.kernels.verify import judge as judge_kernel


def runs_kernels(tensor: torch.Tensor) -> bool:
    """Whether the kernels can: on a GPU, or in the interpreter."""
    return tensor.device.type == "cuda" or interpreting()


@dataclass(frozen=True)
class Verdicts:
    """Of each sequence."""

    accept_len: torch.Tensor  # [B] int32: candidates that stand
    next_token: torch.Tensor  # [B] int32: the token that follows, or -1
    bad_row: torch.Tensor  # [B] int32: the row that cannot be used, or -1

    def tokens(self, draft_token_ids: torch.Tensor) -> torch.Tensor:
        """[B, K + 1] int32: the candidates that stand, the token that follows, then -1."""
        most = draft_token_ids.shape[1]
        step = torch.arange(most + 1, dtype=torch.int32, device=draft_token_ids.device)
        padded = torch.nn.functional.pad(draft_token_ids, (0, 1), value=-1)
        stands, follows = (step < self.accept_len[:, None]), (step == self.accept_len[:, None])
        return torch.where(stands, padded, torch.where(follows, self.next_token[:, None], -1))


def judge(target_logits: torch.Tensor, draft_token_ids: torch.Tensor, **arguments: Any) -> Verdicts:
    """Rejection. arguments: those of pearl_rt.kernels.verify.judge.judge, without outputs and workspace."""
    sequences, most = draft_token_ids.shape
    device = target_logits.device
    out = Verdicts(*(torch.empty(sequences, dtype=torch.int32, device=device) for _ in range(3)))
    size = judge_kernel.workspace_size(sequences, most, target_logits.shape[1], "rejection")
    run = judge_kernel.judge if runs_kernels(target_logits) else judge_reference.judge
    run(
        target_logits,
        draft_token_ids=draft_token_ids,
        **arguments,
        kind="rejection",
        accept_len=out.accept_len,
        next_token=out.next_token,
        bad_row=out.bad_row,
        workspace=torch.empty(size, dtype=torch.uint8, device=device),
    )
    return out


def sample(
    logits: torch.Tensor, temperature: torch.Tensor, seed: torch.Tensor, positions: torch.Tensor, purpose: int
) -> torch.Tensor:
    """[R] int32, -1 where a row cannot be used."""
    out = torch.empty(len(logits), dtype=torch.int32, device=logits.device)
    size = sample_kernel.workspace_size(*logits.shape)
    run = sample_kernel.sample if runs_kernels(logits) else sample_reference.sample
    workspace = torch.empty(size, dtype=torch.uint8, device=logits.device)
    run(logits, temperature, seed, positions, purpose, out, None, workspace)
    return out
