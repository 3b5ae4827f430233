"""GGUF files for tests, written by the package `gguf` as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import tokenizers
import torch

from pearl_rt.checkpoint.config import ModelConfig

Type = gguf.GGMLQuantizationType
Array = npt.NDArray[Any]
NAMES = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 64)  # those of all architectures of ours


def random_blocks(shape: tuple[int, int], kind: Type, seed: int) -> Array:
    """Rows of blocks of any bytes, whose scales are of the size of a weight's."""
    generator = np.random.default_rng(seed)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = generator.integers(0, 256, (shape[0] * shape[1] // block, size), dtype=np.uint8)
    halves = (0.002 + 0.004 * generator.random((len(raw), 2))).astype(np.float16)
    if kind in (Type.Q4_K, Type.Q5_K):
        raw[:, :4] = (halves / 16).view(np.uint8)
    elif kind == Type.Q6_K:
        raw[:, 208:] = (halves[:, :1] / 32).view(np.uint8)
    elif kind in (Type.Q4_1, Type.Q5_1):
        halves[:, 1] *= -8
        raw[:, :4] = halves.view(np.uint8)
    else:
        raw[:, :2] = halves[:, :1].view(np.uint8)
    return raw.reshape(shape[0], -1)


def stored(tensor: torch.Tensor, kind: Type, seed: int) -> tuple[Array, Array]:
    """(what the file holds, the values that it stands for): blocks of K types are random, others rounded."""
    values = tensor.float().numpy()
    if kind in (Type.Q4_K, Type.Q5_K, Type.Q6_K):
        raw = random_blocks(tuple(values.shape), kind, seed)
    else:
        raw = gguf.quantize(values, kind)
    return raw, gguf.dequantize(raw, kind).reshape(values.shape)


def permuted(rows: Array, heads: int) -> Array:
    """llama.cpp's order of the rows of q and k: LlamaModel.permute of its converter."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def unpermuted(rows: Array, heads: int) -> Array:
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def write(
    path: Path,
    config: ModelConfig,
    tensors: Mapping[str, torch.Tensor],
    kind_of: Callable[[str], Type] = lambda _: Type.F32,
    *,
    architecture: str | None = None,
    edit: Callable[[gguf.GGUFWriter], object] = lambda _: None,
    vocabulary: Callable[[gguf.GGUFWriter], object] | None = None,
    **options: Any,
) -> dict[str, torch.Tensor]:
    """Writes a file; returns the values that it stands for, fp32, by their Hugging Face names.

    kind_of: the type of each tensor of two dimensions, by its Hugging Face name. edit: adds metadata.
    options: those of GGUFWriter.
    """
    name = architecture or config.model_type
    writer = gguf.GGUFWriter(path, name, **options)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    (vocabulary or byte_vocabulary)(writer)
    edit(writer)
    values = {}
    for seed, (key, tensor) in enumerate(tensors.items()):
        gguf_name = NAMES.get_name(key, try_suffixes=(".weight", ".bias"))
        kind = kind_of(key) if tensor.dim() == 2 else Type.F32
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        heads_here = heads.get(key.split(".")[-2]) if name in ("llama", "mistral") else None
        if heads_here:
            tensor = torch.from_numpy(permuted(tensor.float().numpy(), heads_here).copy())
        raw, value = stored(tensor, kind, seed)
        writer.add_tensor(gguf_name, raw, raw_dtype=kind)
        values[key] = torch.from_numpy(unpermuted(value, heads_here) if heads_here else value).clone()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def byte_vocabulary(writer: gguf.GGUFWriter) -> None:
    """One token for each byte, and one for " t"."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*alphabet, "Ġt"])
    writer.add_token_merges(["Ġ t"])
