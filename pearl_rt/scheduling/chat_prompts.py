"""Conversations as token ids, by the chat template of an engine's checkpoint, or by another one.

Needs jinja2 (extra `serve`) once it is used. Knows messages and a tokenizer; not requests.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.errors import ConfigError, RequestError, shown
from pearl_rt.types.json import Json

if TYPE_CHECKING:
    from pearl_rt.checkpoint.chat_template import ChatTemplate

RENDERING = ("tools", "add_generation_prompt", "continue_final_message")  # options of ChatTemplate.render()


class ChatPrompts:
    """Renders and encodes. The template is read when it is first used."""

    def __init__(self, checkpoint: str | os.PathLike[str] | None, tokenizer: Tokenizer | None) -> None:
        """checkpoint: None where there is none; every call then brings a template."""
        self._checkpoint, self._tokenizer = checkpoint, tokenizer
        self._own: ChatTemplate | None = None

    def encoded(self, messages: object, template: str | None, variables: Json) -> list[list[int]]:
        """The ids of one conversation, or of each in a list of them. template: Jinja; None: the checkpoint's.
        variables: those options, and the template's own.

        Raises RequestError for messages that cannot be rendered, ConfigError without a template, a tokenizer
        or jinja2.
        """
        if self._tokenizer is None:
            raise ConfigError("chat() needs a tokenizer: build the engine with Engine.from_pretrained")
        tokenizer, found = self._tokenizer, self._template(template)
        texts = [found.render(each, **variables) for each in _conversations(messages)]
        return [tokenizer.encode(text, add_special_tokens=False) for text in texts]

    def _template(self, source: str | None) -> "ChatTemplate":
        try:
            from pearl_rt.checkpoint.chat_template import ChatTemplate
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"chat() needs {error.name}, which is not installed: pip install 'pearl_rt[serve]'"
            ) from None
        if source is not None:
            named = {} if self._own is None else self._own.special_tokens
            return ChatTemplate(source, named)
        if self._own is None:
            if self._checkpoint is None:
                raise ConfigError("this engine has no checkpoint with a chat template: pass chat_template")
            self._own = ChatTemplate.from_pretrained(self._checkpoint)
        return self._own


def _conversations(messages: object) -> list[Sequence[Json]]:
    if not isinstance(messages, (list, tuple)) or not messages:
        raise RequestError(f"messages must be a list of messages, or of such lists; got {shown(messages)}")
    found: list[Sequence[Json]] = [messages]
    if isinstance(messages[0], (list, tuple)):
        found = [each if isinstance(each, (list, tuple)) else [each] for each in messages]
    for conversation in found:
        for message in conversation:
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise RequestError(f"a message is a dict with a role and content, got {shown(message)}")
    return found
