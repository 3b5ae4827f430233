"""python -m pearl_rt.kernels.tools.report: what kernels take on every chip that they ship for, without a GPU.

A line per configuration and compute capability: registers per thread, shared memory per program, spills,
bytes of the widest load and of the narrowest asynchronous copy from global memory, and instructions. The last
line is JSON. Exit status 1 if anything fails to compile, spills, passes the chip's shared memory, or reads
weights or KV in narrow loads.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict

from ..base.checks import interpreting
from ..base.dependent import MIN_ARCH
from .cases import LAUNCHES, cases_of
from .compile import SHARED_LIMITS, CompileCase, Compiled, compile_case, dependent, problems

Job = tuple[str, int, int, bool]  # operator, index of the case, compute capability * 10, dependent launches


def distinct_cases(operator: str) -> dict[int, tuple[CompileCase, list[str]]]:
    """By index in cases_of(): the first of cases that are one to the compiler, and the names of all."""
    found: dict[str, tuple[int, CompileCase, list[str]]] = {}
    for index, case in enumerate(cases_of(operator)):
        found.setdefault(case.key, (index, case, []))[2].append(case.name)
    return {index: (case, names) for index, case, names in found.values()}


def has_form(case_and_names: tuple[CompileCase, list[str]]) -> bool:
    """Whether the case has a form with dependent launches."""
    case, _ = case_and_names
    return dependent(case) is not case


def run_job(job: Job) -> Compiled | str:
    """What the compiler made of it, or why it failed. Kernels do not pickle: a worker looks its case up."""
    operator, index, arch, pdl = job
    try:
        case = distinct_cases(operator)[index][0]
        return compile_case(dependent(case) if pdl else case, arch)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pearl_rt.kernels.tools.report", description=__doc__.split("\n")[0]
    )
    parser.add_argument("operators", nargs="*", help=f"of {', '.join(LAUNCHES)}; default: all")
    parser.add_argument("--arch", type=int, nargs="+", choices=SHARED_LIMITS, default=list(SHARED_LIMITS))
    parser.add_argument(
        "--in-turns", action="store_true", help="each configuration for one of the chips: a third of the time"
    )
    parser.add_argument(
        "--pdl",
        action="store_true",
        help="with dependent launches, those operators that have them; from sm_90 on",
    )
    options = parser.parse_args(arguments)
    if options.pdl and (without := [arch for arch in options.arch if arch < MIN_ARCH]):
        parser.error(f"--pdl: sm_{without[0]} has no dependent launches: pass --arch {MIN_ARCH}")
    if unknown := [m for m in options.operators if m not in LAUNCHES]:
        parser.error(f"no kernels in {', '.join(unknown)}: choose from {', '.join(LAUNCHES)}")
    if interpreting():
        parser.error("TRITON_INTERPRET is set: unset it, interpreted kernels are not compiled")

    cases = {operator: distinct_cases(operator) for operator in options.operators or LAUNCHES}
    if options.pdl:
        plain = [operator for operator, found in cases.items() if not all(map(has_form, found.values()))]
        if named := [operator for operator in plain if operator in options.operators]:
            parser.error(f"--pdl: {', '.join(named)} has no dependent launch: no captured step launches it")
        cases = {operator: found for operator, found in cases.items() if operator not in plain}
    jobs = [
        (operator, index, arch, options.pdl)
        for operator, found in cases.items()
        for index in found
        for arch in options.arch
    ]
    if options.in_turns:
        turns = len(options.arch)
        jobs = [job for at, job in enumerate(jobs) if at // turns % turns == at % turns]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), multiprocessing.get_context("fork")) as pool:
        results = list(pool.map(run_job, jobs))

    print(f"{'configuration':<56} sm  registers  shared KiB  spills  load  copy  instructions")
    lines, failures = [], []
    for (operator, index, arch, _), result in zip(jobs, results, strict=True):
        case, names = cases[operator][index]
        title = case.name if len(names) == 1 else f"{case.name} (+{len(names) - 1})"
        if isinstance(result, str):
            print(f"{title:<56} {arch:>3}  {result.splitlines()[0]}")
            failures.append(f"{case.name}, sm_{arch}: {result}")
            continue
        print(
            f"{title:<56} {arch:>3} {result.registers:>9} {result.shared / 1024:>11.1f} {result.spills:>7} "
            f"{result.widest_load:>5} {result.narrowest_copy:>5} {result.instructions:>13}"
        )
        failures += problems(case, arch, result)
        title_of = {"operator": operator, "kernel": case.kernel.__name__, "names": names, "arch": arch}
        lines.append(title_of | asdict(result))
    for failure in failures:
        print(failure)
    print(json.dumps({"compiled": lines, "failures": failures}))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
