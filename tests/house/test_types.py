"""What type checkers are told of the native module: what the module says of itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MAKE_STUBS = Path(__file__).resolve().parents[2] / "docs" / "make_stubs.py"


def test_the_stub_is_what_the_native_module_says() -> None:
    pytest.importorskip("pybind11_stubgen")
    said = subprocess.run([sys.executable, MAKE_STUBS, "--check"], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
