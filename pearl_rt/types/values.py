"""What a value may be: integers, numbers, names and lists, each with a rule whose error names the value.

A table of parameters is a frozen dataclass whose fields are made by parameter(): name and type, default and
rule. The docstring of the class describes each field in a line of its own. Dataclass, command line and server
read the same table.
"""

import inspect
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, SupportsFloat

from pearl_rt.errors import PearlError, RequestError, shown

Fault = type[PearlError]


class Rule:
    """What a parameter may be. rule(name, value, error) is the value as it is kept, or raises `error`."""

    def __call__(self, name: str, value: object, error: Fault = RequestError) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Integer(Rule):
    """An integer from low to high; None for high: no end. words: the range in words, with the way out."""

    low: int
    high: int | None = None
    optional: bool = False  # None may be passed
    words: str = ""

    def __call__(self, name: str, value: object, error: Fault = RequestError) -> int | None:
        if value is None and self.optional:
            return None
        result = integer(name, value, error)
        if result < self.low or (self.high is not None and result > self.high):
            limit = "or more" if self.high is None else f"to {self.high}"
            raise out_of_range(name, result, self.words or f"{self.low} {limit}", error)
        return result


@dataclass(frozen=True)
class Number(Rule):
    """A number from low (above it, if `above`) to high. off: which value does nothing."""

    low: float
    high: float
    above: bool = False
    off: str = ""

    def __call__(self, name: str, value: object, error: Fault = RequestError) -> float:
        if isinstance(value, (bool, str)) or not isinstance(value, SupportsFloat):
            raise error(f"{name} must be a number, got {shown(value)}")
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
        except Exception as cause:  # of an array, or of whatever has a __float__
            raise error(f"{name} must be a number, got {shown(value)}: {cause}") from None
        if not (self.low < result if self.above else self.low <= result) or not result <= self.high:
            start = f"a number above {self.low:g}, up to" if self.above else f"{self.low:g} to"
            raise out_of_range(name, f"{result:g}", f"{start} {self.high:g} ({self.off})", error)
        return result


@dataclass(frozen=True)
class Boolean(Rule):
    """True or False; or None, if it is optional."""

    optional: bool = False

    def __call__(self, name: str, value: object, error: Fault = RequestError) -> bool | None:
        if value is None and self.optional:
            return None
        if not isinstance(value, bool):
            wanted = "True, False or None" if self.optional else "True or False"
            raise error(f"{name} must be {wanted}, got {shown(value)}")
        return value


@dataclass(frozen=True)
class Choice(Rule):
    """One of some names; what `pattern` matches whole is a name too."""

    names: tuple[str, ...]
    pattern: str = ""
    optional: bool = False

    def __call__(self, name: str, value: object, error: Fault = RequestError) -> str | None:
        if value is None and self.optional:
            return None
        if isinstance(value, str) and self.pattern and re.fullmatch(self.pattern, value):
            return value
        return choice(name, value, self.names, error)


@dataclass(frozen=True)
class Text(Rule):
    """A text."""

    optional: bool = False

    def __call__(self, name: str, value: object, error: Fault = RequestError) -> str | None:
        if not isinstance(value, str) and not (value is None and self.optional):
            raise error(f"{name} must be a text, got {shown(value)}")
        return value


@dataclass(frozen=True)
class TokenIds(Rule):
    """A list of token ids."""

    def __call__(self, name: str, value: object, error: Fault = RequestError) -> tuple[int, ...]:
        return token_ids(name, value, error)


@dataclass(frozen=True)
class Layers(Rule):
    """A list of numbers of layers, each once. None: no list."""

    def __call__(self, name: str, value: object, error: Fault = RequestError) -> tuple[int, ...] | None:
        if value is None:
            return None
        found = listed(name, value, "a list of layers", error)
        layers = tuple(integer(f"{name}[{place}]", layer, error) for place, layer in enumerate(found))
        if not layers:
            raise error(f"{name} is empty, which leaves nothing out: name layers, or leave {name} out")
        for place, layer in enumerate(layers):
            if layer < 0:
                raise error(f"{name}[{place}] is {layer}: layers are numbered from 0 on")
            if layer in layers[:place]:
                raise error(f"{name} has {layer} twice: name each layer once")
        return layers


