"""python -m pearl_rt.kernels.tools.report: what kernels take on every chip that they ship for, without a GPU.

A line per configuration and compute capability: registers per thread, shared memory per program, spills,
and bytes of the widest load and of the narrowest asynchronous copy from global memory. The last line is
JSON. Exit status 1 if anything fails to compile, spills, passes the chip's shared memory, or reads weights
or KV in narrow loads.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict

from ..base.library import interpreting
from .compile import SHARED_LIMITS, CompileCase, Compiled, compile_case, problems

ROOMS = {
    "forward": (
        *("rms_norm", "linear", "gate_up_silu", "qkv_rope_store", "attention", "attention_prefill"),
        *("embedding", "feed"),
    ),
    "sampling": ("penalties", "filters", "sample", "logprobs"),
    "verify": ("judge", "verify", "tell", "rollback"),
}
MODULES = {name: f"pearl_rt.kernels.{room}.{name}" for room, names in ROOMS.items() for name in names}
Job = tuple[str, int, int]  # module, index of the case, compute capability * 10


def distinct_cases(module: str) -> dict[int, tuple[CompileCase, list[str]]]:
    """By index in compile_cases(): the first of cases that are one to the compiler, and the names of all."""
    found: dict[str, tuple[int, CompileCase, list[str]]] = {}
    for index, case in enumerate(importlib.import_module(MODULES[module]).compile_cases()):
        found.setdefault(case.key, (index, case, []))[2].append(case.name)
    return {index: (case, names) for index, case, names in found.values()}


def run_job(job: Job) -> Compiled | str:
    """What the compiler made of it, or why it failed. Kernels do not pickle: a worker looks its case up."""
    module, index, arch = job
    try:
        return compile_case(distinct_cases(module)[index][0], arch)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pearl_rt.kernels.tools.report", description=__doc__.split("\n")[0]
    )
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(MODULES)}; default: all")
    parser.add_argument("--arch", type=int, nargs="+", choices=SHARED_LIMITS, default=list(SHARED_LIMITS))
    options = parser.parse_args(arguments)
    if unknown := [m for m in options.modules if m not in MODULES]:
        parser.error(f"no kernels in {', '.join(unknown)}: choose from {', '.join(MODULES)}")
    if interpreting():
        parser.error("TRITON_INTERPRET is set: unset it, interpreted kernels are not compiled")

    cases = {module: distinct_cases(module) for module in options.modules or MODULES}
    jobs = [
        (module, index, arch) for module, found in cases.items() for index in found for arch in options.arch
    ]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), multiprocessing.get_context("fork")) as pool:
        results = list(pool.map(run_job, jobs))

    print(f"{'configuration':<56} sm  registers  shared KiB  spills  load  copy")
    lines, failures = [], []
    for (module, index, arch), result in zip(jobs, results, strict=True):
        case, names = cases[module][index]
        title = case.name if len(names) == 1 else f"{case.name} (+{len(names) - 1})"
        if isinstance(result, str):
            print(f"{title:<56} {arch:>3}  {result.splitlines()[0]}")
            failures.append(f"{case.name}, sm_{arch}: {result}")
            continue
        print(
            f"{title:<56} {arch:>3} {result.registers:>9} {result.shared / 1024:>11.1f} {result.spills:>7} "
            f"{result.widest_load:>5} {result.narrowest_copy:>5}"
        )
        failures += problems(case, arch, result)
        lines.append(
            {"module": module, "kernel": case.kernel.__name__, "names": names, "arch": arch} | asdict(result)
        )
    for failure in failures:
        print(failure)
    print(json.dumps({"compiled": lines, "failures": failures}))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
