"""In place of Triton's driver: kernel[grid](...) compiles for a GPU that is absent, and runs on host tensors.

    driver = install("sm_90")      before any kernel is launched

Knows what Triton gives a driver; not how PTX is read or run.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.driver import driver as triton_driver

from pearl_rt import _ptx

from . import backend
from .decode import Program, decode
from .faults import Extent, error_of
from .statements import PtxError, read

ARCHITECTURES = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}  # bytes of shared memory that a program may have
MOST_INSTRUCTIONS = 10**10  # of a program: behind it no kernel of ours ends
SCRATCH_POINTERS = 2  # Triton's own parameters, behind those of the kernel


def program_of(ptx: str) -> Program:
    """A kernel that can be launched. Raises PtxError."""
    return decode(read(ptx))


def bits(kind: str, value: Any) -> int:
    """A scalar argument as the kernel's parameter holds it."""
    if kind in ("fp32", "f32"):
        return int(np.float32(value).view(np.uint32))
    if kind in ("fp64", "f64"):
        return int(np.float64(value).view(np.uint64))
    if kind[0] not in "iu" or not kind[1:].isdigit():
        raise PtxError(f"an argument of type {kind} is not known to the driver")
    return int(value) & ((1 << max(int(kind[1:]), 8)) - 1)


def flat(name: str, kind: Any, value: Any) -> Iterator[tuple[str, str, Any]]:
    """(name, type, value) of each argument that is a parameter: tuples taken apart, constants left out."""
    if isinstance(kind, tuple):
        fields = getattr(value, "_fields", range(len(kind)))
        for field, inner_kind, inner in zip(fields, kind, value, strict=True):
            yield from flat(f"{name}.{field}", inner_kind, inner)
    elif kind != "constexpr":
        yield name, kind, value


def extent_of(name: str, tensor: torch.Tensor) -> Extent:
    storage = tensor.untyped_storage()
    return Extent(name, storage.data_ptr(), storage.data_ptr() + storage.nbytes())


def constant_extents(program: Program) -> Iterator[Extent]:
    """Of the module's arrays, which a kernel may read too."""
    for name, array in program.constants.items():
        yield Extent(name, ctypes.addressof(array), ctypes.addressof(array) + ctypes.sizeof(array))


def ranges_of(extents: list[Extent]) -> list[tuple[int, int]]:
    """Sorted; storages that overlap or are one are one range."""
    merged: list[tuple[int, int]] = []
    for first, end in sorted({(extent.first, extent.end) for extent in extents if extent.end > extent.first}):
        if merged and first < merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((first, end))
    return merged


@dataclass
class Work:
    """What was run so far."""

    launches: int = 0
    dependent: int = 0  # of them, those with launch_pdl
    instructions: int = 0  # of warps
    seconds: float = 0.0

    def __str__(self) -> str:
        rate = self.instructions / max(self.seconds, 1e-9) / 1e6
        return (
            f"{self.launches} launches, {self.instructions / 1e6:.1f} million instructions of warps in "
            f"{self.seconds:.1f} s, {rate:.1f} million a second"
        )


@dataclass
class Step:
    """Kernels that follow each other on one stream, each of which may begin before those ahead have ended."""

    stored: set[tuple[int, int]] = field(default_factory=set)  # memory that one of them has stored into

    def has_stored(self, first: int, end: int) -> bool:
        return any(own_first < end and first < own_end for own_first, own_end in self.stored)


def run(
    program: Program,
    grid: tuple[int, int, int],
    values: list[int],
    extents: list[Extent],
    shared_bytes: int,
    seed: int = 0,
    global_races: bool = False,
    step: Step | None = None,
    dependent: bool = False,
) -> int:
    """All programs of a launch -> instructions of warps. Raises KernelFault.

    global_races: looks for races of warps in small tensors too. Warps that hold the same values may read what
    one of them stores, and use it for nothing: such a kernel is right, and this finds a race in it.
    dependent: launched with launch_pdl. step: what the kernels ahead of it have stored.
    """
    step = Step() if step is None else step
    ranges = ranges_of([*extents, *constant_extents(program)])
    found = _ptx.launch(
        kernel=program.kernel,
        grid=grid,
        params=values,
        ranges=ranges,
        shared_bytes=shared_bytes,
        global_races=global_races,
        dependent=dependent,
        unfinished=[step.has_stored(*one) for one in ranges],
        seed=seed,
        most_instructions=MOST_INSTRUCTIONS,
    )
    if isinstance(found, _ptx.Fault):
        raise error_of(found, program, extents)
    instructions, stored = found
    step.stored.update(one for one, is_stored in zip(ranges, stored, strict=True) if is_stored)
    return int(instructions)


