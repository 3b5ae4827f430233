"""Reasoning in front of an answer, as models write it between two marks: <think> ... </think>.

The template may have opened the block already. Space beside the marks is dropped. Knows no model.
"""

from collections.abc import Callable

from pearl_rt.serve.parsing.json_value import SPACE
from pearl_rt.serve.parsing.parts import Parser, Part, Reasoning, Text, joined


class ThinkBlock:
    """A parser for one answer. What follows the block goes to another one."""

    def __init__(self, marks: tuple[str, str], inner: Parser, *, is_open: bool = False) -> None:
        """marks: of begin and end. is_open: the prompt ends in the block."""
        self._begin, self._end = marks
        self._inner = inner
        self._parts: list[Part] = []
        self._space: list[str] = []
        self._begun = ""  # of a mark
        self._has_reasoning = False
        self._take: Callable[[str], None] = self._in_block if is_open else self._at_start

    def push(self, text: str) -> list[Part]:
        """What a piece of the answer adds."""
        for place, character in enumerate(text):
            if self._take == self._in_answer:
                self._parts += self._inner.push(text[place:])
                break
            self._take(character)
        return self._given()

    def finish(self) -> list[Part]:
        """What is left at the answer's end."""
        left = "".join(self._space) + self._begun
        if self._take == self._at_start:
            self._parts += self._inner.push(left)
        elif self._take == self._in_block and left:
            self._parts.append(Reasoning(left))
        self._parts += self._inner.finish()
        return self._given()

    def _given(self) -> list[Part]:
        parts, self._parts = joined(self._parts), []
        return parts

    def _at_start(self, character: str) -> None:
        if not self._begun and character in SPACE:
            self._space.append(character)
            return
        self._begun += character
        if self._begun == self._begin:
            self._space.clear()
            self._begun, self._take = "", self._in_block
        elif not self._begin.startswith(self._begun):
            self._parts += self._inner.push("".join(self._space) + self._begun)
            self._take = self._in_answer

    def _in_block(self, character: str) -> None:
        if not self._begun and character in SPACE:
            if self._has_reasoning:
                self._space.append(character)
            return
        begun = self._begun + character
        if begun == self._end:
            self._take = self._behind_block
        elif self._end.startswith(begun):
            self._begun = begun
        else:
            self._begun, self._has_reasoning = "", True
            self._parts.append(Reasoning("".join(self._space) + begun[0]))
            self._space.clear()
            for again in begun[1:]:
                self._take(again)

    def _behind_block(self, character: str) -> None:
        if character not in SPACE:
            self._take = self._in_answer
            self._parts += self._inner.push(character)

    def _in_answer(self, character: str) -> None:
        self._parts += self._inner.push(character)


class PlainText:
    """A parser for answers in which there is nothing to find."""

    def push(self, text: str) -> list[Part]:
        """The text."""
        return [Text(text)] if text else []

    def finish(self) -> list[Part]:
        """Nothing is left."""
        return []
