"""Weights from safetensors files and back, every tensor checked before one is used.

Knows the Hugging Face layout (one file, or shards with an index) and what a model must hold; not what a
weight is for. A damaged or foreign checkpoint is refused with the tensor's name, what was expected and found.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from pearl_rt.checkpoint.config import Environment, ModelConfig, model_directory, read_json
from pearl_rt.checkpoint.gguf.model import GgufModel
from pearl_rt.checkpoint.gguf.tensors import load_gguf
from pearl_rt.checkpoint.quantised.scheme import read_scheme
from pearl_rt.checkpoint.quantised.weights import widened
from pearl_rt.checkpoint.shapes import tensor_shapes
from pearl_rt.checkpoint.stored_tensors import DTYPES, Stored, StoredTensor, StoredTensors, TensorFile
from pearl_rt.errors import CheckpointError, shown

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SECONDS_UNTIL_PROGRESS = 2.0


def load_tensors(path: str | os.PathLike[str], config: ModelConfig) -> StoredTensors:
    """Name -> tensor, float32, float16 or bfloat16, for exactly the names of `tensor_shapes(config)`.

    Nothing is read until it is asked for, from files that stay open; quantised weights are computed then, in
    float32. Raises CheckpointError for a missing, extra or mis-shaped tensor, and for a file that is damaged.
    """
    if (gguf := GgufModel.open(path)) is not None:
        return load_gguf(gguf, config)
    directory = model_directory(path)
    stored = _named_as_saved_whole(_read_entries(directory))
    scheme = read_scheme(read_json(directory / "config.json"))
    entries: Mapping[str, Stored] = stored if scheme is None else widened(stored, scheme)
    if scheme is not None and any(entry.dtype in ("F8_E4M3", "I8") for entry in stored.values()):
        warnings.warn(
            f"{directory}: its weights of 8 bits ({scheme.method}) are widened to {config.torch_dtype} as "
            "they are loaded",
            stacklevel=2,
        )
    expected = tensor_shapes(config)
    has_copy = config.tie_word_embeddings and "lm_head.weight" in entries
    checked = expected | ({"lm_head.weight": expected["model.embed_tokens.weight"]} if has_copy else {})
    _check(entries, checked)
    if has_copy:
        _check_tied(entries["lm_head.weight"], entries["model.embed_tokens.weight"])
    return StoredTensors({name: entries[name] for name in expected})


def save_checkpoint(
    path: str | os.PathLike[str], config: ModelConfig, state_dict: Mapping[str, torch.Tensor]
) -> None:
    """Writes config.json, generation_config.json and model.safetensors that `load_tensors` reads back.

    The dtype is the tensors' own. The head of a tied model is left out. An existing file is replaced only
    once its successor is complete. Raises CheckpointError if `state_dict` does not fit `config`.
    """
    directory = Path(path)
    expected = tensor_shapes(config)
    tensors = {name: t.detach().cpu().contiguous() for name, t in state_dict.items()}
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    for name in sorted(expected.keys() | shapes.keys()):
        if expected.get(name) != shapes.get(name):
            raise CheckpointError(
                f"tensor {name!r} does not fit the configuration (None means no such tensor): "
                f"expected shape {expected.get(name)}, got shape {shapes.get(name)}"
            )
    directory.mkdir(parents=True, exist_ok=True)
    dtypes = {t.dtype for t in tensors.values()}
    if len(dtypes) == 1:
        config = replace(config, torch_dtype=str(dtypes.pop()).removeprefix("torch."))
    content = config.to_dict()
    generation = {k: content[k] for k in ("bos_token_id", "eos_token_id") if content[k] is not None}
    partial = directory / f".{SINGLE}.partial"
    # Storage that is shared between names is written out once for each.
    save_file({name: tensors[name].clone() for name in expected}, partial, metadata={"format": "pt"})
    partial.replace(directory / SINGLE)
    for name, what in (("config.json", content), ("generation_config.json", generation)):
        partial = directory / f".{name}.partial"
        partial.write_text(json.dumps(what, indent=2) + "\n", encoding="utf-8")
        partial.replace(directory / name)


@contextmanager
def loading_bar(
    label: str, total: int, show: bool | None = None, *, unit: str = "B"
) -> Iterator[Callable[[int], None]]:
    """Yields advance(number of units): bytes, or `unit`. A bar appears on stderr after two seconds.

    `show`: False never; True without a terminal too; None asks PEARL_PROGRESS, then stderr itself.
    """
    show = Environment.read().progress if show is None else show
    with tqdm(
        total=total,
        desc=label,
        unit=unit,
        unit_scale=unit == "B",
        delay=_SECONDS_UNTIL_PROGRESS,
        disable=None if show is None else not show,
        leave=False,
    ) as bar:
        yield bar.update


def _read_entries(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint, by name, from the headers of its files alone."""
    if (directory / SINGLE).exists():
        return TensorFile(directory / SINGLE).tensors()
    if not (directory / INDEX).exists():
        raise CheckpointError(_no_weights(directory))
    weight_map = read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise CheckpointError(
            f"{directory / INDEX} has no weight_map of names to files: fetch the file again"
        )
    entries: dict[str, StoredTensor] = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file or len(file.encode(errors="replace")) > 255:
            raise CheckpointError(
                f"{directory / INDEX} names {shown(file)}, which is not a file in {directory}"
            )
        if not (directory / file).is_file():
            raise CheckpointError(f"{directory / INDEX} names {shown(file)}, which is not there: fetch it")
        header = TensorFile(directory / file).tensors()
        entries |= {name: e for name, e in header.items() if weight_map.get(name, file) == file}
    for name, file in weight_map.items():
        if name not in entries:
            raise CheckpointError(
                f"{directory / INDEX} places tensor {shown(name)} in {file}, which does not hold it"
            )
    return entries


