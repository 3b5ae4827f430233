"""A pair on the kernels in Triton's interpreter, op by op in Python: for tests without a GPU.

Models, steps and the coordinator in Python, behind the interface of the native lanes. It knows sizes; not
prompts, text, or how a step works. Import it after Environment.interpret_kernels().
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pearl_rt.backends.eager_coordinator import NOMINAL_TIMES, EagerCoordinator
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.device.kv_pool import DEVICE_BLOCK_SIZE, KvPool
from pearl_rt.device.model import DeviceModel, device_dtype, prepare_kernels
from pearl_rt.lowlevel.pair import DevicePair
from pearl_rt.strategy.options import Limits
from pearl_rt.strategy.planner import PLACEMENTS, StepTimes
from pearl_rt.strategy.program import program
from pearl_rt.types.metrics import TraceRow
from pearl_rt.types.request import Request

DEVICE = torch.device("cpu")


class InterpretLanes:
    """One placement: pearl_rt.backends.cpu.Lanes over the interpreter."""

    adapts = False  # a run has one window

    def __init__(
        self,
        placement: str,
        target: DeviceModel,
        draft: DeviceModel | None,
        num_slots: int,
        pool: KvPool,
    ) -> None:
        """pool: the KV blocks of all sequences."""
        self.placement = placement
        self.has_draft = draft is not None
        self.pair = DevicePair.of_models(
            target,
            draft,
            max_model_len=pool.max_model_len,
            num_slots=num_slots,
            block_size=pool.block_size,
            num_blocks=pool.num_blocks,
        )
        self.coordinator = EagerCoordinator(self.pair)

    def start(self, strategy: str, request: Request, judge: str) -> int:
        """Starts a program for one request -> its id in the results."""
        return self.coordinator.start(program(strategy, self.placement), [request], judge)[0]

    def submit(self, request: Request) -> int | None:
        """One more request for the run that goes on -> its id, or None if it has ended."""
        return self.coordinator.submit(request)

    def has_place(self, request: Request) -> bool:
        """Whether a request would get the KV blocks now that it may come to need."""
        return self.coordinator.has_place(request)

    def trace(self) -> list[TraceRow]:
        """What each lane did in the last request."""
        return self.coordinator.trace()

    def measure(self) -> StepTimes:
        """Nominal times: nothing is run."""
        return NOMINAL_TIMES

    def close(self) -> None:
        """Stops what runs."""
        self.coordinator.stop()


class InterpretBackend:
    """What an engine asks of device="interpret": see pearl_rt.backends.cpu.CpuBackend."""

    def __init__(self, num_slots: int = 1, kv_cache_tokens: int | None = None) -> None:
        """num_slots: sequences that run at once. kv_cache_tokens: of all of them together; None: num_slots
        times max_model_len.
        """
        prepare_kernels(DEVICE)
        self.num_slots = num_slots
        self._kv_cache_tokens = kv_cache_tokens

    def limits(self, has_draft: bool) -> Limits:
        """Both placements, which differ in the order of their prefills only."""
        return Limits(has_draft, PLACEMENTS)

    def check_memory(
        self, models: Sequence[tuple[str, ModelConfig, str]], *, max_model_len: int, num_placements: int
    ) -> None:
        """Whatever an interpreter can finish fits."""

    def kv_pool(self, max_model_len: int) -> KvPool:
        """The KV blocks that requests share."""
        return KvPool.of(
            self._kv_cache_tokens,
            num_slots=self.num_slots,
            max_model_len=max_model_len,
            block_size=DEVICE_BLOCK_SIZE,
        )

    def dtype(self, name: str, dtype: str, config: ModelConfig) -> str:
        """float32, whatever the checkpoint is stored in. Raises ConfigError for another one."""
        return device_dtype(dtype, config, DEVICE)

    def pack(
        self,
        config: ModelConfig,
        tensors: Mapping[str, torch.Tensor],
        *,
        name: str,
        dtype: str,
        max_model_len: int,
    ) -> DeviceModel:
        """Weights as the kernels read them."""
        return DeviceModel.pack(config, tensors, device=DEVICE, dtype=dtype, name=name)

    def lanes(
        self, placement: str, target: DeviceModel, draft: DeviceModel | None, pool: KvPool
    ) -> InterpretLanes:
        """The lanes of one placement, over the KV blocks of a pool."""
        return InterpretLanes(placement, target, draft, self.num_slots, pool)

    def described(self, lanes: Mapping[str, InterpretLanes], pool: KvPool) -> dict[str, Any]:
        """What runs where, and on how much KV cache, for Engine.stats()."""
        return {
            "device": {"target": "interpret", "draft": "interpret"},
            "kv_blocks": pool.described(own.coordinator.num_free_blocks for own in lanes.values()),
            "isa": "triton-interpreter",
        }
