"""Where a pair runs: cores and memory, packed weights, and the native lanes of each placement with their step
times.

Knows core sets and executors; not prompts, text, or which program is wanted. A placement is

  shared   both lanes on all cores, taking turns
  split    disjoint cores, so that draft and target are two devices: one core for the draft, the rest for the
           target
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

import pearl_rt._C as _C
from pearl_rt.backends.base import Backend, Lanes, PackedModel
from pearl_rt.backends.cpu_lanes import TOO_FEW_CORES, CpuLanes
from pearl_rt.backends.cpu_quota import cpu_quota
from pearl_rt.checkpoint.compatibility import own_dtype
from pearl_rt.checkpoint.config import SIZES, ModelConfig
from pearl_rt.checkpoint.loader import loading_bar
from pearl_rt.checkpoint.rope import rope_tables
from pearl_rt.checkpoint.shapes import ITEM_BYTES, WEIGHT_BITS, weight_bytes
from pearl_rt.checkpoint.source import ModelSource
from pearl_rt.checkpoint.stored_tensors import BlockPlace, Place, StoredTensors
from pearl_rt.checkpoint.views.draft_ids import DraftIds
from pearl_rt.checkpoint.views.eagle3 import Head
from pearl_rt.device.kv_pool import KvPool
from pearl_rt.errors import ConfigError, PearlError, ResourceError, gib
from pearl_rt.reference.groups import Groups
from pearl_rt.strategy.engine_options import MODEL_DRAFTERS
from pearl_rt.strategy.program import CORE_PLACEMENTS, MAX_GAMMA
from pearl_rt.strategy.program_choice import Capabilities
from pearl_rt.types.json import Json
from pearl_rt.types.values import choice

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

Held: TypeAlias = tuple[object, str, list[int]] | tuple[object, object, object | None, int, int, list[int]]
Made: TypeAlias = tuple[Callable[[], Held], list[int], tuple[int, int, bool] | None]
Source: TypeAlias = Place | BlockPlace | Held | Made
DTYPES = ("auto", "bfloat16", "float32")


@contextmanager
def native_errors() -> Iterator[None]:
    """What the executor refuses, as our errors: memory that cannot be had, sizes that do not fit."""
    try:
        yield
    except MemoryError as error:
        raise ResourceError(f"{error}: lower max_model_len, or take smaller models") from None
    except PearlError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None


@dataclass(frozen=True)
class Model:
    """A model ready to run: packed weights, shared by the executors of all placements, and rotary tables."""

    config: ModelConfig
    dtype: str
    weights: _C.LlamaWeights
    cos: "torch.Tensor"  # [max_model_len, head_dim / 2] fp32
    sin: "torch.Tensor"  # [max_model_len, head_dim / 2] fp32
    head: Head | None = None  # what is fed taps
    ids: DraftIds | None = None  # of a draft whose ids are not its target's

    @classmethod
    def pack(
        cls,
        config: ModelConfig,
        tensors: "Mapping[str, torch.Tensor | Groups]",
        *,
        dtype: str,
        isa: str | None,
        max_model_len: int,
        name: str = "model",
        weights: str = "auto",
    ) -> "Model":
        """Packs `tensors` (HF names) once; they may be dropped afterwards. `name` labels the progress bar.
        weights: what wider matrices are rounded to.
        """
        views: Mapping[str, Source]
        if isinstance(tensors, StoredTensors):
            views = sources_of(tensors, dtype)
        else:
            views = {key: view_of(tensor) for key, tensor in tensors.items()}
        size = weight_bytes(config, dtype, weights)
        with native_errors(), loading_bar(f"packing the {name}", size) as advance:
            packed = _C.LlamaWeights(
                native_config(config),
                views,
                dtype,
                isa,
                lambda _, layers: advance(size // layers),
                bits=WEIGHT_BITS[weights],
            )
        if isinstance(tensors, StoredTensors):
            tensors.check_unchanged()
        cos, sin = rope_tables(config, max_model_len)
        return cls(config, dtype, packed, cos.contiguous(), sin.contiguous())

    def view(
        self,
        config: ModelConfig,
        layers: Sequence[int],
        tensors: "Mapping[str, torch.Tensor]" = MappingProxyType({}),
        *,
        max_model_len: int,
        weights: str = "auto",
    ) -> "Model":
        """A model of these layers of this one, which are not copied, and behind them those of `tensors`."""
        with native_errors():
            packed = self.weights.view(
                list(layers),
                num_own=config.num_hidden_layers - len(layers),
                intermediate_size=config.intermediate_size,
                tensors={key: view_of(tensor) for key, tensor in tensors.items()},
                bits=WEIGHT_BITS[weights],
            )
        cos, sin = (table[:max_model_len].contiguous() for table in (self.cos, self.sin))
        return Model(config, self.dtype, packed, cos, sin)

    def with_head(self, model: ModelSource, head: Head, *, max_model_len: int) -> "Model":
        """A head that is fed what this model computes, and has its embedding where it has none."""
        with native_errors():
            packed = self.weights.head(
                native_config(model.config) | head.native(),
                {key: view_of(tensor) for key, tensor in model.tensors.items()},
                bits=WEIGHT_BITS[model.weights],
            )
        cos, sin = rope_tables(model.config, max_model_len)
        return Model(model.config, self.dtype, packed, cos.contiguous(), sin.contiguous(), head)

    def executor(
        self,
        cores: Sequence[int] | _C.CoreSet,
        num_slots: int = 1,
        pool: KvPool | None = None,
        taps: Sequence[int] = (),
        candidates: int = 1,
    ) -> _C.LlamaExecutor:
        """An executor with a KV cache of its own on these cores.
        pool: the blocks of the cache; None: every slot has its own. taps: layers whose inputs a head reads.
        candidates: windows of a sequence, which have slots, and with a pool blocks too.

        Executors that take turns on the same cores share one CoreSet: the helpers of two would poll against
        each other, and `sd` take twice as long (measured on two cores).
        """
        core_set = cores if isinstance(cores, _C.CoreSet) else _C.CoreSet(list(cores))
        length = self.cos.shape[0]
        with native_errors():
            return _C.LlamaExecutor(
                self.weights,
                core_set,
                num_slots * candidates,
                length,
                self.cos.numpy(),
                self.sin.numpy(),
                num_blocks=None
                if pool is None
                else pool.num_blocks + pool.branch_blocks(num_slots, candidates),
                block_size=None if pool is None else pool.block_size,
                tap_layers=list(taps),
            )


def sources_of(tensors: StoredTensors, dtype: str) -> dict[str, Source]:
    """Tensors of files as _C takes them: where they lie, if it can read them there; else a function each that
    computes one, which is called when its turn comes. In float32 codes become the values of the file.
    """
    places = tensors.places(keeps_codes=dtype != "float32")
    return {key: places.get(key) or made(tensors, key, dtype) for key in tensors}


def made(tensors: StoredTensors, key: str, dtype: str) -> Made:
    """A tensor that native code cannot read as it lies: as codes; in float32, and for what no packed form
    holds, as values.
    """
    import torch

    form = None if dtype == "float32" else tensors.form(key)

    def make() -> Held:
        if form is None:
            return view_of(tensors.read(key, getattr(torch, dtype)))
        groups = tensors.groups(key)
        assert groups is not None, f"{key} has {form}, and no codes"
        return view_of(groups)

    codes = None if form is None else (form.bits, form.group, form.has_minimums)
    return make, list(tensors.shape(key)), codes


def bytes_of(tensor: "torch.Tensor") -> "npt.NDArray[np.uint8]":
    """The memory of a contiguous tensor on the host, of whatever dtype, as _C takes it."""
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy()


def view_of(tensor: "torch.Tensor | Groups") -> Held:
    """A tensor in memory as _C takes it."""
    if isinstance(tensor, Groups):
        codes, scales, minimums = (
            None if part is None else np.ascontiguousarray(part)
            for part in (tensor.codes, tensor.scales, tensor.minimums)
        )
        return codes, scales, minimums, tensor.bits, tensor.group, list(tensor.shape)
    held = tensor.detach().cpu().contiguous()
    return bytes_of(held), str(held.dtype).removeprefix("torch."), list(held.shape)


def native_config(config: ModelConfig) -> dict[str, object]:
    """The part of a configuration that the executor reads."""
    biases = ("attention_bias", "output_bias", "mlp_bias")
    names = (*SIZES, "rms_norm_eps", *biases, "qk_norm", "tie_word_embeddings")
    return {name: getattr(config, name) for name in names}


def choose_cores(num_threads: int | None) -> list[int]:
    """The first `num_threads` cores that this process may use; None: all, or as many as a container has the
    time of. Raises ResourceError if there are fewer.
    """
    cores = sorted(os.sched_getaffinity(0))
    if num_threads is None:
        quota = cpu_quota()
        return cores if quota is None else cores[: max(1, math.ceil(quota))]
    if num_threads > len(cores):
        raise ResourceError(
            f"num_threads {num_threads} asked for, but this process may use {len(cores)} cores: "
            f"pass num_threads={len(cores)} or less"
        )
    return cores[:num_threads]


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping: MemAvailable, or less where a cgroup allows less. None:
    unknown.
    """
    available: int | None = _C.available_bytes()
    return available


