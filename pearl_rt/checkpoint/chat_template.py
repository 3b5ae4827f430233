"""Messages to the text that a model was trained on, by the checkpoint's own Jinja template, as Hugging Face
does it.

Needs jinja2 (extra `serve`). A template is a program of the checkpoint's author: it runs in jinja2's
sandbox, with the same names as in transformers' apply_chat_template, and sees plain data only. Knows nothing
of tokens.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from pearl_rt.checkpoint.config import check_file, model_directory, read_json
from pearl_rt.checkpoint.gguf.model import GgufModel
from pearl_rt.errors import CheckpointError, ConfigError, RequestError, one_line
from pearl_rt.types.json import Json

_MARK = "\ue000end of the final message\ue001"
_ARGUMENTS = '{"needle": 1}'  # of a call that asks a template how it writes arguments
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """A compiled template, with the special tokens that it may name.

    names_tools  whether it shows the tools that it is given
    for_tools    what the checkpoint has for chats with tools instead, where it has two ("tool_use")
    """

    for_tools: "ChatTemplate | None" = None

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        """Raises CheckpointError for what is no template."""
        self.source, self.special_tokens = source, dict(special_tokens or {})
        try:
            environment = _environment()
            self._template = environment.from_string(source)
            parsed = environment.parse(source)
            constants = parsed.find_all(nodes.Const)
            self._knows_developer = any(constant.value == "developer" for constant in constants)
            self.names_tools = any(name.name == "tools" for name in parsed.find_all(nodes.Name))
        except Exception as error:  # TemplateError, or what Python's compiler says of what Jinja made of it
            raise CheckpointError(
                f"the chat template is not valid Jinja ({one_line(error)}): fetch it again"
            ) from error

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], file: Path | None = None) -> "ChatTemplate":
        """From chat_template.jinja, or else tokenizer_config.json, in a checkpoint's directory; from the
        metadata of a GGUF file; or from `file`.

        Raises ConfigError if there is none, CheckpointError for what cannot be read.
        """
        if (gguf := GgufModel.open(path)) is not None:
            own = gguf.metadata.text("tokenizer.chat_template") if file is None else _read(file)
            if own is None:
                raise ConfigError(
                    f"{gguf.path} has no chat template (tokenizer.chat_template): it is no chat model; give "
                    "a template with --chat-template FILE, or use completions"
                )
            return cls._of(gguf.path if file is None else str(file), own, gguf.named_tokens())
        directory = model_directory(path)
        settings_file = directory / "tokenizer_config.json"
        settings = read_json(settings_file) if settings_file.exists() else {}
        source = _read(file) if file is not None else _find(directory, settings)
        if source is None:
            raise ConfigError(
                f"{directory} has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json): it is no chat model; give a template with --chat-template FILE, or "
                "use completions"
            )
        place = str(directory if file is None else file)
        made = cls._of(place, source, tokens := _special_tokens(directory, settings))
        if file is None and (tools := _find(directory, settings, "tool_use")) is not None:
            made.for_tools = cls._of(place, tools, tokens)
        return made

    @classmethod
    def _of(cls, place: str, source: str, special_tokens: Mapping[str, str]) -> "ChatTemplate":
        """Raises CheckpointError, which names the place that it is from."""
        try:
            return cls(source, special_tokens)
        except CheckpointError as error:
            raise CheckpointError(f"{place}: {error}") from error

    @property
    def whole_source(self) -> str:
        """All that the checkpoint says of the form of its answers."""
        return self.source + ("" if self.for_tools is None else self.for_tools.source)

    def render(
        self,
        messages: Sequence[Json],
        /,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[object] | None = None,
        **variables: object,
    ) -> str:
        """The prompt. messages: {"role": ..., "content": ...}, at least one; `variables` are the template's
        own. continue_final_message: the prompt ends where the text of the last message does.

        The role "developer" is "system" where the template does not name it. Of members that are null,
        templates see `content` only. Arguments of calls that are JSON text are objects where the template
        writes them as JSON itself. Encode the prompt with add_special_tokens=False. Raises RequestError if
        the template refuses them.
        """
        if not messages:
            raise RequestError("messages is empty: give at least one")
        plain = [
            {name: value for name, value in message.items() if value is not None or name == "content"}
            for message in messages
        ]
        if any("tool_calls" in message for message in plain) and self._wants_objects:
            plain = [_with_objects(message) for message in plain]
        if continue_final_message:
            return self._continued(plain, tools, variables)
        return self._rendered(plain, add_generation_prompt, tools, variables)

    def _continued(self, plain: list[Json], tools: Sequence[object] | None, variables: Json) -> str:
        """The prompt up to the end of the last message's text: a mark behind it is where it is cut. A
        template that trims the text takes the space before the mark away, and so ours is taken away too.
        """
        content = plain[-1].get("content")
        if not isinstance(content, str):
            raise RequestError("continue_final_message needs a last message whose content is text")
        marked = [*plain[:-1], {**plain[-1], "content": f"{content}{_MARK} "}]
        before, mark, after = self._rendered(marked, False, tools, variables).rpartition(_MARK)
        if not mark:
            raise RequestError(
                "the chat template does not show the text of the last message: it cannot be continued"
            )
        return before if after.startswith(" ") else before.rstrip()

    @cached_property
    def _wants_objects(self) -> bool:
        """Whether arguments of calls have to be objects: given as JSON text, they would be quoted again."""
        call = {"type": "function", "function": {"name": "f", "arguments": _ARGUMENTS}, "id": "call00000"}
        said: list[Json] = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ]
        for content in (None, ""):
            said[-1]["content"] = content
            try:
                return _ARGUMENTS not in self._rendered(said, False, None, {})
            except RequestError:
                continue
        return True

    def _rendered(
        self, plain: list[Json], prompts: bool, tools: Sequence[object] | None, variables: Json
    ) -> str:
        if not self._knows_developer:
            plain = [
                message | {"role": "system"} if message.get("role") == "developer" else message
                for message in plain
            ]
        given: Json = {**self.special_tokens, **variables}
        given |= {"messages": plain, "tools": tools, "documents": None, "add_generation_prompt": prompts}
        try:
            return self._template.render({name: _plain(value) for name, value in given.items()})
        except Exception as error:  # a template is a program: whatever it raises is its answer
            told = str(error)[:1000] or type(error).__name__
            raise RequestError(f"the chat template refuses these messages: {told}") from error


def _with_objects(message: Json) -> Json:
    """A message whose calls have their arguments as objects, where they are the text of one."""
    if not isinstance(calls := message.get("tool_calls"), (list, tuple)):
        return message
    return {**message, "tool_calls": [_call_with_object(call) for call in calls]}


def _call_with_object(call: object) -> object:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        return call
    with suppress(ValueError, TypeError, RecursionError):
        arguments = json.loads(function["arguments"]) if "arguments" in function else None
        if isinstance(arguments, dict):
            return {**call, "function": {**function, "arguments": arguments}}
    return call


def _find(directory: Path, settings: Json, name: str = "default") -> str | None:
    """One of the templates of a checkpoint, by its name."""
    default = directory / "chat_template.jinja"
    file = default if name == "default" else directory / "additional_chat_templates" / f"{name}.jinja"
    if file.exists():
        return _read(file)
    found = settings.get("chat_template")
    if isinstance(found, list):  # [{"name": ..., "template": ...}]
        named = [item for item in found if isinstance(item, dict) and isinstance(item.get("name"), str)]
        found = {item["name"]: item.get("template") for item in named}
    if isinstance(found, dict):
        found = found.get(name)
    elif name != "default":
        return None
    if found is not None and not isinstance(found, str):
        raise CheckpointError(
            f"chat_template of {directory / 'tokenizer_config.json'} is no text: fetch it again"
        )
    return found


def _read(file: Path) -> str:
    if file.exists():
        check_file(file)
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise CheckpointError(f"{file} cannot be read as a chat template: {error}") from error


def _special_tokens(directory: Path, settings: Json) -> dict[str, str]:
    """bos_token, eos_token and so on, as text."""
    legacy = directory / "special_tokens_map.json"
    older = read_json(legacy) if legacy.exists() and "added_tokens_decoder" not in settings else {}
    found = {}
    for name in NAMED_TOKENS:
        token = older.get(name) or settings.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found[name] = token
    return found


def _plain(value: object) -> object:
    """Rebuilt of plain JSON types: what a template calls methods on is nothing but data."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    return f"<{type(value).__name__}>"


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %} marks what the model wrote, for training: here it is just a
    scope.
    """

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


class _Dict:
    """dict(...) without the type behind it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """namespace(...) without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, given = args[0], dict(*args[1:], **kwargs)
        for name in given:
            _check_name(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: object) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a chat template may not store {name!r} in a namespace")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own escapes HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@jinja2.pass_context
def _as_it_is(_: object, value: object) -> object:
    """What is written for a value. Jinja evaluates no constant ahead of one that may ask the context."""
    return value


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, loopcontrols],
        # Nothing is evaluated when a template is compiled: what takes long does so when it is rendered.
        optimized=False,
        finalize=_as_it_is,
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_Dict(), namespace=_Namespace
    )
    return environment
