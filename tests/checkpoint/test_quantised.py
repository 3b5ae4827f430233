"""Quantised Hugging Face checkpoints: each format as it is packed, against the values that it means."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pairs import TINY, byte_tokenizer, random_tensors
from torch import Tensor

from pearl_rt import CheckpointError, ConfigError, Engine, SamplingParams
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.loader import load_tensors, save_checkpoint
from pearl_rt.cli import commands as cli

CONFIG = replace(TINY, hidden_size=64, intermediate_size=128, torch_dtype="float16")
GROUP = 32
OPTIONS: dict[str, Any] = {"max_model_len": 32, "num_threads": 1, "placement": "shared"}
Parts = tuple[dict[str, Tensor], Tensor]  # what the file holds, and the weight that it means, fp32 [out, in]


def packed(fields: Tensor, bits: int, order: list[int] | None = None) -> Tensor:
    """[..., n] -> int32 [..., n * bits / 32]: the first of each word, or of `order`, in the lowest bits."""
    per_word = 32 // bits
    grouped = fields.long().unflatten(-1, (-1, per_word))
    if order is not None:
        grouped = grouped[..., order]
    words = sum(grouped[..., i] << (bits * i) for i in range(per_word))
    assert isinstance(words, Tensor)
    return words.to(torch.uint32).view(torch.int32)


def random_codes(shape: tuple[int, int], bits: int, seed: int) -> tuple[Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 1 << bits, shape, generator=generator), generator


def scales_of(outputs: int, groups: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    return (0.01 + 0.02 * torch.rand(outputs, groups, generator=generator)).to(dtype)


def wide(values: Tensor, inputs: int) -> Tensor:
    return values.float().repeat_interleave(inputs // values.shape[1], dim=1)


def gptq(shape: tuple[int, int], seed: int, bits: int = 4, stored_zero: int = 7) -> Parts:
    (outputs, inputs), groups = shape, shape[1] // GROUP
    codes, generator = random_codes(shape, bits, seed)
    scales = scales_of(outputs, groups, generator, torch.float16)
    parts = {
        "qweight": packed(codes, bits).T.contiguous(),
        "qzeros": packed(torch.full((groups, outputs), stored_zero), bits),
        "scales": scales.T.contiguous(),
        "g_idx": (torch.arange(inputs) // GROUP).int(),
    }
    return parts, (codes - (1 << (bits - 1))) * wide(scales, inputs)


def awq(shape: tuple[int, int], seed: int) -> Parts:
    (outputs, inputs), groups = shape, shape[1] // GROUP
    codes, generator = random_codes(shape, 4, seed)
    scales = scales_of(outputs, groups, generator, torch.float16)
    zeros = torch.randint(0, 16, (outputs, groups), generator=generator)
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # AutoAWQ's order_map
    parts = {
        "qweight": packed(codes.T, 4, order),
        "qzeros": packed(zeros.T, 4, order),
        "scales": scales.T.contiguous(),
    }
    return parts, (codes - wide(zeros, inputs)) * wide(scales, inputs)


def compressed(
    shape: tuple[int, int], seed: int, bits: int = 4, groups: int = 2, zeros: bool = False
) -> Parts:
    outputs, inputs = shape
    codes, generator = random_codes(shape, bits, seed)
    scales = scales_of(outputs, groups, generator, torch.bfloat16)
    parts = {
        "weight_packed": packed(codes, bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor(shape),
    }
    zero: Tensor = torch.full((outputs, groups), 1 << (bits - 1))
    if zeros:
        zero = torch.randint(0, 1 << bits, (outputs, groups), generator=generator)
        parts["weight_zero_point"] = packed(zero.T, bits).T.contiguous()
    return parts, (codes - wide(zero, inputs)) * wide(scales, inputs)


def int8(shape: tuple[int, int], seed: int) -> Parts:
    codes, generator = random_codes(shape, 8, seed)
    scales = scales_of(shape[0], 1, generator, torch.bfloat16)
    parts = {"weight": (codes - 128).to(torch.int8), "weight_scale": scales, "input_scale": torch.ones(1)}
    return parts, (codes - 128) * wide(scales, shape[1])


def fp8(shape: tuple[int, int], seed: int, scale: str = "channel") -> Parts:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
    if scale == "block":
        blocks = (-(-shape[0] // 48), -(-shape[1] // 48))
        scales = 0.05 + 0.1 * torch.rand(blocks, generator=generator)
        spread = scales.repeat_interleave(48, 0)[: shape[0]].repeat_interleave(48, 1)[:, : shape[1]]
        return {"weight": weight, "weight_scale_inv": scales}, weight.float() * spread
    scales = scales_of(shape[0] if scale == "channel" else 1, 1, generator, torch.bfloat16) * 5
    stored = scales if scale == "channel" else scales.reshape(1)
    return {"weight": weight, "weight_scale": stored}, weight.float() * scales.float()


def groups_of(kind: str, bits: int, form: str, **more: object) -> dict[str, object]:
    weights = {"type": kind, "num_bits": bits, "strategy": "group", **more}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


GPTQ: dict[str, object] = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": GROUP,
    "desc_act": False,
    "sym": True,
}
AWQ: dict[str, object] = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
FP8: dict[str, object] = {"quant_method": "fp8", "weight_block_size": [48, 48]}
FORMATS: dict[str, tuple[dict[str, object], Callable[[tuple[int, int], int], Parts]]] = {
    "gptq": (GPTQ, gptq),
    "gptq-8-bits": (GPTQ | {"bits": 8}, lambda s, i: gptq(s, i, 8, 127)),
    "gptq-v2": (GPTQ | {"checkpoint_format": "gptq_v2"}, lambda s, i: gptq(s, i, 4, 8)),
    "awq": (AWQ, awq),
    "int4-groups": (groups_of("int", 4, "pack-quantized"), compressed),
    "int4-channels": (groups_of("int", 4, "pack-quantized"), lambda s, i: compressed(s, i, groups=1)),
    "int4-zero-points": (groups_of("int", 4, "pack-quantized"), lambda s, i: compressed(s, i, zeros=True)),
    "int8-packed": (groups_of("int", 8, "pack-quantized"), lambda s, i: compressed(s, i, 8)),
    "int8-channels": (groups_of("int", 8, "int-quantized"), int8),
    "fp8-channels": (groups_of("float", 8, "float-quantized"), fp8),
    "fp8-tensor": (FP8, lambda s, i: fp8(s, i, "tensor")),
    "fp8-blocks": (FP8, lambda s, i: fp8(s, i, "block")),
}


def save(
    path: Path, settings: dict[str, object], make: Callable[[tuple[int, int], int], Parts]
) -> dict[str, Tensor]:
    """A checkpoint whose layers' linear weights are quantised; returns the values that it means."""
    plain = {name: tensor.half() for name, tensor in random_tensors(CONFIG, 0).items()}
    save_checkpoint(path, CONFIG, plain)
    stored = {"model.layers.0.self_attn.k_scale": torch.ones(1)}  # of a KV cache, which stays wide
    values = {name: tensor.float() for name, tensor in plain.items()}
    for seed, (name, tensor) in enumerate(plain.items()):
        if name.endswith("_proj.weight"):
            parts, values[name] = make((tensor.shape[0], tensor.shape[1]), seed)
            stored |= {f"{name.removesuffix('.weight')}.{part}": value for part, value in parts.items()}
        else:
            stored[name] = tensor
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, path / "model.safetensors")
    content = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(content | {"quantization_config": settings}))
    byte_tokenizer().save(str(path / "tokenizer.json"))
    return values


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize(("settings", "make"), FORMATS.values(), ids=FORMATS.keys())
def test_values_are_those_that_the_format_means(
    tmp_path: Path, settings: dict[str, object], make: Callable[[tuple[int, int], int], Parts]
) -> None:
    values = save(tmp_path / "quantised", settings, make)
    tensors = load_tensors(tmp_path / "quantised", ModelConfig.from_pretrained(tmp_path / "quantised"))
    assert tensors.keys() == values.keys()
    for name, value in values.items():
        assert torch.equal(tensors[name].float(), value), name
        groups = tensors.groups(name)
        assert tensors.form(name) == (None if groups is None else groups.form), name
        if groups is not None:  # whose scales are fp16, where a file's may be bf16
            found = torch.from_numpy(groups.dequantize())
            assert (found - value).abs().max() <= 1e-3 * value.abs().max(), name