def kv_bytes(config: ModelConfig, dtype: str, num_tokens: int) -> int:
    """Bytes of so many tokens' keys and values."""
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return per_token * num_tokens * ITEM_BYTES[dtype]


class CpuBackend(Backend):
    """What an engine asks of device="cpu": models packed for an instruction set, and lanes on cores."""

    block_size = None

    def __init__(
        self,
        num_threads: int | None,
        isa: str | None,
        num_slots: int = 1,
        kv_cache_tokens: int | None = None,
        lookup_tokens: int | None = None,
        looks_up_for_all: bool = True,
        stop: str = "none",
        candidates: int = 1,
        *,
        prefix_caching: bool = False,
    ) -> None:
        """num_threads: cores to use; None: all. isa: None, or one that this machine has. lookup_tokens,
        looks_up_for_all, stop, candidates: see CpuLanes. The others: see Backend.
        """
        super().__init__(num_slots, kv_cache_tokens, prefix_caching=prefix_caching)
        self._drafting = lookup_tokens, looks_up_for_all, stop, candidates
        self._looks_up = lookup_tokens is not None
        self._candidates = candidates
        if isa is not None:
            choice("isa", isa, _C.available_isas(), ConfigError)
        self.cores = choose_cores(num_threads)
        self.isa = isa or str(_C.detect_isa())

    def capabilities(self, drafter: str) -> Capabilities:
        """Both placements, if there are cores for two devices."""
        splits = len(self.cores) > 1
        return Capabilities(
            drafter,
            CORE_PLACEMENTS if splits else ("shared",),
            {} if splits else {"split": TOO_FEW_CORES.format(len(self.cores))},
            scores_prompts=True,
            masks_tokens=self._candidates == 1,
            outlives_draft=True,
            ends_windows=True,
            translates_ids=True,
            looks_up=self._looks_up and drafter in MODEL_DRAFTERS,
            candidates=self._candidates,
        )

    def dtype(self, model: ModelSource) -> str:
        """Raises ConfigError for what the executor does not compute in."""
        dtype = choice("dtype", model.dtype, DTYPES, ConfigError)
        return own_dtype(None if model.is_view else model.name, dtype, model.config)

    def check_memory(self, models: Sequence[ModelSource], pool: KvPool, *, num_placements: int) -> None:
        """Every placement has its own KV caches, of the pool's blocks, and logits."""
        available = available_memory()
        weights = {model.name: model.num_bytes(keeps_codes=model.dtype != "float32") for model in models}
        beside = pool.branch_blocks(self.num_slots, self._candidates)
        tokens = pool.num_tokens + beside * pool.block_size
        kept = sum(kv_bytes(model.config, model.dtype, tokens) for model in models)
        widest = max(model.config.vocab_size for model in models)
        caches = num_placements * kept
        logits = num_placements * self.num_slots * self._candidates * (3 * MAX_GAMMA + 1) * 4 * widest
        heads = [model.head for model in models if model.head is not None]
        taps = num_placements * sum(head.num_bytes(self.num_slots) for head in heads)
        needed = sum(weights.values()) + caches + logits + taps
        if available is None or needed <= available:
            return
        parts = [f"{gib(size)} for the {name}'s weights" for name, size in weights.items()]
        parts.append(f"{gib(caches)} for {tokens} tokens of KV cache")
        parts += [f"{gib(taps)} for what the head reads"] if heads else []
        remedies = "lower max_model_len"
        if self.num_slots > 1:
            remedies = "lower max_num_seqs, max_model_len or kv_cache_tokens"
        if any(model.dtype == "float32" for model in models):
            remedies += ", pass dtype='bfloat16'"
        if any(model.weights == "auto" for model in models):
            remedies += ", pass weights='int8' or 'int4'"
        if num_placements > 1:
            remedies += ", fix the placement so that only one is built"
        raise ResourceError(
            f"not enough memory: {gib(needed)} needed ({', '.join(parts)}), {gib(available)} available: "
            f"{remedies}, or take smaller models"
        )

    def pack(self, model: ModelSource, max_model_len: int) -> Model:
        """Weights as the executor reads them."""
        return Model.pack(
            model.config,
            model.tensors,
            name=model.name,
            dtype=model.dtype,
            isa=self.isa,
            max_model_len=max_model_len,
            weights=model.weights,
        )

    def pack_beside(self, model: ModelSource, max_model_len: int, target: PackedModel) -> Model:
        """A model of its own, a view of the target, or a head."""
        if not model.is_view:
            return replace(self.pack(model, max_model_len), ids=model.ids)
        assert isinstance(target, Model)
        if model.head is not None:
            return target.with_head(model, model.head, max_model_len=max_model_len)
        assert model.shared is not None
        view = target.view(
            model.config, model.shared, model.tensors, max_model_len=max_model_len, weights=model.weights
        )
        return replace(view, ids=model.ids)

    def lanes(self, placement: str, target: PackedModel, draft: PackedModel | None, pool: KvPool) -> CpuLanes:
        """Lanes on these cores."""
        assert isinstance(target, Model) and isinstance(draft, Model | None)
        return CpuLanes(placement, self.cores, target, draft, self.num_slots, pool, *self._drafting)

    def devices(self) -> dict[str, str]:
        """Both on the CPU."""
        return {"target": "cpu", "draft": "cpu"}

    def described(self, lanes: Mapping[str, Lanes], pool: KvPool) -> Json:
        """With the cores of each lane, and the instruction set."""
        cores = {
            name: {"target": own.target_cores, "draft": own.draft_cores if own.has_draft else []}
            for name, own in lanes.items()
            if isinstance(own, CpuLanes)
        }
        return super().described(lanes, pool) | {"cores": cores, "isa": self.isa}
