"""Models in GGUF files against the same weights in the Hugging Face layout: the same bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf_files import Type, byte_vocabulary, write
from tiny_pairs import TINY, random_tensors

from pearl_rt import CheckpointError, ConfigError, Engine, SamplingParams
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.loader import load_tensors, save_checkpoint
from pearl_rt.checkpoint.rope import rope_tables
from pearl_rt.checkpoint.rope_scaling import RopeScaling
from pearl_rt.checkpoint.shapes import weight_bytes
from pearl_rt.checkpoint.source import ModelSource
from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.cli import commands as cli
from pearl_rt.kernels.reference.forward.coded import values_of
from pearl_rt.model.coded_matrix import CodedMatrix
from pearl_rt.model.llama import LlamaWeights

WIDE = replace(
    TINY, hidden_size=256, intermediate_size=512, num_attention_heads=8, head_dim=32, vocab_size=272
)
MODELS = {
    "llama": WIDE,
    "llama-tied": replace(WIDE, tie_word_embeddings=True),
    "qwen2": replace(WIDE, model_type="qwen2", attention_bias=True),
    "qwen3": replace(WIDE, model_type="qwen3", qk_norm=True),
    "mistral": replace(WIDE, model_type="mistral"),
}
KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
MIXED = ("Q4_K", "Q6_K", "Q8_0", "F16", "Q5_0")
OPTIONS: dict[str, Any] = {"max_model_len": 64, "num_threads": 1, "placement": "shared"}
PROMPTS, TOKENS = [[1, 2, 3, 4, 5], [9, 8, 7]], SamplingParams(max_tokens=16)


def tensors_of(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Random ones, with biases and norms that are not 0 and 1, and no bits that bf16 lacks where they lie as
    they are."""
    generator = torch.Generator().manual_seed(3)
    found = {}
    for name, tensor in random_tensors(config, 0).items():
        if tensor.dim() == 1:
            tensor = 0.5 + torch.rand(tensor.shape, generator=generator)
        found[name] = tensor.bfloat16().float()
    return found


def kinds_in_turn(*kinds: str) -> Callable[[str], Type]:
    turn = cycle(kinds)
    return lambda _: Type[next(turn)]


def answers(path: Path, **options: Any) -> list[list[int]]:
    with Engine.from_pretrained(path, **OPTIONS | options) as engine:
        return [output.token_ids for output in engine.generate(PROMPTS, TOKENS)]


