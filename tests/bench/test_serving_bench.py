"""bench/serving.py on a tiny pair: its tables, what it compares, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_pairs import Pair

from bench import serving
from pearl_rt.engine import Engine


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    pair = Pair.make("half-right", eos_token_ids=(256,), max_position_embeddings=4096)
    target, draft = pair.save(tmp_path_factory.mktemp("pair"))
    return [
        "--target",
        str(target),
        "--draft",
        str(draft),
        "--turns",
        "3",
        "--repeats",
        "1",
        "--num-prompts",
        "1",
    ]


@pytest.mark.slow
def test_the_whole(models: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    assert serving.main([*models, "--turn-tokens", "40", "--json-out", str(out)]) == 0
    said = capsys.readouterr().out
    figures = json.loads(out.read_text())
    turns = figures["turns"]
    assert [row["length"] for row in turns] == [40, 96, 152] and turns[1]["x_second"] == 1
    assert [row["found"] for row in turns] == [0, 32, 96]  # blocks of 32: of the text, and of the answer
    assert [row["strategy"] for row in figures["forms"]] == ["ar", "sd"]
    assert all(row["json_ms"] > 0 and row["free_ms"] > 0 for row in figures["forms"])
    assert figures["outputs_equal"] and "JSON / free" in said and "changed no answer" in said


@pytest.mark.slow
def test_answers_that_differ(
    models: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Engine.generate

    def other(self: Engine, prompt: Any, params: Any, **options: Any) -> Any:
        outputs = own(self, prompt, params, **options)
        if not params.private and len(prompt) > 100:
            outputs[0].token_ids[0] ^= 1
        return outputs

    monkeypatch.setattr(Engine, "generate", other)
    assert serving.main([*models, "--turn-tokens", "40"]) == 1
    assert "ANSWERS DIFFER" in capsys.readouterr().out


def test_a_chat_of_one_turn_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        serving.main(["--turns", "1"])
    assert "--turns 1: a chat has two turns at least" in capsys.readouterr().err
