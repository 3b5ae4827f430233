"""The machine, the versions, the models and the wall: what a table is worth nothing without.

Knows no strategies. Bandwidth is measured by the executor's own C++ loop, on the same cores, in huge pages,
over a buffer as large as each model's weights (a small model may live in the last-level cache) and over one
that fits no cache.
"""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pearl_rt.config import ModelConfig
from pearl_rt.models.shapes import tensor_shapes

MEMORY_BUFFER = 1 << 30  # larger than any last-level cache
BANDWIDTH_SECONDS = 0.4
ROLES = ("target", "draft")
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class ModelFigures:
    """What decides a model's speed."""

    name: str
    num_params: int
    bytes_per_step: int  # weights that one decode step reads: all but the embedding table

    @classmethod
    def of(cls, name: str, config: ModelConfig, dtype: str) -> ModelFigures:
        """Counted from the shapes. KV rows are left out: at 256 tokens they are a percent or two."""
        shapes = tensor_shapes(config)
        sizes = {key: int(torch.Size(shape).numel()) for key, shape in shapes.items()}
        total = sum(sizes.values())
        embedding = 0 if config.tie_word_embeddings else sizes["model.embed_tokens.weight"]
        return cls(name, total, (total - embedding) * BYTES[dtype])


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


def memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def machine_card(*, isa: str, cpus: Sequence[int], dtype: str) -> dict[str, Any]:
    """CPU, cores, caches, versions, date."""
    return host_card(dtype=dtype) | {"cores": len(cpus), "isa": isa}


def host_card(*, dtype: str) -> dict[str, Any]:
    """CPU, caches, versions, date; not what is used of them."""
    import pearl_rt

    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu_model(),
        "last_level_cache": last_level_cache(),
        "memory_gib": round(memory_gib(), 1),
        "dtype": dtype,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pearl_rt": getattr(pearl_rt, "__version__", "?"),
        "system": f"{platform.system()} {platform.release()}",
    }


def bandwidth_card(core_set: Any, models: Sequence[ModelFigures]) -> dict[str, float]:
    """GB/s of all cores together: "memory", and for each model's name a buffer of its size."""
    from pearl_rt import _C

    measured = {"memory": _C.measure_bandwidth(core_set, MEMORY_BUFFER, BANDWIDTH_SECONDS) / 1e9}
    for model in models:
        measured[model.name] = _C.measure_bandwidth(core_set, model.bytes_per_step, BANDWIDTH_SECONDS) / 1e9
    return measured


def format_models(models: Sequence[ModelFigures], bandwidth: float | None) -> str:
    """Both models, and the ceiling of ar on a device that copies `bandwidth` bytes a second."""
    lines = []
    for role, model in zip(ROLES, models, strict=False):
        size = f"{model.num_params / 1e6:.1f}M parameters, {model.bytes_per_step / 1e6:.1f} MB a step"
        least = f", {model.bytes_per_step / bandwidth * 1e3:.3f} ms at least" if bandwidth else ""
        lines.append(f"{role:<6} {model.name}: {size}{least}")
    if bandwidth:
        lines.append(f"ceiling of ar: {bandwidth / models[0].bytes_per_step:.0f} tok/s")
    return "\n".join(lines)


def format_card(machine: dict[str, Any], models: Sequence[ModelFigures], bandwidth: dict[str, float]) -> str:
    """The card as text, the ceiling of ar last."""
    m = machine
    lines = [
        f"{m['cpu']}, {m['cores']} cores, {m['isa']}, last-level cache {m['last_level_cache']}, "
        f"{m['memory_gib']} GiB; {m['date']}",
        f"pearl_rt {m['pearl_rt']}, Python {m['python']}, torch {m['torch']}, {m['system']}; {m['dtype']}",
        f"memory bandwidth {bandwidth['memory']:.1f} GB/s on all cores (1 GiB read)",
    ]
    for role, model in zip(ROLES, models, strict=False):
        rate = bandwidth[model.name]
        floor_ms = model.bytes_per_step / rate / 1e6
        lines.append(
            f"{role:<6} {model.name}: {model.num_params / 1e6:.1f}M parameters, "
            f"{model.bytes_per_step / 1e6:.1f} MB a step; a buffer of that size reads at {rate:.1f} GB/s, "
            f"so a step takes {floor_ms:.3f} ms at least"
        )
    target = models[0]
    lines.append(f"ceiling of ar: {bandwidth[target.name] * 1e9 / target.bytes_per_step:.0f} tok/s")
    return "\n".join(lines)
