"""Calls as Llama 3.x writes them: {"name": ..., "parameters": {...}}, with <|python_tag|> before it or not.

Without the mark a call is the answer's beginning, and calls one of the tools: other JSON is text. Semicolons
stand between calls. Knows nothing of templates.
"""

from collections.abc import Collection

from pearl_rt.serve.parsing.call_object import CallObject
from pearl_rt.serve.parsing.json_value import SPACE
from pearl_rt.serve.parsing.marked_calls import MarkedCalls


class LlamaCalls(MarkedCalls):
    """Calls behind the mark, or from the first character on."""

    mark = "<|python_tag|>"
    marks = (mark,)
    _is_marked = False

    def __init__(self, names: Collection[str] = ()) -> None:
        super().__init__(names)
        self._take = self._at_start

    def _at_start(self, character: str) -> None:
        if character in SPACE:
            self._space.append(character)
            return
        self._take = self._in_text
        if character == "{":
            self._to_call("".join(self._space))
        self._take(character)

    def _new_call(self) -> CallObject:
        self._is_marked = self._is_marked or self.mark in self._before
        return CallObject(None if self._is_marked else self._names)

    def _after_call(self, character: str) -> None:
        if character in SPACE:
            self._space.append(character)
        elif character == ";":
            self._to_call("".join(self._space) + character)
        else:
            space = "".join(self._space)
            self._to_text(is_behind_call=True)
            for again in space + character:
                self._take(again)

    def _end_elsewhere(self) -> None:
        if self._take == self._at_start:
            self._to_text("".join(self._space))
