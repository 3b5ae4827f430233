"""A Ctrl-C at every place where Python hears one, in turn: races are enumerated, not waited for."""

import dis
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

# Behind these instructions CPython looks for signals, and behind no others (ceval.c, CHECK_EVAL_BREAKER). So
# nothing can be raised between the call of __enter__ and its `with` block, nor between the block's end and
# the call of __exit__: only within those two, if they are written in Python.
HEARING = {"CALL", "CALL_FUNCTION_EX", "JUMP_BACKWARD", "POP_JUMP_BACKWARD"}
ENTRY = -1  # RESUME, at the head of a function and behind each yield: a trace function is called behind it


class Places:
    """Where a function hears signals, as far as a trace function can play them.

    A trace function raises ahead of the next instruction, Python at the end of the one before. Where another
    handler takes exceptions of the two, a place is left out: it is as if the call itself had raised.
    """

    def __init__(self, code: CodeType) -> None:
        bytecode = dis.Bytecode(code)
        self._hearing = {i.offset for i in bytecode if i.opname.startswith(tuple(HEARING))}
        self._entries = bytecode.exception_entries

    def is_one(self, before: int, after: int) -> bool:
        return before == ENTRY or (before in self._hearing and self._handler(before) == self._handler(after))

    def _handler(self, offset: int) -> int | None:
        return next((e.target for e in self._entries if e.start <= offset < e.end), None)


class Interrupter:
    """Raises KeyboardInterrupt at the n-th such place, in functions of these files, as a signal would."""

    def __init__(self, files: set[str], n: int) -> None:
        self._files = files
        self._left = n
        self._places: dict[CodeType, Places] = {}
        self._last: dict[FrameType, int] = {}
        self.place = ""  # where it was raised

    def __enter__(self) -> "Interrupter":
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if frame.f_code.co_filename not in self._files:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self._last[frame] = ENTRY
        return self._step

    def _step(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
        if event != "opcode":
            return self._step
        code = frame.f_code
        if code not in self._places:
            self._places[code] = Places(code)
        before = self._last[frame]
        self._last[frame] = frame.f_lasti
        if not self._places[code].is_one(before, frame.f_lasti):
            return self._step
        self._left -= 1
        if self._left:
            return self._step
        self.place = f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}"
        raise KeyboardInterrupt


def interrupts(files: set[str], call: Callable[[], object]) -> Iterator[str]:
    """Runs call() with an interrupt at each place in turn, until it is through without one -> the places,
    while the loop over it looks at the rest.
    """
    for n in count(1):
        with Interrupter(files, n) as interrupter:
            try:
                call()
            except BaseException as error:
                if not interrupter.place:
                    raise
                assert isinstance(error, KeyboardInterrupt), f"{interrupter.place}: {error!r}"
        if not interrupter.place:
            return
        yield interrupter.place
