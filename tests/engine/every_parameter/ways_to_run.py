"""The columns of the table: each way in which an engine can run a pair, by the tables of engine options.

Knows how to build an engine for each, and how to hold its steps back; not what is asked of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import fake_cuda
import pytest
import tokenizers
from defined_kernels import DefinedKernels, with_tables
from definition import MAX_LEN, PAIR
from fake_gpu import FakeWorld, installed
from table_pairs import VOCAB

from pearl_rt import Engine
from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.device.host_gpu import HostStream
from pearl_rt.strategy.engine_options import CAPTURED_FORMS, FORMS
from pearl_rt.strategy.program import CORE_PLACEMENTS
from pearl_rt.strategy.step_timing import NOMINAL_TIMES

DRAFT_DEVICES = (None, "cuda:1", "cpu")  # beside a target on cuda:0
WAYS: dict[str, dict[str, Any]] = {
    f"{device} {placement}": {"device": device, "placement": placement}
    for device in ("cpu", "interpret")
    for placement in CORE_PLACEMENTS
} | {
    " ".join(("cuda", form, *(("draft on", draft) if draft else ()))): {
        "device": "cuda",
        "form": form,
        "draft_device": draft,
        "rounds_ahead": 1 if draft else 2,
    }
    for form in FORMS
    for draft in DRAFT_DEVICES
    if draft is None or form in CAPTURED_FORMS
}

# Each of these differs from two others, by one thing from each.
SLOW_WAYS = ("interpret split", "cuda events draft on cpu", "cuda graph draft on cuda:1")
COLUMNS = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW_WAYS)) for name in WAYS]
in_every_way = pytest.mark.parametrize("way", COLUMNS, indirect=True, scope="module")


def tokenizer() -> Tokenizer:
    """Each id is one character, from "!" on."""
    ids = {chr(ord("!") + token): token for token in range(VOCAB)}
    model = tokenizers.models.BPE(vocab=ids, merges=[])
    made = tokenizers.Tokenizer(model)
    made.decoder = tokenizers.decoders.Fuse()
    return Tokenizer(made, vocab_size=VOCAB)


@dataclass
class Way:
    """One of WAYS, with what was found against it."""

    name: str
    world: FakeWorld | None = None
    kernels: DefinedKernels | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_captured(self) -> bool:
        return self.options.get("form") in CAPTURED_FORMS

    @property
    def holds(self) -> bool:
        """Whether held() holds anything."""
        return self.options["device"] != "cpu"

    def engine(self, **options: Any) -> Engine:
        built: Engine = PAIR.engine(
            **{"max_model_len": MAX_LEN, "tokenizer": tokenizer()} | self.options | options
        )
        return built

    def held(self) -> AbstractContextManager[object]:
        """While it lasts no step of a device runs; the CPU's do."""
        if self.world is not None:
            return self.world.lock
        return HostStream.steps if self.options["device"] == "interpret" else nullcontext()

    def check(self) -> None:
        """Raises if a captured step launched something new, or something was done that CUDA forbids."""
        if self.kernels is not None:
            strayed, self.kernels.strayed = self.kernels.strayed, []
            assert not strayed, strayed[0]
        if self.world is not None:
            assert not (found := self.world.cuda.violations()), found


@contextmanager
def running(name: str, *, defined: bool = True) -> Iterator[Way]:
    """What a way needs, for as long as this lasts. defined: with the definitions in the place of kernels."""
    way = Way(name, options=WAYS[name])
    with pytest.MonkeyPatch.context() as monkeypatch:
        if way.options["device"] == "cuda":
            cuda = fake_cuda.load()
            cuda.reset(seed=1, devices=2)
            way.world = installed(FakeWorld(cuda), monkeypatch)
            monkeypatch.setattr("pearl_rt.backends.cuda_lanes.measure", lambda lanes: NOMINAL_TIMES)
        if way.options["device"] != "cpu":
            with_tables(monkeypatch)
            way.kernels = DefinedKernels(monkeypatch) if defined else None
        yield way
        way.check()
