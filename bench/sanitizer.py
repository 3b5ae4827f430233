"""compute-sanitizer over a few small kernel tests of each file, by one of its tools. Knows test ids and no
kernels.

    python bench/sanitizer.py memcheck     accesses out of range: every tensor is an allocation of its own
    python bench/sanitizer.py racecheck    hazards between the threads of a program in shared memory
    python bench/sanitizer.py synccheck    barriers that not all threads reach

Exit status 3 if there is nothing to check, else the tool's.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOL = "compute-sanitizer"
# What each looks at: all files, or those whose programs hand values on through shared memory.
FILES = {
    "memcheck": re.compile("test_"),
    "racecheck": (shared := re.compile(r"test_(linear|gate_up_silu|attention|verify|filters)")),
    "synccheck": shared,
}
NOTHING_TO_CHECK = 3
FOUND_STATUS = 86  # what a tool exits with if it finds something
LARGEST = 2048  # the tools are slow: no test whose id names a larger size
SKIPPED = re.compile(
    r"graph|captur|opcheck|compile|report|interpret|adapters|law|chi_|refus|bad_|raises|error", re.I
)


def find_tool() -> str | None:
    """compute-sanitizer on the PATH, or where the CUDA toolkit puts it."""
    beside = Path("/usr/local/cuda/bin") / TOOL
    return shutil.which(TOOL) or (str(beside) if beside.exists() else None)


def collected(output: str) -> list[str]:
    """The test ids in what `pytest --collect-only -q` prints."""
    return [line.strip() for line in output.splitlines() if "::" in line and " " not in line.strip()]


def selection(ids: Sequence[str], tool: str) -> list[str]:
    """The first and the last test of each file of a tool that is small and runs a kernel as it stands."""
    files: dict[str, list[str]] = {}
    for test in ids:
        file, _, name = test.partition("::")
        sizes = [int(digits) for digits in re.findall(r"\d+", name)]
        is_wanted = FILES[tool].match(Path(file).name) and not SKIPPED.search(test)
        if is_wanted and max(sizes, default=0) <= LARGEST:
            files.setdefault(file, []).append(test)
    return [test for tests in files.values() for test in dict.fromkeys((tests[0], tests[-1]))]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="compute-sanitizer over small kernel tests.")
    parser.add_argument("tool", choices=sorted(FILES))
    tool, sanitizer = parser.parse_args(argv).tool, find_tool()
    if sanitizer is None:
        print(f"{TOOL} is not installed: {tool} did not run")
        return NOTHING_TO_CHECK
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    listed = subprocess.run(
        [*pytest, "--collect-only", "tests/kernels"], cwd=ROOT, capture_output=True, text=True
    )
    tests = selection(collected(listed.stdout), tool)
    if not tests:
        print(f"no kernel test was found to check\n{listed.stdout[-2000:]}{listed.stderr[-2000:]}")
        return NOTHING_TO_CHECK
    command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND_STATUS), *pytest, *tests]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
