"""The size of the house: lines of what ships and of bench, lines of a file, files of a folder, lines of the core path."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("csrc", "kernels", "pearl_rt")
OTHERS = ("bench", "tests", "recipes", "examples", "docs")
LINES_OF_A_FILE, FILES_OF_A_FOLDER = 400, 12
README = (ROOT / "README.md").read_text()


def sources(*rooms: str) -> list[Path]:
    """What a person wrote below these folders: pearl_rt/kernels, a link, is counted as kernels."""
    found = (path for room in rooms for suffix in ("py", "cpp", "h") for path in (ROOT / room).rglob(f"*.{suffix}"))
    return sorted(path for path in found if path.parts[len(ROOT.parts) :][:2] != ("pearl_rt", "kernels"))


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize(("rooms", "most"), [(SHIPPED, 26_000), (("bench",), 5_300)], ids=("shipped", "bench"))
def test_rooms_are_within_their_lines(rooms: tuple[str, ...], most: int) -> None:
    by_folder: Counter[str] = Counter()
    for path in sources(*rooms):
        by_folder[name(path.parent)] += lines(path)
    assert by_folder and by_folder.total() <= most, by_folder


def test_no_file_is_long() -> None:
    long = {name(path): lines(path) for path in sources(*SHIPPED, *OTHERS) if lines(path) > LINES_OF_A_FILE}
    assert not long


def test_no_folder_is_full() -> None:
    files = Counter(name(path.parent) for path in sources(*SHIPPED, *OTHERS))
    assert len(files) > 40 and not {folder: n for folder, n in files.items() if n > FILES_OF_A_FOLDER}
