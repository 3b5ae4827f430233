"""A call as one object of JSON, read character by character: {"name": ..., "arguments": {...}}.

Arguments may be called parameters, as in Llama's form, be an object in a string, or be missing. They are
passed on as they come, once the name is known. Knows no marks around calls.
"""

import json
from collections.abc import Collection
from enum import Enum, auto

from pearl_rt.serve.parsing.json_value import SPACE, JsonValue
from pearl_rt.serve.parsing.parts import CallArguments, CallBroken, CallEnd, CallStart, Part, Text

_ARGUMENTS = frozenset({"arguments", "parameters"})
_KEYS = _ARGUMENTS | {"name", "type", "id"}


class _State(Enum):
    """What may come next."""

    OPEN = auto()
    FIRST_KEY = auto()  # or the end
    KEY = auto()
    COLON = auto()
    VALUE = auto()
    NEXT = auto()
    DONE = auto()
    BROKEN = auto()


class CallObject:
    """A call that grows. names: of functions; only one of them can be called, and the object may have no keys
    but those of a call. None: any.
    """

    def __init__(self, names: Collection[str] | None = None) -> None:
        self._names = names
        self._state = _State.OPEN
        self._value: JsonValue | None = None  # a key, or a value
        self._is_key = False
        self._key = ""
        self._name: str | None = None
        self._held: list[str] = []  # arguments, while the name is not known
        self._streams = False  # the value at hand is the arguments, as an object
        self._has_arguments = False
        self._has_begun = False
        self._taken: list[str] = []  # all characters
        self._rest: list[str] = []  # of them, those behind what was passed on

    @property
    def is_done(self) -> bool:
        """Whether the object is whole, and a call."""
        return self._state is _State.DONE

    @property
    def is_broken(self) -> bool:
        """Whether it is no call."""
        return self._state is _State.BROKEN

    def push(self, character: str) -> list[Part]:
        """What one character adds. If it breaks the object, it is not taken."""
        parts: list[Part] = []
        self._take(character, parts)
        if self._state is not _State.BROKEN:
            self._taken.append(character)
            if not (parts and isinstance(parts[-1], CallArguments)):
                self._rest.append(character)
        return parts

    def broken(self, before: str) -> list[Part]:
        """As text, for an object that will not be done. before: what stands before it, as its mark."""
        whole = before + "".join(self._taken)
        if not self._has_begun:
            return [Text(whole)] if whole else []
        return [CallBroken(whole, "".join(self._rest))]

    def _take(self, character: str, parts: list[Part]) -> None:
        if self._value is not None:
            took = self._value.push(character)
            if self._value.is_broken:
                self._state = _State.BROKEN
                return
            if took and self._streams:
                self._pass_on(character, parts)
            if self._value.is_done:
                self._end_value(self._value.text, parts)
                self._value = None
            if took or self._state is _State.BROKEN:
                return
        if character not in SPACE:
            self._state = self._structure(character, parts)

    def _structure(self, character: str, parts: list[Part]) -> _State:
        match self._state:
            case _State.OPEN:
                return _State.FIRST_KEY if character == "{" else _State.BROKEN
            case _State.FIRST_KEY | _State.KEY if character == '"':
                self._is_key, self._value = True, JsonValue()
                self._value.push(character)
                return _State.COLON
            case _State.COLON:
                return _State.VALUE if character == ":" else _State.BROKEN
            case _State.VALUE:
                return self._begin_value(character, parts)
            case _State.NEXT if character == ",":
                return _State.KEY
            case _State.NEXT if character == "}":
                return self._ended(parts)
        return _State.BROKEN

    def _begin_value(self, character: str, parts: list[Part]) -> _State:
        self._is_key, self._value = False, JsonValue()
        if not self._value.push(character):
            return _State.BROKEN
        if self._key in _ARGUMENTS:
            if self._has_arguments or character not in '{"n':
                return _State.BROKEN
            self._has_arguments, self._streams = True, character == "{"
            if self._streams:
                self._pass_on(character, parts)
        elif self._key == "name" and (self._name is not None or character != '"'):
            return _State.BROKEN
        return _State.NEXT

    def _end_value(self, text: str, parts: list[Part]) -> None:
        if self._is_key:
            self._key = json.loads(text)
            if self._names is not None and self._key not in _KEYS:
                self._state = _State.BROKEN
        elif self._key == "name":
            self._name = json.loads(text)
            is_known = self._names is None or self._name in self._names
            if not self._name or not self._name.isprintable() or not is_known:
                self._state = _State.BROKEN
            elif self._held:
                self._pass_on("", parts)
        elif self._key in _ARGUMENTS and not self._streams:
            arguments = _unquoted(text)
            if arguments is None:
                self._state = _State.BROKEN
            else:
                self._pass_on(arguments, parts)
        self._streams = False

    def _pass_on(self, arguments: str, parts: list[Part]) -> None:
        self._held.append(arguments)
        if self._name is None:
            return
        if not self._has_begun:
            self._has_begun = True
            parts.append(CallStart(self._name))
        parts.append(CallArguments("".join(self._held)))
        self._held.clear()
        self._rest.clear()

    def _ended(self, parts: list[Part]) -> _State:
        if self._name is None:
            return _State.BROKEN
        if not self._has_arguments:
            self._pass_on("{}", parts)
        parts.append(CallEnd())
        return _State.DONE


def _unquoted(text: str) -> str | None:
    """Arguments that are null, or an object in a string -> the object's text; None for another string."""
    if text == "null":
        return "{}"
    inner = json.loads(text)
    assert isinstance(inner, str)
    value = JsonValue()
    if not inner.lstrip().startswith("{") or not all(map(value.push, inner.rstrip())) or not value.is_done:
        return None
    try:
        inner.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return None
    return inner.strip()
