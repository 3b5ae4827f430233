"""A target that drafts for itself without some of its layers: the text is that of plain decoding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pairs import Pair, byte_tokenizer

from pearl_rt import ConfigError, Engine, SamplingParams
from pearl_rt.checkpoint.loader import save_checkpoint
from pearl_rt.checkpoint.views.skip_cache import file_of, keep
from pearl_rt.cli.commands import main
from pearl_rt.types.outputs import RequestOutput

PROMPTS = [[7], [3, 1, 4, 1, 5, 9, 2, 6], list(range(40, 73)), [5] * 20]
GREEDY, LOUD = SamplingParams(max_tokens=24), SamplingParams(temperature=1.0, max_tokens=24, seed=3)
PROGRAMS = [("sd", "shared"), ("sd", "split"), ("pearl", "shared"), ("pearl", "split")]


@pytest.fixture(scope="module")
def target() -> Pair:
    """Four layers, of which layer 2 adds nothing."""
    made = Pair.make("equal", num_hidden_layers=4)
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        made.target[f"model.layers.2.{name}.weight"] = torch.zeros_like(
            made.target[f"model.layers.2.{name}.weight"]
        )
    return made


def engine_of(target: Pair, **options: Any) -> Engine:
    shape = {"max_model_len": 128, "num_threads": 2, "max_num_seqs": 4, "drafter": "self"}
    return Engine(target.config, target.target, **shape | options)


@pytest.fixture(scope="module")
def engine(target: Pair) -> Iterator[Engine]:
    with engine_of(target, skip_layers=[2]) as made:
        yield made


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.token_ids for output in outputs]


@pytest.mark.parametrize("weights", ["auto", "int8", "int4"])
def test_every_program_is_ar_to_the_bit(target: Pair, weights: str) -> None:
    with engine_of(target, skip_layers=[1, 3], weights=weights, dtype="bfloat16", judge="coupled") as engine:
        for params in (GREEDY, LOUD):
            want = tokens(engine.generate(PROMPTS, params, strategy="ar"))
            for number, (strategy, placement) in enumerate(PROGRAMS):
                program = {"strategy": strategy, "placement": placement, "gamma": (1, 3, 8, 4)[number]}
                assert tokens(engine.generate(PROMPTS, params, **program)) == want, program


def test_a_layer_that_adds_nothing_is_not_missed(engine: Engine) -> None:
    """The draft is the target: every draft stands, by each judge."""
    for params, judge in ((GREEDY, "coupled"), (LOUD, "coupled"), (LOUD, "rejection")):
        [output] = engine.generate([3, 4], params, strategy="sd", gamma=4, judge=judge)
        assert output.metrics.judged > 12 and output.metrics.acceptance_rate == 1.0
    stats = engine.stats()
    assert stats["drafter"]["kind"] == "self" and stats["drafter"]["shared_layers"] == (0, 1, 3)
    assert engine.draft is not None
    assert engine.draft.weights.memory_bytes == 0  # type: ignore[attr-defined]


def test_a_layer_that_adds_much_is_missed(target: Pair) -> None:
    with engine_of(target, skip_layers=[0, 1]) as engine:
        [output] = engine.generate([3, 4], GREEDY, strategy="sd", gamma=4)
    assert output.metrics.acceptance_rate < 1.0


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ([4], r"skip_layers has 4, and the target has layers 0 to 3"),
        ([0, 1, 2, 3], "skip_layers has all 4 layers of the target: leave the draft at least one"),
        ([], "skip_layers is empty"),
        ([1, 2, 1], "skip_layers has 1 twice"),
        ([-1], r"skip_layers\[0\] is -1"),
        ([True], r"skip_layers\[0\] must be an integer, got True"),
        (3, "skip_layers must be a list of layers, got 3"),
        ("3", "skip_layers must be a list of layers"),
    ],
    ids=str,
)
def test_layers_that_cannot_be_left_out(target: Pair, layers: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        engine_of(target, skip_layers=layers)


def test_options_that_do_not_go_with_it(target: Pair) -> None:
    both = (target.config, target.target, target.config, target.draft)
    with pytest.raises(ConfigError, match=r"'self' was asked for, and a draft model was given: drop one"):
        Engine(*both, drafter="self", skip_layers=[1])
    with pytest.raises(ConfigError, match=r"skip_layers \(1,\) are layers that draft='self' leaves out"):
        Engine(*both, skip_layers=[1])
    with pytest.raises(ConfigError, match="draft_weights 'int4' was given with draft 'self'"):
        engine_of(target, skip_layers=[1], draft_weights="int4")
    with pytest.raises(ConfigError, match=r"draft_device 'cpu' is for a target on a GPU, .* on 'interpret'"):
        engine_of(target, skip_layers=[1], device="interpret", num_threads=None, draft_device="cpu")


def test_layers_that_a_search_has_found(
    target: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"none are known for this target: .*search-skip"):
        engine_of(target)
    keep(file_of(target.config, target.target), [0, 2], {"agreement": 0.5})
    with engine_of(target) as engine:
        assert engine.stats()["drafter"]["shared_layers"] == (1, 3)
    other = dict(target.target) | {"model.norm.weight": 1.01 * target.target["model.norm.weight"]}
    with pytest.raises(ConfigError, match="none are known"):
        Engine(target.config, other, drafter="self")
    file_of(target.config, target.target).write_text('{"skip_layers": [1, 1]}')
    with pytest.raises(ConfigError, match=r"skip_layers has 1 twice.*delete the file"):
        engine_of(target)


def test_the_command_line_searches_and_drafts(
    target: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The layer that adds nothing is the first to go."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_checkpoint(tmp_path / "target", target.config, target.target)
    byte_tokenizer().save(str(tmp_path / "target" / "tokenizer.json"))
    shape = ["--target", str(tmp_path / "target"), "--max-model-len", "256", "--threads", "1"]
    asked = ["generate", *shape, "--prompt", "abcd", "--max-tokens", "12", "--stats"]
    assert main([*asked, "--draft", "self"]) == 2
    assert "search-skip" in capsys.readouterr().err
    assert main(["search-skip", *shape, "--tokens", "80"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:2] == ["1", "1.000"] and lines[2].split()[-1] == "2"
    assert lines[-2].startswith("best: --skip-layers 2") or lines[-3].startswith("best: --skip-layers")
    assert main([*asked, "--draft", "self"]) == 0
    found = capsys.readouterr()
    assert '"kind": "self"' in found.err
    assert main([*asked, "--draft", "none"]) == 0
    assert capsys.readouterr().out == found.out
    assert main([*asked, "--draft", "self", "--skip-layers", "1", "--skip-layers", "3"]) == 0
    assert capsys.readouterr().out == found.out
    assert main(["search-skip", *shape, "--tokens", "1"]) == 2
    assert "--tokens 1 is out of range" in capsys.readouterr().err
