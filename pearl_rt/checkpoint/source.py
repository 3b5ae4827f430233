"""The models of a pair that is to run, before their weights are packed. Knows no device."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.loader import load_tensors
from pearl_rt.checkpoint.stored_tensors import StoredTensors
from pearl_rt.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ModelSource:
    """One model of a pair, and what it computes in."""

    name: str  # "target" or "draft"
    config: ModelConfig
    dtype: str  # "auto": its checkpoint's own, or what its device computes in
    tensors: "Mapping[str, torch.Tensor]"  # by their Hugging Face names; may be dropped once they are packed
    weights: str = "auto"  # or "int8", "int4": what wider matrices are rounded to


def pair_sources(
    target_config: ModelConfig,
    target_tensors: "Mapping[str, torch.Tensor]",
    draft_config: ModelConfig | None,
    draft_tensors: "Mapping[str, torch.Tensor] | None",
    *,
    dtype: str,
    weights: str = "auto",
    draft_weights: str = "auto",
) -> list[ModelSource]:
    """The target, and the draft if there is one. dtype, weights: as asked for. Raises ConfigError for half a
    draft.
    """
    sources = [ModelSource("target", target_config, dtype, target_tensors, weights)]
    if draft_config is not None and draft_tensors is not None:
        sources.append(ModelSource("draft", draft_config, dtype, draft_tensors, draft_weights))
    elif draft_config is not None or draft_tensors is not None:
        raise ConfigError("a draft is a configuration and tensors: pass both, or neither")
    return sources


def load_pair(
    target: str | os.PathLike[str], draft: str | os.PathLike[str] | None
) -> tuple[ModelConfig, StoredTensors, ModelConfig | None, StoredTensors | None]:
    """The arguments of pair_sources from checkpoint directories. Raises CheckpointError, ConfigError."""
    config = ModelConfig.from_pretrained(target)
    draft_config = None if draft is None else ModelConfig.from_pretrained(draft)
    tensors = load_tensors(target, config)
    if draft is None or draft_config is None:
        return config, tensors, None, None
    return config, tensors, draft_config, load_tensors(draft, draft_config)
