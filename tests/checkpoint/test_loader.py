"""Checkpoints: what is written is read back without a copy; what does not fit is refused, tensor by "
"tensor."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pearl_rt.checkpoint import loader
from pearl_rt.checkpoint.compatibility import own_dtype
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.loader import load_tensors, loading_bar, save_checkpoint
from pearl_rt.checkpoint.shapes import tensor_shapes
from pearl_rt.checkpoint.source import load_pair, pair_sources
from pearl_rt.errors import CheckpointError

CONFIG = ModelConfig("llama", 111, 96, 128, 2, 6, 2, 24, bos_token_id=1, eos_token_ids=(2, 5))
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
Tensors = dict[str, torch.Tensor]


def random_tensors(config: ModelConfig, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(s, generator=generator).to(dtype) for n, s in tensor_shapes(config).items()}


def changed(path: Path, change: Callable[[Tensors], Any], config: ModelConfig = CONFIG) -> Path:
    """A checkpoint whose file was rewritten with `change` applied to its tensors."""
    save_checkpoint(path, config, random_tensors(config))
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")
    return path


def sharded(path: Path) -> tuple[Path, dict[str, str]]:
    """A checkpoint in two shards with an index, as (directory, weight_map)."""
    path.mkdir(exist_ok=True)
    tensors = random_tensors(CONFIG)
    names = list(tensors)
    halves = {"model-00001-of-00002.safetensors": names[:7], "model-00002-of-00002.safetensors": names[7:]}
    for file, held in halves.items():
        save_file({name: tensors[name] for name in held}, path / file)
    weight_map = {name: file for file, held in halves.items() for name in held}
    (path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    write_index(path, weight_map)
    return path, weight_map


def write_index(path: Path, weight_map: object) -> None:
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def refused(path: Path, named: str, config: ModelConfig = CONFIG) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_tensors(path, config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_round_trip(tmp_path: Path, dtype: torch.dtype, tied: bool) -> None:
    config = replace(CONFIG, tie_word_embeddings=tied, torch_dtype=str(dtype).removeprefix("torch."))
    tensors = random_tensors(config, dtype)
    brought = tensors | ({"lm_head.weight": tensors["model.embed_tokens.weight"]} if tied else {})
    save_checkpoint(tmp_path / "deep" / "model", config, brought)
    read = ModelConfig.from_pretrained(tmp_path / "deep" / "model")
    assert read == config
    loaded = load_tensors(tmp_path / "deep" / "model", read)
    assert list(loaded) == list(tensors)
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert sorted(p.name for p in (tmp_path / "deep" / "model").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_round_trip_of_biases_and_norms(tmp_path: Path, model_type: str) -> None:
    config = replace(
        CONFIG, model_type=model_type, attention_bias=model_type == "qwen2", qk_norm=model_type == "qwen3"
    )
    tensors = random_tensors(config)
    save_checkpoint(tmp_path, config, tensors)
    loaded = load_tensors(tmp_path, ModelConfig.from_pretrained(tmp_path))
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_saving_takes_parameters_views_and_shared_storage(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG, torch.float32)
    tensors[Q_PROJ] = torch.nn.Parameter(tensors[Q_PROJ].T.contiguous().T)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_checkpoint(tmp_path, CONFIG, tensors)
    loaded = load_tensors(tmp_path, CONFIG)
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_saving_replaces_a_file_that_is_mapped(tmp_path: Path) -> None:
    first = random_tensors(CONFIG)
    save_checkpoint(tmp_path, CONFIG, first)
    mapped = load_tensors(tmp_path, CONFIG)
    save_checkpoint(tmp_path, CONFIG, {name: t + 1 for name, t in first.items()})
    assert torch.equal(mapped[Q_PROJ], first[Q_PROJ])
    assert torch.equal(load_tensors(tmp_path, CONFIG)[Q_PROJ], first[Q_PROJ] + 1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop(Q_PROJ), rf"'{Q_PROJ}'.*expected shape \(144, 96\), got shape None"),
        (lambda t: t.update({Q_PROJ: t[Q_PROJ][:7]}), rf"'{Q_PROJ}'.*\(144, 96\), got shape \(7, 96\)"),
        (lambda t: t.update(extra=torch.zeros(3)), r"'extra'.*expected shape None, got shape \(3,\)"),
    ],
    ids=["missing", "misshaped", "extra"],
)
def test_saving_refuses_what_could_not_be_loaded(
    tmp_path: Path, change: Callable[[Tensors], Any], named: str
) -> None:
    tensors = random_tensors(CONFIG)
    change(tensors)
    with pytest.raises(CheckpointError, match=named):
        save_checkpoint(tmp_path / "new", CONFIG, tensors)
    assert not (tmp_path / "new").exists()


def test_shards(tmp_path: Path) -> None:
    path, _ = sharded(tmp_path)
    loaded, expected = load_tensors(path, CONFIG), random_tensors(CONFIG)
    assert list(loaded) == list(expected)
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_shards_that_do_not_fit_their_index(tmp_path: Path) -> None:
    path, weight_map = sharded(tmp_path / "a")
    (path / weight_map["lm_head.weight"]).unlink()
    refused(path, "index.json names 'model-00002-of-00002.safetensors', which is not there: fetch it")
    path, weight_map = sharded(tmp_path / "b")
    write_index(path, weight_map | {"ghost": weight_map[Q_PROJ]})
    refused(path, "places tensor 'ghost' in model-00001-of-00002.safetensors, which does not hold it")
    write_index(path, weight_map | {Q_PROJ: weight_map["lm_head.weight"]})
    refused(path, f"places tensor '{Q_PROJ}' in model-00002")
    write_index(path, weight_map | {Q_PROJ: "../a/model-00001-of-00002.safetensors"})
    refused(path, r"names '\.\./a/model-00001-of-00002\.safetensors', which is not a file in")
    write_index(path, [1])
    refused(path, "no weight_map")
    (path / "model.safetensors.index.json").write_text("{")
    refused(path, "not valid JSON")
    (path / "model.safetensors.index.json").unlink()
    refused(path, "holds model-00001-of-00002.safetensors, but neither .*: fetch the index")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop(Q_PROJ), rf"'{Q_PROJ}' \[144, 96\] is missing"),
        (lambda t: t.pop("lm_head.weight"), r"lm_head.weight.*missing.*tie_word_embeddings to true"),
        (lambda t: t.update({Q_PROJ: t[Q_PROJ][:7]}), rf"'{Q_PROJ}'.*shape \[7, 96\], expected \[144, 96\]"),
        (lambda t: t.update({Q_PROJ: t[Q_PROJ].T.contiguous()}), r"shape \[96, 144\], expected \[144, 96\]"),
        (lambda t: t.update({Q_PROJ: t[Q_PROJ].to(torch.int8)}), "dtype I8.*unquantised original"),
        (lambda t: t.update({Q_PROJ: t[Q_PROJ].to(torch.float8_e4m3fn)}), "dtype F8_E4M3"),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(144)}),
            r"'model.layers.0.self_attn.q_proj.bias' \[144\].*no place in this model",
        ),
        (lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(2)}), r"layers\.2.*no place"),
    ],
    ids=["missing", "no-head", "misshaped", "transposed", "int8", "fp8", "extra-bias", "extra-layer"],
)
def test_tensors_that_do_not_fit(tmp_path: Path, change: Callable[[Tensors], Any], named: str) -> None:
    refused(changed(tmp_path, change), named)


def test_a_model_saved_without_its_head(tmp_path: Path) -> None:
    def strip(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)
        del tensors["lm_head.weight"]

    refused(changed(tmp_path, strip), "'lm_head.weight' .* is missing from the checkpoint")


def test_harmless_extras_are_left_out(tmp_path: Path) -> None:
    def add(tensors: Tensors) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(12)
        tensors["model.rotary_emb.inv_freq"] = torch.zeros(12)

    assert list(load_tensors(changed(tmp_path, add), CONFIG)) == list(tensor_shapes(CONFIG))


def test_the_head_of_a_tied_model_must_be_its_embedding(tmp_path: Path) -> None:
    tied = replace(CONFIG, tie_word_embeddings=True)
    embedding = "model.embed_tokens.weight"
    same = changed(tmp_path / "same", lambda t: t.update({"lm_head.weight": t[embedding].clone()}), tied)
    assert list(load_tensors(same, tied)) == list(tensor_shapes(tied))
    other = changed(tmp_path / "other", lambda t: t.update({"lm_head.weight": t[embedding] + 1}), tied)
    refused(other, "'lm_head.weight' differs from.*tie_word_embeddings to false", tied)
    wide = changed(tmp_path / "wide", lambda t: t.update({"lm_head.weight": t[embedding].float()}), tied)
    refused(wide, "'lm_head.weight' differs from", tied)
    small = changed(
        tmp_path / "small", lambda t: t.update({"lm_head.weight": t[embedding][:5].clone()}), tied
    )
    refused(small, r"'lm_head.weight'.*\[5, 96\], expected \[111, 96\]", tied)


def test_other_formats_are_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    refused(tmp_path, "holds no weights: expected model.safetensors")
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(b"")
    refused(tmp_path, "convert them to safetensors")
    refused(tmp_path / "nothing", "does not exist")


@pytest.mark.parametrize(
    ("show", "told", "pause", "is_shown"),
    [
        (True, "", 0.03, True),
        (None, "1", 0.03, True),
        (True, "", 0.0, False),  # over before a bar is of use
        (None, "", 0.03, False),  # stderr is no terminal here
        (None, "0", 0.03, False),
        (False, "1", 0.03, False),
    ],
)
def test_progress_is_shown_only_when_long_and_to_someone(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    show: bool | None,
    told: str,
    pause: float,
    is_shown: bool,
) -> None:
    monkeypatch.setattr(loader, "_SECONDS_UNTIL_PROGRESS", 0.05 if pause else 60.0)
    monkeypatch.setenv("PEARL_PROGRESS", told)
    with loading_bar("target", 8 << 30, show) as advance:
        for _ in range(8):
            time.sleep(pause)
            advance(1 << 30)
    out, err = capsys.readouterr()
    assert out == "" and ("target" in err) == is_shown


@pytest.mark.parametrize("prefix", ["", "_orig_mod.model.", "module.model.", "module._orig_mod.model."])
def test_names_as_wrappers_and_inner_models_save_them(tmp_path: Path, prefix: str) -> None:
    """The head has what is before the "model." of the others."""
    expected = random_tensors(CONFIG)
    outer = prefix.removesuffix("model.")

    def rename(tensors: Tensors) -> None:
        for name in list(tensors):
            tensor = tensors.pop(name)
            tensors[f"{prefix}{name.removeprefix('model.')}" if "model." in name else outer + name] = tensor

    loaded = load_tensors(changed(tmp_path, rename), CONFIG)
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_heads_and_towers_that_no_text_needs_are_left_out(tmp_path: Path) -> None:
    others = {"v_head.weight": torch.zeros(3), "vision_tower.patch.weight": torch.zeros(2, 2)}
    loaded = load_tensors(changed(tmp_path, lambda tensors: tensors.update(others)), CONFIG)
    assert not others.keys() & loaded.keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("told", [..., None, "auto"])
def test_the_dtype_of_the_weights_where_the_config_names_none(
    tmp_path: Path, told: object, dtype: torch.dtype
) -> None:
    save_checkpoint(tmp_path, CONFIG, random_tensors(CONFIG, dtype))
    content = json.loads((tmp_path / "config.json").read_text())
    del content["torch_dtype"]
    (tmp_path / "config.json").write_text(json.dumps(content | ({} if told is ... else {"dtype": told})))
    [source] = pair_sources(*load_pair(tmp_path, None), dtype="auto")
    assert source.config.torch_dtype == str(dtype).removeprefix("torch.")
    assert own_dtype("target", "auto", source.config) == source.config.torch_dtype
