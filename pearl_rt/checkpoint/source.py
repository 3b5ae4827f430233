"""The models of a pair that is to run, before their weights are packed. Knows no device."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pearl_rt.checkpoint.config import OF_WEIGHTS, ModelConfig
from pearl_rt.checkpoint.loader import load_tensors
from pearl_rt.checkpoint.shapes import weight_bytes
from pearl_rt.checkpoint.stored_tensors import StoredTensors
from pearl_rt.errors import ConfigError
from pearl_rt.reference.groups import GroupForm, Groups, Outline

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

    def num_bytes(self, *, keeps_codes: bool = True) -> int:
        """Of its weights, once they are packed. keeps_codes: whether what has codes is packed as codes."""
        stored = stored_forms(self.tensors) if keeps_codes else None
        return weight_bytes(self.config, self.dtype, self.weights, stored)


def stored_forms(tensors: "Mapping[str, torch.Tensor | Groups | Outline]") -> dict[str, GroupForm]:
    """The matrices of a model that have codes, by name. Nothing is read."""
    if isinstance(tensors, StoredTensors):
        forms = {name: tensors.form(name) for name in tensors}
        return {name: form for name, form in forms.items() if form is not None}
    return {name: tensor.form for name, tensor in tensors.items() if isinstance(tensor, Groups | Outline)}


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
    target_config = _with_dtype(target_config, target_tensors)
    sources = [ModelSource("target", target_config, dtype, target_tensors, weights)]
    if draft_config is not None and draft_tensors is not None:
        draft_config = _with_dtype(draft_config, draft_tensors)
        sources.append(ModelSource("draft", draft_config, dtype, draft_tensors, draft_weights))
    elif draft_config is not None or draft_tensors is not None:
        raise ConfigError("a draft is a configuration and tensors: pass both, or neither")
    return sources


def _with_dtype(config: ModelConfig, tensors: "Mapping[str, torch.Tensor]") -> ModelConfig:
    """A configuration that names the dtype of the weights where its checkpoint named none."""
    name = next(iter(tensors), None)
    if config.torch_dtype != OF_WEIGHTS or name is None:
        return config
    if isinstance(tensors, StoredTensors):
        return replace(config, torch_dtype=tensors.dtype_of(name))
    return replace(config, torch_dtype=str(tensors[name].dtype).removeprefix("torch."))


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
