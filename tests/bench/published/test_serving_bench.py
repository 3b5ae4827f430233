"""bench/serving.py on a tiny pair: its tables, what it compares, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
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
    short = "--turns 3 --turn-tokens 40 --repeats 1 --num-prompts 1 --threads 1"
    return ["--target", str(target), "--draft", str(draft), *short.split()]


@pytest.mark.slow
def test_the_whole(models: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    assert serving.main([*models, "--json-out", str(out)]) == 0
    said = capsys.readouterr().out
    figures = json.loads(out.read_text())
    chat = figures["chats"]
    assert [row["length"] for row in chat] == [40, 96, 152] and chat[1]["x_second"] == 1
    assert [row["found"] for row in chat] == [0, 48, 96]  # blocks of 16: of the text, and of the answer
    assert [row["program"] for row in figures["forms"]] == ["ar", "sd, gamma 4", "auto"]
    for row in figures["forms"]:
        assert row["json_ms"] > 0 and row["json_x_free"] == pytest.approx(row["free_ms"] / row["json_ms"])
    plain, drafted, _ = figures["forms"]
    assert plain["json_per_round"] == 1 and plain["forced"] == 0
    assert drafted["json_per_round"] > 1 and drafted["forced"] > 0
    assert figures["outputs_equal"] and "JSON tok/s, x free" in said


@pytest.mark.slow
@pytest.mark.parametrize(("part", "other"), [("chats", "forms"), ("forms", "chats")])
def test_answers_that_differ(
    models: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    other: str,
) -> None:
    """With the cache, or by a program."""
    own = Engine.generate

    def falsified(self: Engine, prompt: Any, params: Any, **options: Any) -> Any:
        outputs = own(self, prompt, params, **options)
        if not params.private or options.get("strategy") == "sd":
            outputs[0].token_ids[0] ^= 1
            outputs[0] = replace(outputs[0], text=outputs[0].text + " ")
        return outputs

    monkeypatch.setattr(Engine, "generate", falsified)
    assert serving.main([*models, "--parts", part]) == 1
    said = capsys.readouterr().out
    assert "ANSWERS DIFFER" in said and f'"{other}"' not in said


def test_a_chat_of_one_turn_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        serving.main(["--turns", "1"])
    assert "--turns 1: a chat has two turns at least" in capsys.readouterr().err
