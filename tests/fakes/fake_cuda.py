"""A CUDA driver without a GPU: builds tests/fakes/driver on demand, and speaks to it.

    fake = fake_cuda.load()                        # built once, rebuilt when its sources change
    fake.reset(seed=1, max_delay_us=50, devices=2)
    driver = _C.CudaDriver(str(fake.path))
    graph = fake.graph(lambda: out.__setitem__(0, 1), device=0)    # .graph and .exec are raw handles
    ...
    assert fake.violations() == [] and fake.live_handles() == []

Handles and addresses are plain integers. What is a violation, and what the fake shares with CUDA, stands in
tests/fakes/driver/fake_cuda.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import gc
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDER = ROOT / "build" / "fake-cuda"
COMPILER = os.environ.get("CXX", "g++")
FLAGS = [
    "-std=c++20",
    "-fPIC",
    "-Wall",
    "-Wextra",
    f"-I{ROOT / 'csrc'}",
    f"-I{HERE}",
    f"-I{HERE / 'driver'}",
]
SANITIZERS = {
    "": ["-O1", "-Wl,--no-undefined"],
    "thread": ["-O1", "-g", "-fsanitize=thread"],
    "address": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
}
SANITIZE = os.environ.get("PEARL_SANITIZE", "")  # set by tests/sanitize.py
HANDLES = ("fake_stream_create", "fake_graph_create", "fake_graph_add", "fake_graph_exec", "fake_alloc")
SIZES = ("fake_violations", "fake_live_handles", "fake_num_calls")
# tests/fakes/cuda_handles.cpp: what it runs, and what ThreadSanitizer must report.
SCENARIOS = ("events", "graph", "owners", "shutdown", "faults")
RACES = ("events without the target's wait", "events without the draft's wait", "graph without an edge")
KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def native_library(sanitize: str = "") -> Path:
    """csrc/ without its bindings, as the build made it: for the mode of tests/sanitize.py, or none."""
    folder = f"sanitize-{sanitize}/cmake" if sanitize else f"cmake-{sys.implementation.cache_tag}"
    library = ROOT / "build" / folder / "libpearl_native.a"
    if not library.exists():
        raise FileNotFoundError(f"{library} is missing: build first (make build)")
    return library


def compiled(name: str, sources: list[Path], flags: list[str]) -> Path:
    """FOLDER / name-HASH, made from the .cpp among sources and the libraries among flags unless it is there;
    all of these are hashed. Of test processes side by side one compiles and the others wait.
    """
    libraries = [f for f in flags if f.endswith((".so", ".a"))]
    digest = hashlib.sha256(" ".join([COMPILER, *flags]).encode())
    for source in [*sorted(sources), *map(Path, libraries)]:
        digest.update(source.read_bytes())
    stem, suffix = os.path.splitext(name)
    output = FOLDER / f"{stem}-{digest.hexdigest()[:16]}{suffix}"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(output.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not output.exists():
            unfinished = output.with_name(f"{output.name}.unfinished")
            files = [s for s in sorted(sources) if s.suffix == ".cpp"]
            flags = [f for f in flags if f not in libraries]
            subprocess.run(
                [COMPILER, *flags, *files, *libraries, "-o", unfinished, "-ldl", "-lpthread"], check=True
            )
            unfinished.replace(output)
    return output


def build(sanitize: str = "") -> Path:
    """The library, built for a sanitizer ("thread", "address") or none."""
    headers = [ROOT / "csrc" / "cuda" / "driver" / "driver_api.h"]
    sources = [*(HERE / "driver").glob("*.cpp"), *(HERE / "driver").glob("*.h")]
    # Its own calls never bind to a real driver's that torch has loaded.
    flags = [*FLAGS, *SANITIZERS[sanitize], "-shared", "-fvisibility=hidden", "-Wl,-Bsymbolic"]
    return compiled(f"libfake_cuda{'-' + sanitize if sanitize else ''}.so", headers + sources, flags)


def program(source: str, sanitize: str = "") -> list[str]:
    """Builds a C++ program in tests/fakes with what it calls of csrc/ -> its command, with the library to
    open."""
    library = build(sanitize)
    headers = [*(ROOT / "csrc").rglob("*.h"), HERE / "driver" / "fake_cuda.h"]
    flags = [*FLAGS, *SANITIZERS[sanitize], str(native_library(sanitize)), str(library)]
    name = f"{Path(source).stem}{'-' + sanitize if sanitize else ''}"
    rpath = f"-Wl,-rpath,{library.parent}"
    return [str(compiled(name, [HERE / source, *headers], [*flags, rpath])), str(library)]


def build_scripted(sanitize: str = "") -> Path:
    """tests/fakes/scripted_device.cpp with the steps of the CPU: kernels that compute, for
    scripted_cuda.py."""
    sources = [HERE / "scripted_device.cpp", HERE / "native" / "scripted_executor.cpp"]
    headers = [*(ROOT / "csrc").rglob("*.h"), *(HERE / "native").glob("*.h")]
    flags = [*FLAGS, *SANITIZERS[sanitize], "-ffp-contract=off", "-shared", "-fvisibility=hidden"]
    if sanitize:
        flags.append("-DPEARL_SANITIZED=1")
    name = f"libscripted_device{'-' + sanitize if sanitize else ''}.so"
    return compiled(name, [*sources, *headers], [*flags, "-Wl,-Bsymbolic", str(native_library(sanitize))])


def has_compiler() -> bool:
    return shutil.which(COMPILER) is not None


@functools.cache
def load() -> FakeCuda:
    """The library in this process: there is one for all callers."""
    return FakeCuda(build(SANITIZE), SANITIZE)


class CopyNode(ctypes.Structure):
    """CUDA_MEMCPY3D of csrc/cuda/driver/driver_api.h."""

    _fields_ = (
        *(
            (end + name, ctypes.c_uint32 if name == "MemoryType" else ctypes.c_uint64)
            for end in ("src", "dst")
            for name in (
                *("XInBytes", "Y", "Z", "LOD", "MemoryType", "Host", "Device", "Array", "Reserved"),
                *("Pitch", "Height"),
            )
        ),
        *((name, ctypes.c_uint64) for name in ("WidthInBytes", "Height", "Depth")),
    )


def copied_row(to: int, source: int, num_bytes: int) -> CopyNode:
    """A node that copies so many bytes between two addresses."""
    unified = 4
    return CopyNode(
        srcMemoryType=unified,
        srcDevice=source,
        dstMemoryType=unified,
        dstDevice=to,
        WidthInBytes=num_bytes,
        Height=1,
        Depth=1,
    )


@dataclass(frozen=True)
class FakeGraph:
    """What torch.cuda.CUDAGraph(keep_graph=True) would hold: raw handles of a graph and its exec."""

    graph: int
    exec: int


class FakeCuda:
    """The fake driver of this process. `path` is what _C.CudaDriver takes."""

    def __init__(self, path: Path, sanitize: str = "") -> None:
        self.path = path
        self.sanitize = sanitize
        self._library = ctypes.CDLL(str(path))  # a call releases the GIL, which kernels in Python need
        for name in (
            "fake_stream_create",
            "fake_graph_create",
            "fake_graph_add",
            "fake_graph_exec",
            "fake_alloc",
        ):
            getattr(self._library, name).restype = ctypes.c_uint64
        for name in SIZES:
            getattr(self._library, name).restype = ctypes.c_size_t
        self._kernels: list[Any] = []  # kept until the world ends, because streams call them
        self._raised: list[str] = []

    def reset(
        self,
        *,
        seed: int = 0,
        max_delay_us: int = 0,
        devices: int = 2,
        version: int = 13000,
        hidden: tuple[str, ...] = (),
        memory: int = 1 << 34,
    ) -> None:
        """A new world: what was before is ended, and its handles are answered CUDA_ERROR_DEINITIALIZED."""
        self._library.fake_reset(ctypes.c_uint64(seed), max_delay_us, devices)
        self._library.fake_set_version(version)
        self._library.fake_set_memory(ctypes.c_size_t(memory))
        for name in hidden:
            self._library.fake_hide(name.encode())
        self._kernels.clear()
        self._raised.clear()

    def inject(self, call: str, nth: int, code: int) -> None:
        """The nth call of that name from now on, from 1, gives the code; "kernel" raises it on its stream."""
        self._library.fake_inject(call.encode(), nth, code)

    def raise_in_kernel(self, code: int) -> None:
        """Inside a kernel: the fault of its context."""
        self._library.fake_raise(code)

    def say_idle(self, times: int) -> None:
        """So many answers of cuStreamQuery say that a stream is idle while work runs on it."""
        self._library.fake_say_idle(times)

    def violations(self) -> list[str]:
        return self._lines(self._library.fake_violations) + self._raised

    def live_handles(self) -> list[str]:
        """What calls of the driver made and did not destroy; what this class made is not counted."""
        return self._lines(self._library.fake_live_handles)

    def num_calls(self, name: str) -> int:
        """Since the reset; "kernel": kernels that were begun."""
        return self._library.fake_num_calls(name.encode())

    def call(self, name: str, *arguments: Any) -> int:
        """A call of the driver itself -> its code. Integers are passed in 64 bits."""
        return getattr(self._library, name)(*self._native(arguments))

    def stream(self, device: int = 0, priority: int = 0) -> int:
        return self._library.fake_stream_create(device, priority)

    def destroy_stream(self, stream: int) -> None:
        self._library.fake_stream_destroy(ctypes.c_uint64(stream))

    def priority(self, stream: int) -> int:
        """Of any stream, torch's or a lane's own."""
        return self._library.fake_stream_priority(ctypes.c_uint64(stream))

    def capture(self, stream: int, is_on: bool) -> None:
        self._library.fake_stream_capture(ctypes.c_uint64(stream), int(is_on))

    def synchronize(self) -> None:
        """Returns when every stream is idle."""
        self._library.fake_synchronize()

    def kernel(self, callback: Callable[[], None]) -> Any:
        """A kernel in Python. What it raises is a violation."""

        def run(_: int | None) -> None:
            try:
                callback()
            except BaseException as error:
                self._raised.append(f"a kernel raised {error!r}")

        self._kernels.append(KERNEL(run))
        return self._kernels[-1]

    def graph(self, callback: Callable[[], None], device: int = 0) -> FakeGraph:
        """A graph of one kernel, as a capture would leave it."""
        graph = self._library.fake_graph_create(device, self.kernel(callback), None)
        return FakeGraph(graph, self._library.fake_graph_exec(ctypes.c_uint64(graph)))

    def native_graph(self, kernel: int, argument: int, device: int = 0) -> FakeGraph:
        """A graph of one kernel, a C function's address, called with an address."""
        graph = self._library.fake_graph_create(device, ctypes.c_void_p(kernel), ctypes.c_void_p(argument))
        return FakeGraph(graph, self._library.fake_graph_exec(ctypes.c_uint64(graph)))

    def add_kernel(self, graph: int, callback: Callable[[], None], after: tuple[int, ...] = ()) -> int:
        """Another kernel in a graph, behind those nodes -> its node."""
        nodes = (ctypes.c_uint64 * len(after))(*after)
        return self._library.fake_graph_add(
            ctypes.c_uint64(graph), self.kernel(callback), None, nodes, ctypes.c_size_t(len(after))
        )

    def destroy_exec(self, graph_exec: int) -> None:
        self._library.fake_graph_exec_destroy(ctypes.c_uint64(graph_exec))

    def launch(self, stream: int, callback: Callable[[], None]) -> None:
        """A kernel on a stream, without a graph."""
        self._library.fake_launch(ctypes.c_uint64(stream), self.kernel(callback), None)

    def alloc(self, num_bytes: int, device: int = 0) -> int:
        """Poisoned memory -> its address. device -1: pinned host memory."""
        return self._library.fake_alloc(device, ctypes.c_size_t(num_bytes))

    def free(self, address: int) -> None:
        self._library.fake_free(ctypes.c_uint64(address))

    def array(self, shape: tuple[int, ...], dtype: Any, device: int = 0) -> np.ndarray:
        """Memory of a device as an array: its address is array.ctypes.data. It lives until the next reset."""
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = (ctypes.c_uint8 * max(num_bytes, 1)).from_address(self.alloc(num_bytes, device))
        return np.frombuffer(raw, np.uint8, num_bytes).view(dtype).reshape(shape)

    def register(self, address: int, num_bytes: int, device: int = 0) -> None:
        """Memory that the driver did not allocate, a torch tensor's, as a device's (-1: as pinned)."""
        self._library.fake_register(device, ctypes.c_uint64(address), ctypes.c_size_t(num_bytes))

    def unregister(self, address: int) -> None:
        self._library.fake_unregister(ctypes.c_uint64(address))

    @staticmethod
    def _native(arguments: tuple[Any, ...]) -> list[Any]:
        return [ctypes.c_uint64(a) if isinstance(a, int) else a for a in arguments]

    @staticmethod
    def _lines(report: Any) -> list[str]:
        size = report(None, ctypes.c_size_t(0))
        buffer = ctypes.create_string_buffer(size)
        report(buffer, ctypes.c_size_t(size))
        return buffer.value.decode().splitlines()


