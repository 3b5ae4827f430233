"""A draft cut out of its target: its embedding, some of its layers, and the strongest neurons of their MLPs.

It speaks the target's language from its first step, so that distillation begins where a draft from random
weights would arrive late (as in Minitron, arXiv 2407.14679).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import torch
from torch import Tensor

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.errors import ConfigError
from recipes.train.model.llama import LlamaForCausalLM
from recipes.train.model.session import Machine, cross_entropy

_MAX_CHOICES = 40


@torch.no_grad()
def pruned(target: LlamaForCausalLM, config: ModelConfig, layers: Sequence[int]) -> LlamaForCausalLM:
    """The target with `layers` alone, and config.intermediate_size neurons in each.

    A neuron's strength is the product of the norms of its weight vectors. Raises ConfigError if `config`
    differs from the target's in anything but depth and intermediate size, or is larger in one.
    """
    depth, width = config.num_hidden_layers, config.intermediate_size
    same = replace(target.config, num_hidden_layers=depth, intermediate_size=width)
    if same != config or depth > target.config.num_hidden_layers or width > target.config.intermediate_size:
        raise ConfigError(
            f"cannot cut {config} out of {target.config}: only layers and intermediate_size may differ"
        )
    state = {k: v for k, v in target.state_dict().items() if not k.startswith("model.layers.")}
    for i, source in enumerate(layers):
        tensors = target.model.layers[source].state_dict()
        gate, up, down = (tensors[f"mlp.{n}_proj.weight"] for n in ("gate", "up", "down"))
        strength = gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)  # [intermediate]
        kept = strength.topk(width).indices.sort().values
        tensors["mlp.gate_proj.weight"], tensors["mlp.up_proj.weight"] = gate[kept], up[kept]
        tensors["mlp.down_proj.weight"] = down[:, kept]
        state |= {f"model.layers.{i}.{name}": tensor for name, tensor in tensors.items()}
    draft = LlamaForCausalLM(config).to(target.head_weight.device)
    draft.load_state_dict(state)
    return draft


@torch.no_grad()
def best_pruned(
    target: LlamaForCausalLM, num_layers: int, intermediate_size: int, machine: Machine, rows: Tensor
) -> LlamaForCausalLM:
    """Of all choices of layers (of 40 of them at most), the one with the lowest loss on rows [B, T+1]."""
    config = replace(target.config, num_hidden_layers=num_layers, intermediate_size=intermediate_size)
    if not 1 <= num_layers <= target.config.num_hidden_layers:
        raise ConfigError(
            f"cannot cut {num_layers} layers out of {target.config.num_hidden_layers}: ask for fewer"
        )
    choices = list(combinations(range(target.config.num_hidden_layers), num_layers))
    best: tuple[float, LlamaForCausalLM] | None = None
    for layers in choices[:: -(-len(choices) // _MAX_CHOICES)]:
        draft = pruned(target, config, layers)
        with machine.autocast():
            loss = cross_entropy(draft, rows).item()
        if best is None or loss < best[0]:
            best = loss, draft
    assert best is not None
    return best[1]
