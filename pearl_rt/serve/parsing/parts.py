"""What the text of an answer is made of: text that is shown, reasoning, and calls of functions.

Knows nothing of how a model writes them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Text:
    """Content of the message."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """Text of a think block."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A call begins: its name is known, and its arguments are an object."""

    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of the arguments of the call that began last: a piece of JSON text."""

    text: str


@dataclass(frozen=True)
class CallEnd:
    """The call that began last is whole: its arguments are valid JSON."""


@dataclass(frozen=True)
class CallBroken:
    """The call that began last is none: what the model wrote is no JSON, or ended early.

    whole  its text, with its marks
    rest   of that, what was not given as arguments
    """

    whole: str
    rest: str


Part = Text | Reasoning | CallStart | CallArguments | CallEnd | CallBroken


class Parser(Protocol):
    """Divides the text of one answer as it grows."""

    def push(self, text: str) -> list[Part]: ...
    def finish(self) -> list[Part]: ...


def joined(parts: Iterable[Part]) -> list[Part]:
    """Pieces of one kind that follow each other, as one."""
    found: list[Part] = []
    pieces: list[str] = []  # of the last one found
    for part in parts:
        if isinstance(part, (Text, Reasoning, CallArguments)):
            if found and type(found[-1]) is type(part):
                pieces.append(part.text)
                continue
            _close(found, pieces)
            pieces.append(part.text)
        else:
            _close(found, pieces)
        found.append(part)
    _close(found, pieces)
    return found


def _close(found: list[Part], pieces: list[str]) -> None:
    if found and isinstance(last := found[-1], (Text, Reasoning, CallArguments)) and len(pieces) > 1:
        found[-1] = type(last)("".join(pieces))
    pieces.clear()
