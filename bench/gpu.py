"""Everything that only a GPU can answer, in one run: the build, the tests, memcheck, the kernels, the main
job.

    make gpu [RESULTS_DIR=DIR]    eight minutes, with the installed Python, torch and triton, and no network
    make gpu-latency              equal tokens at length, batches, and the main job over three pairs at three
                                  agreements with peers: twenty minutes
    make gpu-latency ARGS="--only equality throughput latency-8b-135m"     these parts, behind the build:
                                  under ten minutes, whatever is named

Each part is a process of its own with a time limit. Writes DATE-GPU-gpu.txt (all that was printed) and .json
(what became of each part), and a .json, perhaps a .png, of each part with figures; prints a line a part.
Exit status 1 if a part failed, 2 if there is no GPU: then nothing was done.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

if not __package__:  # run as a script: our modules are bench.*, and none of them may shadow another's
    sys.path[0] = os.path.dirname(sys.path[0])

import torch

from bench.harness.environment import gpu_environment, slug, why_no_gpu
from bench.harness.processes import Outcome, Part, run_parts, summary
from bench.memcheck import NOTHING_TO_CHECK, TOOL, find_tool

ROOT = Path(__file__).resolve().parent.parent
TOTAL_S = 460.0
LONG_TOTAL_S = 1200.0
ONLY_TOTAL_S = 560.0  # of parts that are named: one command where a command may take ten minutes
NOTHING_COLLECTED = 5  # pytest's exit status
KERNELS_BUDGET_S = 90
ELSEWHERE = "tools/test_compile.py", "interpret/test_interpret.py"  # kernel tests that need no GPU
# The main job in little time: the pair for which two lanes on one GPU should pay.
SHORT_PAIR = "planted:8b+135m@0.9"
SHORT = (
    *("--num-prompts", "3", "--max-tokens", "96", "--temperature", "0", "--gammas", "4", "8", "10", "13"),
    *("--peers", "hf", "--peer-prompts", "1", "--budget", "20"),
)
# And in full. A target has the same seed for all of its drafts, and an agreement is a rewrite in place.
LONG_PAIRS = ("8b+1b", "7b+68m", "8b+135m")
LONG = (
    *("--alphas", "0.6", "0.8", "0.9", "--num-prompts", "6", "--max-tokens", "128", "--temperature", "0"),
    *("--gammas", "1", "2", "3", "4", "6", "8", "10", "12", "13", "15", "--peers", "all", "--budget", "110"),
)
# The same tokens whatever writes them: the short form, and the long one's limit.
EQUALITY_SHORT = ("--num-prompts", "8", "--max-tokens", "96", "--batches", "1", "--budget", "65")
EQUALITY_LIMIT_S, EQUALITY_LONG_LIMIT_S = 95.0, 290.0
BATCHES = (
    *("--pair", "planted:8b+135m@0.9", "--batches", "1", "4", "16", "--gamma", "8"),
    *("--num-prompts", "16", "--max-tokens", "48", "--strategies", "ar", "sd", "pearl"),
)
TWO_GPUS = ("--draft-device", "cuda:1", "--forms", "events", "graph")
IMPORTS = """
import importlib, pathlib
import torch, triton, pearl_rt
from pearl_rt import _C
from pearl_rt.kernels.base.checks import interpreting
assert not interpreting(), "TRITON_INTERPRET is set: kernels would not be compiled"
files = [p for p in pathlib.Path("kernels").rglob("*.py") if p.stem != "__init__"]
names = sorted(".".join(p.with_suffix("").parts) for p in files)
for name in names:
    importlib.import_module(f"pearl_rt.{name}")
print("torch", torch.__version__, "triton", triton.__version__, "_C", _C.detect_isa(), "kernels", *names)
"""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build, tests, memcheck and benchmarks on a GPU.")
    default = os.environ.get("RESULTS_DIR") or str(ROOT / "bench" / "results")
    parser.add_argument("--results-dir", type=Path, default=Path(default), help="default: bench/results")
    parser.add_argument("--long", action="store_true", help="the main job in full, and no kernels")
    parser.add_argument("--total", type=float, help="seconds for all parts together")
    parser.add_argument("--only", metavar="PART", nargs="+", help="these parts, behind the build")
    return parser.parse_args(argv)


def total_of(options: argparse.Namespace) -> float:
    """Seconds for all parts together."""
    if options.only:
        return ONLY_TOTAL_S
    return LONG_TOTAL_S if options.long else TOTAL_S


def workers(most: int) -> list[str]:
    """pytest's options for several processes, if it can."""
    return ["-n", str(min(most, os.cpu_count() or 1))] if find_spec("xdist") else []


