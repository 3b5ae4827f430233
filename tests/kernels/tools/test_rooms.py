"""The rooms of kernels/: small, introduced by five lines, and each imports only what stands below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parents[3] / "kernels"
BELOW = {
    "base": set(),
    "forward": {"base"},
    "head": {"base", "forward"},
    "sampling": {"base"},
    "verify": {"base", "sampling"},
    "tools": {"base", "forward", "head", "sampling", "verify"},
    "reference": set(),
}


def rooms_imported(path: Path) -> set[str]:
    """The rooms that a file imports from, its own among them."""
    here, found = path.relative_to(KERNELS).parts[:-1], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            place = [*base, *(node.module or "").split(".")] if node.module else [*base, node.names[0].name]
            found.add(place[0])
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pearl_rt.kernels."):
            found.add((node.module or "").split(".")[2])
    return found


def test_every_folder_is_a_room() -> None:
    assert {p.name for p in KERNELS.iterdir() if p.is_dir() and p.name != "__pycache__"} == set(BELOW)


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_what_stands_below_it(room: str) -> None:
    for path in (KERNELS / room).rglob("*.py"):
        assert rooms_imported(path) <= BELOW[room] | {room}, path


@pytest.mark.parametrize("folder", [p.parent for p in KERNELS.rglob("__init__.py")], ids=lambda p: p.name)
def test_a_folder_has_at_most_twelve_files(folder: Path) -> None:
    assert len(list(folder.glob("*.py"))) <= 12
    introduction = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert introduction is not None
    assert folder.parent != KERNELS or len([line for line in introduction.splitlines() if line]) == 5