def _named_as_saved_whole(entries: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Names as of a whole model for generation: without what a wrapper put before all of them, and with the
    "model." that they lack where the inner model was saved by itself.
    """
    for wrapper in ("_orig_mod.", "module."):
        if entries and all(name.startswith(wrapper) for name in entries):
            return _named_as_saved_whole({name.removeprefix(wrapper): e for name, e in entries.items()})
    if "embed_tokens.weight" not in entries or "model.embed_tokens.weight" in entries:
        return entries
    inner = ("embed_tokens.", "layers.", "norm.")
    return {f"model.{name}" if name.startswith(inner) else name: entry for name, entry in entries.items()}


def _no_weights(directory: Path) -> str:
    files = sorted(p.name for p in directory.iterdir())
    shards = [f for f in files if f.endswith(".safetensors")]
    if shards:
        return f"{directory} holds {shards[0]}, but neither {SINGLE} nor {INDEX}: fetch the index"
    if any(f.startswith("pytorch_model") and f.endswith(".bin") for f in files):
        return (
            f"{directory} has its weights in pytorch_model*.bin, which is not read: convert them to "
            "safetensors, for instance with transformers' from_pretrained and save_pretrained"
        )
    return f"{directory} holds no weights: expected {SINGLE}, or {INDEX} and its shards"


def _check(entries: Mapping[str, Stored], expected: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in expected.items():
        if name not in entries:
            raise CheckpointError(_missing(name, shape, entries))
        entry = entries[name]
        if isinstance(entry, StoredTensor) and entry.dtype not in DTYPES:
            raise CheckpointError(
                f"tensor {name!r} in {entry.file.path} has dtype {entry.dtype}, which is not supported "
                f"({', '.join(DTYPES)} are): use the unquantised original"
            )
        if entry.shape != shape:
            raise CheckpointError(
                f"tensor {name!r} in {entry.file.path} has shape {shown(list(entry.shape))}, expected "
                f"{list(shape)} from config.json: the two do not belong together"
            )
    for name, entry in entries.items():
        if name not in expected and not _is_harmless(name):
            raise CheckpointError(
                f"tensor {shown(name)} {shown(list(entry.shape))} in {entry.file.path} has no place in this "
                "model, expected no such tensor: config.json does not describe these weights"
            )


def _missing(name: str, shape: tuple[int, ...], entries: Mapping[str, Stored]) -> str:
    what = f"tensor {name!r} {list(shape)} is missing from the checkpoint"
    if name == "lm_head.weight" and "model.embed_tokens.weight" in entries:
        return f"{what}: if its head is the embedding, set tie_word_embeddings to true in config.json"
    return f"{what}, which holds {len(entries)} tensors, the first {shown(next(iter(entries), 'none'))}"


def _is_harmless(name: str) -> bool:
    """Buffers that old versions of transformers saved, which follow from the configuration; and other heads
    and towers, which no forward pass of a text model reads.
    """
    return name.endswith(".rotary_emb.inv_freq") or not name.startswith(("model.", "lm_head."))


def _check_tied(head: Stored, embedding: Stored) -> None:
    """A tied model may bring a copy of its embedding. Where the two differ, versions of transformers differ "
    "too."""
    if not (
        isinstance(head, StoredTensor) and isinstance(embedding, StoredTensor) and head.equals(embedding)
    ):
        raise CheckpointError(
            "tensor 'lm_head.weight' differs from 'model.embed_tokens.weight', though config.json says that "
            "they are tied: set tie_word_embeddings to false there, or remove the tensor"
        )
