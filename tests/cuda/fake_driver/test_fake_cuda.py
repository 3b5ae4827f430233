"""The fake CUDA driver keeps CUDA's order: streams, events, copies, graphs."""

from __future__ import annotations

import ctypes
import threading
import time

import fake_cuda
import numpy as np
import pytest
from fake_cuda import FakeCuda, FakeDevice

pytestmark = pytest.mark.skipif(not fake_cuda.has_compiler(), reason="no C++ compiler here")
INVALID_HANDLE, NOT_READY = 400, 600


def test_work_of_a_stream_runs_in_order(fake: FakeCuda) -> None:
    fake.reset(seed=5, max_delay_us=30)
    device = FakeDevice(fake)
    ran: list[int] = []
    for i in range(50):
        device.launch(lambda i=i: ran.append(i))
    device.call("cuStreamSynchronize", device.stream)
    assert ran == list(range(50)) and fake.num_calls("kernel") == 50 and fake.violations() == []


def test_streams_run_beside_each_other(device: FakeDevice) -> None:
    meet = threading.Barrier(2, timeout=20)
    for stream in (device.stream, device.other):
        device.launch(meet.wait, stream)
    device.fake.synchronize()
    assert not meet.broken and device.fake.violations() == []


def test_a_wait_takes_the_most_recent_record(device: FakeDevice) -> None:
    """An event is recorded again, behind unfinished work: a stream that waited before waits no longer."""
    hold = threading.Event()
    event = device.recorded(device.stream)
    device.call("cuStreamWaitEvent", device.other, event, 0)  # for the first record
    device.launch(lambda: hold.wait(20))
    device.call("cuEventRecord", event, device.stream)
    device.call("cuStreamSynchronize", device.other)  # would never return if it waited for the second
    assert device.fake.call("cuEventQuery", event) == NOT_READY
    assert device.fake.call("cuStreamQuery", device.stream) == NOT_READY
    ran: list[str] = []
    device.call("cuStreamWaitEvent", device.other, event, 0)
    device.launch(lambda: ran.append("after the second"), device.other)
    time.sleep(0.02)
    assert ran == [] and device.fake.call("cuStreamQuery", device.other) == NOT_READY
    hold.set()
    device.call("cuStreamSynchronize", device.other)
    assert ran == ["after the second"]
    device.call("cuEventQuery", event)
    device.call("cuStreamSynchronize", device.stream)
    device.call("cuStreamQuery", device.stream)
    assert device.fake.violations() == []


def test_an_event_destroyed_early_still_orders_waiting_streams(device: FakeDevice) -> None:
    ran: list[str] = []
    device.launch(lambda: (time.sleep(0.02), ran.append("first")))
    event = device.recorded(device.stream)
    device.call("cuStreamWaitEvent", device.other, event, 0)
    device.call("cuEventDestroy", event)
    device.launch(lambda: ran.append("second"), device.other)
    device.call("cuStreamSynchronize", device.other)
    assert ran == ["first", "second"] and device.fake.violations() == []


def test_elapsed_time(device: FakeDevice) -> None:
    begin, end, untimed = device.event(0), device.event(0), device.recorded(device.stream)
    device.call("cuEventRecord", begin, device.stream)
    device.launch(lambda: time.sleep(0.03))
    device.call("cuEventRecord", end, device.stream)
    milliseconds = ctypes.c_float()
    assert device.fake.call("cuEventElapsedTime", ctypes.byref(milliseconds), begin, end) == NOT_READY
    device.call("cuStreamSynchronize", device.stream)
    device.call("cuEventElapsedTime", ctypes.byref(milliseconds), begin, end)
    assert 29 < milliseconds.value < 10_000 and device.fake.violations() == []
    for pair in ((untimed, end), (begin, device.event(0))):
        assert device.fake.call("cuEventElapsedTime", ctypes.byref(milliseconds), *pair) == INVALID_HANDLE


def test_copies_are_real_and_in_order(device: FakeDevice) -> None:
    fake = device.fake
    source, target = fake.array((5, 3), np.int32), fake.array((5, 3), np.int32, 1)
    staging = np.arange(15, dtype=np.int32)
    fake.register(staging.ctypes.data, staging.nbytes, -1)
    device.launch(lambda: source.fill(7))
    device.call("cuMemcpyAsync", target.ctypes.data, source.ctypes.data, 60, device.stream)
    device.launch(lambda: source.fill(8))
    device.call("cuMemcpyAsync", source.ctypes.data + 4, staging.ctypes.data + 8, 12, device.stream)
    device.call("cuStreamSynchronize", device.stream)
    assert (target == 7).all()
    assert source.ravel().tolist() == [8, 2, 3, 4] + [8] * 11 and fake.violations() == []


