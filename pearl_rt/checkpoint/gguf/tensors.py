"""The tensors of a GGUF model under their Hugging Face names, each computed when it is asked for.

Knows llama.cpp's names of tensors, and that its converter reorders the rows of q and k of Llama. Every tensor
is checked against the configuration before one is read.
"""

from collections.abc import Mapping

import numpy as np

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.gguf.blocks import decoded, form_of
from pearl_rt.checkpoint.gguf.header import TensorEntry
from pearl_rt.checkpoint.gguf.model import FACTORS, GgufModel
from pearl_rt.checkpoint.quantised.coded import Blocks, Coded, ComputedTensor, Floats
from pearl_rt.checkpoint.shapes import tensor_shapes
from pearl_rt.checkpoint.stored_tensors import DTYPES, Stored, StoredTensor, StoredTensors
from pearl_rt.errors import CheckpointError, shown

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output",
    **{f"self_attn.{name}_proj": f"attn_{name}" for name in "qkv"},
    **{f"self_attn.{name}_norm": f"attn_{name}_norm" for name in "qk"},
    **{f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")},
}
_PAIRED = ("llama", "mistral")  # architectures whose rotary pairs lie side by side, and not in halves


def load_gguf(model: GgufModel, config: ModelConfig) -> StoredTensors:
    """Name -> tensor, for exactly the names of `tensor_shapes(config)`. Raises CheckpointError for a tensor
    that is missing, is one too many, or has another shape.
    """
    expected = {gguf_name(name): (name, shape) for name, shape in tensor_shapes(config).items()}
    for name, (_, shape) in expected.items():
        if name not in model.tensors:
            raise model.metadata.damaged(
                f"tensor {name!r} {list(shape)} is missing (it holds {len(model.tensors)} others)"
            )
    _check(model, {name: shape for name, (_, shape) in expected.items()})
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    found: dict[str, Stored] = {}
    for name, (hugging_face, _) in expected.items():
        part = name.rpartition(".")[0].rpartition(".")[2]
        paired = model.architecture in _PAIRED and part in heads
        found[hugging_face] = _stored(model.tensors[name], config.head_dim if paired else 1)
    return StoredTensors(found)


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor that Hugging Face calls so."""
    module, _, kind = name.rpartition(".")
    if not module.startswith("model.layers."):
        return f"{_NAMES[module]}.{kind}"
    number, _, part = module.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{_NAMES[part]}.{kind}"


def _check(model: GgufModel, expected: Mapping[str, tuple[int, ...]]) -> None:
    for name, entry in model.tensors.items():
        if name == FACTORS:
            continue
        if name not in expected:
            raise CheckpointError(
                f"{entry.file.path}: tensor {shown(name)} {list(entry.shape)} has no place in the "
                f"{model.architecture} model of {len(expected)} tensors that its metadata describes, and is "
                "not supported: take another model"
            )
        if entry.shape != expected[name]:
            raise CheckpointError(
                f"{entry.file.path}: tensor {name!r} has shape {list(entry.shape)}, expected "
                f"{list(expected[name])} from the file's metadata: fetch the file again"
            )


def _stored(entry: TensorEntry, head_dim: int) -> Stored:
    """head_dim: rows of a head whose pairs lie side by side; 1: rows stay where they are."""
    if entry.type in DTYPES and head_dim == 1:
        return StoredTensor(entry.file, entry.type, entry.shape, entry.begin, entry.begin + entry.size)
    n, columns = entry.shape if len(entry.shape) == 2 else (1, entry.shape[0])
    row_bytes = entry.size // n

    def rows(first: int, last: int) -> Coded | Floats:
        raw = np.empty((last - first, row_bytes), np.uint8)
        entry.file.read_into(memoryview(raw.data).cast("B"), entry.begin + first * row_bytes)
        if head_dim > 1:
            heads = raw.reshape(-1, head_dim // 2, 2, row_bytes)  # pairs, whose halves lie together in ours
            raw = np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(raw.shape)
        return decoded(entry.type, raw, columns)

    if len(entry.shape) != 2:
        return ComputedTensor(entry.file, entry.name, entry.shape, rows, head_dim)
    dtype = DTYPES.get(entry.type)
    kind = entry.type if dtype is None else str(dtype).removeprefix("torch.")
    blocks = Blocks(kind, entry.begin, head_dim)
    return ComputedTensor(entry.file, entry.name, entry.shape, rows, head_dim, form_of(entry.type), blocks)
