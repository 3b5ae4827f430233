"""How far a draft's next-token distribution q is from its target's p; each can be the loss of a distillation.

Per row, from logits [N, V] to [N], in fp32, gradients into the draft only. The expected acceptance of
rejection sampling is sum(min(p, q)) = 1 - TVD (arXiv 2211.17192), so TVD is what decoding pays for; the
others are easier to descend (DistillSpec, arXiv 2310.08461).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Divergence = Callable[[Tensor, Tensor], Tensor]
LEAST_LOG = -1e4  # of a probability: logits of -inf give a finite loss too


def _logs(target: Tensor, draft: Tensor) -> tuple[Tensor, Tensor]:
    """log p, which has no gradient, and log q: [N, V] fp32 each."""
    return target.detach().float().log_softmax(-1), draft.float().log_softmax(-1)


def forward_kl(target: Tensor, draft: Tensor) -> Tensor:
    """KL(p || q): the draft covers what the target may say."""
    log_p, log_q = _logs(target, draft)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def reverse_kl(target: Tensor, draft: Tensor) -> Tensor:
    """KL(q || p): the draft keeps to what the target may say."""
    log_p, log_q = _logs(target, draft)
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def jensen_shannon(target: Tensor, draft: Tensor) -> Tensor:
    """(KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2: between the two, and bounded."""
    log_p, log_q = _logs(target, draft)
    log_m = torch.logaddexp(log_p, log_q) - torch.tensor(2.0).log()
    return 0.5 * ((log_p.exp() * (log_p - log_m)).sum(-1) + (log_q.exp() * (log_q - log_m)).sum(-1))


def total_variation(target: Tensor, draft: Tensor) -> Tensor:
    """sum |p - q| / 2 = 1 - sum min(p, q)."""
    return 0.5 * (target.detach().float().softmax(-1) - draft.float().softmax(-1)).abs().sum(-1)


@torch.no_grad()
def row_acceptance(target: Tensor, draft: Tensor) -> Tensor:
    """sum min(p, q), without gradient: the chance that rejection sampling keeps a token of the draft."""
    return torch.minimum(target.float().softmax(-1), draft.float().softmax(-1)).sum(-1)


def negative_log_acceptance(target: Tensor, draft: Tensor) -> Tensor:
    """-log sum min(p, q), summed in logarithms: rows that share less than fp32 can hold have their exact
    value and a gradient. Each min(p, q) counts as exp(LEAST_LOG) at least.
    """
    log_p, log_q = _logs(target, draft)
    return -torch.minimum(log_p, log_q).clamp(min=LEAST_LOG).logsumexp(-1)


DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jensen_shannon,
    "tvd": total_variation,
    "nla": negative_log_acceptance,
}
