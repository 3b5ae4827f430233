"""The fake CUDA driver reports each call that CUDA does not allow."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import fake_cuda
import numpy as np
import pytest
from fake_cuda import FakeCuda, FakeDevice

pytestmark = pytest.mark.skipif(not fake_cuda.has_compiler(), reason="no C++ compiler here")
INVALID_VALUE, OUT_OF_MEMORY, DEINITIALIZED = 1, 2, 4
INVALID_CONTEXT, INVALID_HANDLE, NOT_READY = 201, 400, 600
ILLEGAL_ADDRESS, LAUNCH_FAILED, CAPTURE_UNSUPPORTED = 700, 719, 900
ROOT = Path(__file__).resolve().parents[3]


def destroyed(device: FakeDevice, kind: str) -> int:
    """A handle of what is no more."""
    if kind == "event":
        event = device.event()
        device.call("cuEventDestroy", event)
        return event
    graph = device.made("cuGraphCreate", 0)
    if kind == "exec":
        graph_exec = device.made("cuGraphInstantiateWithFlags", graph, 0)
        device.call("cuGraphExecDestroy", graph_exec)
        return graph_exec
    device.call("cuGraphDestroy", graph)
    return graph


def elsewhere(device: FakeDevice) -> SimpleNamespace:
    """A stream and an event of device 1; device 0 is current again."""
    second = FakeDevice(device.fake, 1)
    event = second.recorded(second.stream)
    device.call("cuCtxSetCurrent", device.context)
    return SimpleNamespace(stream=second.stream, event=event)


def busy(device: FakeDevice) -> None:
    device.launch(lambda: time.sleep(0.05))


def on_a_bare_thread(device: FakeDevice) -> int:
    """Another thread has no current context."""
    codes: list[int] = []
    event = device.event()
    thread = threading.Thread(
        target=lambda: codes.append(device.fake.call("cuEventRecord", event, device.stream))
    )
    thread.start()
    thread.join()
    return codes[0]


def copy(device: FakeDevice, to: int, source: int, num_bytes: int) -> int:
    return device.fake.call("cuMemcpyAsync", to, source, num_bytes, device.stream)


def foreign_node(device: FakeDevice) -> int:
    one, two = device.made("cuGraphCreate", 0), device.made("cuGraphCreate", 0)
    after = (ctypes.c_uint64 * 1)(device.made("cuGraphAddEmptyNode", one, None, 0))
    return device.fake.call("cuGraphAddEmptyNode", ctypes.byref(ctypes.c_uint64()), two, after, 1)


def copy_node(device: FakeDevice, to: int, source: int, num_bytes: int, **fields: int) -> int:
    row = fake_cuda.copied_row(to, source, num_bytes)
    for name, value in fields.items():
        setattr(row, name, value)
    graph, node = device.made("cuGraphCreate", 0), ctypes.byref(ctypes.c_uint64())
    return device.fake.call("cuGraphAddMemcpyNode", node, graph, None, 0, ctypes.byref(row), device.context)


def busy_exec(device: FakeDevice) -> int:
    graph = device.fake.graph(lambda: time.sleep(0.05))
    device.call("cuGraphLaunch", graph.exec, device.stream)
    return device.fake.call("cuGraphExecDestroy", graph.exec)


def busy_memory(device: FakeDevice) -> int:
    one, two = device.fake.alloc(64), device.fake.alloc(64)
    busy(device)
    copy(device, one, two, 64)
    device.fake.free(two)
    device.fake.synchronize()
    return device.fake.call("cuStreamQuery", device.stream)


def during_capture(device: FakeDevice, name: str) -> int:
    event = device.recorded(device.other)
    device.fake.capture(device.stream, True)
    handles = {
        "cuEventQuery": (event,),
        "cuStreamQuery": (device.other,),
        "cuStreamWaitEvent": (device.stream, event, 0),
    }
    code = device.fake.call(name, *handles[name])
    device.fake.capture(device.stream, False)
    return code


def relaxed(device: FakeDevice, mode: int) -> int:
    """A query during another's capture, by a thread of that mode -> its code; the mode before is back."""
    value = ctypes.c_int(mode)
    device.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(value))
    before = value.value
    try:
        return during_capture(device, "cuStreamQuery")
    finally:
        device.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(value))
        assert (before, value.value) == (0, mode)


