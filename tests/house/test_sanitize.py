"""`make sanitize` finds what it copies and imports: it is not part of the tests, and takes half an hour."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "sanitize.py"
FAKES = ("scripted", "scripted_cuda", "native_calls", "native_arguments")


def imported(path: Path) -> set[str]:
    """The modules of pearl_rt, as paths below it, that a file imports at its top level; not native ones."""
    nodes = [
        node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom) and node.module
    ]
    found = set()
    for node in nodes:
        package, _, rest = str(node.module).partition(".")
        names = [f"{rest}.{alias.name}".strip(".") for alias in node.names] if package == "pearl_rt" else []
        for name in names:
            candidates = (name.replace(".", "/"), name.rpartition(".")[0].replace(".", "/"))
            found |= {one for one in candidates if (ROOT / "pearl_rt" / f"{one}.py").is_file()}
    return found


def test_the_script_starts_and_knows_its_tests() -> None:
    code = f"import runpy; s = runpy.run_path({str(SCRIPT)!r}); print(*s['MODULES']); print(*s['TESTS'])"
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "fakes")}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    modules, tests = (set(line.split()) for line in run.stdout.splitlines())
    missing = [name for name in tests if not list((ROOT / "tests").rglob(f"test_{name}.py"))]
    assert tests and not missing
    files = [ROOT / "tests" / "fakes" / f"{name}.py" for name in FAKES]
    files += [path for name in tests for path in (ROOT / "tests").rglob(f"test_{name}.py")]
    files += [ROOT / "pearl_rt" / f"{name}.py" for name in modules]
    assert set().union(*map(imported, files)) <= modules


def test_the_script_is_a_program() -> None:
    """An unknown mode is its own error, behind all imports."""
    run = subprocess.run(
        [sys.executable, SCRIPT, "unheard-of"],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert run.returncode == 2 and "unheard-of" in run.stderr and "thread, address" in run.stderr
