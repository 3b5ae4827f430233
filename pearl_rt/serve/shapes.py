"""Answers in the shapes of OpenAI's API: whole, or as the chunks of a stream.

Knows outputs and chunks, and tokens by their text; not HTTP.
"""

import codecs
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.types.json import Json
from pearl_rt.types.outputs import RequestOutput, StreamChunk, TokenLogprobs

_UTF8 = codecs.getincrementaldecoder("utf-8")


def usage(outputs: Sequence[RequestOutput], num_answers: int) -> Json:
    """Tokens of prompts, once for the n answers to each, and of answers."""
    prompt = sum(len(output.prompt_token_ids) for output in outputs[::num_answers])
    completion = sum(len(output.token_ids) for output in outputs)
    cached = sum(output.num_cached_tokens or 0 for output in outputs[::num_answers])
    return usage_of(prompt, completion) | {"prompt_tokens_details": {"cached_tokens": cached}}


def usage_of(prompt: int, completion: int) -> Json:
    """So many tokens of each."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class Shape(Protocol):
    """One kind of answer. names_events: those of its stream have types, by which they are named."""

    names_events: ClassVar[bool]

    def whole(self, outputs: Sequence[RequestOutput], num_answers: int) -> Json: ...
    def opening(self, index: int) -> list[Json]: ...
    def chunk(self, index: int, chunk: StreamChunk, stop_reason: str | int | None) -> list[Json]: ...
    def closing(self, outputs: Sequence[RequestOutput], num_answers: int) -> Json: ...


@dataclass
class Common:
    """What both kinds have: an id, a time and a model."""

    names_events: ClassVar[bool] = False
    model: str
    tokenizer: Tokenizer
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def _frame(self, prefix: str, kind: str, choices: list[Json]) -> Json:
        return {
            "id": f"{prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


@dataclass
class CompletionShape(Common):
    """/v1/completions.

    is_scored  answers are their prompts alone: a token was generated, and is dropped
    echoes     by choice: the text of its prompt, with which the answer begins; none: it does not
    """

    is_scored: bool = False
    echoes: Sequence[str] = ()
    # By choice: characters of the text that the tokens so far have completed, and what decodes the next.
    offsets: dict[int, int] = field(default_factory=dict)
    decoders: dict[int, codecs.IncrementalDecoder] = field(default_factory=dict)

    def whole(self, outputs: Sequence[RequestOutput], num_answers: int) -> Json:
        """All choices, with usage."""
        choices = [self._whole_choice(index, output) for index, output in enumerate(outputs)]
        counted = usage(outputs, num_answers)
        if self.is_scored:
            counted |= usage_of(counted["prompt_tokens"], 0)
        return self._frame("cmpl", "text_completion", choices) | {"usage": counted}

    def _whole_choice(self, index: int, output: RequestOutput) -> Json:
        text, logprobs, reason = output.text, output.logprobs, output.finish_reason
        if self.is_scored:
            text, logprobs, reason = "", logprobs and [], "length"
        told = None if logprobs is None else [*self._scored_prompt(output), *logprobs]
        echo = self.echoes[index] if self.echoes else ""
        return self._choice(index, echo + text, told, reason, None if self.is_scored else output.stop_reason)

    def _scored_prompt(self, output: RequestOutput) -> list[TokenLogprobs]:
        """The prompt's tokens, where they were asked for. The first has no log-probability."""
        if output.prompt_logprobs is None:
            return []
        first, rest = output.prompt_token_ids[0], output.prompt_logprobs[1:]
        return [{first: None}, *rest]  # type: ignore[dict-item,list-item]

    def opening(self, index: int) -> list[Json]:
        """The prompt, if it is repeated; else a completion begins with its text."""
        if not self.echoes:
            return []
        choice = self._choice(index, self.echoes[index], None, None, None)
        return [self._frame("cmpl", "text_completion", [choice])]

    def chunk(self, index: int, chunk: StreamChunk, stop_reason: str | int | None) -> list[Json]:
        """One piece of one choice."""
        choice = self._choice(index, chunk.text, chunk.logprobs, chunk.finish_reason, stop_reason)
        return [self._frame("cmpl", "text_completion", [choice])]

    def closing(self, outputs: Sequence[RequestOutput], num_answers: int) -> Json:
        """Usage, where it was asked for."""
        return self._frame("cmpl", "text_completion", []) | {"usage": usage(outputs, num_answers)}

    def _choice(
        self,
        index: int,
        text: str,
        logprobs: Sequence[TokenLogprobs] | None,
        finish_reason: str | None,
        stop_reason: str | int | None,
    ) -> Json:
        return {
            "index": index,
            "text": text,
            "logprobs": None if logprobs is None else self._logprobs(index, logprobs),
            "finish_reason": finish_reason,
            "stop_reason": stop_reason,
        }

    def _logprobs(self, index: int, reported: Sequence[TokenLogprobs]) -> Json:
        tokens, offsets, own, top = [], [], [], []
        for entries in reported:
            token_id, entry = next(iter(entries.items()))
            tokens.append(self.tokenizer.token_text(token_id))
            offsets.append(self._offset(index, token_id))
            own.append(None if entry is None else entry.logprob)
            known = {i: other.logprob for i, other in entries.items() if other is not None}
            top.append({self.tokenizer.token_text(i): known[i] for i in known} or None)
        return {"tokens": tokens, "token_logprobs": own, "top_logprobs": top, "text_offset": offsets}

    def _offset(self, index: int, token_id: int) -> int:
        """Where a token begins in the text, in characters: a part of one begins where the character does."""
        decoder = self.decoders.setdefault(index, _UTF8("replace"))
        begin = self.offsets.setdefault(index, 0)
        if token_id not in self.tokenizer.hidden:
            self.offsets[index] += len(decoder.decode(self.tokenizer.token_bytes(token_id)))
        return begin
