"""A chat's messages and tools as a prompt, and how its answers are to be read.

Knows the checkpoint's template and the forms of its answers; not tokens, and not engines.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.serve.chat.reading import Reading
from pearl_rt.serve.chat.tool_use import ToolUse
from pearl_rt.serve.chat.written_tools import with_tools_written
from pearl_rt.serve.fields import FieldError
from pearl_rt.serve.parsing.forms import Forms
from pearl_rt.serve.parsing.hermes import HermesCalls
from pearl_rt.serve.parsing.marked_calls import MarkedCalls
from pearl_rt.serve.parsing.mistral import ForcedCall, ForcedCalls
from pearl_rt.serve.parsing.parts import Parser
from pearl_rt.serve.parsing.think_block import PlainText, ThinkBlock
from pearl_rt.serve.rendering import Renderer
from pearl_rt.types.json import Json


@dataclass(frozen=True)
class ChatPrompt:
    """A prompt, and how its answers are read.

    marks  that must be in the text of an answer, also where they are special tokens
    block  of these, the marks of reasoning that may come before an answer with a form: its begin and its end,
           the end alone where the prompt has begun it, none where the prompt has ended it
    """

    text: str
    reading: Reading
    marks: tuple[str, ...] = ()
    block: tuple[str, ...] = ()


class _Template:
    """A template with its child, and what it knows of tools."""

    def __init__(self, template: ChatTemplate) -> None:
        self.renderer = Renderer(template)
        self.names_tools = template.names_tools
        self.knows_calls = template.names_tools or "tool_calls" in template.source


class Prompting:
    """Makes prompts of messages. Tools that the template does not name are written into the messages, in
    Hermes's form.
    """

    def __init__(self, template: ChatTemplate, forms: Forms) -> None:
        self._plain = self._tools = _Template(template)
        if template.for_tools is not None:
            self._tools = _Template(template.for_tools)
        self._forms = forms

    def prompt(
        self,
        messages: Sequence[Json],
        variables: Json,
        tool_use: ToolUse | None = None,
        *,
        shows_reasoning: bool = True,
    ) -> ChatPrompt:
        """Blocks while the template runs. Raises RequestError for what it refuses, FieldError for tools whose
        calls cannot be read.
        """
        calls = self._calls(tool_use)
        has_calls = any(message.get("tool_calls") for message in messages)
        template = self._plain if tool_use is None and not has_calls else self._tools
        if tool_use is not None and template.names_tools:
            variables = {**variables, "tools": list(tool_use.tools)}
        elif tool_use is not None:
            messages = with_tools_written(messages, tool_use.tools)
        elif not template.knows_calls:
            messages = with_tools_written(messages)
        text = template.renderer.render(messages, variables)
        is_parallel = tool_use is None or tool_use.is_parallel
        call_id = (calls or MarkedCalls).call_id
        inner: Callable[[], Parser] = PlainText
        marks: tuple[str, ...] = ()
        if tool_use is not None and tool_use.choice != "auto":
            inner = partial(ForcedCall, tool_use.name) if tool_use.choice == "named" else ForcedCalls
        elif tool_use is not None and calls is not None:
            inner, marks = partial(calls, tool_use.names), calls.marks
        think = self._forms.reasoning
        if think is None:
            return ChatPrompt(text, Reading(inner, call_id, is_parallel), marks)
        is_open, is_closed = (text.rstrip().endswith(mark) for mark in think)
        block = () if is_closed else think[is_open:]

        def parser() -> Parser:
            return ThinkBlock(think, inner(), is_open=is_open)

        return ChatPrompt(
            text, Reading(parser, call_id, is_parallel, shows_reasoning), (*marks, *think), block
        )

    def _calls(self, tool_use: ToolUse | None) -> type[MarkedCalls] | None:
        """The form of calls; None for one that is not known."""
        calls = self._forms.calls if self._tools.names_tools else HermesCalls
        if tool_use is not None and tool_use.choice == "auto" and calls is None:
            raise FieldError(
                "tools",
                "the form in which this model writes calls is not known: pass tool_choice 'required' or a "
                "function, or serve with --tool-call-parser",
                "unsupported_parameter",
            )
        return calls
