"""What a pair needs of each GPU's memory, counted before any of it is taken.

Knows sizes and what a GPU says of itself; not lanes. The bytes are those of the tensors that will be made,
counted on torch's meta device, and an allowance for what the driver keeps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch

from pearl_rt.backends.cpu import gib, weight_bytes
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.device.gpu import Gpu
from pearl_rt.device.kv_pool import KvPool
from pearl_rt.device.logits_processors import Shaping
from pearl_rt.device.logprob_ring import ToldRing
from pearl_rt.device.model import DTYPES, PREFILL_CHUNKS
from pearl_rt.device.row_logprobs import DeviceLogprobs
from pearl_rt.device.state import DeviceState, StateSizes
from pearl_rt.errors import ResourceError
from pearl_rt.model.kv_cache import CacheShape
from pearl_rt.model.llama import Buffers, Sizes
from pearl_rt.strategy.planner import MAX_GAMMA

# Compiled kernels, cuBLAS workspaces and graphs: a guess, no GPU was there to measure it on.
ALLOWANCE = 512 * 2**20
META = torch.device("meta")


class PairSizes:
    """What the state and the steps of a pair have room for."""

    def __init__(
        self,
        gpu: Gpu,
        num_slots: int,
        pool: KvPool,
        target: ModelConfig,
        draft: ModelConfig | None,
    ) -> None:
        """pool: the blocks of each model's KV cache."""
        self.pool = pool
        gamma_max = MAX_GAMMA if draft is not None else 0
        columns = target.vocab_size
        draft_columns = min(columns, draft.vocab_size) if draft is not None else 1
        length = pool.max_model_len
        self.state = StateSizes(
            num_slots, gamma_max, length, columns, draft_columns, block_size=pool.block_size
        )
        self.lane = Sizes(
            step_tokens=num_slots * max(gamma_max + 1, 2),
            prefill_chunk=PREFILL_CHUNKS[gpu.device.type],
            logit_rows=num_slots * (gamma_max + 1),
            max_sequences=num_slots,
            max_model_len=length,
        )


@dataclass(frozen=True)
class GpuModel:
    """A model that is to run on a GPU, before its weights are read."""

    name: str  # "target" or "draft"
    config: ModelConfig
    dtype: str
    vocab_size: int  # columns of its logits


def parts_of(models: Sequence[GpuModel], sizes: PairSizes, *, eager: bool = False) -> dict[str, int]:
    """What is held on one GPU for these models -> bytes. eager: for steps that are launched one by one."""
    room, pool = sizes.lane, sizes.pool
    parts = {f"the {model.name}'s weights": weight_bytes(model.config, model.dtype) for model in models}
    cache, buffers = 0, 0
    for model in models:
        dtype = DTYPES[model.dtype]
        shape = CacheShape.covering(
            room.max_sequences,
            room.max_model_len,
            num_layers=model.config.num_hidden_layers,
            block_size=pool.block_size,
            num_kv_heads=model.config.num_key_value_heads,
            head_dim=model.config.head_dim,
            dtype=dtype,
            num_blocks=pool.num_blocks,
        )
        cache += shape.num_bytes
        weights = cast(Any, SimpleNamespace(dtype=dtype, device=META))
        buffers += Buffers(
            model.config, room, weights, block_size=pool.block_size, vocab_size=model.vocab_size
        ).num_bytes
    parts[f"{pool.num_tokens} tokens of KV cache"] = cache
    state = DeviceState(sizes.state, META)
    parts["logits and state"] = state.num_bytes + Shaping(state).num_bytes
    if any(model.name == "target" for model in models):
        parts["logits and state"] += ToldRing(state).num_bytes
    if eager:
        parts["log-probabilities"] = DeviceLogprobs(state).num_bytes
    parts["activations"] = buffers
    parts["kernels and graphs (a guess)"] = ALLOWANCE
    return parts


def check_gpu_memory(
    gpu: Gpu, parts: Mapping[str, int], *, max_memory: int | None, remedies: Sequence[str]
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