Attempt = Callable[[FakeCuda, FakeDevice], int | None]
ILLEGAL: dict[str, tuple[Attempt, int | None, str]] = {
    "wait on an event never recorded": (
        lambda f, d: f.call("cuStreamWaitEvent", d.stream, d.event(), 0),
        0,  # CUDA waits for nothing, and says nothing
        "cuStreamWaitEvent: the event was never recorded",
    ),
    "record on another context's stream": (
        lambda f, d: f.call("cuEventRecord", d.event(), elsewhere(d).stream),
        INVALID_CONTEXT,
        "cuEventRecord: the context of device 0 is current, not that of device 1",
    ),
    "record of another context's event": (
        lambda f, d: f.call("cuEventRecord", elsewhere(d).event, d.stream),
        INVALID_HANDLE,
        "cuEventRecord: the event belongs to device 1, the stream to device 0",
    ),
    "launch on another context's stream": (
        lambda f, d: f.call("cuGraphLaunch", f.graph(lambda: None).exec, elsewhere(d).stream),
        INVALID_CONTEXT,
        "cuGraphLaunch: the context of device 0 is current",
    ),
    "launch of another device's kernels": (
        lambda f, d: f.call("cuGraphLaunch", f.graph(lambda: None, 1).exec, d.stream),
        0,
        "cuGraphLaunch: kernels of device 1 on a stream of device 0",
    ),
    "no context": (lambda f, d: on_a_bare_thread(d), INVALID_CONTEXT, "cuEventRecord: no context is current"),
    "default stream": (
        lambda f, d: f.call("cuGraphLaunch", f.graph(lambda: None).exec, 0),
        INVALID_HANDLE,
        "cuGraphLaunch: on the default stream",
    ),
    "event used after its destroy": (
        lambda f, d: f.call("cuEventRecord", destroyed(d, "event"), d.stream),
        INVALID_HANDLE,
        "cuEventRecord: the event was destroyed before",
    ),
    "event destroyed twice": (
        lambda f, d: f.call("cuEventDestroy", destroyed(d, "event")),
        INVALID_HANDLE,
        "cuEventDestroy: the event was destroyed before",
    ),
    "exec used after its destroy": (
        lambda f, d: f.call("cuGraphLaunch", destroyed(d, "exec"), d.stream),
        INVALID_HANDLE,
        "cuGraphLaunch: the exec was destroyed before",
    ),
    "graph used after its destroy": (
        lambda f, d: f.call(
            "cuGraphInstantiateWithFlags", ctypes.byref(ctypes.c_uint64()), destroyed(d, "graph"), 0
        ),
        INVALID_HANDLE,
        "cuGraphInstantiateWithFlags: the graph was destroyed before",
    ),
    "stream used after its destroy": (
        lambda f, d: (f.destroy_stream(d.stream), f.call("cuStreamQuery", d.stream))[1],
        INVALID_HANDLE,
        "cuStreamQuery: the stream was destroyed before",
    ),
    "stream destroyed at work": (
        lambda f, d: (busy(d), f.destroy_stream(d.stream))[1],
        None,
        "fake_stream_destroy: the stream is at work",
    ),
    "exec destroyed at work": (lambda f, d: busy_exec(d), 0, "cuGraphExecDestroy: the exec is at work"),
    "stream in place of an event": (
        lambda f, d: f.call("cuEventQuery", d.stream),
        INVALID_HANDLE,
        "cuEventQuery: it is a stream, not the event that is asked for",
    ),
    "no handle at all": (lambda f, d: f.call("cuEventQuery", 0x1234), INVALID_HANDLE, "0x1234 is no event"),
    "node of another graph": (
        lambda f, d: foreign_node(d),
        INVALID_VALUE,
        "a dependency is a node of another graph",
    ),
    "graph in itself": (
        lambda f, d: (
            lambda g: f.call("cuGraphAddChildGraphNode", ctypes.byref(ctypes.c_uint64()), g, None, 0, g)
        )(d.made("cuGraphCreate", 0)),
        INVALID_VALUE,
        "cuGraphAddChildGraphNode: a graph as its own child",
    ),
    "copy of memory that is not pinned": (
        lambda f, d: copy(d, f.alloc(64), np.zeros(8).ctypes.data, 64),
        INVALID_VALUE,
        "cuMemcpyAsync: a copy from memory that is neither a device's nor pinned",
    ),
    "copy past the end": (
        lambda f, d: copy(d, f.alloc(64) + 16, f.alloc(64), 49),
        INVALID_VALUE,
        "cuMemcpyAsync: 49 bytes to byte 16 of an allocation of 64",
    ),
    "copy onto itself": (
        lambda f, d: (lambda a: copy(d, a, a + 8, 16))(f.alloc(64)),
        INVALID_VALUE,
        "cuMemcpyAsync: source and target overlap",
    ),
    "copy in a graph past the end": (
        lambda f, d: copy_node(d, f.alloc(64) + 16, f.alloc(64), 49),
        INVALID_VALUE,
        "cuGraphAddMemcpyNode: 49 bytes to byte 16 of an allocation of 64",
    ),
    "copy in a graph of several rows": (
        lambda f, d: copy_node(d, f.alloc(64), f.alloc(64), 8, Height=2),
        INVALID_VALUE,
        "cuGraphAddMemcpyNode: not one row between two unified addresses",
    ),
    "copy in a graph from an unnamed kind of memory": (
        lambda f, d: copy_node(d, f.alloc(64), f.alloc(64), 8, srcMemoryType=0),
        INVALID_VALUE,
        "cuGraphAddMemcpyNode: not one row between two unified addresses",
    ),
    "memory freed under a copy": (
        lambda f, d: busy_memory(d),
        ILLEGAL_ADDRESS,
        "fake_free: a copy of this memory is still to be done",
    ),
    "memory freed twice": (
        lambda f, d: (lambda a: (f.free(a), f.free(a))[1])(f.alloc(64)),
        None,
        "fake_free: this memory is not registered, or was freed before",
    ),
    "query during a capture": (
        lambda f, d: during_capture(d, "cuStreamQuery"),
        CAPTURE_UNSUPPORTED,
        "cuStreamQuery: while a capture in the global mode is under way",
    ),
    "event query during a capture": (
        lambda f, d: during_capture(d, "cuEventQuery"),
        CAPTURE_UNSUPPORTED,
        "cuEventQuery: while a capture in the global mode is under way",
    ),
    "query during a capture, in the mode of one thread": (
        lambda f, d: relaxed(d, 1),
        CAPTURE_UNSUPPORTED,
        "cuStreamQuery: while a capture in the global mode is under way",
    ),
    "no mode of a capture": (
        lambda f, d: f.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(ctypes.c_int(3))),
        INVALID_VALUE,
        "cuThreadExchangeStreamCaptureMode: no mode of a capture",
    ),
    "work into a capture": (
        lambda f, d: during_capture(d, "cuStreamWaitEvent"),
        CAPTURE_UNSUPPORTED,
        "cuStreamWaitEvent: on a stream that is capturing",
    ),
    "context used after its release": (
        lambda f, d: (d.call("cuDevicePrimaryCtxRelease", 0), f.call("cuStreamQuery", d.stream))[1],
        0,  # torch still has it
        "cuStreamQuery: the context of device 0 is not retained",
    ),
    "context released too often": (
        lambda f, d: (d.call("cuDevicePrimaryCtxRelease", 0), f.call("cuDevicePrimaryCtxRelease", 0))[1],
        INVALID_CONTEXT,
        "cuDevicePrimaryCtxRelease: more often than it was retained",
    ),
    "a kernel in Python that raises": (
        lambda f, d: (d.launch(lambda: [][1]), d.call("cuStreamSynchronize", d.stream))[1],
        None,
        "a kernel raised IndexError",
    ),
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_what_is_not_legal_is_told(fake: FakeCuda, device: FakeDevice, name: str) -> None:
    attempt, code, said = ILLEGAL[name]
    assert fake.violations() == []
    assert attempt(fake, device) == code
    assert fake.violations() and said in fake.violations()[0]


