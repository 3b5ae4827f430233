"""What an engine asks of a back end and of the lanes of a placement: cores, GPUs and the interpreter alike.

Knows the coordinator, KV pools and programs; not cores, streams or kernels.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import pearl_rt._C as _C
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.source import ModelSource
from pearl_rt.device.kv_pool import DEVICE_BLOCK_SIZE, KvPool
from pearl_rt.strategy.planner import StepTimes
from pearl_rt.strategy.program import MAX_GAMMA, program
from pearl_rt.strategy.program_choice import Capabilities
from pearl_rt.strategy.step_timing import MEASURED_GAMMAS, measure
from pearl_rt.types.json import Json
from pearl_rt.types.metrics import TraceRow
from pearl_rt.types.request import Request

if TYPE_CHECKING:
    from pearl_rt.device.gpu import Gpu
    from pearl_rt.lowlevel.pair import DevicePair


class PackedModel(Protocol):
    """A model's weights where they run."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def dtype(self) -> str: ...


class Lanes:
    """The native side of one placement: a lane for each model, and the coordinator that drives them."""

    measured_gammas: Sequence[int] = MEASURED_GAMMAS
    adapts = False  # whether windows may change from round to round
    drafts_at_once = False  # whether a pass of the draft has all rows of a window
    overlaps = False  # whether draft and target are at work at the same time in pearl
    coordinator: _C.Coordinator
    gpu: "Gpu | None" = None  # the target's
    pair: "DevicePair | None" = None  # of models on one device: others may launch it too

    def __init__(self, placement: str, target: ModelConfig, draft: ModelConfig | None, pool: KvPool) -> None:
        """pool: the KV blocks of each model's cache."""
        self.placement = placement
        self.has_draft = draft is not None  # or a drafter of another kind, on lanes that have one
        self.vocab_size = min(config.vocab_size for config in (target, draft) if config is not None)
        self.max_model_len = pool.longest  # of one sequence that has all blocks; of one with drafts

    @staticmethod
    def coordinator_of(
        lanes: Sequence[_C.Lane],
        num_slots: int,
        pool: KvPool,
        vocab_size: int,
        draft_vocab_size: int | None,
        draft_capacity: int | None = None,
        candidates: int = 1,
    ) -> _C.Coordinator:
        """A coordinator over native lanes. draft_vocab_size None: there is no draft. draft_capacity: tokens
        of a sequence that the draft can be fed; None: all. candidates: windows of a sequence.
        """
        return _C.Coordinator(
            lanes,
            num_slots=num_slots,
            gamma_max=MAX_GAMMA if draft_vocab_size is not None else 0,
            capacity=pool.max_model_len,
            vocab_size=vocab_size,
            draft_vocab_size=draft_vocab_size,
            num_blocks=pool.num_blocks,
            block_size=pool.block_size,
            prefix_caching=pool.prefix_caching,
            draft_capacity=draft_capacity,
            candidates=candidates,
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
        return self.coordinator.start(program(strategy, self.placement), native, judge, windows)

    def submit(self, request: Request) -> int | None:
        """One more request for the run that goes on -> its id. None: the run has ended, or cannot take it."""
        return self.coordinator.submit(self.native(request))

    def has_place(self, request: Request) -> bool:
        """Whether the run that goes on can take a request, and has the KV blocks now that it may need."""
        return self.coordinator.has_place(self.native(request))

    def native(self, request: Request) -> _C.Request:
        """As the coordinator takes it. These lanes end no windows early; a request that asks was refused."""
        return _C.Request(**vars(request) | {"draft_stop": "none"})

    def set_windows(self, windows: Sequence[int]) -> None:
        """Other windows from the next round on, for requests that adapt. Any thread."""
        self.coordinator.set_windows(windows)

    def next(self, timeout_ms: int, min_results: int = 1) -> list[_C.RoundResult] | None:
        """Waits for so many rounds, the end of the run or the time -> what there is; None once all was read.
        Raises what ended the run, behind the results before it.
        """
        return self.coordinator.next(timeout_ms, min_results)

    def cancel(self, number: int) -> None:
        """Ends one request within a round. Any thread."""
        self.coordinator.cancel(number)

    def stop(self) -> None:
        """Ends the run within a round. What was verified before can still be read."""
        self.coordinator.stop()

    def trace(self) -> list[TraceRow]:
        """What each lane did in the last run, once it has ended."""
        return [TraceRow(*row) for row in self.coordinator.trace()]

    def measure(self) -> StepTimes:
        """The times of its steps, from a few rounds of each program."""
        return measure(self)

    def close(self) -> None:
        """Stops what runs."""
        self.stop()


class Backend(ABC):
    """What an engine asks of a device. Models are what its own pack() returns."""

    block_size: int | None = DEVICE_BLOCK_SIZE  # of KV blocks; None: the CPU executor's choice

    def __init__(self, num_slots: int, kv_cache_tokens: int | None, *, prefix_caching: bool = False) -> None:
        """num_slots: sequences that run at once. kv_cache_tokens: of all of them together; None: num_slots
        times max_model_len. prefix_caching: whether blocks are found again by their tokens.
        """
        self.num_slots = num_slots
        self._kv_cache_tokens = kv_cache_tokens
        self._prefix_caching = prefix_caching

    def kv_pool(self, max_model_len: int) -> KvPool:
        """The KV blocks that requests share, the same in both models' caches."""
        return KvPool.of(
            self._kv_cache_tokens,
            num_slots=self.num_slots,
            max_model_len=max_model_len,
            block_size=self.block_size,
            prefix_caching=self._prefix_caching,
        )

    @abstractmethod
    def capabilities(self, drafter: str) -> Capabilities:
        """Which programs can run here, with a drafter of this kind: see EngineOptions."""

    @abstractmethod
    def dtype(self, model: ModelSource) -> str:
        """What a model computes in, "auto" decided. Raises ConfigError for what this device does not."""

    @abstractmethod
    def check_memory(self, models: Sequence[ModelSource], pool: KvPool, *, num_placements: int) -> None:
        """Raises ResourceError if models and their KV caches cannot fit where they are to run."""

    @abstractmethod
    def pack(self, model: ModelSource, max_model_len: int) -> PackedModel:
        """A model's weights where they are to run."""

    def pack_beside(self, model: ModelSource, max_model_len: int, target: PackedModel) -> PackedModel:
        """A draft's weights, beside those of its target: of a view, what is not the target's."""
        return self.pack(model, max_model_len)

    @abstractmethod
    def lanes(self, placement: str, target: PackedModel, draft: PackedModel | None, pool: KvPool) -> Lanes:
        """The lanes of one placement, over the KV blocks of a pool."""

    @abstractmethod
    def devices(self) -> dict[str, str]:
        """Where the target and the draft run."""

    def described(self, lanes: Mapping[str, Lanes], pool: KvPool) -> Json:
        """What runs where, and on how much KV cache, for Engine.stats(). lanes: of each placement in use."""
        free = (own.coordinator.num_free_blocks for own in lanes.values())
        return {"device": self.devices(), "kv_blocks": pool.described(free)}
