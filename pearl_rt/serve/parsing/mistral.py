"""Calls as Mistral's models write them: [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...].

Newer models write [TOOL_CALLS]name[ARGS]{...}, once for each call, with or without [ARGS]. Knows nothing of
templates.
"""

import secrets
import string

from pearl_rt.serve.parsing.call_object import CallObject
from pearl_rt.serve.parsing.json_value import SPACE, JsonValue
from pearl_rt.serve.parsing.marked_calls import MarkedCalls
from pearl_rt.serve.parsing.parts import CallArguments, CallBroken, CallEnd, CallStart, Part, Text

_ARGUMENTS = "[ARGS]"
_OF_NAMES = frozenset(string.ascii_letters + string.digits + "_-.")
_OF_IDS = string.ascii_letters + string.digits


class NamedCall(CallObject):
    """name[ARGS]{...}, or name{...}; with a name that is known beforehand {...} alone."""

    def __init__(self, name: str = "") -> None:
        super().__init__()
        self._called, self._mark = name, ""
        self._arguments = JsonValue()
        self._is_open = self._failed = False

    @property
    def is_done(self) -> bool:
        """Whether the arguments are whole."""
        return self._arguments.is_done

    @property
    def is_broken(self) -> bool:
        """Whether it is no call."""
        return self._failed or self._arguments.is_broken

    def push(self, character: str) -> list[Part]:
        """What one character adds. If it breaks the call, it is not taken."""
        parts: list[Part] = []
        if self._is_open or (character == "{" and self._called and self._mark in ("", _ARGUMENTS)):
            if not self._arguments.push(character):
                return parts
            if not self._is_open:
                parts.append(CallStart(self._called))
            self._is_open = True
            parts.append(CallArguments(character))
            if self.is_done:
                parts.append(CallEnd())
        elif not self._takes_head(character):
            self._failed = True
            return parts
        self._taken.append(character)
        return parts

    def broken(self, before: str) -> list[Part]:
        """As text."""
        whole = before + "".join(self._taken)
        if self._is_open:
            return [CallBroken(whole, "")]
        return [Text(whole)] if whole else []

    def _takes_head(self, character: str) -> bool:
        """Whether it goes on with the name, or with the mark behind it."""
        if character in SPACE:
            return True
        if not self._mark and character in _OF_NAMES:
            self._called += character
            return True
        self._mark += character
        return bool(self._called) and _ARGUMENTS.startswith(self._mark)


class MistralCalls(MarkedCalls):
    """An array of calls behind the mark, or one call."""

    mark = "[TOOL_CALLS]"
    marks = (mark, _ARGUMENTS)
    _is_array = False

    @staticmethod
    def call_id() -> str:
        """Nine letters and digits, as the templates ask for."""
        return "".join(secrets.choice(_OF_IDS) for _ in range(9))

    def _to_call(self, before: str) -> None:
        self._space.clear()
        self._before, self._take = before, self._at_opening

    def _at_opening(self, character: str) -> None:
        """Behind the mark: an array or a name; behind a comma, the next object."""
        if character in SPACE or (character == "[" and not self._is_array):
            self._is_array = self._is_array or character == "["
            self._before += character
            return
        self._call = CallObject() if self._is_array else NamedCall()
        self._take = self._in_call
        self._take(character)

    def _to_text(self, text: str = "", *, is_behind_call: bool = False) -> None:
        self._is_array = False
        super()._to_text(text, is_behind_call=is_behind_call)

    def _after_call(self, character: str) -> None:
        if self._is_array and character in SPACE:
            self._space.append(character)
        elif self._is_array and character == ",":
            self._to_call("".join(self._space) + character)
        elif self._is_array and character == "]":
            self._to_text(is_behind_call=True)
        else:
            again = "".join(self._space) + character
            self._to_text(is_behind_call=True)
            for one in again:
                self._take(one)

    def _end_elsewhere(self) -> None:
        if self._take == self._at_opening:
            self._to_text(self._before)


class ForcedCalls(MistralCalls):
    """An answer that is an array of calls and nothing else: a schema has made it so."""

    def __init__(self) -> None:
        super().__init__()
        self._take = self._at_opening


class ForcedCall(MistralCalls):
    """An answer that is the arguments of one function."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._call, self._take = NamedCall(name), self._in_call
