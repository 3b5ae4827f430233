"""The messages of a chat in their order: each answer of a tool follows the call that it answers, by whose
function it is named, as some templates ask.

Knows messages as clients send them; not templates.
"""

import json
from collections.abc import Sequence

from pearl_rt.serve.fields import FieldError, clean
from pearl_rt.types.json import Json


def checked_messages(messages: Sequence[Json]) -> tuple[Json, ...]:
    """The messages, arguments of calls as JSON text, reasoning under both of its names. Raises FieldError for
    an answer without its call, and for a call without its answer.
    """
    open_calls: list[tuple[str, str]] = []  # (id, function)
    found = []
    for place, message in enumerate(messages):
        name, role = f"messages[{place}]", message["role"]
        if role != "assistant" and message.get("tool_calls"):
            raise FieldError(f"{name}.tool_calls", f"{name} has tool_calls: only role 'assistant' may call")
        if role == "tool":
            message = _answer(name, message, open_calls)
        elif open_calls:
            raise _unanswered(name, open_calls)
        elif role == "assistant":
            message = _of_assistant(name, message)
            calls = message.get("tool_calls") or ()
            open_calls = [(call["id"], call["function"]["name"]) for call in calls]
        found.append(message)
    if open_calls:
        raise _unanswered("messages", open_calls)
    return tuple(found)


def _answer(name: str, message: Json, open_calls: list[tuple[str, str]]) -> Json:
    call_id = message.get("tool_call_id")
    if not isinstance(call_id, str):
        raise FieldError(f"{name}.tool_call_id", f"{name} of role 'tool' must have a tool_call_id")
    answered = next((call for call in open_calls if call[0] == call_id), None)
    if answered is None:
        raise FieldError(
            name,
            f"{name} of role 'tool' must follow an assistant's message with a call {clean(call_id)!r} that "
            "has no answer yet",
        )
    if not isinstance(message.get("content"), str):
        raise FieldError(f"{name}.content", f"{name}.content must be a string, or parts of text")
    open_calls.remove(answered)
    return message if isinstance(message.get("name"), str) else {**message, "name": answered[1]}


def _unanswered(name: str, open_calls: Sequence[tuple[str, str]]) -> FieldError:
    told = clean(", ".join(repr(call_id) for call_id, _ in open_calls))
    return FieldError(
        name, f"an assistant's tool_calls must be followed by messages of role 'tool'; none answers {told}"
    )


def _of_assistant(name: str, message: Json) -> Json:
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise FieldError(f"{name}.tool_calls", f"{name}.tool_calls must be an array")
    read: Json = (
        {"tool_calls": [_call(f"{name}.tool_calls[{i}]", c) for i, c in enumerate(calls)]} if calls else {}
    )
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(reasoning, str):
        read |= {"reasoning_content": reasoning, "reasoning": reasoning}
    return {**message, **read}


def _call(name: str, call: object) -> Json:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise FieldError(name, f"{name} must be an object with a function")
    if not isinstance(call.get("id"), str):
        raise FieldError(f"{name}.id", f"{name}.id must be a string")
    if not isinstance(function.get("name"), str):
        raise FieldError(f"{name}.function.name", f"{name}.function.name must be a string")
    arguments = function.get("arguments")
    if arguments is None or arguments == "":
        arguments = "{}"
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    if not isinstance(arguments, str):
        raise FieldError(f"{name}.function.arguments", f"{name}.function.arguments must be JSON text")
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}
