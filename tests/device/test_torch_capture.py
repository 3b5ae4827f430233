"""How pearl_rt.device.gpu captures with torch, without a GPU: what follows a capture that failed.

torch.cuda is a stand-in that keeps torch 2.11's rules of pools; shows order and arguments, no capture.
"""

from __future__ import annotations

import gc
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import fake_cuda
import pytest
import torch
from tiny_pairs import SMALL, Pair

from pearl_rt import _C, DevicePair
from pearl_rt.device.gpu import TorchGpu, TorchStream
from pearl_rt.errors import DeviceError

GPU = torch.device("cuda", 1)


class Allocator:
    """Which pools serve captures: one capture each, until it ends by itself or by a call."""

    def __init__(self) -> None:
        self.num_pools = 0
        self.recording: set[tuple[int, int]] = set()
        self.broken = False  # the driver has given the capture up

    def pool(self) -> tuple[int, int]:
        self.num_pools += 1
        return (0, self.num_pools)

    def end(self, device: int, pool: tuple[int, int]) -> None:
        assert device == GPU.index
        if pool not in self.recording:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.recording.remove(pool)


class Graph:
    """torch.cuda.CUDAGraph by those rules."""

    def __init__(self, allocator: Allocator) -> None:
        self.allocator = allocator

    def capture_begin(self, pool: tuple[int, int], capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        if pool in self.allocator.recording:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        self.pool = pool
        self.allocator.recording.add(pool)

    def capture_end(self) -> None:
        if self.allocator.broken:
            self.allocator.broken = False
            raise RuntimeError("operation failed due to a previous error during capture")
        self.allocator.end(GPU.index, self.pool)

    def instantiate(self) -> None: ...
    def raw_cuda_graph(self) -> int:
        return 11

    def raw_cuda_graph_exec(self) -> int:
        return 12


def native() -> _C.CudaStream:
    """A stream that is none."""
    return _C.CudaStream(_C.CudaDriver.of_host(), 0)


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Allocator:
    found = Allocator()
    stream = SimpleNamespace(device=GPU, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda keep_graph: Graph(found))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", found.pool)
    monkeypatch.setattr(torch.cuda, "memory_snapshot", list)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", found.end, raising=False)
    return found


@pytest.mark.parametrize("broken", [True, False], ids=["given-up", "ended"])
def test_a_stream_captures_again_after_a_capture_that_failed(allocator: Allocator, broken: bool) -> None:
    stream, calls = TorchStream(GPU, native()), 0

    def launch() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:  # the first one warms up
            allocator.broken = broken
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(
        DeviceError, match=r"step bad could not be captured on cuda:1: operation not permitted"
    ):
        stream.capture("bad", launch)
    assert not allocator.recording, "later allocations are not the graph's"
    graph = stream.capture("good", launch)
    assert (graph.graph, graph.exec) == (11, 12) and not allocator.recording


def test_no_other_thread_captures_or_synchronises_meanwhile(allocator: Allocator) -> None:
    """And the collector, which may find a graph of another thread, rests."""
    held: list[tuple[bool, bool]] = []
    TorchStream(GPU, native()).capture(
        "step", lambda: held.append((TorchStream.captures.locked(), gc.isenabled()))
    )
    assert held == [(False, True), (True, False)], "the first launch, which warms up, is no capture"
    assert gc.isenabled()


def test_an_end_that_fails_is_a_capture_that_failed(allocator: Allocator) -> None:
    def launch() -> None:
        allocator.broken = bool(allocator.recording)

    stream: Any = TorchStream(GPU, native())
    with pytest.raises(DeviceError, match="previous error"):
        stream.capture("step", launch)
    assert not allocator.recording


@pytest.mark.skipif(not fake_cuda.has_compiler(), reason="no C++ compiler for the fake driver")
def test_the_33rd_stream_is_a_lanes_own_too(allocator: Allocator, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's pool would give the first one again."""
    fake = fake_cuda.load()
    fake.reset()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "none")
    monkeypatch.setattr("pearl_rt.device.gpu.LIBRARY", str(fake.path))
    gpu = TorchGpu(GPU)
    streams = [gpu.stream(-1, captures=i % 2 == 0) for i in range(33)] + [gpu.stream(0)]
    handles = [stream.native.handle for stream in streams]
    assert len(set(handles)) == 34 == fake.num_calls("cuStreamCreateWithPriority")
    assert [fake.priority(handle) for handle in handles] == [-1] * 33 + [0]
    assert fake.num_calls("cuStreamDestroy") == 0
    streams.clear()
    gc.collect()
    assert fake.num_calls("cuStreamDestroy") == 34
    assert fake.live_handles() == [] and fake.violations() == []


def test_synchronising_waits_for_the_end_of_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair that is started too, beside an engine in another thread."""
    held: list[bool] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: held.append(TorchStream.captures.locked()))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "none")
    TorchGpu(GPU).synchronize()
    own = Pair.make("half-right", **SMALL)
    pair = DevicePair.from_tensors(own.config, own.target, max_model_len=24, dtype="float32", device="cpu")
    monkeypatch.setattr(pair, "device", GPU)
    monkeypatch.setattr(pair, "on_device", nullcontext)
    pair.start([])
    assert held == [True, True]
