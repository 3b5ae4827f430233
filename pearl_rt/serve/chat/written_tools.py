"""Tools, calls and their answers as plain text, in Hermes's form, for a template that knows no tools.

Knows messages; not parsers.
"""

import json
from collections.abc import Sequence

from pearl_rt.types.json import Json

_ABOUT = """You can call functions. These are their signatures, one a line:
<tools>
{tools}
</tools>
To call a function, write its name and its arguments as one JSON object between tags:
<tool_call>
{{"name": <name of the function>, "arguments": <object of its arguments>}}
</tool_call>"""


def with_tools_written(messages: Sequence[Json], tools: Sequence[Json] = ()) -> list[Json]:
    """Messages of the roles system, user and assistant, whose content says all. tools: told to the model in
    the system message, the first one.
    """
    found: list[Json] = []
    was_tool = False
    for message in messages:
        is_tool = message["role"] == "tool"
        written = _written(message)
        if is_tool and was_tool:
            written = {"role": "user", "content": f"{found.pop()['content']}\n{written['content']}"}
        found.append(written)
        was_tool = is_tool
    if not tools:
        return found
    told = _ABOUT.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if found[0]["role"] in ("system", "developer"):
        own = found[0].get("content") or ""
        return [{**found[0], "content": f"{own}\n\n{told}" if own else told}, *found[1:]]
    return [{"role": "system", "content": told}, *found]


def _written(message: Json) -> Json:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if not message.get("tool_calls"):
        return message
    calls = [
        f'<tool_call>\n{{"name": {json.dumps(function["name"])}, "arguments": {function["arguments"]}}}\n'
        "</tool_call>"
        for function in (call["function"] for call in message["tool_calls"])
    ]
    content = "\n".join([*([message["content"]] if message.get("content") else []), *calls])
    return {"role": "assistant", "content": content}
