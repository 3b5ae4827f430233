"""A pair on one device: its state, its steps, and the calls of a round one by one, for loops of your own.

    start(requests)    fills the slots; the only call that waits for the device
    prefill()          both models read the prompts
    verify()           the first token, round 0
    draft(); score(); verify()                     one round of `sd`, which judges the window
    score(window=False) beside draft(); verify()   one round of `pearl`, which judges what was pending
    score(); verify()                              one round of `ar`: gamma is 0
    read(round, slot)  what a round committed, from the ring

Every call but `start` and `read` only launches kernels on the current stream: it allocates nothing, reads
nothing back, and can be captured. Calls out of order are refused on the host. Knows models and sizes; not
programs, lanes or text. On "cpu" kernels run in Triton's interpreter.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from pearl_rt.checkpoint.compatibility import check_view, check_vocabularies, max_length
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.shapes import WEIGHT_BITS
from pearl_rt.checkpoint.source import load_pair, pair_sources
from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.checkpoint.views.eagle3 import Eagle3Config
from pearl_rt.checkpoint.views.exit_layer import ExitConfig
from pearl_rt.device.gpu import wait_for
from pearl_rt.device.kv_pool import KvPool
from pearl_rt.device.model import (
    PREFILL_CHUNKS,
    DeviceModel,
    device_of,
    prepare_kernels,
)
from pearl_rt.device.state import RoundRow
from pearl_rt.errors import ConfigError, DeviceError, RequestError
from pearl_rt.lowlevel.call_order import CallOrder
from pearl_rt.state import State
from pearl_rt.strategy.program import JUDGES, MAX_GAMMA
from pearl_rt.types.request import Request, check_plain, check_stop_ids, prompt_ids
from pearl_rt.types.sampling_params import SamplingParams
from pearl_rt.types.values import Integer, choice

if TYPE_CHECKING:
    from pearl_rt.device.steps import DraftSteps, TargetSteps


class DevicePair:
    """Owner of the state and of both lanes' steps, with one KV cache and one set of buffers for each lane.

    state          DeviceState: the struct of arrays, at fixed addresses (`tensors` for the window in use)
    pool           KvPool: the pages of the KV caches, which start() gives out
    target_steps   TargetSteps; draft_steps: DraftSteps or None

    Not for use from several threads at once. All memory is had here, none later.
    """

    def __init__(self, target_steps: "TargetSteps", draft_steps: "DraftSteps | None" = None) -> None:
        """Over the steps of both lanes, which share one state. See also of_models and from_pretrained."""
        self.target_steps, self.draft_steps = target_steps, draft_steps
        self.state = target_steps.state
        if draft_steps is not None and draft_steps.state is not self.state:
            raise ConfigError("the lanes of a pair share one state: two devices have one each")
        self.config = target_steps.model.config
        self.device = target_steps.model.weights.device
        lanes = [steps for steps in (target_steps, draft_steps) if steps is not None]
        sizes, num_blocks = self.state.sizes, min(s.model.kv_cache.shape.num_blocks for s in lanes)
        self.pool = KvPool(sizes.block_size, num_blocks, sizes.capacity)
        self.claims = 0  # how often the slots were claimed: see claim()
        self._order = CallOrder()
        self._prompt_lens: list[int] = []
        self._judge = JUDGES[0]
        self._keep_logits = False
        self._gamma = 0

    @classmethod
    def of_models(
        cls,
        target: DeviceModel,
        draft: DeviceModel | None,
        *,
        max_model_len: int,
        num_slots: int = 1,
        gamma_max: int = MAX_GAMMA,
        prefill_chunk: int | None = None,
        block_size: int = 16,
        num_blocks: int | None = None,
        attention_backend: str = "triton",
        max_stop_ids: int = 32,
        ring_size: int = 64,
    ) -> "DevicePair":
        """From packed models on one device, which may be shared with other pairs.

        max_model_len      tokens of prompt and answer
        num_slots          sequences at a time
        gamma_max          the longest window, 0 to 16
        prefill_chunk      prompt tokens of one pass; None: 256 on a GPU, 16 in the interpreter
        block_size         positions of a page of the KV caches: a multiple of 16
        num_blocks         pages of each; None: enough for every slot at its longest
        attention_backend  "triton", "flash-attn" or "sdpa", of which the last cannot be captured
        max_stop_ids       EOS and stop ids of a request
        ring_size          rounds of results that may wait for read()

        Raises ConfigError for sizes that cannot be, ResourceError where memory is short.
        """
        device = target.weights.device
        if draft is not None and draft.weights.device != device:
            raise ConfigError(
                f"the target is on {device}, the draft on {draft.weights.device}: pack them on one"
            )
        prepare_kernels(device)
        from pearl_rt.device.pair_sizes import PairSizes
        from pearl_rt.device.steps import DraftSteps, TargetSteps

        chunk = PREFILL_CHUNKS[device.type] if prefill_chunk is None else prefill_chunk
        Integer(0, MAX_GAMMA)("gamma_max", gamma_max, ConfigError)
        positive = {"num_slots": num_slots, "max_stop_ids": max_stop_ids, "ring_size": ring_size}
        for name, size in {**positive, "prefill_chunk": chunk}.items():
            Integer(1)(name, size, ConfigError)
        pool = KvPool.of(None, num_slots=num_slots, max_model_len=max_model_len, block_size=block_size)
        sizes = PairSizes.of(
            target.config,
            draft.config if draft is not None else None,
            pool if num_blocks is None else replace(pool, num_blocks=num_blocks),
            num_slots=num_slots,
            prefill_chunk=chunk,
            gamma_max=gamma_max,
            max_stop_ids=max_stop_ids,
            ring_size=ring_size,
        )
        target_steps = sizes.steps(TargetSteps, target, attention_backend=attention_backend)
        if draft is None:
            return cls(target_steps)
        shared = target_steps.state
        draft_steps = sizes.steps(DraftSteps, draft, shared, attention_backend=attention_backend)
        return cls(target_steps, draft_steps)

    @classmethod
    def from_tensors(
        cls,
        target_config: ModelConfig,
        target_tensors: Mapping[str, torch.Tensor],
        draft_config: ModelConfig | ExitConfig | None = None,
        draft_tensors: Mapping[str, torch.Tensor] | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        weights: str = "auto",
        draft_weights: str = "auto",
        skip_layers: Sequence[int] | None = None,
        max_model_len: int | None = None,
        **sizes: Any,
    ) -> "DevicePair":
        """From tensors by their Hugging Face names, which may be dropped afterwards.

        device    "auto" (a GPU if there is one, else "cpu"), "cuda", "cuda:N", or "cpu", interpreted
        dtype     "auto": each checkpoint's own, and float32 on "cpu"
        weights, draft_weights   "int8", "int4": what wider matrices are rounded to; "auto": none is
        skip_layers   the target drafts for itself without these layers; None: the draft that is given, if any
        sizes     those of of_models; max_model_len None: as an engine chooses it

        Raises ConfigError, or ResourceError for what this machine has not got.
        """
        where = device_of(device)
        for name, value in (("weights", weights), ("draft_weights", draft_weights)):
            choice(name, value, tuple(WEIGHT_BITS), ConfigError)
        given = target_config, target_tensors, draft_config, draft_tensors
        sources = pair_sources(
            *given,
            dtype=dtype,
            weights=weights,
            draft_weights=draft_weights,
            drafter="auto" if skip_layers is None else "self",
            skip_layers=skip_layers,
        )
        if sources[-1].shared is not None:
            check_view(sources[-1])
        elif isinstance(draft_config, ModelConfig):
            check_vocabularies(target_config, draft_config)
        length = max_length(max_model_len, [source.config for source in sources])
        target = DeviceModel.of_source(sources[0], where)
        drafts = [
            DeviceModel.of_source(source, where) if source.shared is None else target.view(source)
            for source in sources[1:]
        ]
        return cls.of_models(target, drafts[0] if drafts else None, max_model_len=length, **sizes)

    @classmethod
    def from_pretrained(
        cls,
        target: str | os.PathLike[str],
        draft: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> "DevicePair":
        """From checkpoint directories in the Hugging Face layout; options and errors as in from_tensors."""
        target_config, target_tensors, draft_config, draft_tensors = load_pair(target, draft)
        if isinstance(draft_config, Eagle3Config):
            raise ConfigError(
                f"{draft} is an EAGLE-3 head, which drafts for an Engine only so far: use one, or take a "
                "draft model"
            )
        if draft is not None and isinstance(draft_config, ModelConfig):
            Tokenizer.from_pretrained(target).check_draft(Tokenizer.from_pretrained(draft))
        return cls.from_tensors(target_config, target_tensors, draft_config, draft_tensors, **options)

    @property
    def has_draft(self) -> bool:
        return self.draft_steps is not None

    @property
    def gamma(self) -> int:
        """The window of the requests that run: the longest that one of them asks for."""
        return self._gamma

    @property
    def tensors(self) -> State:
        """The struct of arrays for the window in use (pearl_rt/state.py): views, at fixed addresses."""
        return self.state.windowed(self._gamma)

    def on_device(self) -> AbstractContextManager[object]:
        """Makes this pair's device the current one, where there are several."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def claim(self) -> int:
        """Called before the state is written by other means than start(): voids earlier plans and calls."""
        self.claims += 1
        self._order = CallOrder()
        return self.claims

    def start(
        self,
        requests: Sequence[Request],
        judge: str = "rejection",
        *,
        gamma: int | None = None,
        keep_logits: bool | None = None,
    ) -> None:
        """Request i takes slot i; the other slots are idle, and rounds leave them as they are.

        judge        "rejection" or "coupled", for temperatures > 0
        gamma        the window that launches are made for; None: the longest that a request asks for
        keep_logits  whether draft() keeps its logits; None: if a request needs that, with "rejection" at
                     temperature > 0

        No requests: nothing but launches, to warm up or to capture. Waits for the device, so that it cannot
        be captured itself. Raises RequestError, before anything is touched, for what does not fit.
        """
        choice("judge", judge, JUDGES)
        if len(requests) > self.state.sizes.num_slots:
            raise RequestError(
                f"{len(requests)} requests, this pair has {self.state.sizes.num_slots} slots: pass fewer, or "
                "build it with more num_slots"
            )
        for request in requests:
            self._check(request)
        self.pool.check_together(requests)
        longest = max((request.gamma for request in requests), default=0)
        window = longest if gamma is None else gamma
        self.check_gamma(window)
        if window < longest:
            raise RequestError(f"gamma {window} is less than the {longest} that a request asks for")
        is_sampled = any(request.temperature > 0 for request in requests)
        needed = window > 0 and judge == "rejection" and is_sampled
        if needed and keep_logits is False:
            raise RequestError("a request at temperature > 0 needs keep_logits=True with judge 'rejection'")
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RequestError("start() waits for the device, which a capture cannot: call it before")
        self.claim()
        self._judge, self._gamma = judge, window
        self._keep_logits = needed if keep_logits is None else keep_logits
        self._prompt_lens = [len(request.prompt_ids) for request in requests]
        with self.on_device():
            if self.device.type == "cuda":
                wait_for(self.device)  # what runs may still write to the ring
            self.state.give_pages([self.pool.blocks_for(request) for request in requests])
            self.state.start(list(requests))
        self._order.started(window)

    def prefill(self, lane: str | None = None) -> None:
        """Feeds the prompts: to both models, or to lane "target" or "draft". Once for each request."""
        lanes = [choice("lane", lane, ("target", "draft"))] if lane is not None else ["target"]
        if lane is None and self._gamma > 0:
            lanes.append("draft")
        if lane == "draft" and self.draft_steps is None:
            raise RequestError("there is no draft to prefill: build the pair with one")
        for name in lanes:
            self._order.prefill(name)
        with self.on_device():
            for slot, length in enumerate(self._prompt_lens):
                if "target" in lanes:
                    self.target_steps.prefill(slot, length, self._gamma)
                if "draft" in lanes and self.draft_steps is not None:
                    self.draft_steps.prefill(slot, length)

    def draft(self) -> None:
        """Drafts the next window of every running slot."""
        self._order.draft()
        assert self.draft_steps is not None
        with self.on_device():
            self.draft_steps.draft(self._gamma, self._judge, self._keep_logits)

    def score(self, window: bool | None = None) -> None:
        """The target's logits of the tokens that verify() will judge.

        window: True (None: if gamma > 0) feeds the new window too, behind draft(), and all of it is judged;
        False feeds what was pending, and may run beside draft(). One way for all rounds of a request.
        """
        window = self._gamma > 0 if window is None else window
        self._order.score(window)
        with self.on_device():
            self.target_steps.score(self._gamma, include_window=window)

    def verify(self) -> None:
        """Judges what was scored and commits it to the state and the ring; at first, the first token."""
        self._order.verify()
        with self.on_device():
            self.target_steps.verify(self._gamma, self._judge)

    def read(self, round: int, slot: int = 0) -> RoundRow | None:
        """Round `round` of a slot, 0 the first token; None if it is not there: not yet, or not any more.

        The ring keeps the last `ring_size` rounds. On a GPU it is pinned memory: nothing is waited for.
        """
        Integer(0, self.state.sizes.num_slots - 1)("slot", slot)
        return self.state.read(self._gamma, round, slot)

    def wait(self, round: int, slot: int = 0) -> RoundRow:
        """read(), once it is there: spins while the current stream is at work. Raises RequestError if it is
        not there then, DeviceError if the GPU fails.
        """
        while (row := self.read(round, slot)) is None:
            if self._is_idle():
                row = self.read(round, slot)
                break
        if row is None:
            raise RequestError(
                f"round {round} of slot {slot} is not in the ring: it was not launched on this stream, its "
                f"answer ended before, or {self.state.sizes.ring_size} rounds more were launched since"
            )
        return row

    def check_gamma(self, gamma: int) -> None:
        """Raises RequestError for a window that this pair has no room for."""
        most = self.state.sizes.gamma_max if self.has_draft else 0
        way_out = f"0 to {most}, or build the pair with a larger gamma_max"
        way_out = way_out if self.has_draft else "0, or build the pair with a draft"
        Integer(0, most, words=way_out)("gamma", gamma)

    def _is_idle(self) -> bool:
        if self.device.type == "cpu":
            return True
        try:
            return torch.cuda.current_stream(self.device).query()
        except RuntimeError as error:
            raise DeviceError(
                f"the GPU failed: {error}", call="cudaStreamQuery", text=str(error), place="in wait()"
            ) from error

    def _check(self, request: Request) -> None:
        prompt_ids(list(request.prompt_ids), None, self.config.vocab_size, self.state.sizes.capacity)
        SamplingParams(
            temperature=request.temperature,
            max_tokens=request.max_tokens,
            seed=request.seed,
            stop_token_ids=tuple(request.stop_ids),
        )
        self.check_gamma(request.gamma)
        check_stop_ids(request, self.state.sizes.max_stop_ids)
        check_plain(request)