@dataclass(frozen=True)
class Texts(Rule):
    """A text, or a list of them, none of them empty. None: no text."""

    def __call__(self, name: str, value: object, error: Fault = RequestError) -> tuple[str, ...]:
        texts = () if value is None else (value,) if isinstance(value, str) else value
        found: list[str] = []
        for place, text in enumerate(listed(name, texts, "a text or a list of texts", error)):
            if not isinstance(text, str) or not text:
                raise error(f"{name}[{place}] must be a text that is not empty, got {shown(text)}")
            found.append(text)
        return tuple(found)


@dataclass(frozen=True)
class NumbersById(Rule):
    """{token id: number}, where `number` is the rule of each. None: no id."""

    number: Number

    def __call__(self, name: str, value: object, error: Fault = RequestError) -> dict[int, float]:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise error(f"{name} must map token ids to numbers, got {shown(value)}")
        found = {}
        for key, amount in value.items():
            token_id = integer(f"{name} key {shown(key)}", key, error)
            if token_id < 0:
                raise error(f"{name} has {token_id}: token ids start at 0")
            found[token_id] = self.number(f"{name}[{token_id}]", amount, error)
        return found


@dataclass(frozen=True)
class Parameter:
    """One row of a table."""

    name: str
    default: object
    rule: Rule
    help: str  # "" where Python has dropped docstrings (-OO)


def parameter(default: Any, rule: Rule, **options: Any) -> Any:
    """A field of a table. A default that is a dict is copied for each object. options: those of field()."""
    made = {"default_factory": default.copy} if isinstance(default, dict) else {"default": default}
    return field(metadata={"rule": rule}, **made, **options)


def parameters(table: type) -> list[Parameter]:
    """The rows of a table, in order."""
    text = inspect.getdoc(table) or ""

    def described(name: str) -> str:
        row = re.search(rf"^{name}  +(.*(?:\n +.*)*)", text, re.MULTILINE)
        return " ".join(row[1].split()) if row else ""

    return [
        Parameter(f.name, f.default_factory() if callable(f.default_factory) else f.default,
                  f.metadata["rule"], described(f.name))
        for f in fields(table)
    ]  # fmt: skip


def check_fields(table: Any, error: Fault) -> None:
    """Checks each field of an object of a table, and keeps what its rule makes of it. Raises `error`."""
    for each in fields(table):
        object.__setattr__(
            table, each.name, each.metadata["rule"](each.name, getattr(table, each.name), error)
        )


def rule_of(table: type, name: str) -> Callable[..., Any]:
    """The rule of one field: for a value that replaces it in one call."""
    found: Rule = next(each.metadata["rule"] for each in fields(table) if each.name == name)
    return found


def integer(name: str, value: object, error: Fault = RequestError) -> int:
    """`value` as an int if it is one: numpy's too, but no bool and no float. Raises `error`."""
    if isinstance(value, bool):
        raise error(f"{name} must be an integer, got {shown(value)}")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except Exception:  # TypeError, or what an odd object raises
        raise error(f"{name} must be an integer, got {shown(value)} of type {type(value).__name__}") from None


def choice(name: str, value: object, allowed: Sequence[str], error: Fault = RequestError) -> str:
    """`value` if it is one of `allowed`. Raises `error`, which lists them."""
    if not isinstance(value, str) or value not in allowed:
        raise error(f"{name} {shown(value)} is not supported: pass one of {', '.join(map(repr, allowed))}")
    return value


def listed(name: str, values: object, what: str, error: Fault = RequestError) -> tuple[object, ...]:
    """The items of a list, a tuple or an array. A text and a mapping are none. Raises `error`."""
    try:
        if not isinstance(values, (str, bytes, Mapping)) and isinstance(values, Iterable):
            return tuple(values)
    except TypeError:  # an array without dimensions
        pass
    raise error(f"{name} must be {what}, got {shown(values)}")


def token_ids(name: str, values: object, error: Fault = RequestError) -> tuple[int, ...]:
    """`values` as a tuple of ids, none negative. Raises `error`, which names the place and the value."""
    found = listed(name, values, "a list of token ids", error)
    ids = tuple(integer(f"{name}[{place}]", value, error) for place, value in enumerate(found))
    for place, token_id in enumerate(ids):
        if token_id < 0:
            raise error(f"{name}[{place}] is {token_id}: token ids start at 0")
    return ids


def out_of_range(name: str, value: object, way_out: str, error: Fault = RequestError) -> PearlError:
    """The error for a number that is none of those that may be passed."""
    found = value if isinstance(value, str) else shown(value)
    return error(f"{name} {found} is out of range: pass {way_out}")
