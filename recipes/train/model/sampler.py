"""Continues a batch of token rows with a model's own samples: the on-policy data of a distillation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.train.model.llama import KVCache, LlamaForCausalLM
from recipes.train.model.session import Machine


@torch.no_grad()
def sample_rows(
    model: LlamaForCausalLM,
    machine: Machine,
    prompts: Tensor,
    num_new: int,
    temperature: float,
    generator: torch.Generator,
) -> Tensor:
    """prompts [B, T0] int64 -> [B, T0 + num_new]; temperature 0 is greedy.

    EOS is a token like any other: what follows it is the start of a next document, as in packed text.
    """
    rows, prompt_length = prompts.shape
    length = prompt_length + num_new
    out = torch.cat((prompts, prompts.new_zeros(rows, num_new)), dim=1)
    with machine.autocast(), torch.compiler.set_stance("force_eager"):  # every step has another shape
        like = torch.empty(0, dtype=machine.products, device=prompts.device)
        cache = KVCache.empty(model.config, rows, length, like)
        fed = prompts
        for position in range(prompt_length, length):
            last = model.hidden_states(fed, cache)[:, -1]
            logits = F.linear(last, model.head_weight).float()
            if temperature > 0:
                noise = torch.empty_like(logits).exponential_(generator=generator).log_()
                logits = logits / temperature - noise  # Gumbel: -log of an exponential
            fed = logits.argmax(-1, keepdim=True)
            out[:, position] = fed[:, 0]
    return out
