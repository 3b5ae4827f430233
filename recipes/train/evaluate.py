"""How good a model is on held-out text, and how often its target would accept what a draft proposes.

Losses are over whole held-out files, each from its beginning, with at least half a window of context.
Acceptance is computed from both distributions at each position, so it needs no decoding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.train.data.corpus import Document
from recipes.train.model.llama import LlamaForCausalLM
from recipes.train.model.sampler import sample_rows
from recipes.train.model.session import LOGIT_ROWS, Machine

_TEMPERATURES = (1.0, 0.8)
_ROWS = 8  # sequences in a forward


@dataclass(frozen=True)
class TextLoss:
    """Means over held-out files."""

    nats_per_token: float
    bits_per_byte: float
    tokens: int
    bytes: int


@dataclass(frozen=True)
class Acceptance:
    """Means over positions: the chance that the target accepts the draft's token there."""

    positions: int
    rejection: dict[str, float]  # temperature -> sum(min(p, q))
    coupled: dict[str, float]  # temperature -> both pick the same token from the same noise
    greedy: float  # both have the same likeliest token

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


@torch.no_grad()
def text_loss(
    model: LlamaForCausalLM,
    machine: Machine,
    documents: Sequence[Document],
    token_arrays: Sequence[np.ndarray],
    eos_id: int,
    window: int = 1024,
) -> TextLoss:
    """Each file after an EOS, in windows of `window` that overlap by half; the overlap only gives context."""
    window = min(window, model.config.max_position_embeddings)
    total, tokens = 0.0, 0
    for array in token_arrays:
        ids = torch.from_numpy(np.concatenate(([eos_id], array.astype(np.int64)))).to(machine.device)
        scored = 1  # ids[:scored] have their loss, or need none
        while scored < len(ids):
            begin = max(0, scored - 1 - window // 2) if scored > 1 else 0
            rows = ids[begin : begin + window + 1]
            with machine.autocast():
                hidden = model.hidden_states(rows[None, :-1])[0, scored - 1 - begin :]
                logits = F.linear(hidden, model.head_weight).float()
            total += F.cross_entropy(logits, rows[scored - begin :], reduction="sum").item()
            tokens += len(logits)
            scored = begin + len(rows)
    num_bytes = sum(d.num_bytes for d in documents)
    return TextLoss(total / tokens, total / math.log(2) / num_bytes, tokens, num_bytes)


@torch.no_grad()
def acceptance(
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    machine: Machine,
    rows: Tensor,
    skip: int,
    seed: int = 0,
) -> Acceptance:
    """Over positions skip.. of rows [B, T] int64 (the first `skip` are context only)."""
    generator = machine.generator(seed)
    rejection, coupled = dict.fromkeys(_TEMPERATURES, 0.0), dict.fromkeys(_TEMPERATURES, 0.0)
    same, positions = 0.0, 0
    for part in rows.to(machine.device).split(_ROWS):
        with machine.autocast():
            states = [m.hidden_states(part)[:, skip:].flatten(0, 1) for m in (target, draft)]
        for t, d in zip(*(s.split(LOGIT_ROWS) for s in states), strict=True):
            with machine.autocast():
                p = F.linear(t, target.head_weight).float()
                q = F.linear(d, draft.head_weight[: p.shape[-1]]).float()  # without a mask token of its own
            positions += len(p)
            same += (p.argmax(-1) == q.argmax(-1)).sum().item()
            noise = -torch.empty_like(p).exponential_(generator=generator).log_()
            for temperature in _TEMPERATURES:
                a, b = p / temperature, q / temperature
                rejection[temperature] += torch.minimum(a.softmax(-1), b.softmax(-1)).sum().item()
                coupled[temperature] += ((a + noise).argmax(-1) == (b + noise).argmax(-1)).sum().item()
    return Acceptance(
        positions,
        {str(k): v / positions for k, v in rejection.items()},
        {str(k): v / positions for k, v in coupled.items()},
        same / positions,
    )


def held_out_rows(token_arrays: Sequence[np.ndarray], length: int, num_rows: int) -> Tensor:
    """[B, length]: pieces of held-out text, evenly spread over all files end to end; B <= num_rows."""
    tokens = np.concatenate(token_arrays).astype(np.int64)
    tokens = np.tile(tokens, length // len(tokens) + 1)
    starts = np.unique(np.linspace(0, len(tokens) - length, num_rows).astype(np.int64))
    return torch.from_numpy(np.stack([tokens[s : s + length] for s in starts]))


def acceptance_report(
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    machine: Machine,
    token_arrays: Sequence[np.ndarray],
    num_rows: int = 32,
) -> dict[str, dict[str, object]]:
    """On held-out text, and along what the target itself writes after held-out text, at T = 1, 0.8 and 0."""
    prompt_length, num_new = 128, 256
    text = held_out_rows(token_arrays, prompt_length + num_new, num_rows).to(machine.device)
    report = {"held_out_text": acceptance(target, draft, machine, text, prompt_length).to_dict()}
    for temperature in (*_TEMPERATURES, 0.0):
        prompts = text[:, :prompt_length]
        rows = sample_rows(target, machine, prompts, num_new, temperature, machine.generator(1))
        own = acceptance(target, draft, machine, rows, prompt_length)
        report[f"own_samples_T{temperature:g}"] = own.to_dict()
    return report
