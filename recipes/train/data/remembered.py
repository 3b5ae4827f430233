"""What a frozen target computes on the rows of a corpus, kept in a folder: the target computes it once, and
each draft that learns from these rows reads it as often as it likes.

    rows.json      sizes, the layers whose inputs are kept, and how many rows are done
    tokens         [rows, length + 1] int32
    states         [rows, length, hidden_size] bf16: what the target's head multiplies
    tap-N          the same of the input of layer N
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.errors import CheckpointError, RequestError
from recipes.train.data.stream import PackedStream
from recipes.train.model.llama import LlamaForCausalLM
from recipes.train.model.session import Machine
from recipes.train.model.taps import taps_of


@dataclass(frozen=True)
class Sizes:
    """Of the tensors in a folder."""

    rows: int
    length: int
    hidden_size: int
    vocab_size: int
    layers: tuple[int, ...]
    done: int = 0

    @classmethod
    def read(cls, directory: Path) -> Sizes:
        """Raises CheckpointError for a folder that has none."""
        file = directory / "rows.json"
        try:
            found = json.loads(file.read_text())
            return cls(**{**found, "layers": tuple(found["layers"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{file} cannot be read ({error}): make the folder with `python -m recipes.train remember`"
            ) from None

    def write(self, directory: Path) -> None:
        """Replaces what is there once the new file is complete."""
        partial = directory / "rows.json.partial"
        partial.write_text(json.dumps(asdict(self)) + "\n")
        partial.replace(directory / "rows.json")


@dataclass(frozen=True)
class LearntRows:
    """The rows of a step, and what is known of them beforehand."""

    tokens: Tensor  # [B, T + 1] int64
    states: Tensor | None = None  # [B, T, hidden]: the target's, in front of its head
    taps: Tensor | None = None  # [B, T, layers * hidden]

    def to(self, device: torch.device) -> LearntRows:
        """The same on another device."""
        moved = (None if part is None else part.to(device) for part in (self.states, self.taps))
        return LearntRows(self.tokens.to(device), *moved)


class Remembered:
    """A folder whose rows are all done. Raises CheckpointError for one that is not, or of another target."""

    def __init__(self, directory: Path, target: ModelConfig, seed: int = 0) -> None:
        self.sizes, self._directory, self._seed = Sizes.read(directory), directory, seed
        mine, its = (self.sizes.hidden_size, self.sizes.vocab_size), (target.hidden_size, target.vocab_size)
        if self.sizes.done < self.sizes.rows or mine != its:
            raise CheckpointError(
                f"{directory} has {self.sizes.done} of {self.sizes.rows} rows, of a target with hidden_size "
                f"and vocab_size {mine}, and this one has {its}: make it with "
                "`python -m recipes.train remember`"
            )
        self._tokens = _opened(directory / "tokens", self.sizes, torch.int32)
        self._states = _opened(directory / "states", self.sizes, torch.bfloat16)

    def batch(self, first: int, count: int, layers: Sequence[int] = ()) -> LearntRows:
        """Rows first .. first + count - 1 of an order that is new in each epoch, and fixed by the seed.
        Raises RequestError for a layer whose input was not kept.
        """
        chosen = torch.stack([self._place(first + i) for i in range(count)])
        taps = [self._tap(layer)[chosen] for layer in layers]
        return LearntRows(
            self._tokens[chosen].long(),
            self._states[chosen].float(),
            torch.cat(taps, dim=-1).float() if taps else None,
        )

    def _place(self, index: int) -> Tensor:
        epoch, at = divmod(index, self.sizes.rows)
        chance = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        return torch.randperm(self.sizes.rows, generator=chance)[at]

    def _tap(self, layer: int) -> Tensor:
        if layer not in self.sizes.layers:
            raise RequestError(
                f"{self._directory} has the inputs of layers {self.sizes.layers}, not of {layer}: "
                f"add --tap {layer} to `remember`"
            )
        return _opened(self._directory / f"tap-{layer}", self.sizes, torch.bfloat16)


def remember(
    target: LlamaForCausalLM,
    machine: Machine,
    stream: PackedStream,
    directory: Path,
    rows: int,
    layers: Sequence[int],
    *,
    together: int = 8,
    told: Callable[[int], object] = lambda done: None,
) -> Sizes:
    """Fills a folder with the first `rows` of the stream; goes on with one that was begun with the same
    sizes. told: of how many rows were done, each time. Raises RequestError for a folder of other sizes.
    """
    config = target.config
    sizes = Sizes(rows, stream.length, config.hidden_size, config.vocab_size, tuple(sorted(layers)))
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / "rows.json").exists():
        begun = Sizes.read(directory)
        if replace(begun, done=0) != sizes:
            raise RequestError(f"{directory} holds {begun}, and {sizes} are asked for: give another folder")
        sizes = begun
    told(sizes.done)
    tokens = _opened(directory / "tokens", sizes, torch.int32)
    states = _opened(directory / "states", sizes, torch.bfloat16)
    kept = [_opened(directory / f"tap-{layer}", sizes, torch.bfloat16) for layer in sizes.layers]
    while sizes.done < sizes.rows:
        some = slice(sizes.done, min(sizes.done + together, sizes.rows))
        batch = stream.batch(some.start, some.stop - some.start)
        with machine.autocast():
            taps, last = taps_of(target, batch[:, :-1].to(machine.device), sizes.layers)
        tokens[some], states[some] = batch.int(), last.to("cpu", torch.bfloat16)
        for store, tap in zip(kept, taps, strict=True):
            store[some] = tap.to("cpu", torch.bfloat16)
        sizes = replace(sizes, done=some.stop)
        sizes.write(directory)
        told(some.stop - some.start)
    return sizes


def _opened(file: Path, sizes: Sizes, dtype: torch.dtype) -> Tensor:
    """A tensor that lies in a file, which is made if it is not there."""
    shape = (sizes.rows, sizes.length, sizes.hidden_size)
    if dtype == torch.int32:
        shape = (sizes.rows, sizes.length + 1, 1)
    count = shape[0] * shape[1] * shape[2]
    mapped = torch.from_file(str(file), shared=True, size=count, dtype=dtype).view(shape)
    return mapped[..., 0] if dtype == torch.int32 else mapped
