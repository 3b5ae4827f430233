"""The documents are true: their examples run, and the files that they name and the map are in the tree."""

from __future__ import annotations

import gc
import importlib
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
INDEX = (ROOT / "docs" / "index.md").read_text()
USING = (ROOT / "docs" / "using.md").read_text()
PAGES = {"README": README, "index": INDEX, "using": USING}


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of that language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def commands() -> list[str]:
    """Each shell line of the pages, once, without its comment."""
    shown = [block for page in PAGES.values() for block in blocks(page, "bash")]
    lines = [line.split("  #")[0].strip() for block in shown for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line))


def run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make")])
def test_readme_make_targets_exist(command: str) -> None:
    target = shlex.split(command)[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), command


MODULES = [c for c in commands() if c.startswith("python -m")]


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in MODULES if " serve " not in c])
def test_readme_module_commands_run(command: str) -> None:
    result = run([sys.executable, *shlex.split(command)[1:]])
    assert result.returncode == 0, result.stderr
    assert result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in MODULES if " serve " in c])
def test_readme_servers_start_and_stop(command: str) -> None:
    argv = [sys.executable, *shlex.split(command)[1:], "--port", "0"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(argv, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = next((line for line in process.stderr if "/v1; Ctrl-C stops" in line), "")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0, said
    process.stderr.close()
    assert "http://127.0.0.1:" in said


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("python bench")])
def test_readme_bench_flags_are_known(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, script, *words = shlex.split(command)
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    with pytest.raises(SystemExit):
        module.parse_arguments(["--help"])
    said, flags = capsys.readouterr().out, [word for word in words if word.startswith("--")]
    assert flags and all(re.search(rf"{flag}(?![\w-])", said) for flag in flags), command


@pytest.fixture
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs of a page run in this process, which has imported already what takes seconds."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    gc.collect()  # engines that a program left open


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_python_blocks_of_a_page_run(
    name: str, at_the_root: None, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile("\n".join(blocks(PAGES[name], "python")), name, "exec"), {"__name__": "__main__"})
    assert "'strategy'" in capsys.readouterr().out  # stats(), the last line


EXAMPLES = [path for path in sorted((ROOT / "examples").glob("*.py")) if "def main" in path.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_run(
    path: Path, at_the_root: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(path), "models/target", "models/draft"])
    monkeypatch.syspath_prepend(path.parent)
    runpy.run_path(str(path), run_name="__main__")
    said, needs_gpu = capsys.readouterr().out, "cuda.is_available" in path.read_text()
    assert said and ("no GPU:" in said) == (needs_gpu and not torch.cuda.is_available())
    monkeypatch.setattr(sys, "argv", [str(path)])
    with pytest.raises(SystemExit, match="TARGET DRAFT"):
        runpy.run_path(str(path), run_name="__main__")


def test_the_example_of_a_loop_is_short() -> None:
    assert len((ROOT / "examples" / "serial_loop.py").read_text().splitlines()) <= 40


@pytest.mark.slow
def test_low_level_page_runs_as_one_program(at_the_root: None) -> None:
    code = "\n".join(blocks((ROOT / "docs" / "low_level.md").read_text(), "python"))
    exec(compile(code, "low_level", "exec"), {"__name__": "__main__"})


NAMED = re.compile(r"`((?:pearl_rt|csrc|kernels|docs|bench|models|tests|examples|recipes)/[\w./-]+)`")
OUTSIDE = ("features.md",)  # names files of other projects too
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "DESIGN.md", "CONTRIBUTING.md")),
    *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name not in OUTSIDE),
]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_documents_name_files_that_exist(path: Path) -> None:
    missing = [name for name in NAMED.findall(path.read_text()) if not (ROOT / name).exists()]
    assert not missing, missing


@pytest.mark.parametrize(("name", "budget"), [("DESIGN.md", 250), ("README.md", 150)])
def test_pages_are_short(name: str, budget: int) -> None:
    lines = (ROOT / name).read_text().splitlines()
    assert len(lines) <= budget, f"{name} has {len(lines)} lines: move details to a page of docs/"


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text()
    missing = [path.name for path in (ROOT / "docs").glob("*.md") if f": {path.name}" not in nav]
    assert not missing, missing


def test_readme_names_the_path_from_an_engine_to_a_kernel() -> None:
    assert len(NAMED.findall(README)) > 20


def test_map_is_what_the_files_say_of_themselves() -> None:
    result = run([sys.executable, "docs/make_map.py", "--check"])
    assert result.returncode == 0, result.stderr
