"""What a pair has room for on its devices, the steps of both lanes made for that, and the memory they take.

Knows configurations and packed models; not requests, streams or lanes. Memory is counted before any of it is
taken: what will be made is made on torch's meta device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.shapes import tensor_shapes
from pearl_rt.checkpoint.source import ModelSource, stored_forms
from pearl_rt.device.drafts.head_steps import HeadSteps
from pearl_rt.device.drafts.windows_beside import (
    BesideDraftSteps,
    BesideState,
    BesideTargetSteps,
    pages_beside,
)
from pearl_rt.device.gpu import Gpu
from pearl_rt.device.kv_pool import KvPool
from pearl_rt.device.logits_processors import LogitsProcessors
from pearl_rt.device.logprob_ring import LogprobRing
from pearl_rt.device.model import DTYPES, DeviceModel, memory_errors
from pearl_rt.device.state import DeviceState, StateSizes
from pearl_rt.device.steps import DraftSteps, LaneSteps, TargetSteps
from pearl_rt.errors import ResourceError, gib
from pearl_rt.model.eagle_head import EagleHead
from pearl_rt.model.features import Features
from pearl_rt.model.llama import Llama, LlamaWeights, Sizes
from pearl_rt.reference.groups import Outline
from pearl_rt.strategy.program import MAX_GAMMA

Steps = TypeVar("Steps", bound=LaneSteps)
# Compiled kernels, cuBLAS workspaces and graphs: a guess, no GPU was there to measure it on.
ALLOWANCE = 512 * 2**20
META = torch.device("meta")


@dataclass(frozen=True)
class PairSizes:
    """Sizes of the state, and of both lanes' caches and buffers."""

    pool: KvPool
    state: StateSizes
    lane: Sizes
    draft_tokens: int  # of a sequence that a pass of the draft is fed, but for its prompt
    candidates: int = 1  # windows of a sequence

    @classmethod
    def of(
        cls,
        target: ModelConfig,
        draft: ModelConfig | None,
        pool: KvPool,
        *,
        num_slots: int,
        prefill_chunk: int,
        looks_up: bool = False,
        candidates: int = 1,
        gamma_max: int = MAX_GAMMA,
        max_stop_ids: int = 32,
        ring_size: int = 64,
    ) -> "PairSizes":
        """pool: the blocks of each model's KV cache. looks_up: windows come from a lookup on the host, whose
        drafts have no rows. candidates: windows of a sequence. The others as in DevicePair.of_models.
        """
        gamma_max = gamma_max if draft is not None or looks_up else 0
        draft_vocab_size = min(target.vocab_size, draft.vocab_size) if draft is not None else 1
        at_once = draft is not None and draft.pard_token is not None
        num_windows = num_slots * candidates
        return cls(
            pool,
            StateSizes(
                num_slots,
                gamma_max,
                pool.max_model_len,
                target.vocab_size,
                0 if looks_up else draft_vocab_size,
                max_stop_ids,
                ring_size,
                pool.block_size,
            ),
            Sizes(
                step_tokens=num_windows * max(gamma_max + 1, 2),
                prefill_chunk=prefill_chunk,
                logit_rows=num_windows * (gamma_max + 1),
                max_sequences=num_windows,
                max_model_len=pool.max_model_len,
                block_size=pool.block_size,
                num_blocks=pool.num_blocks + pages_beside(num_slots, candidates, gamma_max, pool.block_size),
            ),
            max(2 * gamma_max if at_once else 0, gamma_max + 1, 2),
            candidates,
        )

    def steps(
        self,
        kind: type[Steps],
        model: DeviceModel,
        state: DeviceState | None = None,
        *,
        features: Features | None = None,
        attention_backend: str = "triton",
        pdl: bool = False,
    ) -> Steps:
        """The steps of one lane where its model is, over the other lane's state or one of their own.
        features: of a target beside a head, and of that head. pdl: of Llama.

        Raises ResourceError where memory is short.
        """
        device = model.weights.device
        columns, lane = self.state.vocab_size, self.lane
        if kind is not TargetSteps:
            columns = self.state.draft_vocab_size
            lane = replace(lane, step_tokens=lane.max_sequences * self.draft_tokens)
        with memory_errors(device, "caches and buffers"):
            own = self._state(device) if state is None else state
            given = model.config, model.weights
            if model.head is None:
                llama = Llama(*given, lane, backend=attention_backend, vocab_size=columns, pdl=pdl)
            else:
                llama = EagleHead(
                    *(*given, model.head, lane), backend=attention_backend, vocab_size=columns, pdl=pdl
                )
            if self.candidates == 1:
                return kind(llama, own, features)
            several = BesideTargetSteps if kind is TargetSteps else BesideDraftSteps
            return several(llama, own)  # type: ignore[return-value]  # of that kind

    def _state(self, device: torch.device) -> DeviceState:
        if self.candidates == 1:
            return DeviceState(self.state, device)
        return BesideState(self.state, self.candidates, self.pool.num_blocks, device)

    def features(self, target: DeviceModel, draft: object, *, pdl: bool = False) -> Features | None:
        """What a head reads of its target; None where the draft is none. Raises ResourceError where memory is
        short.
        """
        if not isinstance(draft, DeviceModel) or draft.head is None:
            return None
        with memory_errors(target.weights.device, "what the head reads"):
            return Features(draft.head, target.config, self.lane, pdl=pdl)

    def memory(self, models: Sequence[ModelSource]) -> dict[str, int]:
        """What these models hold on one GPU -> bytes. A view is behind its target; what it has of that counts
        once, as the target's.
        """
        state = self._state(META)
        held: list[object] = [LogitsProcessors(state)]
        parts: dict[str, int] = {}
        packed: list[DeviceModel] = []
        for model in models:
            packed.append(self._outlined(model, packed))
            parts[f"the {model.name}'s weights"] = held_bytes(*packed) - held_bytes(*packed[:-1])
        features = self.features(packed[0], packed[-1])
        if features is not None:
            parts["what the head reads"] = held_bytes(*packed, features) - held_bytes(*packed)
        caches: list[object] = []
        buffers: list[object] = []
        for model, on_device in zip(models, packed, strict=True):
            kind: type[LaneSteps] = TargetSteps if model.name == "target" else draft_steps_of(on_device)
            steps = self.steps(kind, on_device, state, features=features)
            caches.append(steps.model.kv_cache)
            buffers += [steps.model.buffers, steps.model.cos, steps.model.sin]
            held += [steps, LogprobRing(state)] if model.name == "target" else [steps]
        parts[f"{self.pool.num_tokens} tokens of KV cache"] = held_bytes(*caches)
        activations = held_bytes(*buffers)
        parts["logits and state"] = held_bytes(*held) - sum(parts.values()) - activations
        return parts | {"activations": activations, "kernels and graphs (a guess)": ALLOWANCE}

    @staticmethod
    def _outlined(model: ModelSource, before: Sequence[DeviceModel]) -> DeviceModel:
        """A model as it will be packed, on torch's meta device. before: the target of a view."""
        dtype, forms = DTYPES[model.dtype], stored_forms(model.tensors)
        own = {key: tuple(part.shape) for key, part in model.tensors.items()} if model.is_view else None
        tensors = {
            key: Outline((shape[0], shape[1]), forms[key])
            if key in forms
            else torch.empty(shape, dtype=dtype, device=META)
            for key, shape in (tensor_shapes(model.config) if own is None else own).items()
        }
        if model.is_view:
            return before[0].view(replace(model, tensors=tensors))  # type: ignore[arg-type]
        weights = LlamaWeights.pack(*(model.config, tensors), dtype=dtype, device=META, weights=model.weights)
        return DeviceModel(model.config, model.dtype, weights)


