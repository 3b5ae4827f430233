"""A deeper model that begins as exactly the function of a shallower one, so that early training costs less.

Added layers copy the layer before them, with output projections at zero: they leave the residual stream as it
is until training gives them something to add (Chen et al. 2015, Net2Net; progressive stacking).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.errors import ConfigError
from recipes.train.model.llama import LlamaForCausalLM


@torch.no_grad()
def grown(small: LlamaForCausalLM, config: ModelConfig) -> LlamaForCausalLM:
    """`small` with config.num_hidden_layers layers. Raises ConfigError if anything but the depth differs."""
    depth, small_depth = config.num_hidden_layers, small.config.num_hidden_layers
    if depth < small_depth or replace(small.config, num_hidden_layers=depth) != config:
        raise ConfigError(f"cannot grow {small.config} into {config}: only the number of layers may rise")
    model = LlamaForCausalLM(config).to(small.head_weight.device)
    state = {k: v for k, v in small.state_dict().items() if not k.startswith("model.layers.")}
    seen: set[int] = set()
    for layer in range(depth):
        source = layer * small_depth // depth
        for name, tensor in small.model.layers[source].state_dict().items():
            is_output = name in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            kept = torch.zeros_like(tensor) if is_output and source in seen else tensor
            state[f"model.layers.{layer}.{name}"] = kept
        seen.add(source)
    model.load_state_dict(state)
    return model
