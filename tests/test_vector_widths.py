"""Sampling and judging give the same bits whatever the width of the vectors, the optimisation, or none."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMPILER = os.environ.get("CXX", "c++")
BUILDS = {
    "as shipped": ["-O3"],
    "baseline": ["-O3", "-DPEARL_NO_CLONES"],
    "avx2": ["-O3", "-DPEARL_NO_CLONES", "-mavx2", "-mfma"],
    "avx512": ["-O3", "-DPEARL_NO_CLONES", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
    "native": ["-O2", "-DPEARL_NO_CLONES", "-march=native"],
}
SOURCES = ("sampling", "judge", "filters", "transform", "logprobs")
NEEDS = {"avx2": "avx2", "avx512": "avx512vl"}  # flags of /proc/cpuinfo


def outcome(flags: list[str], folder: Path) -> str:
    """Builds and runs tests/vector_widths.cpp -> the hash that it prints."""
    sources = [
        ROOT / "tests" / "vector_widths.cpp",
        *(ROOT / "csrc" / "cpu" / f"{name}.cpp" for name in SOURCES),
    ]
    program = folder / "widths"
    always = ["-std=c++20", "-fno-math-errno", "-ffp-contract=off", f"-I{ROOT / 'csrc'}"]
    subprocess.run([COMPILER, *always, *flags, *sources, "-o", program], check=True)
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def unoptimised(tmp_path_factory: pytest.TempPathFactory) -> str:
    return outcome(["-O0", "-DPEARL_NO_CLONES"], tmp_path_factory.mktemp("O0"))


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason="no C++ compiler here")
@pytest.mark.parametrize("name", BUILDS)
def test_same_bits(name: str, unoptimised: str, tmp_path: Path) -> None:
    info = Path("/proc/cpuinfo")
    if name in NEEDS and (platform.machine() != "x86_64" or NEEDS[name] not in info.read_text()):
        pytest.skip(f"this machine has no {name}")
    assert outcome(BUILDS[name], tmp_path) == unoptimised