def test_calls_before_init_are_told(fake: FakeCuda) -> None:
    code = (
        "import fake_cuda; fake = fake_cuda.load(); fake.reset();"
        "assert fake.call('cuCtxSetCurrent', 0) == 3, 'not refused';"
        "assert fake.violations() == ['cuCtxSetCurrent: before cuInit'], fake.violations()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "tests" / "fakes")


def test_live_handles_are_told(device: FakeDevice) -> None:
    event, graph = device.event(), device.made("cuGraphCreate", 0)
    graph_exec = device.made("cuGraphInstantiateWithFlags", graph, 0)
    told = device.fake.live_handles()
    assert [line.rsplit(" ", 1)[0] for line in told[1:]] == ["event", "graph", "exec"]
    assert told[0] == "context of device 0, retained 1 times"
    for call, handle in (
        ("cuEventDestroy", event),
        ("cuGraphDestroy", graph),
        ("cuGraphExecDestroy", graph_exec),
    ):
        device.call(call, handle)
    device.call("cuDevicePrimaryCtxRelease", 0)
    assert device.fake.live_handles() == [] and device.fake.violations() == []


def test_a_reset_ends_every_handle(device: FakeDevice) -> None:
    event = device.event()
    device.launch(lambda: time.sleep(0.01))
    device.fake.reset()
    for again in (False, True):
        if again:
            device.call("cuInit", 0)
        assert device.fake.call("cuEventDestroy", event) == DEINITIALIZED
        assert device.fake.call("cuStreamQuery", device.stream) in (DEINITIALIZED, INVALID_CONTEXT)
    assert device.fake.live_handles() == []


def test_a_relaxed_thread_may_query_during_a_capture(device: FakeDevice) -> None:
    assert relaxed(device, 2) in (0, NOT_READY) and device.fake.violations() == []
