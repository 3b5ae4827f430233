"""What is said of skipped tests, and which of them fail."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest
@pytest.mark.gpu
@pytest.mark.parametrize("n", range(3))
def test_card(n): pytest.skip("no card")
def test_other(): pytest.skip("no such thing here")
def test_fine(): pass
@pytest.mark.xfail(strict=True)
def test_known(): assert False
"""


def run(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (directory / "test_some.py").write_text(TESTS)
    (directory / "test_more.py").write_text("import pytest\npytest.importorskip('nothing_of_that_name')\n")
    (directory / "pytest.ini").write_text(
        "[pytest]\nmarkers = gpu\npythonpath = " + str(Path(__file__).parents[1])
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "skips", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True)


@pytest.mark.slow
def test_a_line_per_file_for_gpus_and_one_for_each_other(tmp_path: Path) -> None:
    found = run(tmp_path)
    assert found.returncode == 0, found.stdout
    lines = found.stdout.splitlines()
    assert "test_some.py: 3 that need a GPU" in lines
    assert "test_some.py::test_other: Skipped: no such thing here" in lines
    assert any(line.startswith("test_more.py: ") and "nothing_of_that_name" in line for line in lines)
    assert not any("no card" in line for line in lines)


@pytest.mark.slow
def test_others_fail_if_there_may_be_none(tmp_path: Path) -> None:
    found = run(tmp_path, "--no-skips", "--continue-on-collection-errors")
    assert found.returncode == 1
    assert "skipped, which --no-skips forbids: Skipped: no such thing here" in found.stdout
    assert "FAILED test_some.py::test_other" in found.stdout
    assert "ERROR test_more.py" in found.stdout
    assert "1 passed, 3 skipped, 1 xfailed" in found.stdout.splitlines()[-1], found.stdout
