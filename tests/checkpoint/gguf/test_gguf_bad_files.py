"""Damaged and foreign GGUF files: one clear error that names the file, whatever the bytes are."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_files import Type, write
from test_gguf_models import OPTIONS, WIDE, kinds_in_turn, tensors_of

from pearl_rt import CheckpointError, ConfigError, Engine
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.gguf.header import GgufHeader
from pearl_rt.checkpoint.loader import load_tensors
from pearl_rt.cli import commands as cli

UINT32, STRING = gguf.GGUFValueType.UINT32, gguf.GGUFValueType.STRING


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("good") / "model.gguf"
    write(file, WIDE, tensors_of(WIDE), kinds_in_turn("Q8_0"))
    return file.read_bytes()


def patched(at: int, form: str, value: object) -> Callable[[bytes], bytes]:
    def patch(data: bytes) -> bytes:
        raw = bytearray(data)
        struct.pack_into(form, raw, at, value)
        return bytes(raw)

    return patch


def after(name: bytes, skipped: int, form: str, value: object) -> Callable[[bytes], bytes]:
    """Behind that name and `skipped` bytes."""
    return lambda data: patched(data.index(name) + len(name) + skipped, form, value)(data)


FIRST = b"blk.0.attn_q.weight"
BYTES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "is not a GGUF file: it begins with b''"),
    "magic": (lambda data: b"GGML" + data[4:], "it begins with b'GGML', not b'GGUF'"),
    "only-magic": (lambda data: data[:9], "is truncated: its header needs 24 bytes or more, the file has 9"),
    "half-a-header": (lambda data: data[:3000], "is truncated: its header needs .* the file has 3000"),
    "half-the-tensors": (lambda data: data[:-40], "is truncated: tensor '.*' needs bytes"),
    "big-endian": (patched(4, ">I", 3), "is a big-endian GGUF file, which is not read: fetch the little"),
    "version-1": (patched(4, "<I", 1), r"is GGUF version 1, which is not read \(2 and 3 are\)"),
    "version-9": (patched(4, "<I", 9), "is GGUF version 9"),
    "many-tensors": (patched(8, "<Q", 2**63), "it has 9223372036854775808 tensors, for which its"),
    "many-keys": (patched(16, "<Q", 2**63), "9223372036854775808 metadata entries"),
    "fewer-keys": (patched(16, "<Q", 3), "truncated|dimensions|UTF-8|no room"),
    "long-key": (patched(24, "<Q", 2**63), "is truncated"),
    "long-array": (after(b"tokenizer.ggml.tokens", 8, "<Q", 2**63), "texts of tokenizer.ggml.tokens"),
    "nested-array": (after(b"tokenizer.ggml.tokens", 4, "<I", 9), "is a list of type 9, which is not read"),
    "unknown-value": (after(b"tokenizer.ggml.tokens", 0, "<I", 77), "is of type 77, which is unknown"),
    "not-utf8": (after(b"general.architecture", 12, "<B", 0xFF), "is not UTF-8"),
    "dimensions": (after(FIRST, 0, "<I", 2**31), "'blk.0.attn_q.weight' has 2147483648 dimensions"),
    "no-columns": (after(FIRST, 4, "<Q", 0), r"'blk.0.attn_q.weight' has shape \[256, 0\]"),
    "no-blocks": (after(FIRST, 4, "<Q", 250), "rows that are no multiple of the 32 of Q8_0"),
    "wide": (after(FIRST, 12, "<Q", 2**62), "is truncated: tensor 'blk.0.attn_q.weight' needs bytes"),
    "type-iq": (after(FIRST, 20, "<I", 23), r"is IQ4_XS, which is not supported \(F32, .*Q4_K_M"),
    "type-q2": (after(FIRST, 20, "<I", 10), "is Q2_K, which is not supported"),
    "type-unknown": (after(FIRST, 20, "<I", 250), "is of type 250, which is unknown"),
    "offset": (after(FIRST, 24, "<Q", 2**60), "is truncated: tensor 'blk.0.attn_q.weight' needs bytes"),
    "unaligned": (after(FIRST, 24, "<Q", 7), "lies at 7, no multiple of 32"),
    "name-twice": (
        lambda data: data.replace(b"blk.1.attn_q.weight", FIRST),
        "tensor 'blk.0.attn_q.weight' stands twice",
    ),
}


@pytest.mark.parametrize(("damage", "named"), BYTES.values(), ids=BYTES.keys())
def test_damaged_bytes_are_refused(
    tmp_path: Path,
    good: bytes,
    damage: Callable[[bytes], bytes],
    named: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(damage(good))
    with pytest.raises(CheckpointError, match=named) as caught:
        Engine.from_pretrained(file, **OPTIONS)
    assert str(file) in str(caught.value)
    assert cli.main(["generate", "--target", str(file), "--prompt", "abc"]) == 2
    assert capsys.readouterr().err.startswith(f"pearl_rt: {file}")


def without(key: str) -> Callable[[gguf.GGUFWriter], object]:
    return lambda writer: writer.kv_data[0].pop(key)


def having(key: str, value: object, kind: gguf.GGUFValueType = UINT32) -> Callable[[gguf.GGUFWriter], object]:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0].pop(key, None)
        writer.add_key_value(key, value, kind)

    return edit


FLOAT, ARRAY = gguf.GGUFValueType.FLOAT32, gguf.GGUFValueType.ARRAY
KEYS: dict[str, tuple[Callable[[gguf.GGUFWriter], object], type[Exception], str]] = {
    "no-architecture": (without("general.architecture"), CheckpointError, "has no general.architecture"),
    "architecture": (
        having("general.architecture", "mamba", STRING),
        ConfigError,
        r"'mamba' is not supported \(llama, mistral, qwen2, qwen3 are\)",
    ),
    "architecture-a-number": (having("general.architecture", 7), CheckpointError, "is 7, expected a text"),
    "no-layers": (without("llama.block_count"), CheckpointError, "llama.block_count is missing"),
    "no-heads": (having("llama.attention.head_count", 0), CheckpointError, "head_count is 0, expected a pos"),
    "heads-a-text": (
        having("llama.attention.head_count", "8", STRING),
        CheckpointError,
        "head_count is '8', expected an integer",
    ),
    "heads-a-list": (
        having("llama.attention.head_count_kv", [2, 2], ARRAY),
        CheckpointError,
        "head_count_kv is a list of 2, expected one value",
    ),
    "kv-heads": (having("llama.attention.head_count_kv", 3), ConfigError, "not a multiple of num_key_value"),
    "no-eps": (without("llama.attention.layer_norm_rms_epsilon"), CheckpointError, "epsilon is missing"),
    "eps-nan": (
        having("llama.attention.layer_norm_rms_epsilon", float("nan"), FLOAT),
        ConfigError,
        "rms_norm_eps must be a positive number",
    ),
    "experts": (having("llama.expert_count", 8), ConfigError, "mixtures of experts are not supported"),
    "softcap": (
        having("llama.final_logit_softcapping", 30.0, FLOAT),
        ConfigError,
        "llama.final_logit_softcapping is 30.0: it is not supported",
    ),
    "partial-rotary": (having("llama.rope.dimension_count", 16), ConfigError, "only if it is the head's 32"),
    "value-length": (having("llama.attention.value_length", 64), ConfigError, "value_length is 64"),
    "rope-type": (having("llama.rope.scaling.type", "longrope", STRING), ConfigError, "'longrope' is not"),
    "more-layers": (having("llama.block_count", 3), CheckpointError, "'blk.2.attn_q.weight' .* is missing"),
    "fewer-layers": (having("llama.block_count", 1), CheckpointError, "'blk.1.*' .* has no place in"),
    "other-width": (
        having("llama.feed_forward_length", 96),
        CheckpointError,
        r"'blk.0.ffn_.*' has shape .*, expected .* from the file's metadata",
    ),
    "alignment": (having("general.alignment", 24), CheckpointError, "alignment is 24, not a power of two"),
}


@pytest.mark.parametrize(("edit", "error", "named"), KEYS.values(), ids=KEYS.keys())
def test_metadata_that_describes_no_model_of_ours_is_refused(
    tmp_path: Path, edit: Callable[[gguf.GGUFWriter], object], error: type[Exception], named: str
) -> None:
    file = tmp_path / "model.gguf"
    write(file, WIDE, tensors_of(WIDE), edit=edit)
    with pytest.raises(error, match=named) as caught:
        Engine.from_pretrained(file, **OPTIONS)
    assert str(file) in str(caught.value)


def test_a_bias_has_no_place_in_llama(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("blk.0.attn_q.bias", np.ones(256, np.float32))

    write(tmp_path / "model.gguf", WIDE, tensors_of(WIDE), edit=edit)
    with pytest.raises(CheckpointError, match=r"'blk.0.attn_q.bias' \[256\] has no place in the llama model"):
        Engine.from_pretrained(tmp_path / "model.gguf", **OPTIONS)


@pytest.mark.parametrize("bits", [0x7C00, 0x7E00, 0xFC00], ids=["inf", "nan", "minus-inf"])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q6_K"])
def test_scales_that_are_no_numbers_are_refused(tmp_path: Path, kind: str, bits: int) -> None:
    file = tmp_path / "model.gguf"
    write(file, WIDE, tensors_of(WIDE), lambda _: Type[kind])
    entry = GgufHeader(file).tensors["blk.1.ffn_down.weight"]
    size = {"Q8_0": 34, "Q4_1": 20, "Q6_K": 210}[kind]
    at = entry.begin + 3 * size + {"Q8_0": 0, "Q4_1": 2, "Q6_K": 208}[kind]
    file.write_bytes(patched(at, "<H", bits)(file.read_bytes()))
    with pytest.raises(CheckpointError, match=r"'blk.1.ffn_down.weight' has a scale that is NaN or infinite"):
        Engine.from_pretrained(file, **OPTIONS)


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, good: bytes) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(good)
    tensors = load_tensors(file, ModelConfig.from_pretrained(file))
    file.write_bytes(good[:-100])
    with pytest.raises(CheckpointError, match=r"was (changed|cut) while it was read"):
        for name in tensors:
            tensors.read(name, torch.bfloat16)


def test_the_header_is_what_the_package_gguf_reads(tmp_path: Path, good: bytes) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(good)
    header, reader = GgufHeader(file), gguf.GGUFReader(file)
    for key, field in reader.fields.items():
        if key.startswith("GGUF."):
            continue
        expected: Any = field.contents()
        is_list = field.types[0] == ARRAY
        assert (header.texts(key) if is_list else header.get(key)) == expected, key
    assert list(header.tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        entry = header.tensors[tensor.name]
        place = (entry.begin, entry.size, list(entry.shape)[::-1], entry.type)
        size = (int(tensor.n_bytes), [int(n) for n in tensor.shape], tensor.tensor_type.name)
        assert place == (int(tensor.data_offset), *size)
