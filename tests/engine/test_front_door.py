"""What `import pearl_rt` brings with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_an_engine_on_the_cpu_needs_no_triton() -> None:
    """Nor does any name of the front door: device="interpret" sets Triton up later."""
    code = (
        "import sys; sys.modules['triton'] = None;"
        "import pearl_rt; [getattr(pearl_rt, name) for name in pearl_rt.__all__];"
        "print([name for name in sys.modules if name.startswith('pearl_rt.kernels')])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "[]\n"), run.stderr
