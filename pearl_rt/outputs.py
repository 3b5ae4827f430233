"""What a caller gets back: whole outputs, chunks of a stream, and what an interrupted call had finished.

Knows nothing of how they were made. Every token in here is verified.
"""

from dataclasses import dataclass

from pearl_rt.metrics import RequestMetrics


@dataclass(frozen=True)
class StreamChunk:
    """The tokens of one round, and the text that they complete.

    `text` may be empty, or lag behind `token_ids`, while a UTF-8 character is still half written; the texts
    of all chunks together are the text of the output. `finish_reason` is None but in the last chunk.
    """

    token_ids: list[int]
    text: str
    finish_reason: str | None = None


@dataclass(frozen=True)
class RequestOutput:
    """One prompt's answer.

    prompt         the text that was given, or None if token ids were
    token_ids      generated ids only, the end-of-text or stop token included if one ended it
    text           their text without special tokens; empty if the engine has no tokenizer
    finish_reason  "stop" (end of text or a stop id), "length" (max_tokens or max_model_len), "abort"
                   (interrupted)
    """

    prompt: str | None
    prompt_token_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: str
    metrics: RequestMetrics


class GenerationInterrupted(KeyboardInterrupt):
    """Ctrl-C during generate(): `outputs` holds what was finished, and last the one cut ("abort")."""

    def __init__(self, outputs: list[RequestOutput]) -> None:
        super().__init__(f"interrupted after {sum(len(o.token_ids) for o in outputs)} tokens")
        self.outputs = outputs
