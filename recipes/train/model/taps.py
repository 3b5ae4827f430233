"""What a model computes on its way: the inputs of some of its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from recipes.train.model.llama import LlamaForCausalLM


@torch.no_grad()
def taps_of(model: LlamaForCausalLM, inputs: Tensor, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """tokens [B, T] -> the input of each of these layers [B, T, hidden], and what the head multiplies, of the
    same shape. One layer more than there are is the final norm.
    """
    kept: dict[int, Tensor] = {}

    def keeps(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            kept[layer] = arguments[0]

        return keep

    modules = [*model.model.layers, model.model.norm]
    hooks = [modules[layer].register_forward_pre_hook(keeps(layer)) for layer in layers]
    try:
        states = model.hidden_states(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return [kept[layer] for layer in layers], states
