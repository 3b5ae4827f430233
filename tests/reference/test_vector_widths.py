"""Sampling and judging give the same bits whatever the width of the vectors, the optimisation, or none."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import fake_cuda
import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX", "c++")
SHIPPED = "as shipped"  # with the rooms as the build made them
BUILDS = {
    SHIPPED: ["-O3"],
    "baseline": ["-O3", "-DPEARL_NO_CLONES"],
    "avx2": ["-O3", "-DPEARL_NO_CLONES", "-mavx2", "-mfma"],
    "avx512": ["-O3", "-DPEARL_NO_CLONES", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
    "native": ["-O2", "-DPEARL_NO_CLONES", "-march=native"],
}
UNOPTIMISED = "O0"
ROOMS = ("core", "sampling")  # the folders of csrc that the program links
NEEDS = {"avx2": "avx2", "avx512": "avx512vl"}  # flags of /proc/cpuinfo


def runs_here(name: str) -> bool:
    """Whether this processor has the instructions of that build."""
    cpu = Path("/proc/cpuinfo")
    return name not in NEEDS or (platform.machine() == "x86_64" and NEEDS[name] in cpu.read_text())


def outcome(name: str, flags: list[str], folder: Path) -> str:
    """Builds and runs tests/fakes/vector_widths.cpp -> the hash that it prints."""
    sources = [ROOT / "tests" / "fakes" / "vector_widths.cpp"]
    if name != SHIPPED:
        sources += sorted(path for room in ROOMS for path in (ROOT / "csrc" / room).glob("*.cpp"))
    whole, program = folder / "widths.cpp", folder / "widths"  # in one file: headers are parsed once
    whole.write_text("".join(f'#include "{path}"\n' for path in sources))
    library = [fake_cuda.native_library()] if name == SHIPPED else []
    always = ["-std=c++20", "-fno-math-errno", "-ffp-contract=off", f"-I{ROOT / 'csrc'}"]
    subprocess.run(
        [COMPILER, *always, *flags, whole, *library, "-lpthread", "-ldl", "-o", program], check=True
    )
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[str]]]:
    """Of every build that can run here, as many at a time as there are cores."""
    flags = {UNOPTIMISED: ["-O0", "-DPEARL_NO_CLONES"], **BUILDS}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield {
            name: pool.submit(outcome, name, flags[name], tmp_path_factory.mktemp("build"))
            for name in flags
            if runs_here(name)
        }


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason="no C++ compiler here")
@pytest.mark.parametrize("name", list(filter(runs_here, BUILDS)))
def test_same_bits(name: str, outcomes: dict[str, Future[str]]) -> None:
    assert outcomes[name].result() == outcomes[UNOPTIMISED].result()
