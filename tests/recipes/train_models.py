"""A small model and the machine of the training tests."""

from __future__ import annotations

from dataclasses import replace

import torch

from recipes.train.model.llama import LlamaForCausalLM
from recipes.train.model.session import Machine
from recipes.train.model.sizes import new_model, sized_config

MACHINE = Machine.named("cpu")


def small_model(num_hidden_layers: int = 3, seed: int = 0) -> LlamaForCausalLM:
    """Random, with no weight at zero."""
    config = replace(sized_config("tiny", 300, 0, 256), num_hidden_layers=num_hidden_layers)
    model = new_model(config, torch.device("cpu"), seed)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model
