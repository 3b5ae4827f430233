"""The steps of a device with each kernel's definition in its place, and tables for models (table_pairs.py).

A step takes a millisecond, not a second of Triton's interpreter. All that decides which kernel is launched,
and with what, is real: engine, native lanes, their arrays, steps, logits processors.

A captured step is run once at its capture, on idle slots, as on a GPU. What it launches then it must launch
each time: the same kernels on the same memory. FakeStream runs a step's Python anew each time, and would
follow a decision that a graph cannot make.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import pytest
import torch
from fake_gpu import FakeStepGraph, FakeStream
from table_pairs import logits_behind

from pearl_rt.kernels.reference.forward.feed import feed
from pearl_rt.kernels.reference.sampling.filters import filters
from pearl_rt.kernels.reference.sampling.penalties import penalties
from pearl_rt.kernels.reference.sampling.sample import sample
from pearl_rt.kernels.reference.verify.publish_logprobs import publish_logprobs
from pearl_rt.kernels.reference.verify.verify import RUNNING
from pearl_rt.kernels.reference.verify.verify import verify as definition_of_verify
from pearl_rt.model.forward_batch import ForwardBatch
from pearl_rt.model.llama import Llama

RING = 7  # which argument of verify it is; those ahead of it are of finish_reason and round
Launch = tuple[object, ...]  # a kernel's name, and what it was given


def verify(*given: Any) -> None:
    """The definition, but that a verdict's number is stored behind its fields. The host reads the ring from
    another thread, and clears the entries of slots that do not run.
    """
    before, ring, after = given[:RING], given[RING], given[RING + 1 :]
    finish_reason, rounds = before[-2:]
    judged = [(int(rounds[b]), b) for b in (finish_reason == RUNNING).nonzero()[:, 0].tolist()]
    written = ring.clone()
    definition_of_verify(*before, written, *after)
    for number, slot in judged:
        entry = ring[number % len(ring), slot]
        entry[1:] = written[number % len(ring), slot, 1:]
        entry[:1] = written[number % len(ring), slot, :1]


KERNELS: dict[str, Callable[..., None]] = {
    "steps.feeding.feed": feed,
    "steps.sample": sample,
    "steps.verify": verify,
    "logits_processors.filters": filters,
    "logits_processors.penalties": penalties,
    "logprob_ring.publish_logprobs": publish_logprobs,
}


def described(value: object) -> object:
    """What a graph keeps of an argument: of a tensor its memory, not what stands there."""
    if isinstance(value, torch.Tensor):
        return value.data_ptr(), *value.shape
    return tuple(map(described, value)) if isinstance(value, tuple) else value


class Launches(threading.local):
    """Of the step that this thread runs."""

    def __init__(self) -> None:
        self.found: list[Launch] = []

    def of(self, step: Callable[[], None]) -> list[Launch]:
        """Runs a step."""
        self.found = []
        step()
        return self.found


class DefinedKernels:
    """In place of the kernels for as long as a monkeypatch lasts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.strayed: list[str] = []  # steps that launched something else than when they were captured
        launches, capture = Launches(), FakeStream.capture

        def counted(name: str, definition: Callable[..., None]) -> Callable[..., None]:
            def kernel(*given: object, **named: object) -> None:
                launches.found.append((name, described(given), described((*named.items(),))))
                definition(*given[:-1], **named)  # pdl, the last argument, says how a kernel is launched

            return kernel

        def captured(stream: FakeStream, name: str, step: Callable[[], None]) -> FakeStepGraph:
            expected = launches.of(step)

            def again() -> None:
                pairs = zip_longest(expected, launches.of(step))
                if other := next((f"{one}, launched {two}" for one, two in pairs if one != two), ""):
                    self.strayed.append(f"{name}: captured {other}")

            return capture(stream, name, again)

        for name, definition in KERNELS.items():
            monkeypatch.setattr(f"pearl_rt.device.{name}", counted(name, definition))
        monkeypatch.setattr(FakeStream, "capture", captured)


def forward(model: Llama, batch: ForwardBatch, num_live: object = None) -> torch.Tensor:
    """The tokens themselves, in the first column of [T, H]."""
    residual = model.buffers.residual[: batch.num_tokens]
    residual[:, 0] = batch.input_ids
    return residual


def logits(model: Llama, rows: torch.Tensor, out: torch.Tensor, num_live: object = None) -> None:
    """out [R, V]: the table's rows. Rows of no sequence hold anything."""
    weights = model.weights
    token_ids = (
        model.buffers.residual[rows.long(), 0].nan_to_num().clamp(0, len(weights.embed_tokens) - 1).long()
    )
    out.copy_(logits_behind(token_ids, weights.embed_tokens, weights.lm_head)[:, : model.vocab_size])


def with_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has models on a device look their logits up."""
    monkeypatch.setattr(Llama, "forward", forward)
    monkeypatch.setattr(Llama, "logits", logits)
