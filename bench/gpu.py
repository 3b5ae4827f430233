"""Everything that only a GPU can answer: the build, the tests, the sanitizers, the kernels, the main job.

    python bench/gpu.py --half 1           build, equal tokens, all tests: what is right
    python bench/gpu.py --half 2           the main job in short, kernels, memcheck, racecheck, synccheck
    python bench/gpu.py --long --half 1    the main job in full, in three parts: --half 1, 2 and 3
    python bench/gpu.py --only equality latency            these parts, behind the build
    make gpu, make gpu-latency             all of it, one after the other

Each --half begins cold, ends within eight minutes and writes at most eight files; PLAN has its parts and
their limits. It needs no network, no make and no git: COMMIT=SHA tells the commit, RESULTS_DIR=DIR where to
write. Each part is a process of its own. Writes DATE-GPU-gpu-1.txt (all that was printed) and .json (what
became of each part), and a .json, perhaps a .png, of each part with figures; prints a line a part. Exit status 1
if a part failed, 2 if there is no GPU: then nothing was done.
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
from bench.harness.processes import GRACE_S, Outcome, Part, run_parts, summary
from bench.sanitizer import NOTHING_TO_CHECK, TOOL, find_tool

ROOT = Path(__file__).resolve().parent.parent
HALF_S = 480.0 - GRACE_S - 5.0  # for the parts of one command, which ends within eight minutes
ONLY_TOTAL_S = 560.0  # of parts that are named: one command where a command may take ten minutes
# Seconds that each part may take, by command: what is right before what is fast.
FIRST = {"build": 100.0, "imports": 25.0}  # what all others need
PLAN: dict[str, tuple[dict[str, float], ...]] = {
    "gpu": (
        {"gpu-tests": 130.0, "equality": 90.0, "kernel-tests": 135.0},
        {"latency": 115.0, "kernels": 100.0, "memcheck": 60.0, "racecheck": 40.0, "synccheck": 40.0},
    ),
    "gpu-latency": (
        {"equality": 140.0, "latency-8b-135m": 215.0},
        {"throughput": 140.0, "latency-8b-1b": 215.0},
        {"two-gpus": 100.0, "latency-7b-68m": 215.0},
    ),
}
PICTURED = ("latency", "two-gpus")  # what the names of parts that draw begin with
NOTHING_COLLECTED = 5  # pytest's exit status
ELSEWHERE = "tools/test_compile.py", "interpret/test_interpret.py"  # kernel tests that need no GPU
# The main job in little time: the pair for which two lanes on one GPU should pay.
SHORT_PAIR = "planted:8b+135m@0.9"
SHORT = (
    *("--num-prompts", "3", "--max-tokens", "96", "--temperature", "0", "--gammas", "4", "8", "10", "13"),
    *("--peers", "hf", "--peer-prompts", "1", "--budget", "20"),
)
# And in full. A target has the same seed for all of its drafts, and an agreement is a rewrite in place.
LONG = (
    *("--alphas", "0.6", "0.8", "0.9", "--num-prompts", "6", "--max-tokens", "128", "--temperature", "0"),
    *("--gammas", "1", "2", "3", "4", "6", "8", "10", "12", "13", "15", "--peers", "all", "--budget", "80"),
)
# The same tokens whatever writes them.
EQUALITY = {
    "gpu": ("--num-prompts", "8", "--max-tokens", "96", "--batches", "1", "--budget", "62"),
    "gpu-latency": ("--budget", "112"),
}
KERNELS = ("--budget", "68")
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
    parser = argparse.ArgumentParser(description="Build, tests, sanitizers and benchmarks on a GPU.")
    default = os.environ.get("RESULTS_DIR") or str(ROOT / "bench" / "results")
    parser.add_argument("--results-dir", type=Path, default=Path(default), help="default: bench/results")
    parser.add_argument("--long", action="store_true", help="the main job in full, and no kernels")
    parser.add_argument("--half", type=int, metavar="N", help="one of its parts of eight minutes, from 1")
    parser.add_argument("--total", type=float, help="seconds for all parts together")
    parser.add_argument("--only", metavar="PART", nargs="+", help="these parts, behind the build")
    options = parser.parse_args(argv)
    halves, known = PLAN[command_of(options)], names_of(command_of(options))
    if options.half is not None and not 1 <= options.half <= len(halves):
        parser.error(f"--half {options.half} does not exist: pass 1 to {len(halves)}")
    unknown = sorted({*(options.only or ())} - {*known})
    if unknown:
        parser.error(f"--only {' '.join(unknown)} is no part of this: pass some of {' '.join(known)}")
    return options


def command_of(options: argparse.Namespace) -> str:
    """Which of PLAN."""
    return "gpu-latency" if options.long else "gpu"


def names_of(command: str, half: int | None = None) -> list[str]:
    """The parts of a command, or of one half of it, in order."""
    halves = PLAN[command] if half is None else PLAN[command][half - 1 : half]
    return [*FIRST, *(name for parts in halves for name in parts)]


def num_files(command: str, half: int) -> int:
    """How many files a half writes at most: its text and its summary, figures and pictures of its parts."""
    names = [name for name in names_of(command, half) if name not in FIRST]
    pictures = sum(name.startswith(PICTURED) for name in names)
    return 2 + pictures + sum(not name.endswith(("tests", "check")) for name in names)


def workers(most: int) -> list[str]:
    """pytest's options for several processes, if it can."""
    return ["-n", str(min(most, os.cpu_count() or 1))] if find_spec("xdist") else []


