"""The size of the project: lines of rooms and of files, files of a folder, and the path that README names."""

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
    found = (
        path for room in rooms for suffix in ("py", "cpp", "h") for path in (ROOT / room).rglob(f"*.{suffix}")
    )
    return sorted(path for path in found if path.parts[len(ROOT.parts) :][:2] != ("pearl_rt", "kernels"))


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


# The most that each may have now; a change that takes lines away lowers it. The goals: 26,000 and 5,300.
@pytest.mark.parametrize(
    ("rooms", "most"), [(SHIPPED, 47_793), (("bench",), 9_766)], ids=("shipped", "bench")
)
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


STEP = re.compile(r"^\d+\. `([\w/.]+)`:.*?(?:It calls `(\w+)`\.)?$", re.M)
PATH = STEP.findall(README)


def test_the_path_is_short() -> None:
    assert "`pearl_rt/reference/round.py` first" in README and len(PATH) == 10
    read = ["pearl_rt/reference/round.py", *(file for file, _ in PATH)]
    assert sum(lines(ROOT / file) for file in read) < 3_299


@pytest.mark.parametrize("step", range(1, 10))
def test_each_file_of_the_path_calls_the_next(step: int) -> None:
    """The function is called on an object or a pointer, and the next file defines it under this name."""
    (file, called), (defining, _) = PATH[step - 1 : step + 1]
    assert called and re.search(rf"(?:\.|->){called}\(", (ROOT / file).read_text()), (
        f"{file} calls no {called}"
    )
    defined = rf"def {called}\(|^[\w:<>]+ (?:\w+::)?{called}\(|^ +\"{called}\",$"
    assert re.search(defined, (ROOT / defining).read_text(), re.M), f"{defining} defines no {called}"
