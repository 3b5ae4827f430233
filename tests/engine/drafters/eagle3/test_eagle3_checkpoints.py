"""Heads of EAGLE-3 on disk: every layout reads as the same head, and what does not fit is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_heads import HEAD, IDS, TARGET, VOCAB, Tensors, random_head

from pearl_rt import CheckpointError, ConfigError
from pearl_rt.checkpoint.views.eagle3 import (
    OFFSETS,
    Eagle3Config,
    check_eagle3,
    eagle3_shapes,
    is_eagle3,
    load_eagle3,
    save_eagle3,
)
from pearl_rt.types.json import Json

TENSORS = random_head(HEAD, 0)


def equal(got: Tensors, want: Tensors) -> bool:
    return got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)


def saved(path: Path, config: Eagle3Config = HEAD, tensors: Tensors = TENSORS) -> Path:
    save_eagle3(path, config, tensors, TARGET)
    return path


def changed(path: Path, change: Callable[[Json], Json]) -> Path:
    file = path / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    return path


def renamed(path: Path, name: Callable[[str], str], **more: torch.Tensor) -> Path:
    file = path / "model.safetensors"
    save_file({name(key): tensor for key, tensor in load_file(file).items()} | more, file)
    return path


def as_vllm(path: Path) -> Path:
    """AngelSlim's: layers.0.*, and the taps beside the other keys."""

    def change(content: Json) -> Json:
        content["architectures"] = ["Eagle3LlamaForCausalLM"]
        return content | content.pop("eagle_config")

    return renamed(changed(path, change), lambda name: name.replace("midlayer.", "layers.0."))


def as_speculators(path: Path) -> Path:
    def change(content: Json) -> Json:
        own = ("draft_vocab_size", "target_hidden_size", "taps_are_inputs")
        taps = content.pop("eagle_config")
        outer = {name: content.pop(name) for name in own} | taps
        return outer | {
            "architectures": ["Eagle3Speculator"],
            "speculators_model_type": "eagle3",
            "norm_before_residual": False,
            "transformer_layer_config": content | {"architectures": ["LlamaForCausalLM"]},
            "speculators_config": {"verifier": {"name_or_path": "some/model"}},
        }

    known = torch.zeros(VOCAB, dtype=torch.bool)
    return renamed(
        changed(path, change),
        lambda name: name.replace("midlayer.", "layers.0."),
        t2d=known,
        **{"verifier_norm.weight": torch.ones(64)},
    )


def as_pickled(path: Path) -> Path:
    """EAGLE's own, whose names begin with "model." where another library has written it."""
    tensors = {f"model.{name}": tensor for name, tensor in load_file(path / "model.safetensors").items()}
    (path / "model.safetensors").unlink()
    torch.save(tensors, path / "pytorch_model.bin")
    return path


def test_a_window_of_a_head() -> None:
    """A Llama's too, which has none as a model."""
    content = HEAD.to_dict() | {"sliding_window": 40}
    assert Eagle3Config.from_dict(content).layer.sliding_window == 40
    assert Eagle3Config.from_dict(HEAD.to_dict()).layer.sliding_window is None
    for wrong in (0, -3, "40", 1.5, True):
        with pytest.raises(CheckpointError, match="sliding_window"):
            Eagle3Config.from_dict(content | {"sliding_window": wrong})


@pytest.mark.parametrize("layout", [saved, as_vllm, as_speculators, as_pickled])
def test_every_layout_is_the_same_head(tmp_path: Path, layout: Callable[[Path], Path]) -> None:
    path = layout(saved(tmp_path))
    assert is_eagle3(path)
    config, tensors = load_eagle3(path, TARGET)
    assert config == replace(HEAD, layer=replace(HEAD.layer, torch_dtype="float32"))
    assert equal(tensors, TENSORS)


@pytest.mark.parametrize("flags", [{"norm_before_fc": True}, {"fc_norm": True, "norm_output": True}], ids=str)
def test_norms_of_later_heads(tmp_path: Path, flags: dict[str, bool]) -> None:
    config = replace(HEAD, norm_before_residual=True, **flags)
    tensors = random_head(config, 1)
    found, read = load_eagle3(saved(tmp_path, config, tensors), TARGET)
    assert found == config and equal(read, tensors)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert {"input_norm.weight"} <= names or {f"fc_norm.{i}.weight" for i in range(3)} <= names


