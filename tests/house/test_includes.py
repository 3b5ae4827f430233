"""The order of the rooms of csrc/: each #include of ours points to the same room or to one below."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
# What each room may include beside itself. A room stands behind all that it includes.
BELOW: dict[str, tuple[str, ...]] = {
    "core": (),
    "sampling": ("core",),
    "sampling/candidates": ("core", "sampling"),
    "cache": ("core",),
    "coordinator": ("core", "sampling", "cache"),
    "cpu/isa": (),
    "cpu/kernels/grouped": (),
    "cpu/kernels": ("core", "cpu/isa", "cpu/kernels/grouped"),
    "cpu/machine": ("core", "cpu/kernels"),
    "cpu/weights": ("core", "cpu/kernels", "cpu/machine"),
    "cpu/model": ("core", "cache", "cpu/kernels", "cpu/machine", "cpu/weights"),
    "drafters": ("core", "sampling", "sampling/candidates", "cache", "coordinator"),
    "drafters/chain": ("core", "sampling", "cache", "coordinator", "drafters"),
    "drafters/diffusion": ("core", "sampling", "coordinator", "drafters"),
    "drafters/eagle": ("core", "coordinator", "drafters"),
    "cpu/lane": (
        *("core", "sampling", "sampling/candidates", "cache", "coordinator", "drafters", "drafters/eagle"),
        "cpu/machine",
    ),
    "cuda/driver": ("core",),
    "cuda/memory": ("core", "sampling", "cache", "coordinator", "cuda/driver"),
    "cuda/lane": ("core", "sampling", "cache", "coordinator", "cuda/driver", "cuda/memory"),
    "cuda/graph": ("core", "cuda/driver", "cuda/lane"),
    "cuda/run": ("core", "coordinator", "cuda/driver", "cuda/memory", "cuda/lane", "cuda/graph"),
}
BELOW["python"] = tuple(BELOW)
BELOW["python/drafters"] = (
    *("drafters", "drafters/chain", "drafters/diffusion", "drafters/eagle"),
    "python",
)


def room_of(path: str) -> str:
    return path.rpartition("/")[0]


def includes(room: str) -> set[tuple[str, str]]:
    """(file, included file) for each #include of a file of ours."""
    return {
        (str(path.relative_to(CSRC)), name)
        for path in (CSRC / room).glob("*.[ch]*")
        for name in re.findall(r'^\s*#include "([^"]+)"', path.read_text(), re.MULTILINE)
    }


def test_every_folder_is_a_room() -> None:
    assert {room_of(str(path.relative_to(CSRC))) for path in CSRC.rglob("*.[ch]*")} == set(BELOW)


def test_rooms_stand_in_an_order() -> None:
    """So there is no circle, and what is below includes nothing of python."""
    rooms = list(BELOW)
    assert all(rooms.index(low) < rooms.index(room) for room, below in BELOW.items() for low in below)


@pytest.mark.parametrize("room", BELOW)
def test_a_room_includes_what_stands_below_it(room: str) -> None:
    found = includes(room)
    assert found or not BELOW[room], room
    assert not {(path, name) for path, name in found if room_of(name) not in (room, *BELOW[room])}


def test_only_bindings_know_python() -> None:
    known = re.compile(r"#include <(?:pybind11/|Python\.h)")
    files = [path for path in CSRC.rglob("*.[ch]*") if known.search(path.read_text())]
    assert files and all(path.relative_to(CSRC).parts[0] == "python" for path in files)
