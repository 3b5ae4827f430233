"""How much memory can still be had: the kernel's estimate, and what a control group leaves of its limit."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

import pearl_rt._C as _C

MIB = 2**20


def available(folder: Path, **files: object) -> int | None:
    """With these files in a control group, on a machine with 900 MiB."""
    (folder / "meminfo").write_text(
        "MemTotal: 2048000 kB\nMemFree: 5 kB\nMemAvailable: 921600 kB\nCached: 7 kB\n"
    )
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(f"{text}\n")
    bytes_: int | None = _C.available_bytes(str(folder / "meminfo"), str(folder))
    return bytes_


def stat(**numbers: int) -> str:
    return "\n".join(f"{name} {number}" for name, number in numbers.items())


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 900),
        ({"max": "max", "current": 500 * MIB}, 900),
        ({"max": 512 * MIB, "current": 510 * MIB}, 2),
        ({"max": 512 * MIB, "current": 510 * MIB, "stat": stat(anon=20 * MIB, inactive_file=490 * MIB)}, 492),
        ({"max": 512 * MIB, "current": 510 * MIB, "stat": stat(file=490 * MIB, active_file=90 * MIB)}, 92),
        (
            {
                "max": 512 * MIB,
                "current": 510 * MIB,
                "stat": stat(
                    inactive_file=1 * MIB, active_file=2 * MIB, slab_reclaimable=4 * MIB, shmem=8 * MIB
                ),
            },
            9,
        ),
        ({"max": 512 * MIB, "current": 510 * MIB, "stat": stat(anon=510 * MIB)}, 2),
        ({"max": 512 * MIB, "current": 510 * MIB, "stat": stat(inactive_file=600 * MIB)}, 512),
        ({"max": 512 * MIB, "current": 600 * MIB}, 0),
        ({"max": 2048 * MIB, "current": 10 * MIB}, 900),
    ],
)
def test_cached_files_are_not_used_memory(tmp_path: Path, files: dict[str, object], expected: int) -> None:
    assert available(tmp_path, **files) == expected * MIB


@pytest.mark.parametrize("limit", [4 << 30, 1 << 40])
def test_of_an_address_space_what_is_left(limit: int) -> None:
    """As `ulimit -v` bounds it."""
    code = "import sys; from pearl_rt import _C; print(_C.available_bytes('/none', '/none'), end='')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 0, done.stderr
    assert limit - (4 << 30) < int(done.stdout) < limit


def test_where_nothing_can_be_read(tmp_path: Path) -> None:
    assert _C.available_bytes(str(tmp_path / "none"), str(tmp_path)) is None
    assert _C.available_bytes() > 0
