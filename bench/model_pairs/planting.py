"""One planted model: real shapes and random weights that carry a next-token rule, up to a chosen noise.

Knows neither pairs nor speed. The rule is a random cycle through the whole vocabulary, `next[t]`. The head's
row of `next[t]` is the (unit) embedding of `t` times c, so that a residual stream which still carries its
token's embedding scores that token's successor highest. The layers are random; through o_proj and down_proj
they add noise of norm n to the embedding's 1. After the final norm a wrong token's logit is c * N(0, 1), the
right one's is c * r with r = sqrt(hidden / (1 + n^2)): the rule is followed with probability

    agree(r) = E_z [ Phi(r + z) ^ (vocab - 1) ]            (z: the right logit's own noise)
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import log, sqrt
from typing import Protocol

import numpy as np
import torch

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.shapes import tensor_shapes

Tensors = Mapping[str, torch.Tensor]

TARGET_RATIO = 9.0  # r of the target: it misses its own rule about once in 1e5 tokens
TARGET_MASS = 0.95  # probability of the rule's token in the target at MASS_TEMPERATURE
MASS_TEMPERATURE = 0.8
POOL_SIZE = (1 << 24) + 43  # an odd length: no two rows of a matrix are cut from the same place


def successor_cycle(vocab_size: int, seed: int) -> np.ndarray:
    """[vocab] int64: one random cycle through every id."""
    order = np.random.default_rng([seed, vocab_size]).permutation(vocab_size)
    successor = np.empty(vocab_size, np.int64)
    successor[order] = np.roll(order, -1)
    return successor


def agreement_of_ratio(ratio: float, vocab_size: int) -> float:
    """agree(r), by summing over z."""
    z = np.linspace(-6, 6, 481)
    weight = np.exp(-z * z / 2)
    cdf = 0.5 * torch.erfc(torch.from_numpy(-(ratio + z) / sqrt(2))).numpy()
    return float((weight * cdf ** (vocab_size - 1)).sum() / weight.sum())


def ratio_of_agreement(alpha: float, vocab_size: int) -> float:
    """The r at which agree(r) == alpha."""
    low, high = 0.0, 16.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if agreement_of_ratio(middle, vocab_size) < alpha else (low, middle)
    return (low + high) / 2


def noise_of_ratio(ratio: float, hidden_size: int) -> float:
    """The norm n of the layers' noise at which r == ratio; at least a tenth of the embedding's."""
    return sqrt(max(hidden_size / ratio**2 - 1, 0.01))


def target_head_scale(vocab_size: int) -> float:
    """c at which the rule's token has TARGET_MASS: r s - s^2/2 - ln V = logit(mass), s = c/T."""
    goal = log(TARGET_MASS / (1 - TARGET_MASS)) + log(vocab_size)
    return MASS_TEMPERATURE * (TARGET_RATIO - sqrt(TARGET_RATIO**2 - 2 * goal))


class Source(Protocol):
    """Where weights come from."""

    def cut(self, name: str, shape: tuple[int, ...], scale: float) -> torch.Tensor:
        """A bf16 tensor of that shape and standard deviation, always the same for a name."""


class RandomPool:
    """POOL_SIZE normal numbers, from which all weights are cut: 1e9 of them take seconds, not minutes."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.values = torch.randn(POOL_SIZE, generator=generator).bfloat16()

    def cut(self, name: str, shape: tuple[int, ...], scale: float) -> torch.Tensor:
        """A bf16 tensor of that shape and standard deviation; the name chooses where the cut begins."""
        flat = torch.empty(int(np.prod(shape)), dtype=torch.bfloat16)
        start, done = zlib.crc32(name.encode()) % POOL_SIZE, 0
        while done < flat.numel():
            count = min(flat.numel() - done, POOL_SIZE - start)
            torch.mul(self.values[start : start + count], scale, out=flat[done : done + count])
            start, done = 0, done + count
        return flat.view(shape)


class DeviceSource:
    """Normal numbers of a torch generator on a device; a name's are the same whatever was made before."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.device = seed, device

    def cut(self, name: str, shape: tuple[int, ...], scale: float) -> torch.Tensor:
        """A bf16 tensor of that shape and standard deviation."""
        seed = zlib.crc32(f"{self.seed} {name}".encode())  # 32 bits: a CPU's generator takes no more
        generator = torch.Generator(self.device).manual_seed(seed)
        values = torch.randn(shape, generator=generator, device=self.device, dtype=torch.bfloat16)
        return values.mul_(scale)


def weight_scale(name: str, config: ModelConfig) -> float:
    """Standard deviation of a layer's weights; o_proj's and down_proj's for a model's noise of norm 1."""
    into = 1 / sqrt(config.hidden_size)
    per_block = 1 / sqrt(2 * config.num_hidden_layers)
    kind = name.split(".")[-2]
    if kind in ("q_proj", "k_proj"):
        # Attention logits of deviation 3: a few tokens get most of the weight, however long the context.
        return 1.8 * into
    if kind == "o_proj":
        return into * per_block / sqrt(config.num_attention_heads * config.head_dim)
    if kind == "down_proj":
        return 2.0 * into * per_block / sqrt(config.intermediate_size)
    return into


@dataclass(frozen=True)
class PlantedTensors(Mapping[str, torch.Tensor]):
    """All tensors of a model, bf16, each made when it is asked for: one exists at a time, beside its packed
    copy.
    """

    config: ModelConfig
    successor: np.ndarray
    noise_norm: float
    head_scale: float
    source: Source

    def __getitem__(self, name: str) -> torch.Tensor:
        shape = tensor_shapes(self.config)[name]
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=torch.bfloat16)
        if name.startswith("model.layers."):
            norm = self.noise_norm if is_noise(name) else 1.0
            return self.source.cut(name, shape, norm * weight_scale(name, self.config))
        embedding = self.source.cut("model.embed_tokens.weight", shape, 1.0).float()
        embedding /= embedding.norm(dim=1, keepdim=True)
        if name == "model.embed_tokens.weight":
            return embedding.bfloat16()
        head = torch.empty(shape, dtype=torch.bfloat16, device=embedding.device)
        rows = torch.from_numpy(self.successor).to(embedding.device)
        head[rows] = embedding.mul_(self.head_scale).bfloat16()
        return head

    def __iter__(self) -> Iterator[str]:
        return iter(tensor_shapes(self.config))

    def __len__(self) -> int:
        return len(tensor_shapes(self.config))


def is_noise(name: str) -> bool:
    return name.endswith(("o_proj.weight", "down_proj.weight"))


def set_noise(tensors: Tensors, config: ModelConfig, noise_norm: float, source: Source) -> None:
    """Rewrite o_proj and down_proj of every layer, in place: the layers' noise then has norm noise_norm."""
    for name, tensor in tensors.items():
        if is_noise(name):
            tensor.copy_(source.cut(name, tuple(tensor.shape), noise_norm * weight_scale(name, config)))
