"""Triton's compiler for NVIDIA's chips, which stops at PTX: no assembler runs, and no GPU is asked.

Triton finds it for the target ("ptx", 80) or ("ptx", 90). What it compiles has a place of its own in the
cache.
"""

from __future__ import annotations

from typing import Any

import triton.backends
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend

NAME = "ptx"


class PtxBackend(CUDABackend):
    """All passes of a compilation for this compute capability, but the last."""

    def __init__(self, target: GPUTarget) -> None:
        super().__init__(target)
        self.binary_ext = "ptx"

    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        return bool(target.backend == NAME)

    def add_stages(self, stages: dict[str, Any], options: Any, language: Any) -> None:
        super().add_stages(stages, options, language)
        del stages["cubin"]

    def hash(self) -> str:
        return f"{NAME}-{super().hash()}"


def register(driver: type) -> None:
    """Beside the back ends that Triton found itself."""
    triton.backends.backends[NAME] = triton.backends.Backend(PtxBackend, driver)