@pytest.mark.parametrize("name", ["gptq", "awq", "int4-groups", "fp8-channels"])
def test_tokens_are_those_of_the_wide_checkpoint(tmp_path: Path, name: str) -> None:
    values = save(tmp_path / "quantised", *FORMATS[name])
    save_checkpoint(tmp_path / "wide", CONFIG, values)
    byte_tokenizer().save(str(tmp_path / "wide" / "tokenizer.json"))
    found = []
    for place in ("quantised", "wide"):
        with Engine.from_pretrained(tmp_path / place, dtype="bfloat16", **OPTIONS) as engine:
            found.append([o.token_ids for o in engine.generate(["abc", "xy"], SamplingParams(max_tokens=12))])
    assert found[0] == found[1]


def test_it_says_what_it_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "quantised", *FORMATS["fp8-channels"])
    with (
        pytest.warns(UserWarning, match=r"weights of 8 bits \(compressed-tensors\) are widened to float16"),
        pytest.warns(UserWarning, match="target's checkpoint is float16, and runs as bfloat16"),
    ):
        Engine.from_pretrained(tmp_path / "quantised", **OPTIONS).close()
    warnings.simplefilter("always")
    command = ["generate", "--target", str(tmp_path / "quantised"), "--prompt", "abc", "--threads", "1"]
    assert cli.main([*command, "--max-tokens", "2"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(
        f"[{tmp_path / 'quantised'}: its weights of 8 bits (compressed-tensors) are widened"
    )
    assert said[1].startswith("[the target's checkpoint is float16, and runs as bfloat16")


REFUSED: dict[str, tuple[object, str]] = {
    "method": ({"quant_method": "bitsandbytes"}, "'bitsandbytes', which is not supported .* GGUF file"),
    "a-text": ("int8", "method 'int8', which is not supported"),
    "act-order": (GPTQ | {"desc_act": True}, r"gptq with act-order \(desc_act\)"),
    "asymmetric": (GPTQ | {"sym": False}, "asymmetric gptq"),
    "3-bits": (GPTQ | {"bits": 3}, "gptq of 3 bits"),
    "marlin": (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
    "awq-gemv": (AWQ | {"version": "gemv"}, "awq of version 'gemv'"),
    "sparse": (groups_of("int", 4, "marlin-24"), "format 'marlin-24'"),
    "fp4": (groups_of("float", 4, "float-quantized"), r"of 4 bits \('float'\)"),
    "ct-act-order": (groups_of("int", 4, "pack-quantized", actorder="group"), "actorder 'group'"),
    "block": (FP8 | {"weight_block_size": 128}, "weight_block_size 128"),
}


@pytest.mark.parametrize(("settings", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_read_is_refused_by_name(settings: object, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ModelConfig.from_dict(CONFIG.to_dict() | {"quantization_config": settings})


Q = "model.layers.1.self_attn.q_proj"
BAD: dict[str, tuple[str, Callable[[dict[str, Tensor]], object], type[Exception], str]] = {
    "no-scales": ("gptq", lambda t: t.pop(f"{Q}.scales"), CheckpointError, "q_proj.scales' of a quantised"),
    "zeros": (
        "gptq",
        lambda t: t.update({f"{Q}.qzeros": t[f"{Q}.qzeros"] + 1}),
        ConfigError,
        "'model.layers.1.self_attn.q_proj.qzeros' is asymmetric",
    ),
    "order": (
        "gptq",
        lambda t: t.update({f"{Q}.g_idx": t[f"{Q}.g_idx"].flip(0).contiguous()}),
        ConfigError,
        "q_proj.g_idx' reorders the inputs",
    ),
    "scales-of-another-shape": (
        "awq",
        lambda t: t.update({f"{Q}.scales": t[f"{Q}.scales"][:, :8].contiguous()}),
        CheckpointError,
        r"q_proj.scales' in .* is F16 \[2, 8\], expected F32 or F16 or BF16 \[2, 64\]",
    ),
    "three-groups": (
        "int4-groups",
        lambda t: t.update({f"{Q}.weight_scale": torch.ones(64, 3)}),
        CheckpointError,
        "has 3 groups for 64 inputs",
    ),
    "reordered": (
        "int4-groups",
        lambda t: t.update({f"{Q}.weight_g_idx": torch.arange(64)}),
        ConfigError,
        "weight_g_idx' reorders the inputs",
    ),
    "packed-of-another-shape": (
        "int4-groups",
        lambda t: t.update({f"{Q}.weight_shape": torch.tensor([64, 640])}),
        CheckpointError,
        "does not fit its weight_shape",
    ),
    "nan": (
        "int4-groups",
        lambda t: t[f"{Q}.weight_scale"].fill_(float("nan")),
        CheckpointError,
        "has a scale that is NaN or infinite",
    ),
    "fp8-scale": (
        "fp8-channels",
        lambda t: t.update({f"{Q}.weight_scale": torch.ones(5, 7)}),
        CheckpointError,
        r"weight_scale' in .* is F32 \[5, 7\], expected",
    ),
    "another-size": (
        "int8-channels",
        lambda t: t.update({f"{Q}.weight": torch.zeros(64, 32, dtype=torch.int8)}),
        CheckpointError,
        r"q_proj.weight' in .* has shape \[64, 32\], expected \[64, 64\]",
    ),
}


@pytest.mark.parametrize(("name", "damage", "error", "named"), BAD.values(), ids=BAD.keys())
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path,
    name: str,
    damage: Callable[[dict[str, Tensor]], object],
    error: type[Exception],
    named: str,
) -> None:
    save(tmp_path, *FORMATS[name])
    tensors = load_file(tmp_path / "model.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(error, match=named):
        Engine.from_pretrained(tmp_path, **OPTIONS)
