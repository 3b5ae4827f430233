"""The models of a pair that is to run, before their weights are packed. Knows no device."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from pearl_rt.checkpoint.config import OF_WEIGHTS, ModelConfig
from pearl_rt.checkpoint.loader import load_tensors
from pearl_rt.checkpoint.shapes import tensor_bytes, weight_bytes
from pearl_rt.checkpoint.stored_tensors import StoredTensors
from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.checkpoint.views.draft_ids import OFFSETS, DraftIds, ids_of_offsets
from pearl_rt.checkpoint.views.eagle3 import Eagle3Config, Head, is_eagle3, load_eagle3
from pearl_rt.checkpoint.views.exit_layer import WRONG_TARGET, ExitConfig, check_exit, is_exit, load_exit
from pearl_rt.checkpoint.views.layers import kept_layers
from pearl_rt.checkpoint.views.skip_cache import known_layers
from pearl_rt.errors import ConfigError
from pearl_rt.reference.groups import GroupForm, Groups, Outline
from pearl_rt.types.json import Json

if TYPE_CHECKING:
    import torch

DraftConfig: TypeAlias = ModelConfig | ExitConfig | Eagle3Config


@dataclass(frozen=True)
class ModelSource:
    """One model of a pair, and what it computes in."""

    name: str  # "target" or "draft"
    config: ModelConfig
    dtype: str  # "auto": its checkpoint's own, or what its device computes in
    tensors: "Mapping[str, torch.Tensor]"  # by their Hugging Face names; may be dropped once they are packed
    weights: str = "auto"  # or "int8", "int4": what wider matrices are rounded to
    shared: tuple[int, ...] | None = None  # layers of the target that it begins with; `tensors` lack them
    head: Head | None = None  # of a draft that is fed the target's taps
    ids: DraftIds | None = None  # of a draft whose ids are not the target's

    @property
    def shares(self) -> Json:
        """What a draft has of its target: layers, None for a model of its own; and ids, None for all."""
        return {"shared_layers": self.shared, "shared_ids": self.ids and self.ids.num_shared}

    @property
    def is_view(self) -> bool:
        """Whether a draft has something of its target's: layers, or what a head lacks."""
        return self.shared is not None or self.head is not None

    def longest(self, max_model_len: int) -> int:
        """Tokens of a sequence that a draft can follow, of so many: a head attends to the last ones only."""
        return max_model_len if self.head else min(max_model_len, self.config.default_max_model_len)

    def num_bytes(self, *, keeps_codes: bool = True) -> int:
        """Of the weights that are its own, once packed. keeps_codes: whether codes are packed as codes."""
        stored = stored_forms(self.tensors) if keeps_codes else {}
        if not self.is_view:
            return weight_bytes(self.config, self.dtype, self.weights, stored)
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        return sum(
            tensor_bytes(name, shape, self.dtype, self.weights, stored.get(name))
            for name, shape in shapes.items()
        )


def stored_forms(tensors: "Mapping[str, torch.Tensor | Groups | Outline]") -> dict[str, GroupForm]:
    """The matrices of a model that have codes, by name. Nothing is read."""
    if isinstance(tensors, StoredTensors):
        forms = {name: tensors.form(name) for name in tensors}
        return {name: form for name, form in forms.items() if form is not None}
    return {name: tensor.form for name, tensor in tensors.items() if isinstance(tensor, Groups | Outline)}


