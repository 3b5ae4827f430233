"""The fake CUDA driver fails where a test asks for it, and as CUDA would."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_cuda
import pytest
from fake_cuda import FakeCuda, FakeDevice

pytestmark = pytest.mark.skipif(not fake_cuda.has_compiler(), reason="no C++ compiler here")
INVALID_VALUE, OUT_OF_MEMORY, DEINITIALIZED = 1, 2, 4
INVALID_CONTEXT, INVALID_HANDLE, NOT_READY = 201, 400, 600
ILLEGAL_ADDRESS, LAUNCH_FAILED, CAPTURE_UNSUPPORTED = 700, 719, 900
ROOT = Path(__file__).resolve().parents[3]


def calls_that_may_fail(device: FakeDevice) -> dict[str, Callable[[], int]]:
    fake, out = device.fake, ctypes.byref(ctypes.c_uint64())
    event, graph = device.recorded(device.stream), fake.graph(lambda: None)
    memory, milliseconds = (fake.alloc(64), fake.alloc(64)), ctypes.byref(ctypes.c_float())
    own = device.made("cuGraphCreate", 0)
    row = ctypes.byref(fake_cuda.copied_row(*memory, 64))
    arguments: dict[str, tuple[Any, ...]] = {
        "cuMemcpyAsync": (*memory, 64, device.stream),
        "cuStreamWaitEvent": (device.other, event, 0),
        "cuStreamQuery": (device.other,),
        "cuStreamSynchronize": (device.stream,),
        "cuEventCreate": (out, 0),
        "cuEventRecord": (event, device.stream),
        "cuEventQuery": (event,),
        "cuEventElapsedTime": (milliseconds, event, event),
        "cuGraphCreate": (out, 0),
        "cuGraphAddChildGraphNode": (out, own, None, 0, graph.graph),
        "cuGraphAddEmptyNode": (out, own, None, 0),
        "cuGraphAddMemcpyNode": (out, own, None, 0, row, device.context),
        "cuGraphInstantiateWithFlags": (out, own, 0),
        "cuGraphUpload": (graph.exec, device.stream),
        "cuGraphLaunch": (graph.exec, device.stream),
        "cuMemGetInfo": (out, ctypes.byref(ctypes.c_uint64())),
        "cuCtxSetCurrent": (device.context,),
        "cuGraphExecDestroy": (graph.exec,),
        "cuEventDestroy": (event,),
        "cuGraphDestroy": (own,),
    }
    return {name: lambda name=name: fake.call(name, *arguments[name]) for name in arguments}


def test_the_nth_call_returns_its_fault_once(device: FakeDevice) -> None:
    fake = device.fake
    for name, call in calls_that_may_fail(device).items():
        fake.inject(name, 1, OUT_OF_MEMORY)
        fake.inject(name, 3, INVALID_VALUE)
        codes = [call() for _ in range(4)]
        assert (codes[0], codes[2]) == (OUT_OF_MEMORY, INVALID_VALUE), name
        assert {codes[1], codes[3]}.isdisjoint({OUT_OF_MEMORY, INVALID_VALUE}), name
        fake.synchronize()


@pytest.mark.parametrize("how", ["injected", "raised"])
def test_a_fault_in_a_kernel_stays(fake: FakeCuda, how: str) -> None:
    second = FakeDevice(fake, 1)
    device, ran = FakeDevice(fake), []
    calls = calls_that_may_fail(device)
    device.call("cuStreamSynchronize", device.stream)
    if how == "injected":
        fake.inject("kernel", 2, LAUNCH_FAILED)
    device.launch(lambda: ran.append(1))
    device.launch(lambda: fake.raise_in_kernel(LAUNCH_FAILED) if how == "raised" else ran.append(2))
    fake.synchronize()
    assert ran == [1]
    assert fake.call("cuGraphLaunch", fake.graph(lambda: ran.append(3)).exec, device.stream) == LAUNCH_FAILED
    assert fake.violations() == []  # how else could it be learned
    kept = {
        "cuGraphAddChildGraphNode",
        "cuGraphAddEmptyNode",
        "cuGraphAddMemcpyNode",
        "cuCtxSetCurrent",
        "cuGraphExecDestroy",
        "cuGraphDestroy",
    }
    for name, call in calls.items():
        assert call() == (0 if name in kept else LAUNCH_FAILED), name
    told = {line.split(":")[0] for line in fake.violations() if "work after CUDA_ERROR_LAUNCH_FAILED" in line}
    work = {"cuMemcpyAsync", "cuStreamWaitEvent", "cuEventRecord", "cuGraphUpload", "cuGraphLaunch"}
    assert told == work
    fake.synchronize()  # nothing hangs, and nothing more was run
    assert ran == [1]
    # The other device goes on.
    second.call("cuCtxSetCurrent", second.context)
    second.launch(lambda: ran.append(4))
    second.call("cuStreamSynchronize", second.stream)
    assert ran == [1, 4]


@pytest.mark.parametrize("code", [46, 214, 702, 999])  # device unavailable, ECC, timeout, unknown
def test_a_device_that_is_lost_says_so_ever_after(device: FakeDevice, code: int) -> None:
    device.launch(lambda: device.fake.raise_in_kernel(code))
    assert device.fake.call("cuStreamSynchronize", device.stream) == code
    assert device.fake.call("cuEventCreate", ctypes.byref(ctypes.c_uint64()), 0) == code


def test_a_returned_fault_that_cuda_would_keep(device: FakeDevice) -> None:
    device.fake.inject("cuStreamQuery", 1, ILLEGAL_ADDRESS)
    assert device.fake.call("cuStreamQuery", device.stream) == ILLEGAL_ADDRESS
    assert device.fake.call("cuStreamSynchronize", device.other) == ILLEGAL_ADDRESS


def test_a_fault_releases_waiting_threads(device: FakeDevice) -> None:
    """A wait for work of a context that failed ends: its host has to come to the error."""
    device.launch(lambda: (time.sleep(0.02), device.fake.raise_in_kernel(ILLEGAL_ADDRESS)))
    event = device.recorded(device.stream)
    device.call("cuStreamWaitEvent", device.other, event, 0)
    assert device.fake.call("cuStreamSynchronize", device.other) == ILLEGAL_ADDRESS
