"""The machine, the versions, the models and the wall: what a table is worth nothing without.

Knows no strategies, and nothing of pearl_rt until it is asked for a model's figures or a CPU's speed, so that
it can speak before anything is built. On a CPU bandwidth is measured by the executor's own C++ loop, on the
same cores, in huge pages, over a buffer as large as each model's weights (a small model may live in the
last-level cache) and over one that fits no cache; on a GPU by copies of its own memory.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench.kernel_cases.timer import GraphTimer, Rotation, medians

if TYPE_CHECKING:
    from pearl_rt.checkpoint.config import ModelConfig

ROOT = Path(__file__).resolve().parents[2]
MEMORY_BUFFER = 1 << 30  # larger than any last-level cache
BANDWIDTH_SECONDS = 0.4
COPY_BYTES = 1 << 30  # of one buffer: many times any L2
COPY_REPEATS = 15
ROLES = ("target", "draft")
Bandwidth = dict[str, float]  # GB/s: of "memory" and of each model's name, or of "copy"


@dataclass(frozen=True)
class ModelFigures:
    """What decides a model's speed."""

    name: str
    num_params: int
    bytes_per_step: int  # weights that one decode step reads: all but the embedding table

    @classmethod
    def of(cls, name: str, config: ModelConfig, dtype: str, weights: str = "auto") -> ModelFigures:
        """Counted from the shapes; weights: what matrices are rounded to. KV rows are left out: at 256 tokens
        they are a percent or two.
        """
        from pearl_rt.checkpoint.shapes import num_weights, tensor_bytes, tensor_shapes

        sizes = {
            key: tensor_bytes(key, shape, dtype, weights) for key, shape in tensor_shapes(config).items()
        }
        embedding = 0 if config.tie_word_embeddings else sizes["model.embed_tokens.weight"]
        return cls(name, num_weights(config), sum(sizes.values()) - embedding)


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


def version_of(module: str) -> str | None:
    """The installed version of a package, without importing it, or None."""
    try:
        return version(module)
    except PackageNotFoundError:
        return None


def slug(name: str) -> str:
    """A name as part of a file name: "NVIDIA H100 80GB HBM3" -> "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def last_level_cache() -> str:
    """Size of the largest cache of the first CPU, as the kernel writes it ("32768K"), or "?"."""
    sizes = [p.read_text().strip() for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max(sizes, key=lambda s: int(s.rstrip("KM")), default="?")


def host_environment(*, dtype: str) -> dict[str, Any]:
    """CPU, caches, versions, date; not what is used of them."""
    import pearl_rt

    return {
        "date": now(),
        "cpu": cpu_model(),
        "last_level_cache": last_level_cache(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "dtype": dtype,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pearl_rt": pearl_rt.__version__,
        "system": f"{platform.system()} {platform.release()}",
    }


def gpu_environment() -> dict[str, Any]:
    """The GPU, its driver, the versions and the commit."""
    properties = torch.cuda.get_device_properties()
    driver = first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return {
        "date": now(),
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


def cpu_bandwidth(cores: Sequence[int], models: Sequence[ModelFigures]) -> Bandwidth:
    """Of all cores together: over "memory", and for each model's name over a buffer of its size."""
    from pearl_rt import _C

    core_set = _C.CoreSet(list(cores))
    sizes = {"memory": MEMORY_BUFFER} | {model.name: model.bytes_per_step for model in models}
    return {name: _C.measure_bandwidth(core_set, n, BANDWIDTH_SECONDS) / 1e9 for name, n in sizes.items()}


def copy_bandwidth(timer: GraphTimer) -> float:
    """Bytes per second of a device-to-device copy, bytes read and bytes written both counted."""
    source, target = (torch.zeros(COPY_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2))
    rotation = Rotation(copies=1, launches=4, flush=False)
    prepared = timer.prepare([lambda: target.copy_(source)], rotation)
    return 2 * COPY_BYTES / medians(timer, {"copy": prepared}, COPY_REPEATS)["copy"]


def measured_environment(
    device: str, models: Sequence[ModelFigures], *, cores: Sequence[int], isa: str | None, dtype: str
) -> tuple[dict[str, Any], Bandwidth | None]:
    """The machine that an engine on `device` runs on, and its bandwidth; None in the interpreter."""
    if device == "interpret":
        return host_environment(dtype="float32") | {"device": "interpret"}, None
    if device != "cpu":
        return gpu_environment(), {"copy": copy_bandwidth(GraphTimer()) / 1e9}
    from pearl_rt import _C

    machine = host_environment(dtype=dtype) | {"cores": len(cores), "isa": isa or _C.detect_isa()}
    return machine, cpu_bandwidth(cores, models)


def ceiling(models: Sequence[ModelFigures], bandwidth: Bandwidth | None) -> float | None:
    """Tokens a second of ar whose steps only read the target's weights, at the machine's speed."""
    if bandwidth is None:
        return None
    return bandwidth.get(models[0].name, bandwidth.get("copy", 0.0)) * 1e9 / models[0].bytes_per_step


def format_machine(m: dict[str, Any], bandwidth: Bandwidth | None) -> list[str]:
    """The machine as lines of text."""
    if bandwidth is None:
        return [f"{m['cpu']}, Triton's interpreter; {m['date']}: its times say nothing of any device"]
    if "gpu" in m:
        return [
            f"{m['gpu']}, sm_{m['compute_capability'].replace('.', '')}, {m['multiprocessors']} "
            f"multiprocessors, L2 {m['l2_mib']:.0f} MiB, {m['memory_gib']} GiB; {m['date']}",
            f"driver {m['driver']}, CUDA {m['cuda']}, torch {m['torch']}, triton {m['triton']}, "
            f"Python {m['python']}; commit {m['commit']}",
            f"memory copies at {bandwidth['copy']:.0f} GB/s, bytes read and written",
        ]
    return [
        f"{m['cpu']}, {m['cores']} cores, {m['isa']}, last-level cache {m['last_level_cache']}, "
        f"{m['memory_gib']} GiB; {m['date']}",
        f"pearl_rt {m['pearl_rt']}, Python {m['python']}, torch {m['torch']}, {m['system']}; {m['dtype']}",
        f"memory bandwidth {bandwidth['memory']:.1f} GB/s on all cores (1 GiB read)",
    ]


def format_environment(
    machine: dict[str, Any], models: Sequence[ModelFigures], bandwidth: Bandwidth | None
) -> str:
    """The machine, both models, the ceiling of ar."""
    lines = format_machine(machine, bandwidth)
    for role, model in zip(ROLES, models, strict=False):
        words = f"{model.num_params / 1e6:.1f}M parameters, {model.bytes_per_step / 1e6:.1f} MB a step"
        if bandwidth and model.name in bandwidth:
            rate = bandwidth[model.name]
            words += f"; a buffer of that size reads at {rate:.1f} GB/s, so a step takes "
            words += f"{model.bytes_per_step / rate / 1e6:.3f} ms at least"
        elif bandwidth:
            words += f", {model.bytes_per_step / bandwidth['copy'] / 1e6:.3f} ms at least"
        lines.append(f"{role:<6} {model.name}: {words}")
    highest = ceiling(models, bandwidth)
    return "\n".join([*lines, *([f"ceiling of ar: {highest:.0f} tok/s"] if highest else [])])
