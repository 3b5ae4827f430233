"""Muon for the matrices of the layers, AdamW for embeddings, head, norms and biases, under one schedule.

Muon (Jordan et al. 2024) steps along the orthogonal matrix nearest to the momentum, and learns more from a
token than AdamW does, which counts where tokens are few. It finds that matrix by products in bf16: where a
machine has none, AdamW steps for all, with the same learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

_MOMENTUM = 0.95
_WEIGHT_DECAY = 0.1  # of the matrices, relative to the learning rate


@dataclass(frozen=True)
class Schedule:
    """Learning rate against progress (0 to 1, by the clock): warm-up in steps, constant, linear to zero.

    By the clock, because on a busy machine the number of steps that fit is not known beforehand.
    """

    warmup_steps: int = 30
    decay: float = 0.3  # the last share of the run

    def multiplier(self, step: int, progress: float) -> float:
        """`step` counts from 0."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return warm * min(1.0, max(0.0, (1.0 - progress) / self.decay)) if self.decay else warm


class Optimizers:
    """The two optimisers of what is not frozen of a model. `lr` is that of matrices, in units of an AdamW
    step; `embedding_lr` of all else. products: of the machine; Muon is for bf16 only.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        lr: float,
        embedding_lr: float,
        products: torch.dtype = torch.bfloat16,
    ) -> None:
        matrices: list[torch.nn.Parameter] = []
        tables: list[torch.nn.Parameter] = []
        vectors: list[torch.nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter.dim() == 1:
                vectors.append(parameter)
            else:
                (tables if "embed_tokens" in name or "lm_head" in name else matrices).append(parameter)
        self._adamw_parameters = tables + vectors
        groups = [{"params": tables, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
        self._base = (lr, embedding_lr)
        of_matrices: torch.optim.Optimizer
        if products == torch.bfloat16:
            of_matrices = torch.optim.Muon(
                matrices,
                lr=lr,
                weight_decay=_WEIGHT_DECAY,
                momentum=_MOMENTUM,
                adjust_lr_fn="match_rms_adamw",
            )
        else:
            of_matrices = torch.optim.AdamW(matrices, lr=lr, betas=(0.9, 0.95), weight_decay=_WEIGHT_DECAY)
            self._adamw_parameters = matrices + self._adamw_parameters
        self._all: tuple[torch.optim.Optimizer, ...] = (
            of_matrices,
            torch.optim.AdamW(groups, lr=embedding_lr, betas=(0.9, 0.95)),
        )

    def step(self, multiplier: float) -> None:
        """One update with both learning rates times `multiplier`; gradients are cleared."""
        torch.nn.utils.clip_grad_norm_(self._adamw_parameters, 1.0)
        for optimizer, lr in zip(self._all, self._base, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * multiplier
            optimizer.step()
            optimizer.zero_grad()

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self._all]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self._all, states, strict=True):
            optimizer.load_state_dict(state)
