"""What an engine asks of a back end and of the lanes of a placement: cores, GPUs and the interpreter alike.

Knows the coordinator, KV pools and programs; not cores, streams or kernels.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import pearl_rt._C as _C
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.source import ModelSource
from pearl_rt.device.kv_pool import DEVICE_BLOCK_SIZE, KvPool
from pearl_rt.strategy.planner import StepTimes
from pearl_rt.strategy.program import MAX_GAMMA, program
from pearl_rt.strategy.program_choice import Capabilities
from pearl_rt.strategy.step_timing import MEASURED_GAMMAS, measure
from pearl_rt.types.metrics import TraceRow
from pearl_rt.types.request import Request


class Lanes:
    """The native side of one placement: a lane for each model, and the coordinator that drives them."""

    measured_gammas: Sequence[int] = MEASURED_GAMMAS
    adapts = False  # whether windows may change from round to round
    overlaps = False  # whether draft and target are at work at the same time in pearl
    coordinator: Any

    def __init__(self, placement: str, target: ModelConfig, draft: ModelConfig | None, pool: KvPool) -> None:
        """pool: the KV blocks of each model's cache."""
        self.placement = placement
        self.has_draft = draft is not None
        self.vocab_size = min(config.vocab_size for config in (target, draft) if config is not None)
        self.max_model_len = pool.longest  # of one sequence that has all blocks

    @staticmethod
    def coordinator_of(
        lanes: Sequence[Any], num_slots: int, pool: KvPool, vocab_size: int, draft_vocab_size: int | None
    ) -> Any:
        """A _C.Coordinator over native lanes. draft_vocab_size None: there is no draft."""
        return _C.Coordinator(
            lanes,
            num_slots=num_slots,
            gamma_max=MAX_GAMMA if draft_vocab_size is not None else 0,
            capacity=pool.max_model_len,
            vocab_size=vocab_size,
            draft_vocab_size=draft_vocab_size,
            num_blocks=pool.num_blocks,
            block_size=pool.block_size,
        )

    def start(self, strategy: str, request: Request, judge: str, windows: Sequence[int] = ()) -> int:
        """Starts a program for one request -> its id in the results. Returns at once.

        windows: [num_slots + 1] the longest one while so many sequences run, for requests that adapt.
        """
        return self.start_all(strategy, [request], judge, windows)[0]

    def start_all(
        self, strategy: str, requests: Sequence[Request], judge: str, windows: Sequence[int] = ()
    ) -> list[int]:
        """Starts a program for requests that run together, each in a slot of its own -> their ids."""
        native = [self.native(request) for request in requests]
        return list(self.coordinator.start(program(strategy, self.placement), native, judge, list(windows)))

    def submit(self, request: Request) -> int | None:
        """One more request for the run that goes on -> its id. None: the run has ended, or cannot take it."""
        number: int | None = self.coordinator.submit(self.native(request))
        return number

    def has_place(self, request: Request) -> bool:
        """Whether the run that goes on can take a request, and has the KV blocks now that it may need."""
        return bool(self.coordinator.has_place(self.native(request)))

    def native(self, request: Request) -> Any:
        """A request as the coordinator takes it."""
        return _C.Request(**vars(request))

    def trace(self) -> list[TraceRow]:
        """What each lane did in the last run, once it has ended."""
        return [TraceRow(*row) for row in self.coordinator.trace()]

    def measure(self) -> StepTimes:
        """The times of its steps, from a few rounds of each program."""
        return measure(self)

    def close(self) -> None:
        """Stops what runs."""
        self.coordinator.stop()


class Backend(ABC):
    """What an engine asks of a device. Models are what its own pack() returns."""

    block_size: int | None = DEVICE_BLOCK_SIZE  # of KV blocks; None: the CPU executor's choice

    def __init__(self, num_slots: int, kv_cache_tokens: int | None) -> None:
        """num_slots: sequences that run at once. kv_cache_tokens: of all of them together; None: num_slots
        times max_model_len.
        """
        self.num_slots = num_slots
        self._kv_cache_tokens = kv_cache_tokens

    def kv_pool(self, max_model_len: int) -> KvPool:
        """The KV blocks that requests share, the same in both models' caches."""
        return KvPool.of(
            self._kv_cache_tokens,
            num_slots=self.num_slots,
            max_model_len=max_model_len,
            block_size=self.block_size,
        )

    @abstractmethod
    def capabilities(self, has_draft: bool) -> Capabilities:
        """Which programs can run here."""

    @abstractmethod
    def dtype(self, model: ModelSource) -> str:
        """What a model computes in, "auto" decided. Raises ConfigError for what this device does not."""

    @abstractmethod
    def check_memory(self, models: Sequence[ModelSource], pool: KvPool, *, num_placements: int) -> None:
        """Raises ResourceError if models and their KV caches cannot fit where they are to run."""

    @abstractmethod
    def pack(self, model: ModelSource, max_model_len: int) -> Any:
        """A model's weights where they are to run."""

    @abstractmethod
    def lanes(self, placement: str, target: Any, draft: Any, pool: KvPool) -> Lanes:
        """The lanes of one placement, over the KV blocks of a pool."""

    @abstractmethod
    def devices(self) -> dict[str, str]:
        """Where the target and the draft run."""

    def described(self, lanes: Mapping[str, Any], pool: KvPool) -> dict[str, Any]:
        """What runs where, and on how much KV cache, for Engine.stats(). lanes: of each placement in use."""
        free = (own.coordinator.num_free_blocks for own in lanes.values())
        return {"device": self.devices(), "kv_blocks": pool.described(free)}
