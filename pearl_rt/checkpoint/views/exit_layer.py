"""A draft that leaves its target early (EESD, arXiv 2406.03853): a checkpoint of one decoder layer and a norm
that stand behind the first layers of the target, whose embedding and head it uses.

    config.json         model_type "pearl_exit"; hidden_size and vocab_size, the target's; exit_layer, how
                        many layers of the target come first; intermediate_size, the layer's own;
                        pard_token, an id of the vocabulary, where it fills a window in one pass;
                        draft_vocab_size, where it drafts so many of the target's ids
    model.safetensors   model.layers.N.*, N being exit_layer, and model.norm.weight, with the names and shapes
                        of a model of the target's kind that has N + 1 layers; with draft_vocab_size
                        d2t: for each id that it drafts, what is added to it for the target's.
                        Matrices may have codes of 8 bits (views/codes.py)

What does not fit its target is refused by name. Knows files and configurations; no device.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pearl_rt.checkpoint.config import ModelConfig, read_json
from pearl_rt.checkpoint.shapes import tensor_shapes
from pearl_rt.checkpoint.views.codes import stored, with_groups
from pearl_rt.checkpoint.views.draft_ids import OFFSETS
from pearl_rt.errors import CheckpointError, ConfigError, shown
from pearl_rt.types.json import Json

if TYPE_CHECKING:
    import torch

MODEL_TYPE, ARCHITECTURE = "pearl_exit", "PearlExitForCausalLM"
FILE = "model.safetensors"
WRONG_TARGET = (
    "take the exit layer of this target, or train one: `python -m recipes.train exit`, in a checkout"
)
OPTIONAL = ("pard_token", "draft_vocab_size")


@dataclass(frozen=True)
class ExitConfig:
    """What the layer was trained for: sizes of its target, and where it leaves it."""

    hidden_size: int
    vocab_size: int
    exit_layer: int  # layers of the target in front of it
    intermediate_size: int
    pard_token: int | None = None  # the mask token of a layer that fills a window in one pass
    draft_vocab_size: int | None = None  # ids of the target that it drafts; None: all

    @classmethod
    def from_dict(cls, content: Json, source: str = "config") -> "ExitConfig":
        """The content of a config.json. Raises ConfigError, which names the key."""
        if (found_type := content.get("model_type")) != MODEL_TYPE:
            raise ConfigError(f"{source}: model_type {shown(found_type)} is not {MODEL_TYPE!r}")
        found = {}
        for name in cls.__dataclass_fields__:
            value = content.get(name)
            if name in OPTIONAL and value is None:
                continue
            least = 0 if name == "pard_token" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(
                    f"{source}: {name} must be an integer of {least} or more, got {shown(value)}"
                )
            found[name] = value
        return cls(**found)

    def to_dict(self) -> Json:
        """The content of a config.json."""
        own = {name: value for name, value in asdict(self).items() if value is not None}
        return {"model_type": MODEL_TYPE, "architectures": [ARCHITECTURE], **own}

    def draft_config(self, target: ModelConfig) -> ModelConfig:
        """The draft as a model: the target's first layers, and this one. Raises ConfigError if it was made
        for another target.
        """
        if (self.draft_vocab_size or 0) > target.vocab_size:
            raise ConfigError(
                f"draft_vocab_size {self.draft_vocab_size} is more than the target's vocabulary of "
                f"{target.vocab_size}: {WRONG_TARGET}"
            )
        for name in ("hidden_size", "vocab_size"):
            mine, its = getattr(self, name), getattr(target, name)
            if mine != its:
                raise ConfigError(
                    f"the exit layer is for a target of {name} {mine}, and this one has {its}: {WRONG_TARGET}"
                )
        if self.exit_layer >= target.num_hidden_layers:
            raise ConfigError(
                f"the exit layer stands behind {self.exit_layer} layers, and the target has "
                f"{target.num_hidden_layers}: an exit leaves at least one out"
            )
        return replace(
            target.without_masks(),
            num_hidden_layers=self.exit_layer + 1,
            intermediate_size=self.intermediate_size,
            pard_token=self.pard_token,
        )

    def shapes(self, target: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Of all its tensors, by name. Raises as draft_config()."""
        shapes = exit_shapes(self.draft_config(target))
        return shapes if self.draft_vocab_size is None else shapes | {OFFSETS: (self.draft_vocab_size,)}


def is_exit(path: str | os.PathLike[str]) -> bool:
    """Whether a path is such a checkpoint. Raises CheckpointError for a config.json that cannot be read."""
    file = Path(path) / "config.json"
    return file.is_file() and read_json(file).get("model_type") == MODEL_TYPE


def exit_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of the layer and its norm, by name. config: of the draft, as draft_config() makes it."""
    last = f"model.layers.{config.num_hidden_layers - 1}."
    shapes = tensor_shapes(config)
    return {n: shape for n, shape in shapes.items() if n.startswith(last) or n == "model.norm.weight"}


def load_exit(
    path: str | os.PathLike[str], target: ModelConfig
) -> "tuple[ExitConfig, dict[str, torch.Tensor]]":
    """The layer of a checkpoint, read whole. Raises CheckpointError for a tensor that is missing, too many or
    of another shape; ConfigError if it does not fit its target.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    directory = Path(path)
    config = ExitConfig.from_dict(read_json(directory / "config.json"), str(directory / "config.json"))
    shapes = config.shapes(target)
    file = directory / FILE
    try:
        tensors: dict[str, torch.Tensor] = with_groups(load_file(file), str(file))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}): fetch it again") from None
    check_exit(tensors, shapes, str(file))
    return config, tensors


def check_exit(
    tensors: "Mapping[str, torch.Tensor]", shapes: Mapping[str, tuple[int, ...]], source: str
) -> None:
    """Raises CheckpointError for what is not exactly these tensors."""
    for name in sorted(shapes.keys() | tensors.keys()):
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shapes.get(name):
            raise CheckpointError(
                f"tensor {name!r} of {source} does not fit (None means no such tensor): expected shape "
                f"{shapes.get(name)}, got shape {found}"
            )


def save_exit(
    path: str | os.PathLike[str], draft: ModelConfig, tensors: "Mapping[str, torch.Tensor]"
) -> None:
    """Writes what load_exit() reads back, in the dtype that the tensors have, Groups with their codes. draft:
    as draft_config() makes it. A file that is there is replaced once its successor is complete.
    """
    from safetensors.torch import save_file

    directory = Path(path)
    config = ExitConfig(
        draft.hidden_size,
        draft.vocab_size,
        draft.num_hidden_layers - 1,
        draft.intermediate_size,
        draft.pard_token,
        len(tensors[OFFSETS]) if OFFSETS in tensors else None,
    )
    shapes = exit_shapes(draft) | ({OFFSETS: tuple(tensors[OFFSETS].shape)} if OFFSETS in tensors else {})
    check_exit(tensors, shapes, str(directory))
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f".{FILE}.partial"
    save_file(stored({name: tensors[name] for name in shapes}), partial)
    partial.replace(directory / FILE)
    partial = directory / ".config.json.partial"
    partial.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
    partial.replace(directory / "config.json")
