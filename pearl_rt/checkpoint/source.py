"""A model that is to run, before its weights are packed. Knows no device."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pearl_rt.checkpoint.config import ModelConfig

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ModelSource:
    """One model of a pair, and what it computes in."""

    name: str  # "target" or "draft"
    config: ModelConfig
    dtype: str
    tensors: "Mapping[str, torch.Tensor]"  # by their Hugging Face names; may be dropped once they are packed