def in_hugging_face_layout(path: Path, config: ModelConfig, values: dict[str, torch.Tensor]) -> Path:
    """fp32, which the executor rounds as it packs."""
    save_checkpoint(path, config, values)
    tokenizer = Tokenizer.from_pretrained(path.parent / "model.gguf")
    tokenizer._tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_llama_cpps(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "model.gguf"
    values = write(file, WIDE, tensors_of(WIDE), lambda _: Type[kind])
    config = ModelConfig.from_pretrained(file)
    dtypes = {"F32": "float32", "F16": "float16"}
    assert config == replace(WIDE, torch_dtype=dtypes.get(kind, "bfloat16"))
    tensors = load_tensors(file, config)
    assert tensors.keys() == values.keys()
    for name, value in values.items():
        assert torch.equal(tensors[name].float(), value), name
        assert torch.equal(tensors.read(name, torch.bfloat16), value.bfloat16()), name


@pytest.mark.parametrize("kind", KINDS[3:])
def test_codes_are_those_of_the_file(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "model.gguf"
    values = write(file, WIDE, tensors_of(WIDE), lambda _: Type[kind])
    tensors = load_tensors(file, ModelConfig.from_pretrained(file))
    for name, value in values.items():
        groups = tensors.groups(name)
        assert (groups is None) == (value.dim() == 1)
        assert tensors.form(name) == (None if groups is None else groups.form)
        if groups is not None:
            assert groups.bits == (4 if kind.startswith("Q4") else 8), name
            assert groups.group == (16 if kind == "Q6_K" else 32)
            found = torch.from_numpy(groups.dequantize())
            error = (found - value).abs().max() / value.abs().max()
            assert error <= (1e-3 if kind.endswith("_K") else 0), (
                name
            )  # products of scales are rounded to fp16


@pytest.mark.parametrize("model", MODELS)
def test_tokens_are_those_of_the_hugging_face_layout(tmp_path: Path, model: str) -> None:
    config, file = MODELS[model], tmp_path / "model.gguf"
    values = write(file, config, tensors_of(config), kinds_in_turn(*MIXED))
    assert ModelConfig.from_pretrained(file) == replace(config, torch_dtype="bfloat16")
    other = in_hugging_face_layout(tmp_path / "hf", config, values)
    expected = answers(other, dtype="float32")
    assert answers(file, dtype="float32") == expected and len({*map(tuple, expected)}) == 2


def test_the_codes_run_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write(file, WIDE, tensors_of(WIDE), kinds_in_turn(*MIXED))
    config = ModelConfig.from_pretrained(file)
    stored = load_tensors(file, config)
    tensors: dict[str, Any] = {name: stored.groups(name) for name in stored}
    assert sum(tensor is not None for tensor in tensors.values()) > 10
    tensors = {name: stored[name] if tensor is None else tensor for name, tensor in tensors.items()}
    with Engine(config, tensors, **OPTIONS) as engine:
        expected = [output.token_ids for output in engine.generate(PROMPTS, TOKENS)]
    assert answers(file) == expected


def test_the_kernels_read_it_too(tmp_path: Path) -> None:
    """Its codes, but in matrices that have a part without."""
    file = tmp_path / "model.gguf"
    values = write(file, WIDE, tensors_of(WIDE), kinds_in_turn(*MIXED))
    tensors = load_tensors(file, WIDE)
    packed = LlamaWeights.pack(WIDE, tensors, dtype=torch.float16, device=torch.device("cpu"))
    matrices: list[tuple[list[str], Any]] = [
        (["lm_head"], packed.lm_head),
        (["model.embed_tokens"], packed.embed_tokens),
    ]
    for i, layer in enumerate(packed.layers):
        attention, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        matrices.append(([f"{attention}.{name}_proj" for name in "qkv"], layer.qkv_proj))
        matrices.append(([f"{attention}.o_proj"], layer.o_proj))
        matrices.append(([f"{mlp}.gate_proj", f"{mlp}.up_proj"], layer.gate_up_proj))
        matrices.append(([f"{mlp}.down_proj"], layer.down_proj))
    kinds = set()
    for names, matrix in matrices:
        expected = torch.cat([values[f"{name}.weight"] for name in names])
        kinds.add(type(matrix))
        if isinstance(matrix, CodedMatrix):
            found = values_of(matrix.codes, matrix.scales, matrix.group, matrix.k)
            assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()
        else:
            assert torch.equal(matrix, expected.half())
    assert kinds == {CodedMatrix, torch.Tensor}


def test_its_bytes_are_counted_as_they_are_packed(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write(file, WIDE, tensors_of(WIDE), kinds_in_turn("Q4_0"))
    one = ModelSource("target", WIDE, "bfloat16", load_tensors(file, WIDE))
    wide, norms = weight_bytes(WIDE, "bfloat16"), 2 * 5 * WIDE.hidden_size
    assert one.num_bytes() - norms == (wide - norms) * 20 // 64
    assert one.num_bytes(keeps_codes=False) == wide


def test_a_draft_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, draft = tmp_path / "model.gguf", tmp_path / "draft.gguf"
    write(target, WIDE, tensors_of(WIDE), kinds_in_turn("Q8_0"))
    write(draft, WIDE, tensors_of(WIDE), kinds_in_turn("Q4_1"))
    expected = answers(target)
    with Engine.from_pretrained(target, draft, strategy="sd", gamma=3, **OPTIONS) as engine:
        outputs = engine.generate(PROMPTS, TOKENS)
    assert [output.token_ids for output in outputs] == expected
    assert any(output.metrics.accepted for output in outputs)
    command = ["generate", "--target", str(target), "--draft", str(draft), "--prompt", "abc"]
    assert cli.main([*command, "--strategy", "sd", "--max-tokens", "4", "--threads", "1"]) == 0
    assert "[4 tokens, length; sd" in capsys.readouterr().err


def test_a_directory_and_parts_of_a_split_model(tmp_path: Path) -> None:
    file, parts = tmp_path / "one" / "model.gguf", tmp_path / "split" / "model.gguf"
    for path in (file, parts):
        path.parent.mkdir()
    write(file, WIDE, tensors_of(WIDE), kinds_in_turn("Q8_0"))
    write(parts, WIDE, tensors_of(WIDE), kinds_in_turn("Q8_0"), split_max_tensors=8)
    expected = answers(file)
    assert answers(file.parent) == answers(parts.parent) == expected
    files = sorted(parts.parent.iterdir())
    assert len(files) == 3 and answers(files[1]) == expected
    store = tmp_path / "sha256-0123"  # named by its content
    file.rename(store)
    assert answers(store) == expected
    files[2].rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"of 3 parts 1 are missing .*00003-of-00003"):
        answers(files[0])
    write(parts.parent / "other.gguf", WIDE, tensors_of(WIDE))
    with pytest.raises(
        CheckpointError, match=r"holds 2 GGUF models \(model-00001.*, other.gguf\): give the path"
    ):
        answers(parts.parent)
    (tmp_path / "elsewhere").rename(files[2])
    files[0].rename(tmp_path / "alone.gguf")
    with pytest.raises(CheckpointError, match="is one of 3 parts, of which 1 are here"):
        answers(tmp_path / "alone.gguf")


ROPE_SCALINGS: dict[str, tuple[RopeScaling, dict[str, Any]]] = {
    "linear": (RopeScaling("linear", 4.0), {"type": "linear", "factor": 4.0}),
    "yarn": (
        RopeScaling("yarn", 8.0, original_max_position_embeddings=512),
        {"type": "yarn", "factor": 8.0, "original_context_length": 512},
    ),
}


@pytest.mark.parametrize("name", ROPE_SCALINGS)
def test_rope_scaling(tmp_path: Path, name: str) -> None:
    scaling, keys = ROPE_SCALINGS[name]

    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType(keys["type"]))
        writer.add_rope_scaling_factor(keys["factor"])
        if "original_context_length" in keys:
            writer.add_rope_scaling_orig_ctx_len(keys["original_context_length"])

    write(tmp_path / "model.gguf", WIDE, tensors_of(WIDE), edit=edit)
    assert ModelConfig.from_pretrained(tmp_path / "model.gguf").rope_scaling == scaling


def llama3_factors(config: ModelConfig, scaling: RopeScaling) -> torch.Tensor:
    """As llama.cpp's converter writes them."""
    frequencies = 1.0 / config.rope_theta ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim)
    context, low, high = 8192, scaling.low_freq_factor or 0, scaling.high_freq_factor or 0
    factors = []
    for wavelength in (2 * torch.pi / frequencies).tolist():
        smooth = (context / wavelength - low) / (high - low)
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(scaling.factor)
        else:
            factors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return torch.tensor(factors)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_factors_of_llama_3(tmp_path: Path, factor: float) -> None:
    scaling = RopeScaling("llama3", factor, 8192, 1.0, 4.0)
    config = replace(WIDE, rope_theta=500000.0, rope_scaling=scaling, max_position_embeddings=131072)
    factors = llama3_factors(config, scaling)
    assert len(set(factors.tolist())) == 3  # kept, between, divided

    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", factors.numpy())

    write(tmp_path / "model.gguf", config, tensors_of(config), edit=edit)
    found = ModelConfig.from_pretrained(tmp_path / "model.gguf")
    assert found == replace(config, torch_dtype="float32")
    for mine, theirs in zip(rope_tables(found, 64), rope_tables(config, 64), strict=True):
        assert torch.equal(mine, theirs)
    factors[3] = 5.0
    write(tmp_path / "other.gguf", config, tensors_of(config), edit=edit)
    with pytest.raises(ConfigError, match=r"the factors of rope_freqs.weight are not those of Llama 3.x"):
        ModelConfig.from_pretrained(tmp_path / "other.gguf")


