"""Everything that only a GPU can answer, in one run: the build, the tests, memcheck, the kernels, the main
job.

    make gpu [RESULTS_DIR=DIR]        with the installed Python, torch and triton, and no network

Each part is a process of its own with a time limit. Writes DATE-GPU-PART.txt and .json, prints a line a part,
and ends within eight minutes. Exit status 1 if a part failed, 2 if there is no GPU: then nothing was done.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if sys.path[0] == str(ROOT / "bench"):
    sys.path[0] = str(ROOT)  # run as a script: our modules are bench.*, and none of them may shadow another's

from bench.gpu_card import gpu_card, gpu_name, slug, why_no_gpu  # noqa: E402
from bench.memcheck import NOTHING_TO_CHECK, TOOL, find_tool  # noqa: E402
from bench.parts import Outcome, Part, run_parts, summary  # noqa: E402

TOTAL_S = 460.0
NOTHING_COLLECTED = 5  # pytest's exit status
KERNELS_BUDGET_S = 150
ELSEWHERE = (
    "test_compile.py",
    "test_interpret.py",
)  # kernel tests of compiler and interpreter: they need no GPU
LATENCY = ("--pair", "planted:88m+8m@0.8", "--num-prompts", "2", "--max-tokens", "64", "--budget", "15")
IMPORTS = """
import importlib, pathlib
import torch, triton, pearl_rt
from pearl_rt import _C
from pearl_rt.kernels.library import interpreting
assert not interpreting(), "TRITON_INTERPRET is set: kernels would not be compiled"
names = sorted(p.stem for p in pathlib.Path("kernels").glob("*.py") if p.stem != "__init__")
for name in names:
    importlib.import_module(f"pearl_rt.kernels.{name}")
print("torch", torch.__version__, "triton", triton.__version__, "_C", _C.detect_isa(), "kernels", *names)
"""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build, tests, memcheck and benchmarks on a GPU.")
    default = os.environ.get("RESULTS_DIR") or str(ROOT / "bench" / "results")
    parser.add_argument("--results-dir", type=Path, default=Path(default), help="default: bench/results")
    parser.add_argument("--total", type=float, default=TOTAL_S, help="seconds for all parts together")
    parser.add_argument("--only", metavar="PART", nargs="+", help="these parts")
    return parser.parse_args(argv)


def memcheck_part(python: str) -> Part:
    """memcheck over a few kernel tests."""
    absent = None if find_tool() else f"{TOOL} is not installed"
    return Part("memcheck", [python, "bench/memcheck.py"], 90.0, absent, nothing_status=NOTHING_TO_CHECK)


def gpu_tests_part(pytest: list[str]) -> Part:
    """The tests marked gpu, kernel tests apart. Only files that have some are collected."""
    files = [p for p in sorted((ROOT / "tests").glob("test_*.py")) if "pytest.mark.gpu" in p.read_text()]
    absent = None if files else "no test outside tests/kernels is marked gpu"
    names = [str(path.relative_to(ROOT)) for path in files]
    return Part("gpu-tests", [*pytest, "-m", "gpu", *names], 60.0, absent, nothing_status=NOTHING_COLLECTED)


def parts_of(python: str) -> list[Part]:
    """What there is to run, in order. The sum of the limits may pass the total: few parts need theirs."""
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    workers = ["-n", str(min(12, os.cpu_count() or 1))] if find_spec("xdist") else []
    return [
        Part("build", [python, "setup.py", "-q", "build_ext", "--inplace"], 120.0),
        Part("imports", [python, "-c", IMPORTS], 40.0),
        Part(
            "kernel-tests",
            [*pytest, *workers, "tests/kernels", *(f"--ignore=tests/kernels/{name}" for name in ELSEWHERE)],
            170.0,
            nothing_status=NOTHING_COLLECTED,
        ),
        gpu_tests_part(pytest),
        Part(
            "kernels",
            [python, "bench/kernels.py", "--budget", str(KERNELS_BUDGET_S)],
            KERNELS_BUDGET_S + 45.0,
            shown=40,
        ),
        memcheck_part(python),
        Part(
            "latency",
            [python, "bench/latency.py", *LATENCY, "--temperature", "0", "--gammas", "4", "8"],
            75.0,
        ),
    ]


def write_results(outcome: Outcome, stem: Path, card: dict[str, object]) -> None:
    """The JSON beside a part's text."""
    if outcome.returncode is None:
        return
    figures = {"card": card, **outcome.to_dict()}
    stem.with_name(stem.name + ".json").write_text(json.dumps(figures, indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    options = parse_arguments(argv)
    missing = why_no_gpu()
    if missing:
        print(f"gpu: {missing}: nothing was built, run or written", file=sys.stderr)
        return 2
    card = gpu_card()
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    prefix = f"{date}-{slug(gpu_name())}"
    options.results_dir.mkdir(parents=True, exist_ok=True)
    print(*(card[key] for key in ("gpu", "driver", "torch", "triton", "commit")), sep=", ")

    def stem(part: Part) -> Path:
        return options.results_dir / f"{prefix}-{part.name}"

    parts = parts_of(sys.executable)
    if options.only:
        parts = [part for part in parts if part.name in options.only]
    outcomes = run_parts(
        parts,
        lambda part: stem(part).with_name(stem(part).name + ".txt"),
        total_s=options.total,
        cwd=ROOT,
        emit=lambda text: print(text, flush=True),
        keep=lambda outcome: write_results(outcome, stem(outcome.part), card),
    )
    print(f"\n{summary(outcomes)}\nresults in {options.results_dir}")
    return 1 if any(outcome.failed for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
