"""What a caller gets back: whole outputs, chunks of a stream, and what an interrupted call had finished.

Knows nothing of how they were made. Every token in here is verified.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pearl_rt.reference.logprobs import Logprob
from pearl_rt.types.metrics import RequestMetrics
from pearl_rt.types.rounds import Origin

TokenLogprobs = dict[int, Logprob]  # by token id: the token itself first, then the likeliest, best first


@dataclass(frozen=True)
class StreamChunk:
    """The tokens of one round, and the text that they complete.

    `text` may be empty, or lag behind `token_ids`, while a UTF-8 character is still half written or a stop
    string may have begun; the texts of all chunks together are the text of the output. `finish_reason` is
    None but in the last chunk.
    `logprobs` has an entry for each of token_ids if they were asked for. `origins` say how each of them came.
    """

    token_ids: list[int]
    text: str
    finish_reason: str | None = None
    logprobs: list[TokenLogprobs] | None = None
    origins: Sequence[Origin] = ()


@dataclass(frozen=True)
class RequestOutput:
    """One prompt's answer.

    prompt         the text that was given, or None if token ids were
    token_ids      generated ids only; the last is the end-of-text or stop token, or the one that completed a
                   stop string, if that ended it
    text           their text without special tokens, cut at a stop string; empty if the engine has no
                   tokenizer
    finish_reason  "stop" (end of text, a stop id or a stop string), "length" (max_tokens or max_model_len),
                   "abort" (interrupted or cancelled)
    stop_reason    the stop string or the id of stop_token_ids that ended it; None for any other end
    logprobs       for each of token_ids, if they were asked for: the target's log-probability and rank of
                   the token and of the k likeliest, before temperature, penalties and filters
    index          which of the n answers to its prompt
    prompt_logprobs  for each of prompt_token_ids, if they were asked for: as logprobs; None for the first
    """

    prompt: str | None
    prompt_token_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: str
    metrics: RequestMetrics
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprobs] | None = None
    index: int = 0
    prompt_logprobs: list[TokenLogprobs | None] | None = None

    @property
    def num_cached_tokens(self) -> int | None:
        """Tokens of the prompt that were found in the KV cache; None where they were not looked for."""
        return self.metrics.num_cached_tokens


class GenerationInterrupted(KeyboardInterrupt):
    """Ctrl-C during generate(): `outputs` holds what was finished, and last the one cut ("abort")."""

    def __init__(self, outputs: list[RequestOutput]) -> None:
        super().__init__(f"interrupted after {sum(len(o.token_ids) for o in outputs)} tokens")
        self.outputs = outputs