def test_ends_of_text(tmp_path: Path) -> None:
    def vocabulary(writer: gguf.GGUFWriter) -> None:
        byte_vocabulary(writer)
        tokens = [
            *writer.kv_data[0]["tokenizer.ggml.tokens"].value,
            "<|im_end|>",
            "<|endoftext|>",
            "<|eot_id|>",
        ]
        del writer.kv_data[0]["tokenizer.ggml.tokens"]
        writer.add_token_list(tokens)
        writer.add_token_types([1] * 257 + [3, 3, 1])  # the last is text
        writer.add_eos_token_id(5)
        writer.add_eot_token_id(6)
        writer.add_bos_token_id(7)

    write(tmp_path / "model.gguf", WIDE, tensors_of(WIDE), vocabulary=vocabulary)
    config = ModelConfig.from_pretrained(tmp_path / "model.gguf")
    assert config.eos_token_ids == (5, 6, 257, 258) and config.bos_token_id == 7


def test_a_sliding_window_is_known(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_sliding_window(32)

    write(tmp_path / "model.gguf", WIDE, tensors_of(WIDE), edit=edit)
    with pytest.raises(ConfigError, match="sliding window of 32 tokens"):
        answers(tmp_path / "model.gguf")
    assert answers(tmp_path / "model.gguf", max_model_len=32)
