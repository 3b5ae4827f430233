"""The tools of a body, and how they are to be called: tools, tool_choice and parallel_tool_calls, checked.

Knows the schema that an answer must have where a call is required; not how it is kept to.
"""

import re
from dataclasses import dataclass

from pearl_rt.errors import RequestError
from pearl_rt.serve.fields import FieldError, Fields, clean
from pearl_rt.types.json import Json
from pearl_rt.types.structured_outputs import Schema

MAX_TOOLS = 128
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_BAD_SCHEMA = "invalid_function_parameters"
_WAYS = ("auto", "none", "required")


@dataclass(frozen=True)
class ToolUse:
    """What an answer may call.

    tools        as a template sees them
    choice       "auto": what the model likes; "required": one at least; "named": `name`, and nothing else
    is_parallel  an answer may have several calls
    """

    tools: tuple[Json, ...]
    choice: str = "auto"
    name: str = ""
    is_parallel: bool = True

    @classmethod
    def read(cls, fields: Fields) -> "ToolUse | None":
        """None: nothing is to be called. Raises FieldError."""
        tools = _tools(fields.any("tools"))
        is_parallel = fields.boolean("parallel_tool_calls", True)
        choice, names = _choice(fields.any("tool_choice", "auto" if tools else "none"))
        by_name = {tool["function"]["name"]: tool for tool in tools}
        for name in names:
            if name not in by_name:
                raise FieldError(
                    "tool_choice",
                    f"tool_choice names {clean(name)!r}, which is none of the tools: pass one of "
                    f"{clean(', '.join(by_name) or '(there are none)')}",
                )
        if choice == "required" and not tools:
            raise FieldError("tool_choice", "tool_choice 'required' needs tools: pass at least one")
        if choice == "none" or not tools:
            return None
        if choice == "named":
            return cls(tools, choice, names[0], is_parallel)
        if names:  # the others are not to be called, and not shown
            tools = tuple(by_name[name] for name in dict.fromkeys(names))
        return cls(tools, choice, "", is_parallel)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the functions."""
        return tuple(tool["function"]["name"] for tool in self.tools)

    def schema(self) -> Json | None:
        """Of the whole answer, where a call must be; None: it is free.

        Named: the arguments. Required: [{"name": ..., "parameters": {...}}, ...].
        """
        if self.choice == "auto":
            return None
        if self.choice == "named":
            return next(_parameters(t) for t in self.tools if t["function"]["name"] == self.name)
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "enum": [name]},
                    "parameters": {"$ref": f"#/$defs/{name}"},
                },
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
            for name in self.names
        ]
        items = calls[0] if len(calls) == 1 else {"anyOf": calls}
        schema: Json = {"type": "array", "minItems": 1, "items": items}
        schema["$defs"] = {
            name: _moved(_parameters(tool), f"#/$defs/{name}")
            for name, tool in zip(self.names, self.tools, strict=True)
        }
        return schema if self.is_parallel else schema | {"maxItems": 1}


def _tools(given: object) -> tuple[Json, ...]:
    if given is None:
        return ()
    if not isinstance(given, list):
        raise FieldError("tools", "tools must be an array")
    if len(given) > MAX_TOOLS:
        raise FieldError("tools", f"tools has {len(given)} tools: send {MAX_TOOLS} at most")
    seen: set[str] = set()
    for place, tool in enumerate(given):
        name = _checked_name(f"tools[{place}]", tool)
        if name in seen:
            raise FieldError(f"tools[{place}]", f"two tools have the name {name!r}: give each its own")
        seen.add(name)
    return tuple(_filled(tool) for tool in given)


def _filled(tool: Json) -> Json:
    """With what templates take for granted: a description, and parameters with properties."""
    function = {name: value for name, value in tool["function"].items() if value is not None}
    parameters = {"type": "object", "properties": {}, **function.get("parameters", {})}
    return {**tool, "function": {"description": "", **function, "parameters": parameters}}


def _checked_name(place: str, tool: object) -> str:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise FieldError(place, f"{place} must be an object of type 'function': no other tool is known")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise FieldError(f"{place}.function", f"{place}.function must be an object with a name")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise FieldError(
            f"{place}.function.name",
            f"{place}.function.name must be 1 to 128 letters, digits, '_', '-' or '.'",
        )
    if not isinstance(function.get("description") or "", str):
        raise FieldError(f"{place}.function.description", f"{place}.function.description must be a string")
    if (parameters := function.get("parameters")) is not None:
        _check_schema(f"{place}.function.parameters", parameters)
    return name


def _check_schema(place: str, schema: object) -> None:
    """What holds for the parameters of any function; the rest is for what compiles the schema."""
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise FieldError(place, f"{place} must be a JSON schema of type 'object'", _BAD_SCHEMA)
    try:
        Schema()(place, schema)
    except RequestError as error:
        raise FieldError(place, str(error), _BAD_SCHEMA) from None


def _choice(given: object) -> tuple[str, list[str]]:
    """(way, names of the functions that it names)."""
    if isinstance(given, str) and given in _WAYS:
        return given, []
    if isinstance(given, dict) and given.get("type") == "function":
        inner = given.get("function")
        name = inner.get("name") if isinstance(inner, dict) else given.get("name")
        if isinstance(name, str):
            return "named", [name]
    if isinstance(given, dict) and given.get("type") == "allowed_tools":
        allowed = given.get("allowed_tools", given)
        if isinstance(allowed, dict) and allowed.get("mode") in ("auto", "required"):
            tools = allowed.get("tools")
            chosen = [_choice(tool)[1] for tool in tools] if isinstance(tools, list) and tools else [[]]
            if all(chosen):
                return str(allowed["mode"]), [names[0] for names in chosen]
    raise FieldError(
        "tool_choice",
        "tool_choice must be 'auto', 'none', 'required', or {'type': 'function', 'function': {'name': ...}}",
    )


def _parameters(tool: Json) -> Json:
    """The schema of a function's arguments; one that has no parameters takes an empty object."""
    given: Json = tool["function"]["parameters"]
    is_empty = given == {"type": "object", "properties": {}}
    return {**given, "additionalProperties": False} if is_empty else given


def _moved(schema: object, where: str) -> object:
    """A schema as it is at another place: references to parts of itself follow."""
    if isinstance(schema, list):
        return [_moved(item, where) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {name: _moved(value, where) for name, value in schema.items()}
    if isinstance(target := schema.get("$ref"), str) and target.startswith("#"):
        moved["$ref"] = where + target[1:]
    return moved
