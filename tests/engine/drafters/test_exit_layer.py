"""A target that is left early, by one layer of the draft's own: the text is that of plain decoding, and a
checkpoint that does not fit is refused by name.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pairs import TINY, byte_tokenizer, random_tensors

from pearl_rt import CheckpointError, ConfigError, Engine, SamplingParams
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.loader import save_checkpoint
from pearl_rt.checkpoint.views.exit_layer import ExitConfig, exit_shapes, save_exit

TARGET = replace(TINY, num_hidden_layers=4)
TENSORS = random_tensors(TARGET, 0)
EXIT = ExitConfig(hidden_size=64, vocab_size=288, exit_layer=2, intermediate_size=96)
PROMPTS = [[7], [3, 1, 4, 1, 5, 9, 2, 6], list(range(40, 73))]
GREEDY, LOUD = SamplingParams(max_tokens=24), SamplingParams(temperature=1.0, max_tokens=24, seed=3)
SHAPE = {"max_model_len": 128, "num_threads": 2, "max_num_seqs": 4}


def own_layer(config: ModelConfig = TARGET, seed: int = 1) -> dict[str, torch.Tensor]:
    """Layer 2 of another model, and its norm."""
    shapes = exit_shapes(EXIT.draft_config(config))
    return {name: tensor for name, tensor in random_tensors(config, seed).items() if name in shapes}


def save(path: Path, own: dict[str, torch.Tensor] | None = None) -> list[str]:
    """[target, exit layer] as directories."""
    save_checkpoint(path / "target", TARGET, TENSORS)
    byte_tokenizer().save(str(path / "target" / "tokenizer.json"))
    save_exit(path / "exit", EXIT.draft_config(TARGET), own_layer() if own is None else own)
    return [str(path / "target"), str(path / "exit")]


@pytest.mark.parametrize("weights", ["auto", "int8", "int4"])
def test_every_program_is_ar_to_the_bit(tmp_path: Path, weights: str) -> None:
    options = SHAPE | {"weights": weights, "draft_weights": weights, "judge": "coupled"}
    with Engine.from_pretrained(*save(tmp_path), **options) as engine:
        for params in (GREEDY, LOUD):
            want = [one.token_ids for one in engine.generate(PROMPTS, params, strategy="ar")]
            for strategy, placement, gamma in (("sd", "shared", 3), ("pearl", "split", 4)):
                program = {"strategy": strategy, "placement": placement, "gamma": gamma}
                got = [one.token_ids for one in engine.generate(PROMPTS, params, **program)]
                assert got == want, program
        stats = engine.stats()
    assert stats["drafter"]["kind"] == "exit" and stats["drafter"]["shared_layers"] == (0, 1)


def test_the_targets_own_layer_says_what_the_target_says() -> None:
    """Behind it the target has a layer that adds nothing."""
    tensors = dict(TENSORS)
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[f"model.layers.3.{name}.weight"] = torch.zeros_like(TENSORS[f"model.layers.3.{name}.weight"])
    own = {name: tensors[name] for name in own_layer()}
    with Engine(TARGET, tensors, EXIT, own, **SHAPE) as engine:
        for params, judge in ((GREEDY, "coupled"), (LOUD, "rejection")):
            [output] = engine.generate([3, 4], params, strategy="sd", gamma=4, judge=judge)
            assert output.metrics.judged > 12 and output.metrics.acceptance_rate == 1.0


@pytest.mark.parametrize("at_once", [True, False])
def test_with_a_mask_token_a_window_is_one_pass(tmp_path: Path, at_once: bool) -> None:
    """Of the first layers, one more and the head. Token by token it is an exit layer as any other."""
    save(tmp_path)
    save_exit(tmp_path / "exit", replace(EXIT, pard_token=31).draft_config(TARGET), own_layer())
    options = SHAPE | {"judge": "coupled", "draft_parallel": at_once}
    with Engine.from_pretrained(tmp_path / "target", tmp_path / "exit", **options) as engine:
        for params in (GREEDY, LOUD):
            want = [one.token_ids for one in engine.generate(PROMPTS, params, strategy="ar")]
            for strategy, placement, gamma in (("sd", "shared", 3), ("pearl", "split", 4)):
                program = {"strategy": strategy, "placement": placement, "gamma": gamma}
                got = [one.token_ids for one in engine.generate(PROMPTS, params, **program)]
                assert got == want, program
        assert engine.stats()["step_times"]["shared"]["drafts_at_once"] == at_once
    with pytest.raises(ConfigError, match="pard_token 288 is not in the vocabulary"):
        Engine(TARGET, TENSORS, replace(EXIT, pard_token=288), own_layer(), **SHAPE)


def test_masks_of_the_target_are_not_the_layers() -> None:
    """A target that has a mask token was trained for masks; a layer without one goes token by token."""
    for masks in ({"pard_token": 31}, {"diffusion_mask_token": 31, "diffusion_passes": 2}):
        assert EXIT.draft_config(replace(TARGET, **masks)) == EXIT.draft_config(TARGET)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_size": 32}, "for a target of hidden_size 32, and this one has 64"),
        ({"vocab_size": 300}, "for a target of vocab_size 300, and this one has 288"),
        ({"exit_layer": 4}, "stands behind 4 layers, and the target has 4: an exit leaves at least one out"),
        ({"exit_layer": 0}, "exit_layer must be an integer of 1 or more, got 0"),
        ({"exit_layer": None}, "exit_layer must be an integer of 1 or more, got None"),
        ({"exit_layer": 1}, r"tensor 'model.layers.1.input_layernorm.weight' of .* expected shape \(64,\)"),
        ({"intermediate_size": 80}, "tensor 'model.layers.2.mlp.down_proj.weight' .*expected shape .*80"),
        ({"intermediate_size": True}, "intermediate_size must be an integer"),
        ({"pard_token": -1}, "pard_token must be an integer of 0 or more, got -1"),
    ],
    ids=str,
)
def test_checkpoints_that_do_not_fit(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    target, draft = save(tmp_path)
    file = Path(draft) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises((ConfigError, CheckpointError), match=named):
        Engine.from_pretrained(target, draft)


def test_tensors_that_are_missing_or_too_many(tmp_path: Path) -> None:
    target, draft = save(tmp_path)
    file = Path(draft) / "model.safetensors"
    whole = load_file(file)
    norm = whole.pop("model.norm.weight")
    save_file(whole, file)
    with pytest.raises(CheckpointError, match=r"tensor 'model.norm.weight' of .*got shape None"):
        Engine.from_pretrained(target, draft)
    save_file(whole | {"model.norm.weight": norm, "model.embed_tokens.weight": norm.clone()}, file)
    with pytest.raises(CheckpointError, match=r"tensor 'model.embed_tokens.weight' .*expected shape None"):
        Engine.from_pretrained(target, draft)
    file.write_bytes(b"\x00" * 40)
    with pytest.raises(CheckpointError, match="cannot be read"):
        Engine.from_pretrained(target, draft)
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        Engine.from_pretrained(target, draft)


def test_where_it_cannot_run(tmp_path: Path) -> None:
    target, draft = save(tmp_path)
    with pytest.raises(ConfigError, match=r"draft_device 'cpu' is for a target on a GPU, .* on 'interpret'"):
        Engine.from_pretrained(target, draft, device="interpret", draft_device="cpu")
    with pytest.raises(ConfigError, match="drafter 'self' was asked for, and a draft model was given"):
        Engine.from_pretrained(target, draft, drafter="self", skip_layers=[1])
    with pytest.raises(ConfigError, match="pass both, or neither"):
        Engine(TARGET, TENSORS, EXIT)
    with pytest.raises(CheckpointError, match=r"tensor 'model.norm.weight' of the draft"):
        Engine(TARGET, TENSORS, EXIT, {n: t for n, t in own_layer().items() if n != "model.norm.weight"})
