"""The GPU, its driver, the versions and the commit, and the wall: how fast this card copies its own memory.

Knows no kernels and nothing of pearl_rt, so that it can speak before anything is built.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from bench.kernel_cases.timer import GraphTimer, Rotation, medians

ROOT = Path(__file__).resolve().parents[2]
COPY_BYTES = 1 << 30  # of one buffer: many times any L2
COPY_REPEATS = 15


def why_no_gpu() -> str | None:
    """What keeps this machine from running CUDA work, or None."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    return None


def first_line(command: list[str]) -> str:
    """The first line that a command prints, or "" if it cannot run or fails."""
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = result.stdout.strip().splitlines() if result.returncode == 0 else []
    return lines[0].strip() if lines else ""


def commit() -> str:
    """The commit that is checked out, "-dirty" after it if files differ; outside a checkout $COMMIT."""
    found = first_line(["git", "rev-parse", "--short", "HEAD"])
    if not found:
        return os.environ.get("COMMIT", "unknown")
    return found + ("-dirty" if first_line(["git", "status", "--porcelain", "--untracked-files=no"]) else "")


def slug(name: str) -> str:
    """A name as part of a file name: "NVIDIA H100 80GB HBM3" -> "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def gpu_name() -> str:
    return str(torch.cuda.get_device_name())


def num_gpus() -> int:
    return torch.cuda.device_count()


def version_of(module: str) -> str | None:
    """The installed version of a package, without importing it, or None."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(module)
    except PackageNotFoundError:
        return None


def gpu_card() -> dict[str, Any]:
    """Everything about the machine but its speed."""
    properties = torch.cuda.get_device_properties()
    driver = first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_mib": properties.L2_cache_size / 2**20,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": driver or "unknown",
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": version_of("triton") or "absent",
        "python": platform.python_version(),
        "commit": commit(),
    }


def copy_bandwidth(timer: GraphTimer) -> float:
    """Bytes per second of a device-to-device copy, bytes read and bytes written both counted."""
    source, target = (torch.zeros(COPY_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2))
    rotation = Rotation(copies=1, launches=4, flush=False)
    prepared = timer.prepare([lambda: target.copy_(source)], rotation)
    return 2 * COPY_BYTES / medians(timer, {"copy": prepared}, COPY_REPEATS)["copy"]


def format_card(card: dict[str, Any], bandwidth: float) -> str:
    """The card as text; bandwidth in bytes per second."""
    c = card
    return "\n".join(
        [
            f"{c['gpu']}, sm_{c['compute_capability'].replace('.', '')}, {c['multiprocessors']} "
            f"multiprocessors, L2 {c['l2_mib']:.0f} MiB, {c['memory_gib']} GiB; {c['date']}",
            f"driver {c['driver']}, CUDA {c['cuda']}, torch {c['torch']}, triton {c['triton']}, "
            f"Python {c['python']}; commit {c['commit']}",
            f"memory copies at {bandwidth / 1e9:.0f} GB/s, bytes read and written",
        ]
    )
