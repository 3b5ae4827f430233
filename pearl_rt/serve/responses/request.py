"""The body of /v1/responses, read as the body of a chat with the same meaning.

Knows the items of an input; the fields of a chat are checked where chats are read.
"""

from dataclasses import dataclass, field

from pearl_rt.serve.completion_request import OPENAI_DEFAULTS, CompletionRequest, read_chat
from pearl_rt.serve.fields import UNSUPPORTED, FieldError, Fields
from pearl_rt.types.json import Json
from pearl_rt.types.sampling_params import SamplingParams
from pearl_rt.types.values import parameters

# Fields that change nothing here.
_IGNORED = frozenset(
    {
        *("store", "metadata", "user", "service_tier", "safety_identifier", "prompt_cache_key", "reasoning"),
        *("prompt_cache_retention", "include", "stream_options"),
    }
)
# As a chat has them.
_SAME = ("model", "stream", "parallel_tool_calls", "chat_template_kwargs", "include_reasoning", "speculative")
_OTHER_NAMES = {"max_tokens", "logprobs", "n", "prompt_logprobs"}
_MAX_ITEMS = 2**14


@dataclass(frozen=True)
class ResponsesRequest:
    """A chat, and what of the body an answer repeats."""

    chat: CompletionRequest
    repeated: Json = field(default_factory=dict)


def read_responses(body: object, defaults: Json = OPENAI_DEFAULTS) -> ResponsesRequest:
    """Raises FieldError or RequestError for what cannot be answered."""
    fields = Fields(body)
    for name, neutral in (("previous_response_id", ""), ("conversation", ""), ("prompt", "")):
        fields.unsupported(name, neutral, "nothing is stored; send the whole conversation as input")
    fields.unsupported("background", False, "answers are given at once")
    fields.unsupported("truncation", "disabled", "a prompt that is too long is refused")
    fields.unsupported("top_logprobs", 0, "log-probabilities are part of chats")
    given = {name: fields.any(name) for name in _SAME if name in fields}
    sampling = [row.name for row in parameters(SamplingParams) if row.name not in _OTHER_NAMES]
    given |= {name: fields.any(name) for name in sampling if name in fields}
    if (most := fields.integer("max_output_tokens")) is not None:
        given["max_tokens"] = most
    if (form := _form(fields.inside("text"))) is not None:
        given["response_format"] = form
    tools, choice = fields.any("tools", []), fields.any("tool_choice", "auto")
    if tools != []:
        given |= {"tools": _tools(tools), "tool_choice": choice}
    elif choice not in ("auto", "none"):
        given["tool_choice"] = choice
    instructions = fields.text("instructions")
    messages = _messages(fields.any("input"))
    if instructions is not None:
        messages.insert(0, {"role": "system", "content": instructions})
    fields.end(_IGNORED)
    chat = read_chat({**given, "messages": messages}, defaults)
    if chat.is_reported:
        raise FieldError(
            "speculative", "speculative.report is told by chats and completions: ask there", UNSUPPORTED
        )
    repeated = {
        "instructions": instructions,
        "max_output_tokens": most,
        "parallel_tool_calls": given.get("parallel_tool_calls", True),
        "temperature": chat.params.temperature,
        "top_p": chat.params.top_p,
        "tool_choice": choice,
        "tools": tools,
        "metadata": fields.any("metadata", {}),
        "text": fields.any("text", {"format": {"type": "text"}}),
    }
    return ResponsesRequest(chat, repeated)


def _form(text: Fields) -> Json | None:
    """text.format as a chat's response_format; None for plain text."""
    given = text.inside("format")
    text.end(frozenset({"verbosity"}))
    kind = given.any("type", "text")
    names = ("name", "schema", "strict", "description") if kind == "json_schema" else ()
    schema = {name: given.any(name) for name in names if name in given}
    given.end()
    if kind != "json_schema":
        return None if kind == "text" else {"type": kind}
    return {"type": kind, "json_schema": schema}


def _tools(given: object) -> object:
    """As a chat has them: what describes the function is an object of its own."""
    if not isinstance(given, list):
        return given
    return [
        {"type": tool["type"], "function": {name: tool[name] for name in tool if name != "type"}}
        if isinstance(tool, dict) and "type" in tool and "function" not in tool
        else tool
        for tool in given
    ]


def _messages(given: object) -> list[Json]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise FieldError("input", "input must be a string, or an array with at least one item")
    if len(given) > _MAX_ITEMS:
        raise FieldError("input", f"input has {len(given)} items: send {_MAX_ITEMS} at most")
    messages: list[Json] = []
    for place, item in enumerate(given):
        if not isinstance(item, dict):
            raise FieldError(f"input[{place}]", f"input[{place}] must be an object")
        _add(f"input[{place}]", item, messages)
    return messages


def _add(name: str, item: Json, messages: list[Json]) -> None:
    """One item. What an assistant reasons, says and calls in a row is one message."""
    kind = item.get("type", "message")
    if kind == "message":
        role, content = item.get("role"), _content(name, item.get("content"))
        if not isinstance(role, str):
            raise FieldError(f"{name}.role", f"{name} must have a role")
        if role != "assistant" or not _goes_on(messages, "content"):
            messages.append({"role": role, "content": content})
        else:
            messages[-1]["content"] = content
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        output = _content(name, item.get("output"))
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
    elif kind == "reasoning":
        parts = item.get("content") or item.get("summary") or []
        messages.append({"role": "assistant", "content": None, "reasoning": _content(name, parts)})
    else:
        raise FieldError(f"{name}.type", f"{name}.type is not supported: items are messages, calls of "
                         "functions, their outputs and reasoning", UNSUPPORTED)  # fmt: skip


def _goes_on(messages: list[Json], lacks: str) -> bool:
    """Whether the last message is an assistant's, which has not said anything yet."""
    last = messages[-1] if messages else {}
    return last.get("role") == "assistant" and last.get(lacks) is None and "tool_calls" not in last


def _content(name: str, content: object) -> object:
    """A text, its parts joined."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") if isinstance(part, dict) else None for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise FieldError(f"{name}.content", f"{name} has parts that are no text", UNSUPPORTED)
    return "\n".join(map(str, texts))
