"""Tiny random Llama pairs in memory and on disk, for tests that need the whole path but no meaning."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers
import torch

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.loader import save_checkpoint
from pearl_rt.checkpoint.shapes import tensor_shapes
from pearl_rt.engine import Engine

DRAFTS = ("equal", "unrelated", "half-right")
TINY = ModelConfig(
    model_type="llama",
    vocab_size=288,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=4096,
    torch_dtype="float32",
)
# Changes to TINY for Triton's interpreter, in which every operator costs by its programs.
SMALL: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_key_value_heads": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
}


def random_tensors(config: ModelConfig, seed: int) -> dict[str, torch.Tensor]:
    """Weights large enough that the next token depends on all before it."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        if name.endswith("norm.weight"):
            tensors[name] = torch.ones(shape)
        else:
            spread = 1.0 if "embed" in name else 1.5 / shape[-1] ** 0.5
            tensors[name] = torch.randn(shape, generator=generator) * spread
    return tensors


@dataclass
class Pair:
    """A target and a draft that agrees with it always, never (but by chance), or often."""

    config: ModelConfig
    target: dict[str, torch.Tensor]
    draft: dict[str, torch.Tensor]

    @classmethod
    def make(cls, draft: str, seed: int = 0, **changes: object) -> "Pair":
        config = replace(TINY, **changes)  # type: ignore[arg-type]
        target, other = random_tensors(config, seed), random_tensors(config, seed + 1)
        if draft == "equal":
            return cls(config, target, target)
        if draft == "unrelated":
            return cls(config, target, other)
        return cls(config, target, {k: 0.9 * target[k] + 0.12 * other[k] for k in target})

    def engine(self, **options: object) -> Engine:
        """drafter: "lookup" or "none" leave the draft out."""
        if options.get("drafter") in ("lookup", "none"):
            return Engine(self.config, self.target, **options)  # type: ignore[arg-type]
        return Engine(self.config, self.target, self.config, self.draft, **options)  # type: ignore[arg-type]

    def save(self, path: Path) -> tuple[Path, Path]:
        """(target, draft) as directories with a byte-level tokenizer."""
        for name, tensors in (("target", self.target), ("draft", self.draft)):
            save_checkpoint(path / name, self.config, tensors)
            byte_tokenizer().save(str(path / name / "tokenizer.json"))
        return path / "target", path / "draft"


def byte_tokenizer() -> tokenizers.Tokenizer:
    """One id for each byte: 256 of them; the other ids of TINY stand for no text."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer
