"""Answers of /v1/chat/completions: whole, or as the chunks of a stream.

Knows outputs and chunks, and what is read in their text; not HTTP.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pearl_rt.serve.chat.reading import GrowingAnswer, Reading, WholeAnswer, finished
from pearl_rt.serve.shapes import Common, usage
from pearl_rt.types.json import Json
from pearl_rt.types.outputs import RequestOutput, StreamChunk, TokenLogprobs


@dataclass
class ChatShape(Common):
    """/v1/chat/completions. num_logprobs: likeliest tokens to report beside each."""

    num_logprobs: int = 0
    reading: Reading = field(default_factory=Reading)
    answers: dict[int, GrowingAnswer] = field(default_factory=dict)  # of a stream, by choice

    def whole(self, outputs: Sequence[RequestOutput], num_answers: int) -> Json:
        """All choices, with usage."""
        choices = [self._choice(index, output) for index, output in enumerate(outputs)]
        return self._frame("chatcmpl", "chat.completion", choices) | {"usage": usage(outputs, num_answers)}

    def _choice(self, index: int, output: RequestOutput) -> Json:
        answer = WholeAnswer.read(output.text, self.reading)
        return {
            "index": index,
            "message": answer.message(),
            "logprobs": self._logprobs(output.logprobs),
            "finish_reason": finished(output.finish_reason, len(answer.calls)),
            "stop_reason": output.stop_reason,
        }

    def opening(self, index: int) -> list[Json]:
        """The role, before any text."""
        return [self._delta(index, {"role": "assistant", "content": ""})]

    def chunk(self, index: int, chunk: StreamChunk, stop_reason: str | int | None) -> list[Json]:
        """What one piece of one choice adds. Log-probabilities stand beside the first of it."""
        answer = self.answers.get(index)
        if answer is None:
            answer = self.answers[index] = GrowingAnswer(self.reading, self.reading.parser())
        deltas = answer.deltas(chunk)
        if chunk.finish_reason is None and chunk.logprobs and not deltas:
            deltas = [{"content": ""}]
        if chunk.finish_reason is not None and not deltas:
            deltas = [{}]
        told = [self._delta(index, delta) for delta in deltas]
        if told and chunk.logprobs is not None:
            told[0]["choices"][0]["logprobs"] = self._logprobs(chunk.logprobs)
        if chunk.finish_reason is not None:
            end = {"finish_reason": answer.reason(chunk.finish_reason), "stop_reason": stop_reason}
            told[-1]["choices"][0] |= end
        return told

    def closing(self, outputs: Sequence[RequestOutput], num_answers: int) -> Json:
        """Usage, where it was asked for."""
        return self._frame("chatcmpl", "chat.completion.chunk", []) | {"usage": usage(outputs, num_answers)}

    def _delta(self, index: int, delta: Json) -> Json:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": None,
            "finish_reason": None,
            "stop_reason": None,
        }
        return self._frame("chatcmpl", "chat.completion.chunk", [choice])

    def _logprobs(self, reported: Sequence[TokenLogprobs] | None) -> Json | None:
        if reported is None:
            return None
        content = []
        for entries in reported:
            listed = [self._token(token_id, entry.logprob) for token_id, entry in entries.items()]
            likeliest = sorted(entries.items(), key=lambda item: item[1].rank)[: self.num_logprobs]
            content.append({**listed[0], "top_logprobs": [self._token(i, e.logprob) for i, e in likeliest]})
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> Json:
        own = self.tokenizer.token_bytes(token_id)
        return {"token": own.decode(errors="replace"), "logprob": logprob, "bytes": list(own)}
