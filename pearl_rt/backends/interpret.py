"""A pair on the kernels in Triton's interpreter, op by op in Python: for tests without a GPU.

Models, steps and the coordinator in Python, behind the interface of the native lanes. It knows sizes; not
prompts, text, or how a step works. Import it after Environment.interpret_kernels().
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pearl_rt.backends.base import Backend, Lanes
from pearl_rt.backends.eager_coordinator import NOMINAL_TIMES, EagerCoordinator
from pearl_rt.checkpoint.source import ModelSource
from pearl_rt.device.kv_pool import KvPool
from pearl_rt.device.model import DeviceModel, device_dtype, prepare_kernels
from pearl_rt.lowlevel.pair import DevicePair
from pearl_rt.strategy.planner import StepTimes
from pearl_rt.strategy.program import CORE_PLACEMENTS, program
from pearl_rt.strategy.program_choice import Capabilities
from pearl_rt.types.request import Request

DEVICE = torch.device("cpu")


class InterpretLanes(Lanes):
    """Steps and the coordinator in Python."""

    def __init__(
        self,
        placement: str,
        target: DeviceModel,
        draft: DeviceModel | None,
        num_slots: int,
        pool: KvPool,
    ) -> None:
        """pool: the KV blocks of all sequences."""
        super().__init__(placement, target.config, draft.config if draft is not None else None, pool)
        self.pair = DevicePair.of_models(
            target,
            draft,
            max_model_len=pool.max_model_len,
            num_slots=num_slots,
            block_size=pool.block_size,
            num_blocks=pool.num_blocks,
        )
        self.coordinator = EagerCoordinator(self.pair)

    def start_all(
        self, strategy: str, requests: Sequence[Request], judge: str, windows: Sequence[int] = ()
    ) -> list[int]:
        """Starts a program, of one window."""
        return list(self.coordinator.start(program(strategy, self.placement), requests, judge))

    def native(self, request: Request) -> Request:
        """The coordinator in Python takes it as it is."""
        return request

    def measure(self) -> StepTimes:
        """Nominal times: nothing is run."""
        return NOMINAL_TIMES


class InterpretBackend(Backend):
    """What an engine asks of device="interpret"."""

    def __init__(self, num_slots: int = 1, kv_cache_tokens: int | None = None) -> None:
        """See Backend."""
        prepare_kernels(DEVICE)
        super().__init__(num_slots, kv_cache_tokens)

    def capabilities(self, has_draft: bool) -> Capabilities:
        """Both placements, which differ in the order of their prefills only."""
        return Capabilities(has_draft, CORE_PLACEMENTS)

    def check_memory(self, models: Sequence[ModelSource], pool: KvPool, *, num_placements: int) -> None:
        """Whatever an interpreter can finish fits."""

    def dtype(self, model: ModelSource) -> str:
        """float32, whatever the checkpoint is stored in. Raises ConfigError for another one."""
        return device_dtype(model.dtype, model.config, DEVICE)

    def pack(self, model: ModelSource, max_model_len: int) -> DeviceModel:
        """Weights as the kernels read them."""
        return DeviceModel.pack(
            model.config, model.tensors, device=DEVICE, dtype=model.dtype, name=model.name
        )

    def lanes(
        self, placement: str, target: DeviceModel, draft: DeviceModel | None, pool: KvPool
    ) -> InterpretLanes:
        """Lanes in Python."""
        return InterpretLanes(placement, target, draft, self.num_slots, pool)

    def devices(self) -> dict[str, str]:
        """Both in the interpreter."""
        return {"target": "interpret", "draft": "interpret"}

    def described(self, lanes: Mapping[str, InterpretLanes], pool: KvPool) -> dict[str, Any]:
        """With what stands for an instruction set."""
        return super().described(lanes, pool) | {"isa": "triton-interpreter"}
