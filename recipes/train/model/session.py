"""What every stage starts with: device, precision, the model at the right place, and logits in chunks.

Nothing here decides what is learnt.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pearl_rt import _C
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.loader import load_tensors
from pearl_rt.errors import ResourceError
from recipes.train.model.llama import LlamaForCausalLM

LOGIT_ROWS = 2048  # rows of logits that are held at a time: [2048, V] fp32


@dataclass(frozen=True)
class Machine:
    """Where to compute; weights and sums in fp32, matrix products in `products` (autocast)."""

    device: torch.device
    products: torch.dtype = torch.bfloat16

    @classmethod
    def named(cls, name: str, threads: int | None = None) -> Machine:
        """ "cpu" or "cuda[:n]". Products are in bf16, but in fp32 on a CPU that has no instruction for them.
        Raises ResourceError if there is no such device.
        """
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise ResourceError(f"--device {name}: torch sees no CUDA device here; use --device cpu")
        if threads is not None:
            torch.set_num_threads(threads)
        has_bf16 = name != "cpu" or _C.detect_isa() in ("amx", "avx512")
        return cls(torch.device(name), torch.bfloat16 if has_bf16 else torch.float32)

    def autocast(self) -> AbstractContextManager[None]:
        """Nothing is cast where products are in fp32, as all else is."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.products == torch.bfloat16)

    def generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed)

    def load(self, directory: Path) -> LlamaForCausalLM:
        """The model of a directory or a GGUF file, its weights in fp32: those that codes stand for."""
        config = ModelConfig.from_pretrained(directory)
        model = LlamaForCausalLM(config)
        model.load_state_dict({k: v.float() for k, v in load_tensors(directory, config).items()})
        return model.to(self.device)


def compile_layers(model: LlamaForCausalLM) -> None:
    """torch.compile, one layer at a time: they share the code, so it is compiled once for each shape."""
    for layer in model.model.layers:
        layer.compile(dynamic=False)


def cross_entropy(model: LlamaForCausalLM, rows: Tensor) -> Tensor:
    """Mean nats per token of rows[:, 1:] given what comes before. rows: [B, T+1] int64."""
    hidden = model.hidden_states(rows[:, :-1]).flatten(0, 1)
    wanted = rows[:, 1:].flatten()
    total = hidden.new_zeros((), dtype=torch.float32)
    for h, w in zip(hidden.split(LOGIT_ROWS), wanted.split(LOGIT_ROWS), strict=True):
        total = total + F.cross_entropy(F.linear(h, model.head_weight).float(), w, reduction="sum")
    return total / wanted.numel()
