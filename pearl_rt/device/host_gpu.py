"""The host in place of a GPU: tensors on the CPU, and kernels in Triton's interpreter, run when launched.

Knows the native driver of the host; not models, lanes or rounds.
"""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

import pearl_rt._C as _C
from pearl_rt.checkpoint.config import Environment
from pearl_rt.device.gpu import EagerStep, no_collection


class HostStream:
    """A stream without a queue: the issuer's thread runs each step when it would queue it."""

    steps = threading.Lock()  # one at a time in a process: Triton's interpreter changes its modules for all

    def __init__(self, native: _C.CudaStream) -> None:
        self.native = native

    def synchronize(self) -> None:
        """Nothing is ever left to wait for."""

    def capture(self, name: str, launch: Callable[[], None]) -> EagerStep:
        """The step as it is: nothing is captured."""

        def run() -> None:
            with self.steps, no_collection(), torch.inference_mode():
                launch()

        return EagerStep(run)


class HostGpu:
    """pearl_rt.device.gpu.Gpu, of the host."""

    device = torch.device("cpu")
    ordinal = 0
    name = "the host"
    has_graphs = False

    @property
    def capability(self) -> tuple[int, int]:
        """That of the GPU that kernels are compiled for; interpreted ones lack nothing."""
        if not Environment.compiles_on_host():
            return (9, 0)
        from triton.runtime import driver

        return divmod(int(driver.active.get_current_target().arch), 10)

    def driver(self) -> _C.CudaDriver:
        """Copies and steps, each done when it is asked for."""
        return _C.CudaDriver.of_host()

    def free_memory(self) -> int:
        """Whatever an interpreter can finish fits."""
        return 0

    def synchronize(self) -> None:
        """Nothing is ever left to wait for."""

    settle = synchronize

    def current(self) -> AbstractContextManager[object]:
        """There is one host."""
        return nullcontext()

    def stream(self, priority: int, *, captures: bool = True) -> HostStream:
        """For any lane."""
        return HostStream(_C.CudaStream(self.driver(), self.ordinal, priority))

    def staging(self, num_bytes: int) -> torch.Tensor:
        """Plain memory, aligned as torch's is."""
        return torch.empty(num_bytes, dtype=torch.uint8)
