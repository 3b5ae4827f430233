"""pearl_rt imports away from the checkout: from a wheel, and from the environment that make builds in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What a shell has in which nothing of pearl_rt was set, and no make runs.
PLAIN = {"PATH": os.environ["PATH"]}


def test_wheel_imports_elsewhere(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", str(tmp_path), str(ROOT)], check=True, timeout=280)
    [wheel] = tmp_path.glob("pearl_rt-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        names = archive.namelist()
    assert "pearl_rt/kernels/__init__.py" in names
    assert not [n for n in names if n.startswith(("kernels/", "tests/", "bench/", "models/"))]
    code = (
        "import pearl_rt, pearl_rt._C, pearl_rt.engine; from importlib.util import find_spec;"
        "print(pearl_rt.__file__, pearl_rt._C.detect_isa(), find_spec('pearl_rt.kernels').origin)"
    )
    # -P and an empty directory: nothing of the checkout is on the path.
    result = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=site,
        env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(site))


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_a_virtual_environment_imports_the_checkout(tmp_path: Path) -> None:
    venv, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    subprocess.run(["make", "-s", "importable", f"VENV={venv}"], cwd=ROOT, check=True, env=PLAIN)
    command = [venv / "bin" / "python", "-c", "import pearl_rt; print(pearl_rt.__file__)"]
    run = subprocess.run(command, cwd=elsewhere, env=PLAIN, capture_output=True, text=True)
    assert run.stdout == f"{ROOT}/pearl_rt/__init__.py\n", run.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(("venv", "installs"), [(".venv", True), ("", False)])
def test_a_build_installs_where_there_is_a_virtual_environment(venv: str, installs: bool) -> None:
    said = subprocess.run(
        ["make", "-n", "build", f"VENV={venv}"],
        cwd=ROOT,
        env=PLAIN,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "setup.py" in said and ("pearl_rt.pth" in said) == installs