class FakeDevice:
    """A device of the fake, current on this thread, with what a test needs of it. Handles are integers."""

    def __init__(self, fake: FakeCuda, ordinal: int = 0) -> None:
        self.fake, self.ordinal = fake, ordinal
        self.call("cuInit", 0)
        self.context = self.made("cuDevicePrimaryCtxRetain", ordinal)
        self.call("cuCtxSetCurrent", self.context)
        self.stream, self.other = fake.stream(ordinal), fake.stream(ordinal, -1)

    def call(self, name: str, *arguments: Any) -> None:
        assert self.fake.call(name, *arguments) == 0, name

    def made(self, name: str, *arguments: Any) -> int:
        """A call whose first parameter is where the handle goes."""
        handle = ctypes.c_uint64()
        self.call(name, ctypes.byref(handle), *arguments)
        return handle.value

    def event(self, flags: int = 2) -> int:
        return self.made("cuEventCreate", flags)

    def recorded(self, stream: int) -> int:
        event = self.event()
        self.call("cuEventRecord", event, stream)
        return event

    def launch(self, callback: Callable[[], Any], stream: int | None = None) -> None:
        self.call("cuGraphLaunch", self.fake.graph(callback, self.ordinal).exec, stream or self.stream)


def world() -> Iterator[FakeCuda]:
    """What a fixture yields: two devices without delays, and nothing left behind."""
    fake = load()
    fake.reset()
    yield fake
    gc.collect()  # what the driver's owners hold goes first
    fake.reset()