def test_what_a_config_leaves_out() -> None:
    """The official head of Llama 3 has no rope_theta: 10000. Taps are the inputs of 2, L / 2 and L - 3."""
    content = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": VOCAB,
        "draft_vocab_size": IDS,
    }
    found = Eagle3Config.from_dict(content)
    assert (found.layer.rope_theta, found.layer.max_position_embeddings) == (10000.0, 2048)
    assert not found.norm_before_residual and found.target_hidden_size == 64
    assert found.taps_of(replace(TARGET, num_hidden_layers=32)) == (2, 16, 29)
    del content["draft_vocab_size"]
    assert Eagle3Config.from_dict(content).draft_vocab_size == VOCAB


@pytest.mark.parametrize(
    ("ids", "taps"), [([1, 15, 28], (2, 16, 29)), ([2, 16, 29], (2, 16, 29)), ([0, 16], (0, 16))], ids=str
)
def test_taps_named_by_outputs_begin_with_1(ids: list[int], taps: tuple[int, ...]) -> None:
    content = replace(HEAD, taps=None).to_dict() | {"eagle_config": {"eagle_aux_hidden_state_layer_ids": ids}}
    assert Eagle3Config.from_dict(content).taps == taps


def nested(content: Json) -> Json:
    return {
        "speculators_model_type": "eagle3",
        "norm_before_residual": True,
        "transformer_layer_config": content,
    }


def test_what_transformers_leaves_out_of_a_nested_config() -> None:
    """All that has the default of its class."""
    layer = {"model_type": "llama", "num_hidden_layers": 1, "vocab_size": 128256, "rope_theta": 500000.0}
    found = Eagle3Config.from_dict(nested(layer)).layer
    assert (found.hidden_size, found.intermediate_size, found.num_attention_heads) == (4096, 11008, 32)
    assert found.rope_theta == 500000.0
    layer = {"model_type": "qwen3", "num_hidden_layers": 1, "hidden_size": 2048}
    assert Eagle3Config.from_dict(nested(layer)).layer.qk_norm


TAPS = "eagle_aux_hidden_state_layer_ids"
BAD: list[tuple[Json, str]] = [
    ({"num_hidden_layers": 2}, "num_hidden_layers 2: an EAGLE-3 head of one layer is needed"),
    ({"draft_vocab_size": 0}, "draft_vocab_size must be an integer of 1 or more, got 0"),
    ({"draft_vocab_size": True}, "draft_vocab_size must be an integer of 1 or more, got True"),
    ({"target_hidden_size": "x"}, "target_hidden_size must be an integer of 1 or more, got 'x'"),
    ({"eagle_config": 3}, "eagle_config must be an object, got 3"),
    ({"eagle_config": {TAPS: []}}, rf"{TAPS} must be a list of layers of the target, got \[\]"),
    ({"eagle_config": {TAPS: [2, "x"]}}, rf"{TAPS} must be a list of layers of the target"),
    ({"eagle_config": {TAPS: [3, 2, 4]}}, r"inputs of layers \[3, 2, 4\], and the target has 4 layers"),
    ({"eagle_config": {TAPS: [0, 2, 5]}}, r"inputs of layers \[0, 2, 5\], .*ascending ones of 0 to 4"),
    ({"eagle_config": None}, r"layers \[2, 2, 1\], which 2, L / 2 and L - 3 are without one"),
    ({"num_aux_hidden_states": 4}, "num_aux_hidden_states is 4, and there are 3 taps"),
    ({"norm_before_residual": 1}, "norm_before_residual must be true or false, got 1"),
    ({"norm_before_fc": True, "fc_norm": True}, "norm_before_fc and fc_norm are both true"),
    ({"parallel_drafting": True}, "parallel_drafting True is of a kind of head that is not supported"),
    ({"eagle_config": {"use_aux_hidden_state": False}}, "use_aux_hidden_state False is of a kind"),
    ({"quantization_config": {"bits": 4}}, "quantization_config .* is of a kind"),
    ({"model_type": "gpt_oss"}, "model_type 'gpt_oss' is not supported"),
    ({"vocab_size": 50}, "the head is for a target of vocab_size 50, and this one has 48: take the head of"),
    ({"target_hidden_size": 80}, "the head is for a target of hidden_size 80, and this one has 64"),
    ({"draft_vocab_size": 49}, "draft_vocab_size 49 is more than the target's vocabulary of 48"),
    ({"draft_vocab_size": 41}, r"tensor 'd2t' of .*expected shape \(41,\), got shape \(40,\)"),
    ({"hidden_size": 32}, "no embed_tokens, and the target's rows have 64 numbers, not the head's 32"),
    ({"hidden_size": 72, "head_dim": 8}, "hidden_size 72 of the head is not a multiple of 16"),
    ({"intermediate_size": 80}, r"tensor 'model.layers.0.mlp.down_proj.weight' of .*\(64, 80\), got"),
]


