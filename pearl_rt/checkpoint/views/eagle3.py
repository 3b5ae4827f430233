"""A draft that reads rows of its target (EAGLE-3, arXiv 2503.01840): one decoder layer, which is fed a token
and what the target computed at the place before it: the inputs of some of its layers, the taps.

    config.json   of EAGLE and SpecForge (LlamaForCausalLMEagle3), of vLLM and AngelSlim
                  (Eagle3LlamaForCausalLM), or of speculators (speculators_model_type "eagle3"), which has the
                  layer's own keys in transformer_layer_config
    tensors       of model.safetensors, or pytorch_model.bin: fc, midlayer.* or layers.0.*, norm, lm_head,
                  d2t, perhaps embed_tokens; each may begin with "model."

What does not fit its target is refused by name. Knows files and configurations; no device.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pearl_rt.checkpoint.config import ModelConfig, read_json
from pearl_rt.checkpoint.shapes import tensor_shapes
from pearl_rt.checkpoint.views.codes import stored, with_groups
from pearl_rt.checkpoint.views.draft_ids import OFFSETS, ids_of_offsets
from pearl_rt.errors import CheckpointError, ConfigError, shown
from pearl_rt.types.config_keys import MASK_KEYS
from pearl_rt.types.json import Json

if TYPE_CHECKING:
    import torch

ARCHITECTURES = ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM", "Eagle3Speculator", "Eagle3DraftModel")
SINGLE, PICKLED = "model.safetensors", "pytorch_model.bin"
LAYER, QKV = "model.layers.0.", ("q_proj.weight", "k_proj.weight", "v_proj.weight")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
UNREAD = ("t2d", "verifier_norm.weight", "verifier_lm_head.weight")  # of training, or said by d2t too
FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
# Keys of kinds of heads that compute something else -> the value at which they do not.
OTHERS: dict[str, object] = {
    "parallel_drafting": False,
    "use_aux_hidden_state": True,
    "is_causal": True,
    "logit_scale": 1.0,
    "quantization_config": None,
}
# What transformers leaves out of a transformer_layer_config, since it is the default of its class.
DEFAULTS: dict[str, Json] = {
    "llama": {"vocab_size": 32000, "intermediate_size": 11008},
    "qwen3": {"vocab_size": 151936, "intermediate_size": 22016},
}
NUM_TAPS, BY_INPUTS = 3, "taps_are_inputs"
ROWS_KEPT = 257  # of taps, for each sequence: a chunk of a prompt, and the row before it
WRONG_TARGET = "take the head of this target, or train one: `python -m recipes.train eagle3`, in a checkout"


@dataclass(frozen=True)
class Eagle3Config:
    """A head, and the target that it was trained for.

    taps: the target's layers whose inputs it reads, ascending, the number of layers being what the last one
    leaves; None: 2, L / 2 and L - 3 of L layers. draft_vocab_size: rows of its head, which stand for ids of
    the target by d2t. norm_before_residual: the layer adds to the feature behind its norm. norm_before_fc,
    fc_norm: one norm of all taps together, or one of each, before fc. norm_output: what it is fed next is
    behind its final norm (EAGLE-3.1).
    """

    layer: ModelConfig  # the decoder layer, as a model of the target's vocabulary
    draft_vocab_size: int
    target_hidden_size: int
    taps: tuple[int, ...] | None = None
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False

    @property
    def num_taps(self) -> int:
        """Of a row that it reads."""
        return NUM_TAPS if self.taps is None else len(self.taps)

    @property
    def tap_size(self) -> int:
        """Numbers of a row that it reads."""
        return self.num_taps * self.target_hidden_size

    @property
    def num_norms(self) -> int:
        """Norms of the taps, each over an equal part of them."""
        return self.num_taps if self.fc_norm else int(self.norm_before_fc)

    @classmethod
    def from_dict(cls, content: Json, source: str = "config") -> "Eagle3Config":
        """The content of a config.json. Raises CheckpointError or ConfigError, which name the key."""
        try:
            return cls._from_dict(content)
        except (CheckpointError, ConfigError) as error:
            raise type(error)(f"{source}: {error}") from None

    @classmethod
    def _from_dict(cls, content: Json) -> "Eagle3Config":
        nested = content.get("transformer_layer_config")
        is_nested = "speculators_model_type" in content or nested is not None
        if is_nested and not isinstance(nested, dict):
            raise CheckpointError(f"transformer_layer_config must be an object, got {shown(nested)}")
        eagle = content.get("eagle_config") or {}
        if not isinstance(eagle, dict):
            raise CheckpointError(f"eagle_config must be an object, got {shown(eagle)}")
        d = {**eagle, **content}
        for key, usual in OTHERS.items():
            if d.get(key) not in (usual, None):
                raise CheckpointError(
                    f"{key} {shown(d[key])} is of a kind of head that is not supported: take one without"
                )
        if is_nested and "norm_before_residual" not in d:
            raise CheckpointError(
                "no norm_before_residual, which readers of this layout take for true or for false: add what "
                "the head was trained with"
            )
        for key in FLAGS:
            if not isinstance(d.get(key), bool | None):
                raise CheckpointError(f"{key} must be true or false, got {shown(d[key])}")
        layer, taps = _layer_of(nested if isinstance(nested, dict) else content, is_nested), _taps_of(d)
        found = cls(
            layer,
            _size(d, "draft_vocab_size", layer.vocab_size),
            _size(d, "target_hidden_size", layer.hidden_size),
            taps,
            **{key: bool(d.get(key)) for key in FLAGS},
        )
        number = _size(d, "num_aux_hidden_states", found.num_taps)
        if number != found.num_taps:
            raise CheckpointError(
                f"num_aux_hidden_states is {number}, and there are {found.num_taps} taps "
                f"({shown(taps and list(taps))}): give eagle_aux_hidden_state_layer_ids, one for each"
            )
        if found.norm_before_fc and found.fc_norm:
            raise CheckpointError("norm_before_fc and fc_norm are both true: a head has one of them")
        return found

    def to_dict(self) -> Json:
        """The content of a config.json, in the layout of EAGLE and vLLM."""
        content = self.layer.to_dict() | {"architectures": [ARCHITECTURES[0]]}
        content |= {"draft_vocab_size": self.draft_vocab_size, "target_hidden_size": self.target_hidden_size}
        if self.taps is not None:
            content["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": list(self.taps)}
            content |= {BY_INPUTS: True} if self.taps[0] == 1 else {}
        own = asdict(self)
        return content | {key: own[key] for key in FLAGS if own[key]}

    def taps_of(self, target: ModelConfig) -> tuple[int, ...]:
        """The layers of this target whose inputs are read. Raises CheckpointError if it has not got them."""
        layers = target.num_hidden_layers
        taps = (2, layers // 2, layers - 3) if self.taps is None else self.taps
        if list(taps) == sorted({*taps}) and all(0 <= tap <= layers for tap in taps):
            return taps
        said = "" if self.taps is not None else ", which 2, L / 2 and L - 3 are without one"
        raise CheckpointError(
            f"the head reads the inputs of layers {list(taps)}{said}, and the target has {layers} layers: "
            f"give ascending ones of 0 to {layers} as eagle_aux_hidden_state_layer_ids, or {WRONG_TARGET}"
        )

    def check_target(self, target: ModelConfig) -> None:
        """Raises CheckpointError if it was made for another target."""
        for name, mine, its in (
            ("hidden_size", self.target_hidden_size, target.hidden_size),
            ("vocab_size", self.layer.vocab_size, target.vocab_size),
        ):
            if mine != its:
                raise CheckpointError(
                    f"the head is for a target of {name} {mine}, and this one has {its}: {WRONG_TARGET}"
                )
        self.taps_of(target)
        for name, size in (
            ("hidden_size", self.layer.hidden_size),
            ("target_hidden_size", target.hidden_size),
        ):
            if size % 16:
                raise CheckpointError(f"{name} {size} of the head is not a multiple of 16, which it must be")
        if self.draft_vocab_size > target.vocab_size:
            raise CheckpointError(
                f"draft_vocab_size {self.draft_vocab_size} is more than the target's vocabulary of "
                f"{target.vocab_size}: {WRONG_TARGET}"
            )


@dataclass(frozen=True)
class Head:
    """A head beside its target."""

    config: Eagle3Config
    taps: tuple[int, ...]  # the target's layers whose inputs it reads
    target_ids: Sequence[int]  # the target's id of each of the head's

    @classmethod
    def of(
        cls, tensors: "Mapping[str, torch.Tensor]", config: Eagle3Config, target: ModelConfig, source: str
    ) -> "Head":
        """Raises as check_eagle3()."""
        return cls(config, config.taps_of(target), check_eagle3(tensors, config, target, source))

    @property
    def attention_window(self) -> int:
        """Positions that a row attends to, its own and those before it: as many as it was trained on."""
        return self.config.layer.default_max_model_len

    def num_bytes(self, num_sequences: int) -> int:
        """Of the taps that are kept of so many sequences."""
        return 4 * num_sequences * ROWS_KEPT * self.config.tap_size

    def native(self) -> dict[str, object]:
        """What the executor reads of it, beside the layer."""
        config = self.config
        flags = {"norm_before_residual": config.norm_before_residual, "norm_output": config.norm_output}
        sizes = {"tap_size": config.tap_size, "num_tap_norms": config.num_norms}
        sizes |= {"attention_window": self.attention_window}
        return {**sizes, **flags, "logits_size": config.draft_vocab_size}


def _layer_of(content: Json, is_nested: bool) -> ModelConfig:
    """The decoder layer. content: the keys of a Llama or Qwen3."""
    kind = content.get("model_type") or "llama"
    own = {key: value for key, value in content.items() if key not in ("architectures", *MASK_KEYS)}
    if is_nested and isinstance(kind, str) and kind in DEFAULTS:
        usual = {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32}
        own = usual | DEFAULTS[kind] | own
    number = own.get("num_hidden_layers", 1)
    if number != 1:
        raise CheckpointError(f"num_hidden_layers {shown(number)}: an EAGLE-3 head of one layer is needed")
    if kind == "mistral":  # its default is a window
        own.setdefault("sliding_window", None)
    layer = ModelConfig.from_dict(
        own | {"model_type": kind, "num_hidden_layers": 1, "tie_word_embeddings": False}, source="layer"
    )
    # A Llama as a model has no window; as a head it may.
    return replace(layer, sliding_window=own.get("sliding_window")) if kind == "llama" else layer


def _size(d: Json, key: str, default: int) -> int:
    value = d.get(key)
    if value is None:
        return default
    if type(value) is int and value > 0:
        return value
    raise CheckpointError(f"{key} must be an integer of 1 or more, got {shown(value)}")


def _taps_of(d: Json) -> tuple[int, ...] | None:
    """As the inputs of layers. Where the first is 1, they are named by the layers whose outputs they are: of
    an EAGLE-3 head it is the output of layer 1, the input of layer 2. BY_INPUTS says that they are inputs.
    """
    ids = d.get("eagle_aux_hidden_state_layer_ids")
    if ids is None:
        return None
    if not isinstance(ids, list) or not ids or not all(type(each) is int for each in ids):
        raise CheckpointError(
            f"eagle_aux_hidden_state_layer_ids must be a list of layers of the target, got {shown(ids)}"
        )
    by_outputs = ids[0] == 1 and d.get(BY_INPUTS) is not True
    return tuple(each + 1 for each in ids) if by_outputs else tuple(ids)


def is_eagle3(path: str | os.PathLike[str]) -> bool:
    """Whether a path is such a head. Raises CheckpointError for a config.json that cannot be read."""
    file = Path(path) / "config.json"
    if not file.is_file():
        return False
    content = read_json(file)
    named = content.get("architectures")
    is_named = isinstance(named, list) and any(each in ARCHITECTURES for each in named)
    return is_named or content.get("speculators_model_type") == "eagle3"


def eagle3_shapes(config: Eagle3Config, *, has_embedding: bool) -> dict[str, tuple[int, ...]]:
    """The tensors of a head, by the names that it is run with."""
    shapes = tensor_shapes(config.layer)
    hidden = config.layer.hidden_size
    for name, shape in shapes.items():
        if name.endswith(QKV):
            shapes[name] = (shape[0], 2 * hidden)
    if not has_embedding:
        del shapes[EMBEDDING]
    shapes[HEAD] = (config.draft_vocab_size, hidden)
    shapes["fc.weight"] = (hidden, config.tap_size)
    shapes[f"{LAYER}hidden_norm.weight"] = (hidden,)
    for number in range(config.num_norms):
        shapes[f"tap_norms.{number}.weight"] = (config.tap_size // config.num_norms,)
    return shapes


def own_name(name: str) -> str:
    """The name that a tensor of a checkpoint is run with."""
    name = name.removeprefix("model.")
    for known, own in (
        ("midlayer.", LAYER),
        ("layers.0.", LAYER),
        ("norm.", "model.norm."),
        ("embed_tokens.", "model.embed_tokens."),
        ("fc_norm.", "tap_norms."),
        ("input_norm.", "tap_norms.0."),
    ):
        if name.startswith(known):
            return own + name.removeprefix(known)
    return name


def check_eagle3(
    tensors: "Mapping[str, torch.Tensor]", config: Eagle3Config, target: ModelConfig, source: str
) -> list[int]:
    """The target's id of each of the head's. Raises CheckpointError for what does not fit the target, for a
    tensor that is missing, too many or of another shape, and for a d2t that leads out of the vocabulary.
    """
    config.check_target(target)
    has_embedding = EMBEDDING in tensors
    if not has_embedding and config.layer.hidden_size != target.hidden_size:
        raise CheckpointError(
            f"{source} has no embed_tokens, and the target's rows have {target.hidden_size} numbers, not "
            f"the head's {config.layer.hidden_size}: {WRONG_TARGET}"
        )
    shapes = eagle3_shapes(config, has_embedding=has_embedding)
    if OFFSETS in tensors or config.draft_vocab_size != target.vocab_size:
        shapes[OFFSETS] = (config.draft_vocab_size,)
    for name in sorted(shapes.keys() | tensors.keys()):
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shapes.get(name):
            raise CheckpointError(
                f"tensor {name!r} of {source} does not fit (None means no such tensor): expected shape "
                f"{shapes.get(name)}, got shape {found}"
            )
    if OFFSETS not in tensors:
        return list(range(target.vocab_size))
    return ids_of_offsets(tensors[OFFSETS], target.vocab_size, source, WRONG_TARGET)


def load_eagle3(
    path: str | os.PathLike[str], target: ModelConfig
) -> "tuple[Eagle3Config, dict[str, torch.Tensor]]":
    """A head, read whole, its tensors by the names that it is run with. Raises CheckpointError, which names
    what is missing, damaged or does not fit the target.
    """
    directory = Path(path)
    config = Eagle3Config.from_dict(read_json(directory / "config.json"), str(directory / "config.json"))
    file = next((directory / name for name in (SINGLE, PICKLED) if (directory / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{directory} has no {SINGLE} and no {PICKLED}: fetch the head again")
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in _read(file).items():
        own = own_name(name)
        if own in UNREAD or own.endswith("rotary_emb.inv_freq"):
            continue
        if own in tensors:
            raise CheckpointError(f"{file} has two tensors {own!r}: fetch the head again")
        tensors[own] = tensor
    tensors = with_groups(tensors, str(file))
    check_eagle3(tensors, config, target, str(file))
    return config, tensors


def _read(file: Path) -> "dict[str, torch.Tensor]":
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        content = load_file(file) if file.name == SINGLE else torch.load(file, weights_only=True)
    except (SafetensorError, OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}): fetch it again") from None
    if not isinstance(content, dict) or not all(isinstance(each, torch.Tensor) for each in content.values()):
        raise CheckpointError(f"{file} holds no tensors by name: fetch it again")
    return content


def save_eagle3(
    path: str | os.PathLike[str],
    config: Eagle3Config,
    tensors: "Mapping[str, torch.Tensor]",
    target: ModelConfig,
) -> None:
    """Writes what load_eagle3() reads back, in EAGLE's layout and the tensors' dtype, Groups with their
    codes. A file that is there is replaced once its successor is complete.
    """
    from safetensors.torch import save_file

    directory = Path(path)
    check_eagle3(tensors, config, target, str(directory))
    norms = ("tap_norms.", "fc_norm.") if config.fc_norm else ("tap_norms.0.", "input_norm.")
    short = {name: name.replace(LAYER, "midlayer.").replace(*norms) for name in tensors}
    names = {name: own.removeprefix("model.") for name, own in short.items()}
    dtype = str(tensors["model.norm.weight"].dtype).removeprefix("torch.")
    content = replace(config, layer=replace(config.layer, torch_dtype=dtype)).to_dict()
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f".{SINGLE}.partial"
    save_file(stored({names[name]: tensor for name, tensor in tensors.items()}), partial)
    partial.replace(directory / SINGLE)
    partial = directory / ".config.json.partial"
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(directory / "config.json")
