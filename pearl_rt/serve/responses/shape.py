"""Answers of /v1/responses: one object with its items, or the events of a stream.

Knows what is read in the text of an answer; not HTTP.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from pearl_rt.serve.chat.reading import GrowingAnswer, Reading, WholeAnswer
from pearl_rt.serve.parsing.parts import (
    CallArguments,
    CallBroken,
    CallEnd,
    CallStart,
    Part,
    Reasoning,
    Text,
)
from pearl_rt.types.json import Json
from pearl_rt.types.outputs import RequestOutput, StreamChunk


def _id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(24)}"


def _message(text: str, item_id: str, status: str = "completed") -> Json:
    content = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": [content]}


def _reasoning(text: str, item_id: str, status: str = "completed") -> Json:
    content = [{"type": "reasoning_text", "text": text}]
    return {"id": item_id, "type": "reasoning", "summary": [], "content": content, "status": status}


def _call(name: str, arguments: str, call_id: str, item_id: str, status: str = "completed") -> Json:
    told = {"id": item_id, "type": "function_call", "status": status}
    return {**told, "call_id": call_id, "name": name, "arguments": arguments}


# Of an item with text: the type of its part, and of its events.
_PARTS = {
    "message": ("output_text", "response.output_text"),
    "reasoning": ("reasoning_text", "response.reasoning_text"),
}


@dataclass
class ResponsesShape:
    """One answer. repeated: fields of the body that it repeats. num_prompt_tokens: of its prompt."""

    names_events: ClassVar[bool] = True
    model: str
    reading: Reading
    num_prompt_tokens: int
    repeated: Json
    id: str = field(default_factory=lambda: _id("resp"))
    created: int = field(default_factory=lambda: int(time.time()))
    items: list[Json] = field(default_factory=list)  # of a stream: those that are told
    _answer: GrowingAnswer | None = None
    _open: str = ""  # the type of the item that grows
    _num_tokens: int = 0
    _num_events: int = 0
    _pieces: list[str] = field(default_factory=list)  # of the item that grows

    def whole(self, outputs: Sequence[RequestOutput], _: int) -> Json:
        """The response."""
        [output] = outputs
        answer = WholeAnswer.read(output.text, self.reading)
        items = [_reasoning(answer.reasoning, _id("rs"))] if answer.reasoning else []
        if answer.content or not answer.calls:
            items.append(_message(answer.content, _id("msg")))
        for call in answer.calls:
            function = call["function"]
            items.append(_call(function["name"], function["arguments"], call["id"], _id("fc")))
        status = _status(output.finish_reason)
        if items[-1]["type"] != "function_call":  # a call is whole, or is text
            items[-1]["status"] = status
        return self._response(status, items, len(output.token_ids))

    def opening(self, _: int) -> list[Json]:
        """The response as it begins."""
        begun = {"response": self._response("in_progress", [], None)}
        return [self._event("response.created", **begun), self._event("response.in_progress", **begun)]

    def chunk(self, _: int, chunk: StreamChunk, __: str | int | None) -> list[Json]:
        """What one piece adds; behind the last one the response is whole."""
        if self._answer is None:
            self._answer = GrowingAnswer(self.reading, self.reading.parser())
        self._num_tokens += len(chunk.token_ids)
        events = [event for part in self._answer.parts(chunk) for event in self._of_part(part)]
        if chunk.finish_reason is not None:
            status = _status(chunk.finish_reason)
            if not self.items:
                events += self._grow("message", "")
            events += self._close(status)
            response = self._response(status, self.items, self._num_tokens)
            events.append(self._event(f"response.{status}", response=response))
        return events

    def closing(self, outputs: Sequence[RequestOutput], num_answers: int) -> Json:
        """Nothing follows the last chunk."""
        raise NotImplementedError

    def _of_part(self, part: Part) -> list[Json]:
        match part:
            case Text(text):
                return self._grow("message", text)
            case Reasoning(text):
                return self._grow("reasoning", text)
            case CallStart(name):
                item = _call(name, "", self.reading.call_id(), _id("fc"), "in_progress")
                return [*self._close("completed"), self._add(item)]
            case CallArguments(text):
                self._pieces.append(text)
                return [self._event("response.function_call_arguments.delta", **self._place(), delta=text)]
            case CallEnd():
                return self._close("completed")
            case CallBroken(_, rest):
                return self._close("incomplete") + (self._grow("message", rest) if rest else [])

    def _grow(self, kind: str, text: str) -> list[Json]:
        """More text of an item, which begins unless it is the one that grows."""
        events: list[Json] = []
        part, name = _PARTS[kind]
        if self._open != kind:
            events += self._close("completed")
            made = _message("", _id("msg")) if kind == "message" else _reasoning("", _id("rs"))
            content = made["content"][0]
            events.append(self._add(made | {"content": [], "status": "in_progress"}))
            place = {**self._place(), "content_index": 0}
            events.append(self._event("response.content_part.added", **place, part=content))
        self._pieces.append(text)
        if text:
            more: Json = {"logprobs": []} if part == "output_text" else {}
            events.append(self._event(f"{name}.delta", **self._place(), content_index=0, delta=text, **more))
        return events

    def _add(self, item: Json) -> Json:
        self.items.append(item)
        self._open = item["type"]
        return self._event("response.output_item.added", output_index=len(self.items) - 1, item=dict(item))

    def _close(self, status: str) -> list[Json]:
        """The end of the item that grows, if there is one."""
        if not self._open:
            return []
        item, text, place = self.items[-1], "".join(self._pieces), self._place()
        self._pieces.clear()
        events = []
        if self._open == "function_call":
            done = {**item, "arguments": text, "status": status}
            name = "response.function_call_arguments.done"
            events.append(self._event(name, **place, name=item["name"], arguments=text))
        else:
            make = _message if self._open == "message" else _reasoning
            done = make(text, item["id"], status)
            place["content_index"] = 0
            more: Json = {"logprobs": []} if self._open == "message" else {}
            events.append(self._event(f"{_PARTS[self._open][1]}.done", **place, text=text, **more))
            events.append(self._event("response.content_part.done", **place, part=done["content"][0]))
        self._open, self.items[-1] = "", done
        index = len(self.items) - 1
        return [*events, self._event("response.output_item.done", output_index=index, item=done)]

    def _place(self) -> Json:
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}

    def _event(self, kind: str, **fields: object) -> Json:
        self._num_events += 1
        return {"type": kind, "sequence_number": self._num_events - 1, **fields}

    def _response(self, status: str, items: Sequence[Json], num_tokens: int | None) -> Json:
        """num_tokens: of the answer; None: it is not known yet."""
        usage = None
        if num_tokens is not None:
            usage = {
                "input_tokens": self.num_prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": num_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self.num_prompt_tokens + num_tokens,
            }
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "model": self.model,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": list(items),
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            "usage": usage,
            **self.repeated,
        }


def _status(finish_reason: str) -> str:
    return "completed" if finish_reason == "stop" else "incomplete"