class Parts:
    """The parts of a command by name. stem: what names of results begin with."""

    def __init__(self, python: str, stem: Path, command: str) -> None:
        self.python, self.stem, self.command = python, stem, command
        self.limits = FIRST | {name: limit for half in PLAN[command] for name, limit in half.items()}

    def named(self, name: str) -> Part:
        """Raises KeyError for a part that the command has not."""
        if name == "build":
            return Part(name, [self.python, "setup.py", "-q", "build_ext", "--inplace"], self.limits[name])
        if name == "imports":
            return Part(name, [self.python, "-c", IMPORTS], self.limits[name])
        if name == "gpu-tests":
            return self.gpu_tests()
        if name == "kernel-tests":
            ignored = [f"--ignore=tests/kernels/{file}" for file in ELSEWHERE]
            return self.pytest(name, *workers(12), "tests/kernels", *ignored)
        if name.endswith("check"):
            part = self.script(name, "sanitizer", name)
            return replace(part, absent=self.no_sanitizer(name), nothing_status=NOTHING_TO_CHECK)
        if name == "equality":
            return self.script(name, "equality", *EQUALITY[self.command], shown=40)
        if name == "kernels":
            return self.script(name, "kernels", *KERNELS, shown=40)
        if name == "throughput":
            return self.script(name, "throughput", "--device", "cuda", *BATCHES, shown=20)
        if name == "latency":
            return self.latency(name, SHORT_PAIR, *SHORT)
        if name == "two-gpus":  # the draft on a GPU of its own: the setting in which models share nothing
            part = self.latency(name, "planted:8b+1b@0.8", *SHORT, *TWO_GPUS)
            return part if torch.cuda.device_count() > 1 else replace(part, absent="there is one GPU")
        pair = name.removeprefix("latency-").replace("-", "+")
        return self.latency(name, f"planted:{pair}@0.9", *LONG)

    def script(self, name: str, file: str, *options: str, shown: int = 12) -> Part:
        return Part(name, [self.python, f"bench/{file}.py", *options], self.limits[name], shown=shown)

    def pytest(self, name: str, *options: str) -> Part:
        command = [self.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
        return Part(name, command, self.limits[name], nothing_status=NOTHING_COLLECTED)

    def gpu_tests(self) -> Part:
        """The tests marked gpu, kernel tests apart. Only files that have some are collected."""
        found = [p for p in sorted((ROOT / "tests").rglob("test_*.py")) if "kernels" not in p.parts]
        files = [str(p.relative_to(ROOT)) for p in found if "pytest.mark.gpu" in p.read_text()]
        by_file = [*workers(3), "--dist", "loadfile"] if workers(3) else []
        part = self.pytest("gpu-tests", *by_file, "-m", "gpu", *files)
        return part if files else replace(part, absent="no test outside tests/kernels is marked gpu")

    def no_sanitizer(self, name: str) -> str | None:
        return None if find_tool() else f"{TOOL} is not installed: no {name}"

    def latency(self, name: str, pair: str, *options: str) -> Part:
        """The main job for one pair, with a picture if something here can draw."""
        picture = ["--plot", f"{self.stem}-{name}.png"] if find_spec("matplotlib") is not None else []
        return self.script(name, "latency", "--device", "cuda", "--pair", pair, *options, *picture, shown=30)


def parts_of(python: str, stem: Path, command: str, half: int | None = None) -> list[Part]:
    """What a command runs, or one half of it, in order."""
    parts = Parts(python, stem, command)
    return [parts.named(name) for name in names_of(command, half)]


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
    command = command_of(options)
    log = Path(f"{stem}-{command}{f'-{options.half}' if options.half else ''}.txt")
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

    parts = parts_of(sys.executable, stem, command, options.half)
    if options.only:
        parts = [part for part in parts if part.name in ("build", *options.only)]
    halves = 1 if options.half else len(PLAN[command])
    outcomes = run_parts(
        parts,
        log_of,
        total_s=options.total or (ONLY_TOTAL_S if options.only else halves * HALF_S),
        cwd=ROOT,
        emit=lambda text: print(text, flush=True),
        keep=keep,
    )
    print(f"\n{summary(outcomes)}\nresults in {options.results_dir}")
    return 1 if any(outcome.failed for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
