"""The rows of bench/drafters.py: a kind of draft and its window each, and which engine runs it.

Knows names and windows; not engines, prompts or figures.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from bench.harness.measure import Program

NONE, LOOKUP, EARLIER, MODEL, AUTO = "none", "lookup", "lookup, earlier answers", "model", "auto"
SELF, EXIT, PARALLEL, DIFFUSION, EAGLE3 = "self", "exit", "parallel", "diffusion", "eagle3"
GAMMAS = {
    LOOKUP: (3, 7, 15),
    MODEL: (2, 4, 8),
    SELF: (2, 4),
    EXIT: (2, 4),
    PARALLEL: (3, 6, 12),
    DIFFUSION: (4, 8, 12),
    EAGLE3: (2, 4),
}
LONGEST = 15  # window of a draft that ends its windows itself


@dataclass(frozen=True)
class Row(Program):
    """A program on the engine of one kind of draft."""

    kind_of_draft: str = NONE  # whose engine runs it
    name: str = NONE

    def __str__(self) -> str:
        return f"{self.name} gamma {self.gamma}" if self.gamma else self.name


def rows_of(options: argparse.Namespace) -> list[Row]:
    """`ar` first, to which all are compared."""
    rows = [Row("ar", kind_of_draft=LOOKUP, name=NONE)]

    def add(kind: str, gamma: int) -> None:
        rows.append(Row("sd", "shared", gamma, kind_of_draft=kind, name=kind))

    for gamma in options.gammas or GAMMAS[LOOKUP]:
        add(LOOKUP, gamma)
    add(EARLIER, max(options.gammas or GAMMAS[LOOKUP]))
    asked = {MODEL: options.draft, SELF: options.skip_layers is not None} | directories(options)
    for kind, is_asked in asked.items():
        for gamma in (options.gammas or GAMMAS[kind]) if is_asked else ():
            add(kind, gamma)
        if is_asked and kind != EAGLE3:
            add(chained(kind), max(options.gammas or GAMMAS[kind]))
    for stop in options.stops:
        add(stopped(stop), max(options.gammas or [LONGEST]))
    for count in options.candidates:
        for gamma in options.gammas or GAMMAS[MODEL]:
            add(beside(count), gamma)
    with_auto = [kind for kind, is_asked in asked.items() if is_asked and kind != SELF]
    for kind in (LOOKUP, *with_auto):
        rows.append(Row("auto", "auto", kind_of_draft=chosen(kind), name=chosen(kind)))
    return rows


def directories(options: argparse.Namespace) -> dict[str, Path | None]:
    """Of the kinds that are a checkpoint beside the target."""
    return {kind: getattr(options, kind) for kind in (EXIT, PARALLEL, DIFFUSION, EAGLE3)}


def chained(kind: str) -> str:
    """A kind behind a lookup."""
    return f"{LOOKUP}, then {kind}"


def stopped(stop: str) -> str:
    """The kind of a draft model whose windows end by a rule."""
    return f"{MODEL}, {stop}"


def beside(count: int) -> str:
    """The kind of a draft model that fills so many windows of a sequence."""
    return f"{MODEL}, {count} candidates"


def chosen(kind: str) -> str:
    """What `auto` chooses beside a kind, with earlier answers, as an engine has them by default."""
    return f"{AUTO}, {kind}"