def pair_sources(
    target_config: ModelConfig,
    target_tensors: "Mapping[str, torch.Tensor]",
    draft_config: DraftConfig | None,
    draft_tensors: "Mapping[str, torch.Tensor] | None",
    *,
    dtype: str,
    weights: str = "auto",
    draft_weights: str = "auto",
    drafter: str = "auto",
    skip_layers: Sequence[int] | None = None,
    draft_parallel: bool = True,
) -> list[ModelSource]:
    """The target, and the draft if there is one: a model, a view of the target, or a head. dtype, weights,
    drafter, skip_layers and draft_parallel: as asked for; a draft that goes token by token has no mask token.
    Raises ConfigError for half a draft, and for a view that does not fit.
    """
    target_config = _with_dtype(target_config, target_tensors)
    sources = [ModelSource("target", target_config, dtype, target_tensors, weights)]
    if draft_config is None and draft_tensors is None:
        if drafter == "self":
            base = target_config.without_masks()
            if draft_parallel:
                base = replace(base, pard_token=target_config.pard_token)
            skipped: Sequence[int] = skip_layers or ()
            if skip_layers is None and base.pard_token is None:
                skipped = known_layers(target_config, target_tensors)
            kept = kept_layers(target_config, skipped)
            own = replace(base, num_hidden_layers=len(kept))
            sources.append(_view(own, kept, dtype, {}, weights))
    elif isinstance(draft_config, ExitConfig) and draft_tensors is not None:
        own = draft_config.draft_config(target_config)
        if not draft_parallel:
            own = own.without_masks()
        check_exit(draft_tensors, draft_config.shapes(target_config), "the draft")
        view = _view(own, range(draft_config.exit_layer), dtype, draft_tensors, draft_weights)
        sources.append(_with_fewer_ids(view, target_config, target_tensors))
    elif isinstance(draft_config, Eagle3Config) and draft_tensors is not None:
        head = Head.of(draft_tensors, draft_config, target_config, "the draft")
        layer = replace(draft_config.layer, torch_dtype=target_config.torch_dtype)
        packed = {name: tensor for name, tensor in draft_tensors.items() if name != OFFSETS}
        sources.append(replace(_view(layer, (), dtype, packed, draft_weights), shared=None, head=head))
    elif isinstance(draft_config, ModelConfig) and draft_tensors is not None:
        draft_config = _with_dtype(draft_config, draft_tensors)
        if not draft_parallel:
            draft_config = draft_config.without_masks()
        sources.append(ModelSource("draft", draft_config, dtype, draft_tensors, draft_weights))
    else:
        raise ConfigError("a draft is a configuration and tensors: pass both, or neither")
    return sources


def kind_of(draft_config: DraftConfig | None, draft: ModelSource) -> str | None:
    """What a draft that was given drafts as: "model", "parallel", "diffusion", "exit" or "eagle3"; None: no
    draft was given. draft: the last of pair_sources().
    """
    if draft_config is None or isinstance(draft_config, ExitConfig):
        return None if draft_config is None else "exit"
    if isinstance(draft_config, Eagle3Config):
        return "eagle3"
    if draft.config.diffusion_mask_token is not None:
        return "diffusion"
    return "model" if draft.config.pard_token is None else "parallel"


def _view(
    config: ModelConfig,
    shared: Sequence[int],
    dtype: str,
    tensors: "Mapping[str, torch.Tensor]",
    weights: str,
) -> ModelSource:
    """A draft that begins with these layers of the target. It computes in what the target does."""
    return ModelSource("draft", config, dtype, tensors, weights, tuple(shared))


def _with_fewer_ids(
    view: ModelSource, target: ModelConfig, target_tensors: "Mapping[str, torch.Tensor]"
) -> ModelSource:
    """A view whose checkpoint names the ids that it drafts: its head is the target's rows for these."""
    if OFFSETS not in view.tensors:
        return view
    import torch

    ids = ids_of_offsets(view.tensors[OFFSETS], target.vocab_size, "the draft", WRONG_TARGET)
    whole = target_tensors["model.embed_tokens.weight" if target.tie_word_embeddings else "lm_head.weight"]
    rows = torch.from_numpy(whole.dequantize())[ids] if isinstance(whole, Groups) else whole[ids]
    own = {name: tensor for name, tensor in view.tensors.items() if name != OFFSETS}
    return replace(view, tensors=own | {"lm_head.weight": rows}, ids=DraftIds(ids))


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
) -> tuple[ModelConfig, StoredTensors, DraftConfig | None, "Mapping[str, torch.Tensor] | None"]:
    """The arguments of pair_sources from checkpoint directories. Raises CheckpointError, ConfigError."""
    config = ModelConfig.from_pretrained(target)
    if draft is not None and is_exit(draft):
        return config, load_tensors(target, config), *load_exit(draft, config)
    if draft is not None and is_eagle3(draft):
        return config, load_tensors(target, config), *load_eagle3(draft, config)
    draft_config = None if draft is None else ModelConfig.from_pretrained(draft)
    tensors = load_tensors(target, config)
    if draft is None or draft_config is None:
        return config, tensors, None, None
    return config, tensors, draft_config, load_tensors(draft, draft_config)


def load_draft_tokenizer(draft: str | os.PathLike[str] | None) -> Tokenizer | None:
    """Of a draft that has one of its own: an exit layer and a head have their target's."""
    has_none = draft is None or is_exit(draft) or is_eagle3(draft)
    return None if draft is None or has_none else Tokenizer.from_pretrained(draft)
