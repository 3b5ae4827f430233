"""One round of a pair as something to launch: planned on the host, then run on a stream of the caller's.

    plan(requests)  compiles, warms up, fills the slots, reads the prompts, verifies the first tokens
    run(stream)     launches one round: it allocates nothing, waits for nothing, and can be captured

For `pearl` the draft's launches fork to a stream of the round's own and join before the verdict: in a capture
two branches of a graph. Where nothing can run side by side, in the interpreter, they run in turn. Knows a
pair and strategies; not graphs, engines or text.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch

from pearl_rt.device.gpu import DRAFT_PRIORITY, TorchGpu
from pearl_rt.device.state import RoundRow
from pearl_rt.errors import RequestError
from pearl_rt.lowlevel.pair import DevicePair
from pearl_rt.strategy.program import JUDGES, STRATEGIES
from pearl_rt.types.request import Request
from pearl_rt.types.values import choice

Stream = torch.cuda.Stream | int | None  # an integer: its handle, cudaStream_t; None: torch's current one


class Round:
    """A round of one strategy and window. Its launches are always the same, whatever was planned.

    It holds its pair, to whose memory it writes: keep it as long as the graph in which it was captured.
    """

    def __init__(
        self,
        pair: DevicePair,
        strategy: str,
        gamma: int = 0,
        *,
        judge: str = "rejection",
        greedy: bool = False,
        guard: Callable[[], object] = lambda: None,
    ) -> None:
        """strategy: "ar" (gamma 0), "sd" or "pearl" (gamma 1 or more). judge: as in DevicePair.start.
        greedy: every request has temperature 0, so that drafts' logits are not kept. guard: called before the
        pair is used; raises if another caller uses it. Raises RequestError.
        """
        choice("strategy", strategy, STRATEGIES)
        choice("judge", judge, JUDGES)
        pair.check_gamma(gamma)
        if (strategy == "ar") != (gamma == 0):
            way_out = "pass gamma=0" if strategy == "ar" else "pass gamma=1 or more"
            raise RequestError(f"gamma {gamma} is no window of {strategy!r}: {way_out}")
        self.pair = pair
        self.strategy = strategy
        self.gamma = gamma
        self.judge = judge
        self._keep_logits = judge == "rejection" and not greedy and gamma > 0
        self._guard = guard
        self._claim = -1  # the pair's, of the last plan
        self._is_warm = False
        self._forks = strategy == "pearl" and pair.device.type == "cuda"
        if self._forks:
            self._side_stream = TorchGpu(pair.device).stream(DRAFT_PRIORITY)
            self._side = self._side_stream.torch
            self._fork, self._join = torch.cuda.Event(), torch.cuda.Event()

    def plan(self, requests: Sequence[Request] = (), stream: Stream = None) -> None:
        """Makes the pair ready for run(): request i in slot i, with its first token verified as round 0.

        The first call launches a round on idle slots, which compiles its kernels. No requests: only that, and
        idle slots, for a capture. A request's own gamma counts where it is 1 or more and shorter. Waits for
        the device. Raises RequestError for what does not fit, and while an engine's request runs.
        """
        self._guard()
        windows = [min(request.gamma or self.gamma, self.gamma) for request in requests]
        planned = [replace(r, gamma=window) for r, window in zip(requests, windows, strict=True)]
        with self.on_stream(stream):
            if not self._is_warm:
                self._first([])
                self._launch()
                self._is_warm = True
            self._first(planned)
        self._claim = self.pair.claims

    def run(self, stream: Stream = None) -> None:
        """Launches one round on `stream` (None: torch's current stream), which it neither waits for nor asks.

        The host may be as many rounds ahead as the ring has entries. Slots whose answer has ended, and idle
        ones, stay as they are. Raises RequestError if plan() was not called, or its slots were taken since.
        """
        self._guard()
        if self._claim != self.pair.claims:
            why = "call plan() first" if self._claim < 0 else "its slots were taken since: call plan() again"
            raise RequestError(f"the round is not planned: {why}")
        with self.on_stream(stream):
            self._launch()

    def read(self, round: int, slot: int = 0) -> RoundRow | None:
        """Round `round` of a slot from the ring, 0 the first token; None if it is not there (yet)."""
        return self.pair.read(round, slot)

    def wait(self, round: int, slot: int = 0) -> RoundRow:
        """read(), once it is there: see DevicePair.wait."""
        return self.pair.wait(round, slot)

    def on_stream(self, stream: Stream) -> AbstractContextManager[object]:
        """Makes a stream torch's current one, and its device the current one."""
        if self.pair.device.type == "cpu":
            return nullcontext()
        if stream is None:
            return self.pair.on_device()
        if isinstance(stream, int):
            stream = torch.cuda.ExternalStream(stream, self.pair.device)
        return torch.cuda.stream(stream)

    def _first(self, requests: Sequence[Request]) -> None:
        self.pair.start(requests, self.judge, gamma=self.gamma, keep_logits=self._keep_logits)
        self.pair.prefill()
        self.pair.verify()

    def _launch(self) -> None:
        pair = self.pair
        if self._forks:
            stream = torch.cuda.current_stream(pair.device)
            self._fork.record(stream)
            self._side.wait_event(self._fork)
            with torch.cuda.stream(self._side):
                pair.draft()
                self._join.record(self._side)
            pair.score(window=False)
            stream.wait_event(self._join)
        else:
            if self.gamma > 0:
                pair.draft()
            pair.score(window=self.strategy == "sd")
        pair.verify()
