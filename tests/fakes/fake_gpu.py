"""A GPU that is none: torch's part of it over the fake driver, whose kernels run real steps interpreted.

    world = FakeWorld(fake_cuda.load())
    monkeypatch.setattr("pearl_rt.backends.cuda.find_gpu", world.find)
    engine = pair.engine(device="cuda")

Tensors are the CPU's, registered with the driver as memory of a device. What is captured is the function
itself, run by a stream's thread under one lock: Triton's interpreter is not made for two.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from fake_cuda import FakeCuda, FakeGraph

from pearl_rt import _C
from pearl_rt.device.gpu import EagerStep
from pearl_rt.device.logits_processors import LogitsProcessors
from pearl_rt.device.logprob_ring import LogprobRing
from pearl_rt.device.state import DeviceState
from pearl_rt.device.steps import LaneSteps
from pearl_rt.errors import ResourceError

GIB = 2**30


class FakeStepGraph:
    """The handles of one step."""

    function = None

    def __init__(self, cuda: FakeCuda, own: FakeGraph, log: list[str], name: str) -> None:
        self._cuda, self._log, self._name = cuda, log, name
        self.graph, self.exec = own.graph, own.exec

    def destroy(self) -> None:
        self._log.append(f"destroyed {self._name}")
        self._cuda.destroy_exec(self.exec)


class FakeStream:
    """A stream of the fake driver. A step that is captured does not run."""

    def __init__(self, world: FakeWorld, ordinal: int, priority: int) -> None:
        self._world, self._ordinal = world, ordinal
        self.native = _C.CudaStream(_C.CudaDriver(str(world.cuda.path)), ordinal, priority)

    def synchronize(self) -> None:
        self._world.cuda.synchronize()

    def capture(self, name: str, launch: Callable[[], None]) -> FakeStepGraph:
        lock = self._world.lock  # the driver keeps kernels: they must not keep the stream

        def kernel() -> None:
            with lock:
                launch()

        self._world.log.append(f"captured {name}")
        own = self._world.cuda.graph(kernel, self._ordinal)
        return FakeStepGraph(self._world.cuda, own, self._world.log, name)


class FakeEagerStream(FakeStream):
    """A stream that steps are put on one by one, as if each were one kernel."""

    def capture(self, name: str, launch: Callable[[], None]) -> EagerStep:  # type: ignore[override]
        lock = self._world.lock

        def kernel() -> None:
            with lock:
                launch()

        return EagerStep(lambda: self._world.cuda.launch(self.native.handle, kernel))


class FakeGpu:
    """pearl_rt.device.gpu.Gpu, of a GPU with so much free memory."""

    device = torch.device("cpu")
    has_graphs = True

    def __init__(self, world: FakeWorld, ordinal: int, free: int) -> None:
        self._world, self._free, self.ordinal = world, free, ordinal
        self.name = f"Fake {ordinal}"
        self.capability = (9, 0)

    def driver(self) -> Any:
        return _C.CudaDriver(str(self._world.cuda.path))

    def free_memory(self) -> int:
        return self._free

    def synchronize(self) -> None:
        self._world.cuda.synchronize()

    settle = synchronize

    def current(self) -> AbstractContextManager[object]:
        self._world.current = self.ordinal
        return nullcontext()

    def stream(self, priority: int, *, captures: bool = True) -> FakeStream:
        return (FakeStream if captures else FakeEagerStream)(self._world, self.ordinal, priority)

    def staging(self, num_bytes: int) -> torch.Tensor:
        made = torch.zeros(num_bytes, dtype=torch.uint8)
        self._world.register(made, -1)
        return made


class FakeWorld:
    """The machine: its GPUs, one lock for all kernels, and what was captured and destroyed, in order."""

    def __init__(self, cuda: FakeCuda, *, devices: int = 2, free: int = 8 * GIB) -> None:
        self.cuda = cuda
        self.lock = threading.RLock()
        self.log: list[str] = []
        self.current = 0  # where memory is had
        self._gpus = [FakeGpu(self, ordinal, free) for ordinal in range(devices)]
        self._held: list[torch.Tensor] = []  # registered memory is not freed before the world ends

    def find(self, name: str) -> FakeGpu:
        """In place of pearl_rt.device.gpu.find_gpu."""
        ordinal = int(name.partition(":")[2] or 0)
        if ordinal >= len(self._gpus):
            raise ResourceError(f"device {name!r}: there are {len(self._gpus)} GPUs")
        return self._gpus[ordinal]

    def register(self, tensor: torch.Tensor, device: int) -> None:
        """As memory that the driver's copies may touch."""
        if tensor.nbytes > 0 and not tensor.is_meta:
            self._held.append(tensor)
            self.cuda.register(tensor.data_ptr(), tensor.nbytes, device)


def installed(world: FakeWorld, monkeypatch: pytest.MonkeyPatch) -> FakeWorld:
    """Has engines find the world's GPUs, and their memory registered where it is made."""
    make_state, make_steps, make_processors = (
        DeviceState.__init__,
        LaneSteps.__init__,
        LogitsProcessors.__init__,
    )
    make_ring = LogprobRing.__init__

    def state(self: DeviceState, *args: object) -> None:
        make_state(self, *args)  # type: ignore[arg-type]
        own = {name: getattr(self, name) for name in ("joining", "block_table")}
        for name, tensor in (vars(self.whole) | own).items():
            world.register(tensor, -1 if name == "ring" else world.current)

    def steps(self: LaneSteps, *args: object) -> None:
        make_steps(self, *args)  # type: ignore[arg-type]
        world.register(self.chunk, world.current)

    def processors(self: LogitsProcessors, *args: object, **options: bool) -> None:
        make_processors(self, *args, **options)  # type: ignore[arg-type]
        for tensor in self.arrays().values():
            world.register(tensor, world.current)

    def ring(self: LogprobRing, *args: object) -> None:
        make_ring(self, *args)  # type: ignore[arg-type]
        world.register(self.num_logprobs, world.current)
        world.register(self.ring, -1)

    monkeypatch.setattr(DeviceState, "__init__", state)
    monkeypatch.setattr(LogprobRing, "__init__", ring)
    monkeypatch.setattr(LogitsProcessors, "__init__", processors)
    monkeypatch.setattr(LaneSteps, "__init__", steps)
    monkeypatch.setattr("pearl_rt.backends.cuda.find_gpu", world.find)
    return world


def fresh(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, **options: int) -> Iterator[FakeWorld]:
    """A world that is checked at its end: nothing that CUDA forbids was done."""
    cuda.reset(seed=1, devices=2)
    world = installed(FakeWorld(cuda, **options), monkeypatch)
    yield world
    found = cuda.violations()
    assert not found, found
