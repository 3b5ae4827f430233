"""Text with calls behind a mark, read character by character: what the forms of all models have in common.

Space between text and a call is dropped. What begins like a call and is none is text, with its marks.
Knows no model's marks.
"""

import secrets
from collections.abc import Callable, Collection

from pearl_rt.serve.parsing.call_object import CallObject
from pearl_rt.serve.parsing.json_value import SPACE
from pearl_rt.serve.parsing.parts import Part, Text, joined


class MarkedCalls:
    """A parser for one answer. A subclass sets `mark`, and says in _after_call how calls follow each other.

    names  of the functions that can be called, for forms in which an answer of JSON could be taken for a call
    marks  all that the form has, `mark` first
    """

    mark = ""
    marks: tuple[str, ...] = ()

    def __init__(self, names: Collection[str] = ()) -> None:
        self._names = names
        self._parts: list[Part] = []
        self._take: Callable[[str], None] = self._in_text
        self._space: list[str] = []  # behind text, not given yet
        self._begun = ""  # of the mark
        self._before = ""  # marks and space in front of the call at hand
        self._call = CallObject()
        self._is_behind_call = False

    @staticmethod
    def call_id() -> str:
        """An id for a call."""
        return f"call_{secrets.token_hex(12)}"

    def push(self, text: str) -> list[Part]:
        """What a piece of the answer adds."""
        for character in text:
            self._take(character)
        return self._given()

    def finish(self) -> list[Part]:
        """What is left at the answer's end."""
        if self._take == self._in_call:
            self._parts += self._call.broken(self._before)
        elif self._take == self._in_text:
            self._parts.append(Text(self._left_space() + self._begun))
        else:
            self._end_elsewhere()
        return self._given()

    def _given(self) -> list[Part]:
        parts = joined(part for part in self._parts if not isinstance(part, Text) or part.text)
        self._parts = []
        return parts

    def _left_space(self) -> str:
        """Space at the end of the answer: behind a call it is dropped, unless a mark has begun."""
        return "" if self._is_behind_call and not self._begun else "".join(self._space)

    def _in_text(self, character: str) -> None:
        if not self._begun and character in SPACE:
            self._space.append(character)
            return
        begun = self._begun + character
        if begun == self.mark:
            self._begun = ""
            self._to_call("".join(self._space) + begun)
        elif self.mark.startswith(begun):
            self._begun = begun
        elif self._begun:
            self._begun = ""
            self._to_text("".join(self._space) + begun[0])
            for again in begun[1:]:
                self._take(again)
        else:
            self._to_text("".join(self._space) + character)

    def _to_text(self, text: str = "", *, is_behind_call: bool = False) -> None:
        """Goes on with text, whose beginning is known."""
        self._space.clear()
        self._is_behind_call = is_behind_call
        self._parts.append(Text(text))
        self._take = self._in_text

    def _to_call(self, before: str) -> None:
        """Goes on with a call. before: what stood in front of it."""
        self._space.clear()
        self._before, self._take = before, self._in_call
        self._call = self._new_call()

    def _new_call(self) -> CallObject:
        return CallObject()

    def _in_call(self, character: str) -> None:
        self._parts += self._call.push(character)
        if self._call.is_done:
            self._take = self._after_call
        elif self._call.is_broken:
            self._parts += self._call.broken(self._before)
            self._to_text()
            self._take(character)

    def _after_call(self, character: str) -> None:
        raise NotImplementedError

    def _end_elsewhere(self) -> None:
        """The answer ends behind a call, or in a state of the subclass."""
