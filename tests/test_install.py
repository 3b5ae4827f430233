"""A built wheel imports away from the checkout, with the kernels under their own name."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


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
