"""One GPU by torch: its memory, its streams, and steps captured on a stream as graphs.

Knows torch.cuda; not models, lanes or rounds. A class with these methods can stand for a GPU, as a fake does
in tests. Every graph is instantiated with the priorities of its stream, and allocates nothing.
"""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol

import torch

import pearl_rt._C as _C
from pearl_rt.device.model import device_of, prepare_kernels
from pearl_rt.errors import ConfigError, DeviceError, ResourceError

LIBRARY = "libcuda.so.1"  # torch's own driver, by the name that its lanes open it under too
TARGET_PRIORITY, DRAFT_PRIORITY = 0, -1  # the draft's kernels are small, and go first where both are ready


class StepGraph(Protocol):
    """A step as handles, or a function, that a native lane launches for as long as this lives."""

    @property
    def graph(self) -> int: ...  # CUgraph; 0: there is none
    @property
    def exec(self) -> int: ...  # CUgraphExec
    @property
    def function(self) -> Callable[[], None] | None: ...  # launches the step, where there is no graph
    def replay(self) -> None: ...  # on torch's current stream
    def destroy(self) -> None: ...  # only while it does not run


class GraphStream(Protocol):
    """A stream of one lane, with a memory pool that no other lane's graphs share."""

    @property
    def native(self) -> _C.CudaStream: ...  # its owner, with the native lane
    def capture(self, name: str, launch: Callable[[], None]) -> StepGraph: ...
    def synchronize(self) -> None: ...


