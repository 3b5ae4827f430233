"""A round captured in a graph of its own: to replay, or to add to another graph as a child node.

Knows a round and torch's graphs; not what a round does.
"""

from collections.abc import Sequence

from pearl_rt.device.gpu import TARGET_PRIORITY, Gpu, find_gpu
from pearl_rt.device.state import RoundRow
from pearl_rt.errors import ConfigError, RequestError
from pearl_rt.lowlevel.round import Round, Stream
from pearl_rt.types.request import Request


class RoundGraph:
    """Owner of the graph of one round.

    A child node is a copy of the graph, made when it is added: this object may be closed then. What the copy
    reads and writes is the pair's memory, and the kernels are this process's: the pair, or the engine that it
    is of, must outlive whatever was made of the graph.
    """

    def __init__(self, round: Round, gpu: Gpu | None = None) -> None:
        """Warms the round up on idle slots and captures it; what its slots held is gone. gpu: the pair's, or
        None to find it. Raises ConfigError where there is none, DeviceError for what the driver refuses.
        """
        if not (round.pair.device.type == "cuda" if gpu is None else gpu.has_graphs):
            raise ConfigError(
                "round_graph() needs a GPU, and device 'interpret' has no graphs: pass device='cuda', or use "
                "round(), which runs there too"
            )
        self.round = round
        self._gpu = gpu or find_gpu(str(round.pair.device))
        round.plan()
        self._gpu.synchronize()  # the capture is on another stream
        self._stream = self._gpu.stream(TARGET_PRIORITY)  # of whose pool the graph is
        self._graph = self._stream.capture(f"round of {round.strategy}", round.run)
        self._is_open = True

    def raw_cuda_graph(self) -> int:
        """The cudaGraph_t (CUgraph), until close(). Add it to graphs of yours, do not destroy it."""
        self._check_open()
        return self._graph.graph

    def plan(self, requests: Sequence[Request] = (), stream: Stream = None) -> None:
        """Fills the slots for what is replayed next: see Round.plan. No replay may be under way or queued."""
        self.round.plan(requests, stream)

    def replay(self, stream: Stream = None) -> None:
        """Launches one round on `stream` (None: torch's current stream)."""
        self._check_open()
        with self.round.on_stream(stream):
            self._graph.replay()

    def read(self, round: int, slot: int = 0) -> RoundRow | None:
        """Round `round` of a slot, 0 the first token; None if it is not there (yet)."""
        return self.round.read(round, slot)

    def wait(self, round: int, slot: int = 0) -> RoundRow:
        """read(), once it is there: see DevicePair.wait."""
        return self.round.wait(round, slot)

    def close(self) -> None:
        """Destroys the graph, once nothing of it runs. Calling it again does nothing."""
        if self._is_open:
            self._is_open = False
            self._gpu.synchronize()
            self._graph.destroy()

    def __enter__(self) -> "RoundGraph":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._is_open:
            raise RequestError("the round's graph is closed: build another one")
