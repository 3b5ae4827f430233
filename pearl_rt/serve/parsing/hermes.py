"""Calls as Hermes and Qwen write them: <tool_call>{"name": ..., "arguments": {...}}</tool_call>.

The last end mark may be missing. Knows nothing of templates.
"""

from pearl_rt.serve.parsing.json_value import SPACE
from pearl_rt.serve.parsing.marked_calls import MarkedCalls

_END = "</tool_call>"


class HermesCalls(MarkedCalls):
    """Each call stands between marks of its own, with text between them."""

    mark = "<tool_call>"
    marks = (mark, _END)
    _ended = ""  # of the end mark

    def _after_call(self, character: str) -> None:
        if not self._ended and character in SPACE:
            self._space.append(character)
            return
        self._ended += character
        if self._ended == _END:
            self._to_text(is_behind_call=True)
        elif not _END.startswith(self._ended):
            behind = "".join(self._space) + self._ended
            self._to_text(is_behind_call=True)
            for again in behind:
                self._take(again)

    def _to_text(self, text: str = "", *, is_behind_call: bool = False) -> None:
        self._ended = ""
        super()._to_text(text, is_behind_call=is_behind_call)

    def _end_elsewhere(self) -> None:
        self._to_text(self._ended and "".join(self._space) + self._ended)
