"""A draft that leaves its target early: the target's first layers, which stay as they are, and one layer and
norm behind them, which learn the target's next-token distribution. EESD (arXiv 2406.03853).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from pearl_rt.checkpoint.views.codes import rounded
from pearl_rt.checkpoint.views.draft_ids import OFFSETS
from pearl_rt.checkpoint.views.exit_layer import exit_shapes, save_exit
from pearl_rt.errors import RequestError
from recipes.train.model.llama import LlamaForCausalLM


def exit_model(target: LlamaForCausalLM, exit_layer: int, mask_token: int | None = None) -> LlamaForCausalLM:
    """The draft to begin with: its own layer is the target's at that place, its norm the target's last. All
    that it shares with the target is frozen. mask_token: an id that no text has, of a draft that fills a
    window in one pass. Raises RequestError for a layer that leaves none out, and for an id that is none.
    """
    layers = target.config.num_hidden_layers
    if not 1 <= exit_layer < layers:
        raise RequestError(
            f"--exit-layer {exit_layer}: the target has {layers} layers, give 1 to {layers - 1}"
        )
    vocab_size = target.config.vocab_size
    if mask_token is not None and not 0 <= mask_token < vocab_size:
        raise RequestError(f"--mask-token {mask_token}: the target has ids 0 to {vocab_size - 1}")
    draft = LlamaForCausalLM(replace(target.config, num_hidden_layers=exit_layer + 1, pard_token=mask_token))
    state = target.state_dict()
    draft.load_state_dict({name: state[name] for name in draft.state_dict()})
    own = exit_shapes(draft.config)
    for name, parameter in draft.named_parameters():
        parameter.requires_grad_(name in own)
    return draft.to(next(target.parameters()).device)


def write_exit(
    draft: LlamaForCausalLM,
    tokenizer: Tokenizer,
    directory: Path,
    ids: torch.Tensor | None = None,
    bits: int = 16,
) -> None:
    """What is its own, in bf16 or its matrices in 8 bits. The tokenizer is the target's. ids: those that it
    drafts, ascending; None: all.
    """
    state = draft.state_dict()
    tensors = {name: state[name].detach().to(torch.bfloat16) for name in exit_shapes(draft.config)}
    if ids is not None:
        tensors[OFFSETS] = ids.cpu() - torch.arange(len(ids))
    save_exit(directory, draft.config, rounded(tensors) if bits == 8 else tensors)
