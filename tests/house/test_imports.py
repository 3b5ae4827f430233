"""The floors of the house: imports point down only, and only config reads the environment."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Low to high: a file may import from its own folder and from those above it in this list. `engine` is a file.
FLOORS = [
    ("_C", "kernels", "errors", "state"),
    ("reference",),
    ("types",),
    ("checkpoint",),
    ("strategy", "adapters", "grammar"),
    ("model",),
    ("device",),
    ("lowlevel",),
    ("backends",),
    ("scheduling",),
    ("engine",),
    ("serve",),
    ("cli",),
]
PACKAGE_FILES = sorted(p for p in (ROOT / "pearl_rt").rglob("*.py") if "kernels" not in p.parts)


def floor_of(module: str) -> int | None:
    """The floor of a dotted name below pearl_rt, or None for the front door."""
    folder = module.split(".")[0]
    return next((height for height, folders in enumerate(FLOORS) if folder in folders), None)


def imported_modules(path: Path) -> set[str]:
    """Names below pearl_rt that a file imports at its top level (imports inside functions included)."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name.removeprefix("pearl_rt.") for a in node.names if a.name.startswith("pearl_rt.")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "pearl_rt":
            base = node.module.removeprefix("pearl_rt").lstrip(".")
            found |= {f"{base}.{a.name}" if base else a.name for a in node.names}
    return found


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT / "pearl_rt").with_suffix("").parts)
    if module in ("__init__", "__main__"):
        return
    here = floor_of(module)
    assert here is not None, f"pearl_rt.{module} stands on no floor: add it to FLOORS"
    for name in imported_modules(path):
        there = floor_of(name)
        if there is None:
            continue
        same_room = module.split(".")[0] == name.split(".")[0]
        assert there < here or same_room, f"{module} (floor {here}) imports {name} (floor {there})"


def test_only_config_reads_the_environment() -> None:
    readers = [p.name for p in PACKAGE_FILES if "os.environ" in p.read_text() or "os.getenv" in p.read_text()]
    assert readers in ([], ["config.py"])


def test_only_front_doors_print() -> None:
    for path in PACKAGE_FILES:
        if "cli" in path.parts:
            continue
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        prints = [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
        assert not prints, f"{path.relative_to(ROOT)} prints at lines {prints}"


def test_kernels_are_empty_under_a_second_name() -> None:
    module = {"__name__": "kernels", "__path__": [str(ROOT / "kernels")]}
    exec(compile((ROOT / "kernels" / "__init__.py").read_text(), "kernels", "exec"), module)
    assert module["__path__"] == []


def test_top_level_packages_import_nothing_of_tests() -> None:
    for path in PACKAGE_FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.module.split(".")[0] not in ("tests", "bench", "recipes", "transformers"), path