@pytest.mark.parametrize(("change", "named"), BAD, ids=[named[:40] for _, named in BAD])
def test_configs_that_do_not_fit(tmp_path: Path, change: Json, named: str) -> None:
    path = changed(saved(tmp_path), lambda content: content | change)
    with pytest.raises((CheckpointError, ConfigError), match=named):
        load_eagle3(path, TARGET)


def test_nested_configs_that_are_none() -> None:
    with pytest.raises(CheckpointError, match="transformer_layer_config must be an object, got None"):
        Eagle3Config.from_dict({"speculators_model_type": "eagle3"})
    with pytest.raises(CheckpointError, match="no norm_before_residual, which readers of this layout take"):
        Eagle3Config.from_dict({"transformer_layer_config": {"model_type": "llama"}})


@pytest.mark.parametrize("name", sorted(eagle3_shapes(HEAD, has_embedding=False)))
def test_a_tensor_that_is_missing(name: str) -> None:
    tensors = {key: tensor for key, tensor in TENSORS.items() if key != name}
    with pytest.raises(CheckpointError, match=f"tensor '{name}' of the draft does not fit .*got shape None"):
        check_eagle3(tensors, HEAD, TARGET, "the draft")


def test_tensors_that_are_too_many_or_cannot_be_read(tmp_path: Path) -> None:
    path = saved(tmp_path)
    file = path / "model.safetensors"
    renamed(path, lambda name: name, mask_hidden=torch.ones(3))
    with pytest.raises(CheckpointError, match=r"tensor 'mask_hidden' of .*expected shape None"):
        load_eagle3(path, TARGET)
    saved(path)
    renamed(path, lambda name: name, **{"layers.0.hidden_norm.weight": torch.ones(64)})
    with pytest.raises(CheckpointError, match=r"two tensors 'model.layers.0.hidden_norm.weight'"):
        load_eagle3(path, TARGET)
    file.write_bytes(b"\x00" * 40)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_eagle3(path, TARGET)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"no model.safetensors and no pytorch_model.bin"):
        load_eagle3(path, TARGET)
    for content in (b"", b"\x80\x02c", b"PK\x03\x04"):
        (path / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_eagle3(path, TARGET)
    torch.save([torch.ones(2)], path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds no tensors by name"):
        load_eagle3(path, TARGET)


@pytest.mark.parametrize(
    ("place", "offset", "named"),
    [
        (0, -1, r"d2t\[0\] of the draft is -1, which leads to id -1 of a vocabulary of 48"),
        (39, 9, r"d2t\[39\] of the draft is 9, which leads to id 48 of a vocabulary of 48"),
        (3, None, "d2t of the draft leads from ids 2 and 3 to one"),
    ],
)
def test_a_d2t_that_leads_nowhere(place: int, offset: int | None, named: str) -> None:
    offsets = TENSORS[OFFSETS].clone()
    offsets[place] = offsets[place - 1] - 1 if offset is None else offset
    with pytest.raises(CheckpointError, match=named):
        check_eagle3(TENSORS | {OFFSETS: offsets}, HEAD, TARGET, "the draft")
    with pytest.raises(CheckpointError, match=r"is torch.float32: whole numbers are needed"):
        check_eagle3(TENSORS | {OFFSETS: offsets.float()}, HEAD, TARGET, "the draft")


def test_ids_of_the_head_are_offsets_into_the_targets() -> None:
    ids = check_eagle3(TENSORS, HEAD, TARGET, "the draft")
    assert ids == [place + int(offset) for place, offset in enumerate(TENSORS[OFFSETS])]
    whole = replace(HEAD, draft_vocab_size=VOCAB)
    tensors: dict[str, Any] = random_head(whole, 2)
    del tensors[OFFSETS]
    assert check_eagle3(tensors, whole, TARGET, "the draft") == list(range(VOCAB))


def test_other_checkpoints_are_none(tmp_path: Path) -> None:
    assert not is_eagle3(tmp_path)
    (tmp_path / "config.json").write_text(
        '{"architectures": "LlamaForCausalLMEagle3", "model_type": "llama"}'
    )
    assert not is_eagle3(tmp_path)