class PtxLauncher:
    """Launches one compiled kernel, as Triton calls it."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self._signature = dict(source.signature)
        self._shared_bytes, self._dependent = metadata.shared, metadata.launch_pdl
        for size in (metadata.global_scratch_size, metadata.profile_scratch_size):
            if size:
                raise PtxError(f"{metadata.name} asks for scratch memory, which the driver does not give")

    def __call__(self, x: int, y: int, z: int, stream: int, function: Function, *rest: Any) -> None:
        """rest: packed metadata, launch metadata, two hooks, then the kernel's arguments."""
        arguments = rest[4:]
        values, extents = [], []
        for (name, kind), value in zip(self._signature.items(), arguments, strict=True):
            for own_name, own_kind, own in flat(name, kind, value):
                if not own_kind.startswith("*"):
                    values.append(bits(own_kind, own))
                elif own is None:
                    values.append(0)
                else:
                    values.append(own.data_ptr())
                    extents.append(extent_of(own_name, own))
        function.run((x, y, z), values, extents, self._shared_bytes, self._dependent)


Edit = Callable[[str, str], str]  # (name of a kernel, its PTX) -> the PTX that runs in its place


class Function:
    """A kernel that was loaded."""

    def __init__(self, name: str, ptx: str, device: PtxUtils) -> None:
        self._name, self._ptx, self._device = name, ptx, device
        self._program = program_of(ptx)

    def run(
        self,
        grid: tuple[int, int, int],
        values: list[int],
        extents: list[Extent],
        shared_bytes: int,
        dependent: bool,
    ) -> None:
        if 0 in grid:
            return
        work, program, begin = self._device.work, self._program, time.perf_counter()
        if (edit := self._device.edit) is not None:
            program = program_of(edit(self._name, self._ptx))
        padded = values + [0] * SCRATCH_POINTERS
        device = self._device
        work.instructions += run(
            *(program, grid, padded, extents, shared_bytes, device.seed),
            *(device.global_races, device.step, dependent),
        )
        work.launches += 1
        work.dependent += dependent
        work.seconds += time.perf_counter() - begin


class PtxUtils:
    """Triton's view of a device."""

    def __init__(self, shared_bytes: int, seed: int) -> None:
        self._shared_bytes, self.seed = shared_bytes, seed
        self.work = Work()
        self.edit: Edit | None = None
        self.global_races = False
        self.step: Step | None = None

    def load_binary(
        self, name: str, ptx: bytes, shared: int, device: int
    ) -> tuple[Any, Function, int, int, int]:
        """-> module, function, registers, spills, most threads."""
        function = Function(name, ptx.decode(), self)
        return function, function, 0, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self._shared_bytes, "multiprocessor_count": 132, "warpSize": 32}


class PtxDriver(DriverBase):
    """A GPU of one architecture, which is the host."""

    launcher_cls = PtxLauncher

    def __init__(self, architecture: str, seed: int = 0) -> None:
        if architecture not in ARCHITECTURES:
            raise PtxError(f"architecture {architecture} is not known: choose {' or '.join(ARCHITECTURES)}")
        self.architecture = architecture
        self.utils = PtxUtils(ARCHITECTURES[architecture], seed)
        self._target = GPUTarget(backend.NAME, int(architecture.removeprefix("sm_")), 32)

    @property
    def work(self) -> Work:
        return self.utils.work

    @contextmanager
    def edited(self, edit: Edit, global_races: bool = False) -> Iterator[None]:
        """Launches inside run what `edit` makes of each kernel's PTX. global_races: see run()."""
        self.utils.edit, self.utils.global_races = edit, global_races
        try:
            yield
        finally:
            self.utils.edit, self.utils.global_races = None, False

    @contextmanager
    def step(self) -> Iterator[Step]:
        """Launches inside are one step on one stream: no tensor is freed meanwhile."""
        self.utils.step = Step()
        try:
            yield self.utils.step
        finally:
            self.utils.step = None

    @classmethod
    def is_active(cls) -> bool:
        return False  # Triton does not choose it: install() does

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("kernels on the host are not timed")

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return divmod(self._target.arch, 10)


def install(architecture: str, seed: int = 0) -> PtxDriver:
    """Has this process's kernels compiled for that architecture and run on the host."""
    backend.register(PtxDriver)
    driver = PtxDriver(architecture, seed)
    triton_driver.set_active(driver)
    return driver
