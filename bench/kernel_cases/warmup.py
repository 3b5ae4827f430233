"""Compiles what the cases need before they are timed: in several processes, which leave it in Triton's cache.

Alone, one process would spend most of a run on compiling. Knows cases only as something that can be built and
called; a case that fails here fails again where it is reported.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.kernel_cases.case import Spec

MAX_WORKERS = 10
NOT_TWICE = ("rows", "context", "compiles")  # tags in which cases differ that share most of their kernels
SKIPPED = ("step", "coded step")  # whole models are large, and made of the other cases' kernels


def share(specs: Sequence[Spec], index: int, count: int) -> list[Spec]:
    """The cases of worker `index` of `count`: cases that share kernels go to the same one."""
    groups: dict[str, list[Spec]] = {}
    for spec in specs:
        if spec.op not in SKIPPED:
            tags = {key: value for key, value in spec.all_tags.items() if key not in NOT_TWICE}
            groups.setdefault(str(sorted(tags.items())), []).append(spec)
    return [spec for group in list(groups.values())[index::count] for spec in group]


def compile_share(specs: Sequence[Spec], device: str = "cuda") -> None:
    """Calls each once on small numbers of copies."""
    for spec in specs:
        with contextlib.suppress(Exception):
            with torch.device(device):
                job = spec.build(1)
            job.ours.calls[0]()


def num_workers() -> int:
    """As many processes as there are cores to spare."""
    return min(MAX_WORKERS, max(len(os.sched_getaffinity(0)) - 2, 0))


def run_workers(script: Path, arguments: Sequence[str], workers: int, limit_s: float) -> float:
    """Runs `script --compile I/N ARGUMENTS` for each worker, at most limit_s; returns the seconds it took."""
    begin = time.perf_counter()
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), "--compile", f"{index}/{workers}", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for index in range(workers)
    ]
    try:
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.0, limit_s - (time.perf_counter() - begin)))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    return time.perf_counter() - begin
