"""How long a call takes on a GPU whose cache is cold: CUDA graphs over rotated buffers, sampled in turns.

Knows no kernels. A call is anything that enqueues work on the current stream, waits for nothing, and
allocates nothing but what a capture may.

An implementation is a list of calls, one for each copy of its buffers. They are captured in one graph, round
and round the copies: with copies of several times the L2's size, each call finds its inputs in memory and not
in the cache. Where that would take too many copies the cache is written over before each call, and the time
of writing alone is taken off. A sample is the time of one replay, between two events, over its number of
calls. A spinning kernel goes before it, so that the replay is queued before the first event is reached.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Call = Callable[[], object]

ROTATED_L2 = (
    4  # copies hold this many times the L2, so that even a cache that isn't least-recently-used is cold
)
LEAST_L2 = 2
MAX_COPIES = 512
GRAPH_BYTES = 1 << 30  # a graph moves about this much, or makes MAX_LAUNCHES calls
MAX_LAUNCHES = 128
MIN_LAUNCHES = 4
FLUSHED_LAUNCHES = 32
WARM_REPLAYS = 2
SPIN_SECONDS, SPIN_HERTZ = 1e-4, 2e9  # the spin is counted in cycles of a clock of at most this rate


@dataclass(frozen=True)
class Rotation:
    """How a call of some size is kept cold."""

    copies: int
    launches: int  # calls in a graph, a multiple of copies
    flush: bool  # copies cannot hold enough: write over the cache between calls

    @classmethod
    def of(cls, num_bytes: int, l2_bytes: int) -> Rotation:
        """num_bytes: what one call moves."""
        copies = max(2, math.ceil(ROTATED_L2 * l2_bytes / num_bytes))
        if min(copies, MAX_COPIES) * num_bytes < LEAST_L2 * l2_bytes:
            return cls(2, FLUSHED_LAUNCHES, True)
        copies = min(copies, MAX_COPIES)
        wanted = max(MIN_LAUNCHES, copies, min(MAX_LAUNCHES, math.ceil(GRAPH_BYTES / num_bytes)))
        return cls(copies, math.ceil(wanted / copies) * copies, False)


class Timer(Protocol):
    """What the bench needs of a clock; tests have one without a GPU."""

    device: str  # where buffers are made

    def run(self, calls: Sequence[Call]) -> None:
        """Runs each call once, as it will be timed, and waits."""

    def prepare(self, calls: Sequence[Call], rotation: Rotation) -> Any:
        """Something that can be sampled."""

    def sample(self, prepared: Any) -> float:
        """Seconds of one call, the mean over one replay."""


@dataclass(frozen=True)
class Prepared:
    """A graph of `launches` calls; `bare` is the same graph with the flushes only."""

    graph: torch.cuda.CUDAGraph
    bare: torch.cuda.CUDAGraph | None
    launches: int
    host_seconds: float  # what launching the graph takes of the host


class GraphTimer:
    """A Timer on the current CUDA device."""

    device = "cuda"

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties()
        self.l2_bytes: int = properties.L2_cache_size
        self.stream = torch.cuda.Stream()
        # Of graphs that are gone at once: with one, some torch drops the cuBLAS workspace of its stream.
        self.passing = torch.cuda.Stream()
        self.scratch = torch.empty(ROTATED_L2 * self.l2_bytes, dtype=torch.uint8, device="cuda")

    def flush(self) -> None:
        """Writes over the whole L2."""
        self.scratch.zero_()

    def capture(self, calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
        """A graph of the calls in order, each of which is run first: compiled, and given its workspaces."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for call in dict.fromkeys(calls):
                call()
        torch.cuda.synchronize()
        return self.record(calls, self.stream)

    def record(self, calls: Sequence[Call], stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
        """A graph of calls that have run before. No graph may be destroyed meanwhile: the collector rests."""
        graph = torch.cuda.CUDAGraph()
        was_on = gc.isenabled()
        gc.disable()
        try:
            with torch.cuda.graph(graph, stream=stream):
                for call in calls:
                    call()
        finally:
            if was_on:
                gc.enable()
        return graph

    def run(self, calls: Sequence[Call]) -> None:
        """The calls have run once before (in prepare), so nothing but the replay touches their buffers."""
        torch.cuda.synchronize()
        graph = self.record(calls, self.passing)
        graph.replay()
        torch.cuda.synchronize()

    def prepare(self, calls: Sequence[Call], rotation: Rotation) -> Prepared:
        sequence = [calls[i % len(calls)] for i in range(rotation.launches)]
        bare = None
        if rotation.flush:
            flushes = [self.flush] * rotation.launches
            bare = self.capture(flushes)
            sequence = [step for pair in zip(flushes, sequence, strict=True) for step in pair]
        graph = self.capture(sequence)
        host_seconds = 0.0
        for _ in range(WARM_REPLAYS):
            begin = time.perf_counter()
            graph.replay()
            host_seconds = time.perf_counter() - begin
            torch.cuda.synchronize()
        return Prepared(graph, bare, rotation.launches, host_seconds)

    def replay_seconds(self, graph: torch.cuda.CUDAGraph, host_seconds: float) -> float:
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(int((SPIN_SECONDS + 2 * host_seconds) * SPIN_HERTZ))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3

    def sample(self, prepared: Prepared) -> float:
        seconds = self.replay_seconds(prepared.graph, prepared.host_seconds)
        if prepared.bare is not None:
            seconds -= self.replay_seconds(prepared.bare, prepared.host_seconds)
        return seconds / prepared.launches


def medians(timer: Timer, prepared: Mapping[str, Any], repeats: int) -> dict[str, float]:
    """Median seconds of a call of each, sampled in turns A B C, B C A: drift meets all alike."""
    names = list(prepared)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        for i in range(len(names)):
            name = names[(i + turn) % len(names)]
            samples[name].append(timer.sample(prepared[name]))
    return {name: statistics.median(values) for name, values in samples.items()}
