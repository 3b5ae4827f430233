"""One value of JSON (RFC 8259), read character by character: whether it is whole, or can be none any more.

Knows no meaning of a value.
"""

import re
from enum import Enum, auto

MAX_DEPTH = 64
SPACE = frozenset(" \t\n\r")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_OF_NUMBERS = frozenset("-+.eE0123456789")
_LITERALS = {"t": "true", "f": "false", "n": "null"}
_HEX = frozenset("0123456789abcdefABCDEF")


class _State(Enum):
    """What may come next."""

    VALUE = auto()
    FIRST_ITEM = auto()  # or the array's end
    FIRST_KEY = auto()  # or the object's end
    KEY = auto()
    COLON = auto()
    NEXT = auto()  # a comma, or the end of what is open
    STRING = auto()
    ESCAPE = auto()
    HEX = auto()
    LITERAL = auto()
    NUMBER = auto()
    DONE = auto()
    BROKEN = auto()


class JsonValue:
    """A value that grows. `text` is what it has taken."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._state = _State.VALUE
        self._open: list[str] = []  # "{" and "["
        self._is_key = False  # the string at hand
        self._left = ""  # of a literal; of \uXXXX, a character for each
        self._number: list[str] = []

    @property
    def text(self) -> str:
        """All characters so far."""
        return "".join(self._pieces)

    @property
    def is_done(self) -> bool:
        """Whether the value is whole."""
        return self._state is _State.DONE

    @property
    def is_broken(self) -> bool:
        """Whether it is no JSON."""
        return self._state is _State.BROKEN

    def push(self, character: str) -> bool:
        """Whether the character is a part of the value. Else the value was done before, or is broken."""
        if self._state is _State.NUMBER and character not in _OF_NUMBERS:
            is_number = _NUMBER.fullmatch("".join(self._number)) is not None
            self._state = self._after_value() if is_number else _State.BROKEN
        if self._state in (_State.DONE, _State.BROKEN):
            return False
        self._state = self._next(character)
        if self._state is _State.BROKEN:
            return False
        self._pieces.append(character)
        return True

    def finish(self) -> None:
        """No character follows: a number is whole."""
        self.push(" ")

    def _next(self, character: str) -> _State:
        match self._state:
            case _State.STRING:
                return self._in_string(character)
            case _State.ESCAPE:
                if character == "u":
                    self._left = "XXXX"
                    return _State.HEX
                return _State.STRING if character in '"\\/bfnrt' else _State.BROKEN
            case _State.HEX:
                self._left = self._left[1:]
                if character not in _HEX:
                    return _State.BROKEN
                return _State.HEX if self._left else _State.STRING
            case _State.LITERAL:
                if character != self._left[0]:
                    return _State.BROKEN
                self._left = self._left[1:]
                return _State.LITERAL if self._left else self._after_value()
            case _State.NUMBER:
                self._number.append(character)
                return _State.NUMBER
        if character in SPACE:
            return self._state
        return self._structure(character)

    def _in_string(self, character: str) -> _State:
        if character == "\\":
            return _State.ESCAPE
        if character == '"':
            return _State.COLON if self._is_key else self._after_value()
        return _State.BROKEN if character < " " else _State.STRING

    def _structure(self, character: str) -> _State:
        state = self._state
        if state is _State.COLON:
            return _State.VALUE if character == ":" else _State.BROKEN
        if state in (_State.FIRST_KEY, _State.KEY):
            if character == "}" and state is _State.FIRST_KEY:
                return self._closed(character)
            self._is_key = True
            return _State.STRING if character == '"' else _State.BROKEN
        if state is _State.NEXT:
            if character == ",":
                return _State.KEY if self._open[-1] == "{" else _State.VALUE
            return self._closed(character)
        if state is _State.FIRST_ITEM and character == "]":
            return self._closed(character)
        return self._begun(character)

    def _begun(self, character: str) -> _State:
        """A value's first character."""
        if character in "{[":
            self._open.append(character)
            if len(self._open) > MAX_DEPTH:
                return _State.BROKEN
            return _State.FIRST_KEY if character == "{" else _State.FIRST_ITEM
        if character == '"':
            self._is_key = False
            return _State.STRING
        if character in _LITERALS:
            self._left = _LITERALS[character][1:]
            return _State.LITERAL
        self._number = [character]
        return _State.NUMBER if character in "-0123456789" else _State.BROKEN

    def _closed(self, character: str) -> _State:
        if character not in ("}", "]") or self._open[-1] != {"}": "{", "]": "["}[character]:
            return _State.BROKEN
        self._open.pop()
        return self._after_value()

    def _after_value(self) -> _State:
        return _State.NEXT if self._open else _State.DONE