class Gpu(Protocol):
    """One GPU."""

    @property
    def device(self) -> torch.device: ...  # of tensors
    @property
    def ordinal(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def has_graphs(self) -> bool: ...  # whether steps can be captured
    @property
    def capability(self) -> tuple[int, int]: ...  # compute capability
    def driver(self) -> _C.CudaDriver: ...  # for native lanes
    def free_memory(self) -> int: ...  # bytes
    def synchronize(self) -> None: ...  # waits until nothing runs on it
    def settle(self) -> None: ...  # waits for what this thread has launched on it; others may capture
    def current(self) -> AbstractContextManager[object]: ...  # makes it the current device
    def stream(self, priority: int, *, captures: bool = True) -> GraphStream: ...
    def staging(self, num_bytes: int) -> torch.Tensor: ...  # uint8, on the host, for copies


@contextmanager
def no_collection() -> Iterator[None]:
    """The collector waits: it might find a graph, and a thread that captures may destroy none."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class EagerStep:
    """A step that was not captured."""

    graph = exec = 0

    def __init__(self, function: Callable[[], None]) -> None:
        """function: launches the step, from whatever thread."""
        self.function = function

    def replay(self) -> None:
        """Launches it."""
        self.function()

    def destroy(self) -> None:
        """There is nothing to destroy."""


class TorchGraph:
    """A torch.cuda.CUDAGraph that keeps both its graph and its instance."""

    function = None

    def __init__(self, own: torch.cuda.CUDAGraph) -> None:
        self._own = own
        self.graph = own.raw_cuda_graph()
        self.exec = own.raw_cuda_graph_exec()

    def replay(self) -> None:
        """Launches it on torch's current stream."""
        self._own.replay()

    def destroy(self) -> None:
        """Destroys both and lets go of the pool."""
        self._own.reset()


class TorchStream:
    """A stream by the driver, as torch sees it, and captures on it.

    Not of torch's pool: that has 32 streams of each priority, which go to callers in turn, each more than
    once. torch keeps a workspace of cuBLAS for each stream that it ever multiplied on.
    """

    # One at a time in a process: torch 2.11 informs its generator of them without a lock, and the driver
    # allows no wait for a device that has a stream in capture.
    captures = threading.Lock()

    def __init__(self, device: torch.device, native: _C.CudaStream) -> None:
        self.native = native
        self.torch = torch.cuda.ExternalStream(native.handle, device)
        self._pool = torch.cuda.graph_pool_handle()

    def synchronize(self) -> None:
        """Waits until nothing runs on it."""
        self.torch.synchronize()

    def capture(self, name: str, launch: Callable[[], None]) -> TorchGraph:
        """Runs a step once, which compiles its kernels and has cuBLAS take its workspace, then captures it.

        Both on this stream and thread: cuBLAS has a workspace for each pair of them, and one that is first
        taken in a capture would be the graph's. Raises DeviceError for what the driver refuses.
        """
        try:
            with torch.cuda.stream(self.torch):
                launch()
                self.torch.synchronize()
                own = torch.cuda.CUDAGraph(keep_graph=True)
                self._record(own, launch)
                own.instantiate()
        except torch.OutOfMemoryError as error:
            raise ResourceError(
                f"not enough memory on {self.torch.device} to capture step {name}: lower max_model_len, or "
                f"take smaller models ({error})"
            ) from None
        except RuntimeError as error:
            raise DeviceError(
                f"step {name} could not be captured on {self.torch.device}: {error}",
                call="capture",
                text=str(error),
                place=f"in the capture of step {name}",
            ) from error
        self._check_pool(name)
        return TorchGraph(own)

    def _record(self, own: torch.cuda.CUDAGraph, launch: Callable[[], None]) -> None:
        """Other threads may allocate and ask for events meanwhile: only this one keeps a capture's rules."""
        with self.captures, no_collection():
            try:
                own.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                launch()
                own.capture_end()
            except BaseException:
                self._abandon(own)
                raise

    def _abandon(self, own: torch.cuda.CUDAGraph) -> None:
        """Ends a capture that failed. Where the driver has given it up, torch 2.11 raises in capture_end()
        while its pool is still in use, and no other capture can have that pool: the next one has a new one.
        """
        with suppress(RuntimeError):
            own.capture_end()
        with suppress(RuntimeError):  # it is out of use already
            torch._C._cuda_endAllocateToPool(self.torch.device.index, self._pool)
        self._pool = torch.cuda.graph_pool_handle()

    def _check_pool(self, name: str) -> None:
        segments = [
            s for s in torch.cuda.memory_snapshot() if tuple(s["segment_pool_id"]) == tuple(self._pool)
        ]
        taken = sum(int(segment["total_size"]) for segment in segments)
        assert taken == 0, (
            f"the capture of step {name} allocated {taken} bytes: its tensors must be there before"
        )


class EagerStream(TorchStream):
    """A stream whose steps are launched kernel by kernel, by the thread that calls them."""

    def capture(self, name: str, launch: Callable[[], None]) -> EagerStep:  # type: ignore[override]
        """The step as it is: nothing runs, and nothing is captured. Not beside a capture."""

        def run() -> None:
            with self.captures, no_collection(), torch.inference_mode(), torch.cuda.stream(self.torch):
                launch()

        return EagerStep(run)


def wait_for(device: torch.device) -> None:
    """Waits until nothing runs on a GPU, and until no engine captures: a device that has a stream in capture
    must not be waited for (CUDA programming guide, prohibited operations of stream capture).
    """
    with TorchStream.captures:
        torch.cuda.synchronize(device)


class TorchGpu:
    """A GPU that is there."""

    has_graphs = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.ordinal = int(device.index)
        self.name = torch.cuda.get_device_name(device)

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability."""
        return torch.cuda.get_device_capability(self.device)

    def driver(self) -> _C.CudaDriver:
        """The driver that torch uses too."""
        return _C.CudaDriver(LIBRARY)

    def free_memory(self) -> int:
        """Bytes that can be had: what the driver has, and what torch keeps without use."""
        free, _ = torch.cuda.mem_get_info(self.device)
        return int(free) + torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)

    def synchronize(self) -> None:
        """Waits until nothing runs on it, and until no engine captures."""
        wait_for(self.device)

    def settle(self) -> None:
        """Waits for what this thread has launched there by torch; another thread may capture meanwhile."""
        torch.cuda.current_stream(self.device).synchronize()

    def current(self) -> AbstractContextManager[object]:
        """Makes it torch's current device."""
        return torch.cuda.device(self.device)

    def stream(self, priority: int, *, captures: bool = True) -> TorchStream:
        """A stream of its own. captures: whether its steps are; else they are launched kernel by kernel."""
        native = _C.CudaStream(self.driver(), self.ordinal, priority)
        return (TorchStream if captures else EagerStream)(self.device, native)

    def staging(self, num_bytes: int) -> torch.Tensor:
        """Pinned."""
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)


def check_dependent_launches(*gpus: Gpu) -> None:
    """Raises ConfigError where kernels cannot begin before those ahead of them end (option pdl)."""
    from pearl_rt.kernels.base.dependent import MIN_ARCH  # kernels are imported once it is known how they run

    for gpu in gpus:
        if gpu.capability < (needed := divmod(MIN_ARCH, 10)):
            raise ConfigError(
                f"pdl (programmatic dependent launch) needs compute capability {needed[0]}.{needed[1]}, and "
                f"{gpu.name} has {gpu.capability[0]}.{gpu.capability[1]}: drop pdl"
            )


def find_gpu(name: str) -> Gpu:
    """ "cuda" or "cuda:N" -> a GPU that is there and that kernels run on. Raises ResourceError."""
    device = device_of(name)
    prepare_kernels(device)
    return TorchGpu(device)
