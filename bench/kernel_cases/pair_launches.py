"""What the steps of a small pair launch, on tensors without memory: kernels as Triton specialises them on a
GPU.

An integer argument that is 1 is a constant to the compiler there, and one that 16 divides is known to be so.
Neither a GPU nor memory for the tensors is needed. A process that has launched so launches nothing else: the
stand-ins for Triton's driver and for a launch stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.shapes import tensor_shapes
from pearl_rt.device.logits_processors import LogitsProcessors
from pearl_rt.device.logprob_ring import LogprobRing
from pearl_rt.device.state import DeviceState, StateSizes
from pearl_rt.device.steps import DraftSteps, TargetSteps
from pearl_rt.kernels.base import checks
from pearl_rt.model.llama import Llama, LlamaWeights, Sizes

META, DTYPE = torch.device("meta"), torch.bfloat16
TARGET = GPUTarget("cuda", 90, 32)
CAPACITY = 512  # tokens of a sequence


class StandIn:
    """Triton's driver, as far as a launch asks it before it compiles."""

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@dataclass(frozen=True)
class Variant:
    """A kernel, and all that the compiler is told of it."""

    name: str
    kernel: JITFunction
    told: dict[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        names = ("num_warps", "num_stages", "enable_fp_fusion", "launch_pdl")
        return {name: self.told[name] for name in names if name in self.told}

    @property
    def source(self) -> ASTSource:
        return ASTSource(self.kernel, self.told["signature"], self.told["constants"], self.told["configs"][0])


class Launches:
    """What was launched so far: how often, and each variant once."""

    def __init__(self) -> None:
        self.count = 0
        self.variants: dict[tuple[str, str], Variant] = {}
        self.dependent: set[tuple[str, bool, bool]] = set()  # kernel, its constant PDL, its option launch_pdl

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Launches inside are recorded here and go no further."""
        run = JITFunction.run

        def launch(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
            self.count += 1
            self.dependent.add((kernel.__name__, options["PDL"], options.get("launch_pdl", False)))
            run(kernel, *arguments, grid=grid, warmup=True, **options)

        def recorded(*, key: str, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
            name = fn.name.rpartition(".")[2]
            self.variants.setdefault((name, str(key)), Variant(name, fn.jit_function, compile))
            return True  # Triton compiles nothing

        triton.runtime.driver.set_active(StandIn())
        triton.knobs.runtime.jit_cache_hook = recorded
        with (
            patch.object(JITFunction, "run", launch),
            patch.object(checks, "runs_kernels", lambda device: True),
        ):
            yield


class PairLaunches:
    """The steps of a bf16 pair of one layer each, and of a draft that fills a window in one pass."""

    def __init__(self, vocab: int, gamma_max: int, pdl: bool = False) -> None:
        self.launches, self.pdl = Launches(), pdl
        with self.launches.taken():
            state = DeviceState(StateSizes(1, gamma_max + 1, CAPACITY, vocab, vocab), META)
            sizes = Sizes(gamma_max + 2, 256, gamma_max + 2, 1, CAPACITY)
            self.target = TargetSteps(self._model(vocab, sizes, 256, 4, 1), state)
            self.draft = DraftSteps(self._model(vocab, sizes, 192, 3, 3), state)
            at_once = replace(sizes, step_tokens=2 * gamma_max)
            self.parallel = DraftSteps(self._model(vocab, at_once, 192, 3, 3, pard_token=0), state)
            self.processors = LogitsProcessors(state, captured=True, pdl=pdl)
            self.ring = LogprobRing(state, pdl)

    def _model(
        self,
        vocab: int,
        sizes: Sizes,
        hidden: int,
        heads: int,
        kv_heads: int,
        pard_token: int | None = None,
    ) -> Llama:
        config = ModelConfig(
            model_type="llama",
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=1,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=hidden // heads,
            max_position_embeddings=CAPACITY,
            torch_dtype="bfloat16",
            pard_token=pard_token,
        )
        shapes = tensor_shapes(config).items()
        tensors = {name: torch.empty(shape, dtype=DTYPE, device=META) for name, shape in shapes}
        weights = LlamaWeights.pack(config, tensors, dtype=DTYPE, device=META)
        return Llama(config, weights, sizes, vocab_size=vocab, pdl=self.pdl)

    def prefill(self, gamma: int) -> None:
        """A chunk of a prompt in both models, and the row of its last token."""
        with self.launches.taken():
            self.target.prefill_chunk()
            self.draft.prefill_chunk()
            self.target.prefill_logits(gamma, 0)

    def rounds(self, gamma: int, judges: Sequence[str], processed: Sequence[bool]) -> None:
        """A round of each program: gamma 0 is `ar`, the others `sd` and `pearl`.

        processed: with or without logits processors.
        """
        with self.launches.taken():
            self.target.score(gamma, include_window=False)
            self.target.score(gamma, include_window=gamma > 0)
            for judge in judges:
                for processors in (self.processors if asked else None for asked in processed):
                    self.target.verify(gamma, judge, processors)
                    self.target.verify(gamma, judge, processors, joining=True)
                    if gamma:
                        for steps in (self.draft, self.parallel):
                            steps.draft(gamma, judge, judge == "rejection", processors)

    def publish(self, gamma: int) -> None:
        """The log-probabilities of a round."""
        with self.launches.taken():
            self.ring.publish(gamma, keeps=True)
