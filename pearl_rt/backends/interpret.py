"""A pair on the kernels in Triton's interpreter: the lanes of a GPU over the host, for tests without one.

Knows sizes and what an interpreter can run; not how lanes work. Import it after
Environment.interpret_kernels().
"""

from collections.abc import Mapping, Sequence

from pearl_rt.backends.base import Backend, Lanes, PackedModel
from pearl_rt.backends.cuda_lanes import CudaLanes, CudaOptions
from pearl_rt.checkpoint.config import Environment
from pearl_rt.checkpoint.source import ModelSource
from pearl_rt.device.gpu import check_dependent_launches
from pearl_rt.device.host_gpu import HostGpu
from pearl_rt.device.kv_pool import KvPool
from pearl_rt.device.model import PREFILL_CHUNKS, DeviceModel, device_dtype, prepare_kernels
from pearl_rt.device.pair_sizes import PairSizes
from pearl_rt.strategy.program import CORE_PLACEMENTS
from pearl_rt.strategy.program_choice import Capabilities
from pearl_rt.types.json import Json


class InterpretBackend(Backend):
    """What an engine asks of device="interpret"."""

    def __init__(
        self,
        num_slots: int = 1,
        kv_cache_tokens: int | None = None,
        *,
        pdl: bool = False,
        prefix_caching: bool = False,
        lookup_tokens: int | None = None,
        candidates: int = 1,
    ) -> None:
        """See Backend. pdl: as on a GPU; it does nothing in the interpreter. lookup_tokens, candidates:
        see CudaLanes.
        """
        self._gpu, self._pdl, self._lookup_tokens = HostGpu(), pdl, lookup_tokens
        self._candidates = candidates
        prepare_kernels(self._gpu.device)
        if pdl:
            check_dependent_launches(self._gpu)
        super().__init__(num_slots, kv_cache_tokens, prefix_caching=prefix_caching)

    def capabilities(self, drafter: str) -> Capabilities:
        """Both placements, which differ in the order of their prefills only; beside a lookup, which is on the
        host, another one.
        """
        placements = ("devices",) if drafter == "lookup" else CORE_PLACEMENTS
        return Capabilities(drafter, placements, candidates=self._candidates)

    def check_memory(self, models: Sequence[ModelSource], pool: KvPool, *, num_placements: int) -> None:
        """Whatever an interpreter can finish fits."""

    def dtype(self, model: ModelSource) -> str:
        """float32, whatever the checkpoint is stored in. Raises ConfigError for another one, but where
        compiled kernels run on the host.
        """
        return device_dtype(model.dtype, model.config, self._gpu.device)

    def pack(self, model: ModelSource, max_model_len: int) -> DeviceModel:
        """Weights as the kernels read them."""
        return DeviceModel.of_source(model, self._gpu.device)

    def pack_beside(self, model: ModelSource, max_model_len: int, target: PackedModel) -> DeviceModel:
        """A model of its own, or a view in the target's memory."""
        if not model.is_view:
            return self.pack(model, max_model_len)
        assert isinstance(target, DeviceModel)
        return target.view(model)

    def lanes(
        self, placement: str, target: PackedModel, draft: PackedModel | None, pool: KvPool
    ) -> CudaLanes:
        """Lanes on the host. A step that is queued there has run, so no round is queued ahead of a verdict:
        the one behind a request's last would be for nothing.
        """
        assert isinstance(target, DeviceModel) and isinstance(draft, DeviceModel | None)
        options = CudaOptions(form="eager", rounds_ahead=1, num_slots=self.num_slots, pdl=self._pdl)
        sizes = PairSizes.of(
            target.config,
            draft.config if draft is not None else None,
            pool,
            num_slots=self.num_slots,
            prefill_chunk=PREFILL_CHUNKS[self._gpu.device.type],
            looks_up=self._lookup_tokens is not None,
            candidates=self._candidates,
        )
        gpus = self._gpu, self._gpu
        return CudaLanes(placement, target, draft, options, sizes, gpus, lookup_tokens=self._lookup_tokens)

    def devices(self) -> dict[str, str]:
        """Both in the interpreter, but for a lookup."""
        return {"target": "interpret", "draft": "interpret" if self._lookup_tokens is None else "cpu"}

    def described(self, lanes: Mapping[str, Lanes], pool: KvPool) -> Json:
        """With what stands for an instruction set."""
        is_compiled = Environment.compiles_on_host()
        return super().described(lanes, pool) | {"isa": "triton" if is_compiled else "triton-interpreter"}
