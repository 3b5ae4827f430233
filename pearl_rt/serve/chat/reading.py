"""The text of an answer as what a client is told: content, reasoning and calls, whole or as deltas.

Knows the parts that a parser finds; not HTTP.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pearl_rt.serve.parsing.marked_calls import MarkedCalls
from pearl_rt.serve.parsing.parts import (
    CallArguments,
    CallBroken,
    CallEnd,
    CallStart,
    Parser,
    Part,
    Reasoning,
    Text,
)
from pearl_rt.serve.parsing.think_block import PlainText
from pearl_rt.types.json import Json
from pearl_rt.types.outputs import StreamChunk


@dataclass(frozen=True)
class Reading:
    """How the text of an answer is read.

    parser           makes a parser for one answer
    call_id          makes an id for one call
    is_parallel      whether an answer may have several calls; else those behind the first are left out
    shows_reasoning  whether reasoning is told
    """

    parser: Callable[[], Parser] = PlainText
    call_id: Callable[[], str] = MarkedCalls.call_id
    is_parallel: bool = True
    shows_reasoning: bool = True

    def wanted(self, parts: Iterable[Part], num_calls: int) -> list[Part]:
        """The parts that are told. num_calls: that began before these."""
        found: list[Part] = []
        for part in parts:
            num_calls += isinstance(part, CallStart)
            is_of_call = isinstance(part, (CallStart, CallArguments, CallEnd, CallBroken))
            is_dropped = is_of_call and num_calls > 1 and not self.is_parallel
            if not is_dropped and (self.shows_reasoning or not isinstance(part, Reasoning)):
                found.append(part)
        return found


@dataclass
class GrowingAnswer:
    """One answer of a stream, as deltas."""

    reading: Reading
    parser: Parser
    num_calls: int = 0  # that began
    num_whole: int = 0  # that are whole

    def parts(self, chunk: StreamChunk) -> list[Part]:
        """What a chunk adds, and the answer's end if it is the last one."""
        found = self.parser.push(chunk.text)
        if chunk.finish_reason is not None:
            found += self.parser.finish()
        found = self.reading.wanted(found, self.num_calls)
        self.num_calls += sum(isinstance(part, CallStart) for part in found)
        self.num_whole += sum(isinstance(part, CallEnd) for part in found)
        return found

    def deltas(self, chunk: StreamChunk) -> list[Json]:
        """`parts` as OpenAI's deltas."""
        place, found = self.num_calls - 1, []
        for part in self.parts(chunk):
            place += isinstance(part, CallStart)
            if (delta := _delta(part, place, self.reading.call_id)) is not None:
                found.append(delta)
        return found

    def reason(self, finish_reason: str | None) -> str | None:
        """Why the answer ended."""
        return finished(finish_reason, self.num_whole)


def finished(finish_reason: str | None, num_calls: int) -> str | None:
    """A finish reason, of an answer with so many calls."""
    return "tool_calls" if num_calls and finish_reason == "stop" else finish_reason


def _delta(part: Part, place: int, call_id: Callable[[], str]) -> Json | None:
    match part:
        case Text(text) | CallBroken(_, text) if text:
            return {"content": text}
        case Reasoning(text):
            return {"reasoning_content": text, "reasoning": text}
        case CallStart(name):
            function = {"name": name, "arguments": ""}
            return {
                "tool_calls": [{"index": place, "id": call_id(), "type": "function", "function": function}]
            }
        case CallArguments(text):
            return {"tool_calls": [{"index": place, "function": {"arguments": text}}]}
    return None


@dataclass
class WholeAnswer:
    """A text, read as a whole: what a call was begun as and is none is content."""

    content: str
    reasoning: str
    calls: list[Json]  # as in a message

    @classmethod
    def read(cls, text: str, reading: Reading) -> "WholeAnswer":
        """Its parts, put together."""
        parser = reading.parser()
        answer, open_call = cls("", "", []), ("", "")
        for part in reading.wanted([*parser.push(text), *parser.finish()], 0):
            match part:
                case Text(piece) | CallBroken(piece, _):
                    answer.content += piece
                case Reasoning(piece):
                    answer.reasoning += piece
                case CallStart(name):
                    open_call = (name, "")
                case CallArguments(piece):
                    open_call = (open_call[0], open_call[1] + piece)
                case CallEnd():
                    function = {"name": open_call[0], "arguments": open_call[1]}
                    answer.calls.append({"id": reading.call_id(), "type": "function", "function": function})
        return answer

    def message(self) -> Json:
        """As OpenAI's message."""
        told: Json = {"role": "assistant", "content": self.content, "refusal": None}
        if self.reasoning:
            told |= {"reasoning_content": self.reasoning, "reasoning": self.reasoning}
        if self.calls:
            told |= {"content": self.content or None, "tool_calls": self.calls}
        return told
