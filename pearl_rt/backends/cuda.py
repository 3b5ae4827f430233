"""What an engine asks of device="cuda": models packed to GPUs, and lanes on them.

Knows which model goes to which device, and what must be there; not how lanes work.
"""

from collections.abc import Mapping, Sequence

from pearl_rt.backends.base import Backend, Lanes, PackedModel
from pearl_rt.backends.cpu import CpuBackend, Model
from pearl_rt.backends.cuda_lanes import CudaLanes, CudaOptions
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.source import ModelSource
from pearl_rt.device.gpu import Gpu, check_dependent_launches, find_gpu
from pearl_rt.device.kv_pool import KvPool
from pearl_rt.device.model import PREFILL_CHUNKS, DeviceModel, device_dtype
from pearl_rt.device.pair_sizes import PairSizes, check_gpu_memory
from pearl_rt.errors import ConfigError
from pearl_rt.strategy.program_choice import Capabilities
from pearl_rt.strategy.step_timing import MEASURED_GAMMAS
from pearl_rt.types.json import Json

BATCHES = (1, 2, 4, 8, 16, 32)  # slots that steps are captured for: fewer sequences leave some of them idle


class CudaBackend(Backend):
    """What an engine asks of device="cuda"."""

    def __init__(
        self,
        device: str,
        draft_device: str | None,
        *,
        form: str,
        rounds_ahead: int,
        max_memory: int | None,
        cpu: CpuBackend | None,
        num_slots: int = 1,
        kv_cache_tokens: int | None = None,
        gamma: int | None = None,
        pdl: bool = False,
        prefix_caching: bool = False,
        lookup_tokens: int | None = None,
        candidates: int = 1,
    ) -> None:
        """cpu: of a draft on the CPU, beside which no blocks are found again. num_slots: sequences at a
        time, in steps for the next of BATCHES. kv_cache_tokens, prefix_caching: see Backend. gamma: the one
        window that is in use; None: many. pdl: of all kernels. lookup_tokens, candidates: see CudaLanes.
        """
        super().__init__(num_slots, kv_cache_tokens, prefix_caching=prefix_caching and cpu is None)
        self.block_size = self.block_size if cpu is None else cpu.block_size
        self._gpu = find_gpu(device)
        self._draft_gpu = self._gpu
        if draft_device is not None and cpu is None:
            other = find_gpu(draft_device)
            self._draft_gpu = self._gpu if other.ordinal == self._gpu.ordinal else other
        self._cpu, self._lookup_tokens, self._candidates = cpu, lookup_tokens, candidates
        if pdl:
            check_dependent_launches(self._gpu, self._draft_gpu)
        if form == "eager" and self._has_two_memories:
            raise ConfigError(
                "form 'eager' runs both models on one GPU: drop draft_device, or pass form='events'"
            )
        self._max_memory = max_memory
        slots = next((size for size in BATCHES if size >= num_slots), num_slots)
        gammas = MEASURED_GAMMAS if gamma is None else (gamma,)
        self._options = CudaOptions(form, rounds_ahead, slots, gammas, pdl)

    @property
    def _has_two_memories(self) -> bool:
        return self._cpu is not None or self._draft_gpu is not self._gpu

    def capabilities(self, drafter: str) -> Capabilities:
        """One placement, which follows from the devices."""
        cores = "placement 'split' is one of CPU cores: on a GPU pass 'auto'"
        if self._lookup_tokens is not None:
            one = "placement 'shared' is one device for both models, and a lookup is on the host: pass 'auto'"
            return Capabilities(drafter, ("devices",), {"split": cores, "shared": one})
        if self._has_two_memories:
            one = "placement 'shared' is one device for both models: drop draft_device, or pass 'devices'"
            return Capabilities(drafter, ("devices",), {"split": cores, "shared": one})
        two = "placement 'devices' needs a second device: pass draft_device='cuda:N' or 'cpu'"
        return Capabilities(
            drafter, ("shared",), {"split": cores, "devices": two}, candidates=self._candidates
        )

    def dtype(self, model: ModelSource) -> str:
        """What a model computes in: its checkpoint's own dtype, or the one that was asked for."""
        if model.name == "draft" and self._cpu is not None:
            return self._cpu.dtype(model)
        return device_dtype(model.dtype, model.config, self._gpu.device)

    def check_memory(self, models: Sequence[ModelSource], pool: KvPool, *, num_placements: int) -> None:
        """Looks at each GPU, and at the CPU if the draft is there."""
        sizes = self._sizes(models[0].config, models[1].config if len(models) > 1 else None, pool)
        by_gpu: dict[int, tuple[Gpu, list[ModelSource]]] = {}
        for model in models:
            if model.name == "draft" and self._cpu is not None:
                self._cpu.check_memory([model], pool, num_placements=num_placements)
                continue
            gpu = self._gpu_of(model)
            by_gpu.setdefault(gpu.ordinal, (gpu, []))[1].append(model)
        for gpu, held in by_gpu.values():
            remedies = ["lower max_num_seqs"] if self.num_slots > 1 else []
            remedies += ["pass dtype='bfloat16'"] if any(m.dtype == "float32" for m in held) else []
            remedies += ["pass weights='int8' or 'int4'"] if any(m.weights == "auto" for m in held) else []
            if len(held) > 1 and not held[1].is_view:
                remedies.append("put the draft elsewhere with draft_device")
            check_gpu_memory(
                gpu,
                sizes.memory(held),
                max_memory=self._max_memory,
                remedies=remedies,
            )

    def pack(self, model: ModelSource, max_model_len: int) -> DeviceModel | Model:
        """Weights as the kernels read them, or the CPU's executor."""
        if model.name == "draft" and self._cpu is not None:
            return self._cpu.pack(model, max_model_len)
        return DeviceModel.of_source(model, self._gpu_of(model).device)

    def pack_beside(self, model: ModelSource, max_model_len: int, target: PackedModel) -> DeviceModel | Model:
        """A model of its own, or a view in the target's memory."""
        if not model.is_view:
            return self.pack(model, max_model_len)
        assert isinstance(target, DeviceModel)
        return target.view(model)

    def lanes(
        self, placement: str, target: PackedModel, draft: PackedModel | None, pool: KvPool
    ) -> CudaLanes:
        """Lanes on these GPUs, and on the CPU's cores if the draft is there."""
        assert isinstance(target, DeviceModel) and isinstance(draft, DeviceModel | Model | None)
        cores = self._cpu.cores if self._cpu is not None else ()
        sizes = self._sizes(target.config, draft.config if draft is not None else None, pool)
        gpus = self._gpu, self._draft_gpu
        return CudaLanes(placement, target, draft, self._options, sizes, gpus, cores, self._lookup_tokens)

    def devices(self) -> dict[str, str]:
        """GPUs with their names."""
        on_host = self._cpu is not None or self._lookup_tokens is not None
        draft = "cpu" if on_host else f"{self._draft_gpu.device} ({self._draft_gpu.name})"
        return {"target": f"{self._gpu.device} ({self._gpu.name})", "draft": draft}

    def described(self, lanes: Mapping[str, Lanes], pool: KvPool) -> Json:
        """With how lanes launch, and what capturing cost."""
        return super().described(lanes, pool) | {
            "form": self._options.form,
            "rounds_ahead": self._options.rounds_ahead,
            "pdl": self._options.pdl,
            "capture": next(
                (own.capture_stats() for own in lanes.values() if isinstance(own, CudaLanes)), {}
            ),
        }

    def _gpu_of(self, model: ModelSource) -> Gpu:
        return self._gpu if model.name == "target" else self._draft_gpu

    def _sizes(self, target: ModelConfig, draft: ModelConfig | None, pool: KvPool) -> PairSizes:
        chunk = PREFILL_CHUNKS[self._gpu.device.type]
        return PairSizes.of(
            *(target, draft, pool),
            num_slots=self._options.num_slots,
            prefill_chunk=chunk,
            looks_up=self._lookup_tokens is not None,
            candidates=self._candidates,
        )