class Parts:
    """The parts by name. stem: what names of results begin with."""

    def __init__(self, python: str, stem: Path) -> None:
        self.python, self.stem = python, stem

    def script(self, name: str, limit_s: float, *options: str, shown: int = 12) -> Part:
        return Part(name, [self.python, f"bench/{name}.py", *options], limit_s, shown=shown)

    def pytest(self, name: str, limit_s: float, *options: str) -> Part:
        command = [self.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
        return Part(name, command, limit_s, nothing_status=NOTHING_COLLECTED)

    def first(self) -> list[Part]:
        """What all others need."""
        return [
            Part("build", [self.python, "setup.py", "-q", "build_ext", "--inplace"], 120.0),
            Part("imports", [self.python, "-c", IMPORTS], 40.0),
        ]

    def gpu_tests(self) -> Part:
        """The tests marked gpu, kernel tests apart. Only files that have some are collected."""
        found = [p for p in sorted((ROOT / "tests").rglob("test_*.py")) if "kernels" not in p.parts]
        files = [str(p.relative_to(ROOT)) for p in found if "pytest.mark.gpu" in p.read_text()]
        by_file = [*workers(3), "--dist", "loadfile"] if workers(3) else []
        part = self.pytest("gpu-tests", 130.0, *by_file, "-m", "gpu", *files)
        return part if files else replace(part, absent="no test outside tests/kernels is marked gpu")

    def latency(self, name: str, pair: str, limit_s: float, *options: str) -> Part:
        """The main job for one pair, with a picture if something here can draw."""
        picture = ["--plot", f"{self.stem}-{name}.png"] if find_spec("matplotlib") is not None else []
        part = self.script(
            "latency", limit_s, "--device", "cuda", "--pair", pair, *options, *picture, shown=30
        )
        return replace(part, name=name)

    def two_gpus(self) -> Part:
        """The draft on a GPU of its own: the setting in which both models share nothing."""
        part = self.latency("two-gpus", "planted:8b+1b@0.8", 100.0, *SHORT, *TWO_GPUS)
        return part if torch.cuda.device_count() > 1 else replace(part, absent="there is one GPU")

    def memcheck(self) -> Part:
        absent = None if find_tool() else f"{TOOL} is not installed"
        return replace(self.script("memcheck", 90.0), absent=absent, nothing_status=NOTHING_TO_CHECK)

    def short(self) -> list[Part]:
        """What is right before what is fast."""
        ignored = [f"--ignore=tests/kernels/{name}" for name in ELSEWHERE]
        limit = KERNELS_BUDGET_S + 45.0
        return [
            *self.first(),
            self.gpu_tests(),
            self.script("equality", EQUALITY_LIMIT_S, *EQUALITY_SHORT, shown=40),
            self.pytest("kernel-tests", 150.0, *workers(12), "tests/kernels", *ignored),
            self.latency("latency", SHORT_PAIR, 150.0, *SHORT),
            self.script("kernels", limit, "--budget", str(KERNELS_BUDGET_S), shown=40),
            self.memcheck(),
            self.two_gpus(),
        ]

    def long(self) -> list[Part]:
        """The main job in full, and no kernels."""
        return [
            *self.first(),
            self.script("equality", EQUALITY_LONG_LIMIT_S, shown=40),
            self.script("throughput", 170.0, "--device", "cuda", *BATCHES, shown=20),
            *(
                self.latency(f"latency-{pair.replace('+', '-')}", f"planted:{pair}@0.9", 300.0, *LONG)
                for pair in LONG_PAIRS
            ),
            self.two_gpus(),
        ]


def parts_of(python: str, stem: Path, *, long: bool = False) -> list[Part]:
    """What there is to run, in order. The sum of the limits may pass the total: few parts need theirs."""
    parts = Parts(python, stem)
    return parts.long() if long else parts.short()


def write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def without_figures(outcome: Outcome) -> dict[str, object]:
    """What became of a part; its figures have a file of their own."""
    return {key: value for key, value in outcome.to_dict().items() if key != "figures"}


def main(argv: list[str] | None = None) -> int:
    options = parse_arguments(argv)
    missing = why_no_gpu()
    if missing:
        print(f"gpu: {missing}: nothing was built, run or written", file=sys.stderr)
        return 2
    machine = gpu_environment()
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    stem = options.results_dir / f"{date}-{slug(machine['gpu'])}"
    options.results_dir.mkdir(parents=True, exist_ok=True)
    print(*(machine[key] for key in ("gpu", "driver", "torch", "triton", "commit")), sep=", ")
    log = Path(f"{stem}-{'gpu-latency' if options.long else 'gpu'}.txt")
    log.unlink(missing_ok=True)
    done: list[Outcome] = []

    def log_of(part: Part) -> Path:
        with log.open("a") as file:
            file.write(f"== {part.name}\n")
        return log

    def keep(outcome: Outcome) -> None:
        done.append(outcome)
        if outcome.figures() is not None:
            write_json(Path(f"{stem}-{outcome.part.name}.json"), {"card": machine, **outcome.to_dict()})
        write_json(log.with_suffix(".json"), {"card": machine, "parts": [without_figures(o) for o in done]})

    parts = parts_of(sys.executable, stem, long=options.long)
    if options.only:
        parts = [part for part in parts if part.name in ("build", *options.only)]
    outcomes = run_parts(
        parts,
        log_of,
        total_s=options.total or total_of(options),
        cwd=ROOT,
        emit=lambda text: print(text, flush=True),
        keep=keep,
    )
    print(f"\n{summary(outcomes)}\nresults in {options.results_dir}")
    return 1 if any(outcome.failed for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
