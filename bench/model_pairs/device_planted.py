"""Planted pairs whose weights are made on the device that will run them: nothing of their size passes through
the host, and another agreement costs a rewrite of two matrices a layer.

How agreement is planted and checked is said in pairs.py; the numbers come from the device's own generator
here, so that a pair is not the same bits as on the host. Knows no engine and no speed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bench.model_pairs.planted import (
    DRAFT_HEAD_SCALE,
    TARGET_RATIO,
    PairSpec,
    Planting,
    Source,
    Tensors,
    calibrate,
    first_noise,
    make_config,
    noise_of_ratio,
    planted_tensor,
    planting,
    successor_cycle,
    target_head_scale,
)
from bench.model_pairs.shapes import Shape, shape_named
from bench.model_pairs.weight_views import torch_model
from pearl_rt.config import ModelConfig
from pearl_rt.errors import ResourceError
from pearl_rt.models.shapes import tensor_shapes

TEXTS_AT_ONCE = 4  # of a forward over whole logits
FLOPS = 4e13  # of one scoring: a second on the slowest of these devices
RESERVE = 4 << 30  # bytes for the CUDA context, graphs, a compiled peer


class DeviceSource:
    """Normal numbers of a torch generator on a device; a name's are the same whatever was made before."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.device = seed, device

    def cut(self, name: str, shape: tuple[int, ...], scale: float) -> torch.Tensor:
        """See pairs.Source."""
        seed = zlib.crc32(f"{self.seed} {name}".encode())  # 32 bits: a CPU's generator takes no more
        generator = torch.Generator(self.device).manual_seed(seed)
        values = torch.randn(shape, generator=generator, device=self.device, dtype=torch.bfloat16)
        return values.mul_(scale)


class LazyTensors(Mapping[str, torch.Tensor]):
    """All tensors of a planted model, each made when it is asked for: one exists at a time, beside its packed
    copy.
    """

    def __init__(
        self,
        config: ModelConfig,
        successor: np.ndarray,
        noise_norm: float,
        head_scale: float,
        source: Source,
    ) -> None:
        self.config, self.source = config, source
        self.successor, self.noise_norm, self.head_scale = successor, noise_norm, head_scale

    def __getitem__(self, name: str) -> torch.Tensor:
        return planted_tensor(
            name, self.config, self.successor, self.noise_norm, self.head_scale, self.source
        )

    def __iter__(self) -> Iterator[str]:
        return iter(tensor_shapes(self.config))

    def __len__(self) -> int:
        return len(tensor_shapes(self.config))


class TorchPredict:
    """Greedy next ids by plain torch over the tensors' own memory: pairs.Predict."""

    def __call__(self, config: ModelConfig, tensors: Tensors, sequences: list[list[int]]) -> list[np.ndarray]:
        model = torch_model(config, dict(tensors))
        device = tensors["model.embed_tokens.weight"].device
        found: list[np.ndarray] = []
        with torch.inference_mode():
            for start in range(0, len(sequences), TEXTS_AT_ONCE):
                ids = torch.tensor(sequences[start : start + TEXTS_AT_ONCE], device=device)
                found += list(model(ids).argmax(-1).cpu().numpy())
        return found


@dataclass(frozen=True)
class DevicePlan:
    """Two models of a planted pair, before they exist."""

    target_shape: str
    draft_shape: str
    seed: int
    device: torch.device

    @property
    def target_config(self) -> ModelConfig:
        return make_config(shape_named(self.target_shape), self.vocab_size)

    @property
    def draft_config(self) -> ModelConfig:
        return make_config(shape_named(self.draft_shape), self.vocab_size)

    @property
    def vocab_size(self) -> int:
        return shape_named(self.target_shape).vocab_size

    @property
    def successor(self) -> np.ndarray:
        return successor_cycle(self.vocab_size, self.seed)

    @property
    def draft_source(self) -> DeviceSource:
        return DeviceSource(2 * self.seed + 2, self.device)

    def target_tensors(self, ratio: float = TARGET_RATIO) -> LazyTensors:
        """The target that every pair with this shape and seed shares. ratio: r of pairs.py."""
        config = self.target_config
        noise = noise_of_ratio(ratio, config.hidden_size)
        scale = target_head_scale(self.vocab_size)
        source = DeviceSource(2 * self.seed + 1, self.device)
        return LazyTensors(config, self.successor, noise, scale, source)

    def draft_tensors(self, alpha: float) -> LazyTensors:
        """The draft before its calibration."""
        config, noise = self.draft_config, first_noise(self.draft_config, alpha)
        return LazyTensors(config, self.successor, noise, DRAFT_HEAD_SCALE, self.draft_source)

    def replant(
        self, alpha: float, target: Tensors, draft: Tensors, tell: Callable[[str], None] = lambda _: None
    ) -> Planting:
        """Gives the draft in `draft`, which are views of what an idle engine runs, another agreement."""
        predict = TorchPredict()
        norm = calibrate(
            self.draft_config,
            draft,
            self.draft_source,
            self.successor,
            alpha,
            2 * self.seed + 2,
            predict,
            FLOPS,
            tell,
        )
        tell("agreement of the pair")
        return planting(
            PairSpec(self.target_shape, self.draft_shape, alpha),
            self.successor,
            norm,
            (self.target_config, target),
            (self.draft_config, draft),
            self.seed,
            predict,
            FLOPS,
        )


def bytes_needed(shapes: Sequence[Shape], vocab_size: int, max_model_len: int, num_caches: int) -> int:
    """Device memory of weights, keys and values of `num_caches` owners, logits, and the embedding in fp32."""
    configs = [make_config(shape, vocab_size) for shape in shapes]
    weights = sum(2 * torch.Size(s).numel() for c in configs for s in tensor_shapes(c).values())
    rows = sum(2 * 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim for c in configs)
    widest = max(c.hidden_size for c in configs)
    making = vocab_size * widest * (4 + 4 + 2)  # the embedding while it is normalised
    scoring = TEXTS_AT_ONCE * 256 * vocab_size * 4
    return weights + num_caches * rows * max_model_len + max(making, scoring) + RESERVE


def check_device_memory(plan: DevicePlan, max_model_len: int, free: int, *, num_caches: int = 2) -> None:
    """Raises ResourceError before anything is made if it cannot fit in `free` bytes."""
    shapes = [shape_named(plan.target_shape), shape_named(plan.draft_shape)]
    needed = bytes_needed(shapes, plan.vocab_size, max_model_len, num_caches)
    if needed > free:
        raise ResourceError(
            f"not enough memory on {plan.device}: {needed / 2**30:.1f} GiB needed for "
            f"{plan.target_shape}+{plan.draft_shape} in bf16 with {max_model_len} tokens, "
            f"{free / 2**30:.1f} GiB free: take a smaller pair, end what else uses the device, or lower "
            "--max-tokens"
        )