# Graphs.


def test_branches_run_beside_each_other_in_any_order(device: FakeDevice) -> None:
    """Each order comes with 1/2: that 40 launches show one of them only has a chance of 2^-39."""
    fake, order = device.fake, []
    meet = threading.Barrier(2, timeout=20)
    graph = fake.graph(lambda: None).graph
    root = fake.add_kernel(graph, lambda: order.append("root"))
    one = fake.add_kernel(graph, lambda: (order.append("one"), meet.wait()), (root,))
    two = fake.add_kernel(graph, lambda: (order.append("two"), meet.wait()), (root,))
    fake.add_kernel(graph, lambda: order.append("end"), (one, two))
    graph_exec = device.made("cuGraphInstantiateWithFlags", graph, 0)
    for _ in range(40):
        device.call("cuGraphLaunch", graph_exec, device.stream)
    device.call("cuStreamSynchronize", device.stream)
    launches = [tuple(order[i : i + 4]) for i in range(0, len(order), 4)]
    assert set(launches) == {("root", "one", "two", "end"), ("root", "two", "one", "end")}
    assert not meet.broken and fake.violations() == []


def test_a_child_is_cloned_and_an_exec_is_a_snapshot(device: FakeDevice) -> None:
    fake, ran = device.fake, []
    child = fake.graph(lambda: ran.append("child")).graph
    parent = device.made("cuGraphCreate", 0)
    node = device.made("cuGraphAddChildGraphNode", parent, None, 0, child)
    fake.add_kernel(child, lambda: ran.append("added to the child later"))
    device.call("cuGraphDestroy", child)
    after = (ctypes.c_uint64 * 1)(node)
    empty = device.made("cuGraphAddEmptyNode", parent, after, 1)
    graph_exec = device.made("cuGraphInstantiateWithFlags", parent, 0)
    fake.add_kernel(parent, lambda: ran.append("added to the graph later"), (empty,))
    device.call("cuGraphLaunch", graph_exec, device.stream)
    device.call("cuGraphDestroy", parent)
    device.call("cuStreamSynchronize", device.stream)
    assert ran == ["child"] and fake.violations() == []


def test_a_graph_of_two_devices_with_a_copy_between(fake: FakeCuda) -> None:
    fake.reset(seed=1, max_delay_us=40)
    other, device = FakeDevice(fake, 1), FakeDevice(fake)
    sent, got, seen = fake.array((15,), np.int32, 1), fake.array((15,), np.int32, 0), []
    first = fake.graph(lambda: sent.fill(len(seen) + 7), 1).graph
    last = fake.graph(lambda: seen.append(got.tolist()), 0).graph
    round_ = device.made("cuGraphCreate", 0)
    after = (ctypes.c_uint64 * 1)(device.made("cuGraphAddChildGraphNode", round_, None, 0, first))
    row = fake_cuda.copied_row(got.ctypes.data + 4, sent.ctypes.data, 52)
    copy = device.made("cuGraphAddMemcpyNode", round_, after, 1, ctypes.byref(row), other.context)
    device.made("cuGraphAddChildGraphNode", round_, (ctypes.c_uint64 * 1)(copy), 1, last)
    whole = device.made("cuGraphInstantiateWithFlags", round_, 0)
    for _ in range(20):
        device.call("cuGraphLaunch", whole, device.stream)
    device.call("cuStreamSynchronize", device.stream)
    assert [row[1:14] for row in seen] == [[i + 7] * 13 for i in range(20)]
    assert all(row[0] == row[14] == got[14] for row in seen)  # nothing outside
    assert fake.violations() == []


def test_launches_of_one_exec_do_not_overlap(fake: FakeCuda) -> None:
    fake.reset(seed=2, max_delay_us=40)
    device = FakeDevice(fake)
    running, overlaps = [0], []

    def kernel() -> None:
        overlaps.append(running[0])
        running[0] += 1
        time.sleep(0.0005)
        running[0] -= 1

    graph = fake.graph(kernel)
    for i in range(40):
        device.call("cuGraphLaunch", graph.exec, (device.stream, device.other)[i % 2])
    fake.synchronize()
    assert overlaps == [0] * 40 and fake.violations() == []


def test_seeds_give_other_delays(fake: FakeCuda) -> None:
    """Two streams write in turn, ordered by nothing: over 12 seeds not every run is the same."""
    seen = set()
    for seed in range(12):
        fake.reset(seed=seed, max_delay_us=300)
        device, ran = FakeDevice(fake), []
        for _ in range(8):
            device.launch(lambda r=ran: r.append(0), device.stream)
            device.launch(lambda r=ran: r.append(1), device.other)
        fake.synchronize()
        seen.add(tuple(ran))
    assert len(seen) > 1
