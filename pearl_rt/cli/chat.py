"""A conversation with one engine: messages so far, and answers that stream.

Knows engines, templates and tokenizers; nothing of terminals.
"""

from collections.abc import Generator

from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.engine import Engine
from pearl_rt.errors import ConfigError
from pearl_rt.types.sampling_params import SamplingParams


class Conversation:
    """Questions and answers in order, after an optional system message."""

    def __init__(
        self, engine: Engine, template: ChatTemplate, params: SamplingParams, *, system: str | None = None
    ) -> None:
        if engine.tokenizer is None:
            raise ConfigError(
                "a conversation needs a tokenizer: build the engine with Engine.from_pretrained"
            )
        self._engine = engine
        self._tokenizer = engine.tokenizer
        self._template = template
        self._params = params
        self._opening = [{"role": "system", "content": system}] if system else []
        self.messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        """Forgets all but the system message."""
        self.messages = list(self._opening)

    def ask(self, text: str) -> Generator[str, None, None]:
        """Pieces of the answer. Once this is exhausted, or closed, question and answer are part of the
        messages.

        Raises RequestError if the conversation does not fit any more; it is then as it was.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        prompt = self._tokenizer.encode(self._template.render(asked), add_special_tokens=False)
        stream = self._engine.stream(prompt, self._params)
        answer: list[str] = []
        try:
            for chunk in stream:
                answer.append(chunk.text)
                yield chunk.text
        finally:
            stream.close()
            if answer:
                self.messages = [*asked, {"role": "assistant", "content": "".join(answer)}]
