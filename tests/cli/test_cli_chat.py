"""The command line where it reads: prompts from files and stdin, and a chat."""

import io
import sys
from pathlib import Path

import pytest
from tiny_pairs import Pair

from pearl_rt import Engine, SamplingParams
from pearl_rt.cli.commands import main

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`--target DIR --draft DIR` of a tiny pair with a chat template."""
    target, draft = Pair.make("half-right").save(tmp_path_factory.mktemp("pair"))
    (target / "chat_template.jinja").write_text(TEMPLATE)
    return ["--target", str(target), "--draft", str(draft), "--max-model-len", "200"]


def answer(pair: list[str], prompt: str, num_tokens: int) -> str:
    with Engine.from_pretrained(pair[1], max_model_len=256) as engine:
        [output] = engine.generate(prompt, SamplingParams(max_tokens=num_tokens))
    return output.text


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))


def test_prompts_come_from_files_and_stdin(
    pair: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompt = "héllo\n\n  x\n"  # nothing is stripped
    expected = answer(pair, prompt, 12) + "\n"
    file = tmp_path / "prompt.txt"
    file.write_text(prompt, encoding="utf-8")
    for arguments in (["--prompt", prompt], ["--prompt-file", str(file)], ["--prompt-file", "-"], []):
        typed(monkeypatch, prompt)
        assert main(["generate", *pair, "--max-tokens", "12", *arguments]) == 0
        assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--prompt", "a", "--prompt-file", "b"], "two prompts"),
        (["--prompt-file", "/nowhere"], "/nowhere cannot be read"),
    ],
)
def test_prompts_that_cannot_be_read(
    pair: list[str], arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", *pair, *arguments]) == 2
    assert named in capsys.readouterr().err


def test_a_prompt_that_is_no_text(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bytes"
    file.write_bytes(b"\xff\xfe")
    assert main(["generate", *pair, "--prompt-file", str(file)]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_stop_strings_are_not_printed(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    free = answer(pair, "a", 60)
    stop = next(free[i] for i in range(5, 50) if free[i] != "�")
    assert main(["generate", *pair, "--prompt", "a", "--max-tokens", "60", "--stop", stop]) == 0
    printed = capsys.readouterr()
    assert printed.out == free[: free.index(stop)] + "\n"
    assert "tokens, stop;" in printed.err


def test_a_chat(pair: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    first = answer(pair, "<system>S<user>hé<assistant>", 9)
    second = answer(pair, f"<system>S<user>hé<assistant>{first}<user>b<assistant>", 9)
    typed(monkeypatch, "hé\n\nb\n/reset\nhé\n" + "x" * 300 + "\nhé")
    assert main(["chat", *pair, "--system", "S", "--max-tokens", "9"]) == 0
    printed = capsys.readouterr()
    third = answer(pair, f"<system>S<user>hé<assistant>{first}<user>hé<assistant>", 9)
    assert printed.out == "\n".join([first, second, first, third]) + "\n"
    assert "max_model_len" in printed.err
    assert "/reset" in printed.err


def test_chat_needs_a_template(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--target", pair[3]]) == 2
    assert "has no chat template" in capsys.readouterr().err


def test_commands_say_which_packages_they_miss(
    pair: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("jinja2", "pearl_rt.checkpoint.chat_template", "pearl_rt.cli.chat"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    for command in ("chat", "serve"):
        assert main([command, *pair]) == 2
        assert "pip install 'pearl_rt[serve]'" in capsys.readouterr().err