def draft_steps_of(draft: DeviceModel) -> type[DraftSteps]:
    """What drafts by a model."""
    return DraftSteps if draft.head is None else HeadSteps


def held_bytes(*owners: object) -> int:
    """Bytes of all memory that tensors of these objects lie in, each counted once."""
    found: dict[int, int] = {}
    seen: set[int] = set()
    todo = list(owners)
    while todo:
        one = todo.pop()
        if isinstance(one, torch.Tensor):
            storage = one.untyped_storage()
            found[storage._cdata] = storage.nbytes()
        elif isinstance(one, dict):
            todo += one.values()
        elif isinstance(one, (list, tuple)):
            todo += one
        elif type(one).__module__.startswith("pearl_rt.") and id(one) not in seen:
            seen.add(id(one))
            todo += getattr(one, "__dict__", {}).values()
    return sum(found.values())


def check_gpu_memory(
    gpu: Gpu, parts: dict[str, int], *, max_memory: int | None, remedies: Sequence[str]
) -> None:
    """Raises ResourceError if the parts do not fit into what is free, or into max_memory."""
    free, needed = gpu.free_memory(), sum(parts.values())
    room = free if max_memory is None else min(free, max_memory)
    if needed <= room:
        return
    listed = ", ".join(f"{gib(size)} for {name}" for name, size in parts.items())
    limit = f"{gib(free)} free" if room == free else f"max_memory is {gib(room)}"
    raise ResourceError(
        f"not enough memory on {gpu.device} ({gpu.name}): {gib(needed)} needed ({listed}), {limit}: "
        f"{', '.join(['lower max_model_len or kv_cache_tokens', *remedies])}, or take smaller models"
    )
