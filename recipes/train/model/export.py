"""A trained model as a directory that pearl_rt and transformers load: bf16 weights, config, tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer

from pearl_rt.checkpoint.loader import save_checkpoint
from recipes.train.data.bpe import save_tokenizer
from recipes.train.model.llama import LlamaForCausalLM


def export(model: LlamaForCausalLM, tokenizer: Tokenizer, directory: Path) -> None:
    """Overwrites what `directory` holds; a reader sees the old weights or the new, never half of them."""
    tensors = {name: tensor.detach().to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    save_checkpoint(directory, model.config, tensors)
    save_tokenizer(tokenizer, directory)
