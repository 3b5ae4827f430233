"""From what a caller passes as prompts to token ids that can run, and the request made of them.

Knows a tokenizer only by its encode(). Nothing here touches a lane: a refused request has cost nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pearl_rt.errors import PromptTooLongError, RequestError, shown
from pearl_rt.types.draft_stop import NO_RULES
from pearl_rt.types.sampling_params import SamplingParams
from pearl_rt.types.values import token_ids

# Parameters that change logits: at every temperature, and above 0 only.
PROCESSORS = ("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "min_tokens")
FILTERS = ("top_k", "top_p", "min_p")
LOGPROBS = ("logprobs", "prompt_logprobs")

Prompt = str | Sequence[int]  # a text, or its token ids: a list or a tuple


class Grammar(Protocol):
    """What an answer must be, compiled: pearl_rt/grammar/matcher.py."""

    @property
    def vocab_size(self) -> int: ...
    def matcher(self) -> object: ...


class Encoder(Protocol):
    """The part of a tokenizer that prompts need."""

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class Request:
    """One sequence to generate, as every coordinator takes it: `_C.Request` has the same names."""

    prompt_ids: Sequence[int]
    gamma: int = 0  # drafts per window
    temperature: float = 0.0  # 0 is greedy
    seed: int = 0
    max_tokens: int = 128
    eos_ids: Sequence[int] = ()
    stop_ids: Sequence[int] = ()
    ignore_eos: bool = False
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Sequence[tuple[int, float]] = ()
    min_tokens: int = 0
    num_logprobs: int = -1  # likeliest tokens reported with each token; -1: nothing
    num_prompt_logprobs: int = -1  # the same, of each token of the prompt but the first
    shares: bool = True  # text and KV blocks with later requests, and theirs with it
    grammar: Grammar | None = None  # of the answer; on lanes that mask tokens
    adapts: bool = False  # its windows follow the run's table too, where lanes have one; else its own gamma
    draft_stop: str | None = None  # what ends its windows early, on lanes that have rules; None: the engine's

    def total_len(self, capacity: int) -> int:
        """Tokens of prompt and answer at most, where a sequence has room for `capacity`."""
        return min(len(self.prompt_ids) + self.max_tokens, capacity)

    def asked(self) -> list[str]:
        """What this request does beyond temperature, seed and limits, by the names of its parameters."""
        looked_at = (*PROCESSORS, *(FILTERS if self.temperature > 0 else ()))
        names = [name for name in looked_at if getattr(self, name) != getattr(Request, name)]
        names += [name for name in LOGPROBS if getattr(self, f"num_{name}") >= 0]
        names += [] if self.draft_stop in NO_RULES else ["draft_stop"]
        return names + ([] if self.grammar is None else ["structured_outputs"])

    @classmethod
    def of(
        cls,
        prompt_ids: Sequence[int],
        gamma: int,
        params: SamplingParams,
        eos_ids: Sequence[int],
        limit: int,
        grammar: Grammar | None = None,
    ) -> "Request":
        """One answer of n, which the caller numbers, to a prompt. limit: on tokens, as max_tokens is.
        grammar: of params.structured_outputs.
        """
        assert params.seed is not None
        return cls(
            prompt_ids,
            gamma,
            params.temperature,
            params.seed,
            limit if params.max_tokens is None else min(params.max_tokens, limit),
            eos_ids,
            params.stop_token_ids,
            params.ignore_eos,
            params.top_k,
            params.top_p,
            params.min_p,
            params.repetition_penalty,
            params.presence_penalty,
            params.frequency_penalty,
            tuple(params.logit_bias.items()),
            min(params.min_tokens, limit),
            -1 if params.logprobs is None else params.logprobs,
            -1 if params.prompt_logprobs is None else params.prompt_logprobs,
            shares=not params.private,
            grammar=grammar,
            draft_stop=params.draft_stop,
        )


def check_stop_ids(request: Request, most: int) -> None:
    """Raises RequestError for more end-of-text and stop ids than a lane of a device has room for."""
    num_stops = len(request.stop_ids) + (0 if request.ignore_eos else len(request.eos_ids))
    if num_stops > most:
        raise RequestError(f"{num_stops} end-of-text and stop ids; this lane takes {most}: pass fewer")


def check_plain(request: Request) -> None:
    """Raises RequestError for what only an engine does with a request."""
    if refused := request.asked():
        raise RequestError(
            f"{', '.join(refused)}: not to be had from a pair's calls; leave out, or use an Engine"
        )


def prompt_list(prompts: object) -> list[object]:
    """One prompt (a text, or a list of ids) or a list of prompts -> a list of prompts."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, (list, tuple)):
        raise RequestError(
            f"a prompt is a text or a list of token ids, got {type(prompts).__name__}: pass a str, a list "
            "of int, or a list of either"
        )
    if not prompts:
        raise RequestError("the prompt is empty: give at least one token, or a list of prompts")
    if any(isinstance(item, (str, list, tuple)) for item in prompts):
        return list(prompts)
    return [prompts]


def check_params(params: SamplingParams, encoder: Encoder | None, vocab_size: int) -> None:
    """Raises RequestError for ids out of the vocabulary, and for stop strings without a tokenizer."""
    for name, ids in (("stop_token_ids", params.stop_token_ids), ("logit_bias", tuple(params.logit_bias))):
        for token_id in ids:
            if token_id >= vocab_size:
                raise RequestError(
                    f"{name} has {token_id}, out of range: the vocabulary has {vocab_size} ids"
                )
    if params.stop and encoder is None:
        raise RequestError(
            f"this engine has no tokenizer to find stop {params.stop[0]!r} with: pass stop_token_ids"
        )


def prompt_ids(
    prompt: object, encoder: Encoder | None, vocab_size: int, max_model_len: int
) -> tuple[int, ...]:
    """The ids of one prompt, checked, and encoded if it is text. Raises RequestError."""
    text = prompt if isinstance(prompt, str) else None
    if text is None:
        if not isinstance(prompt, (list, tuple)):
            found = shown(prompt)
            raise RequestError(f"a prompt is a text or a list of token ids, got {found} among the prompts")
        ids = token_ids("prompt", prompt)
    elif encoder is None:
        raise RequestError(f"this engine has no tokenizer for the text {text[:40]!r}: pass token ids")
    else:
        ids = tuple(encoder.encode(text))  # of no text, the first token that a tokenizer may put first
    if not ids:
        raise RequestError(f"the prompt {shown(prompt)} is empty: give at least one token")
    for place, token_id in enumerate(ids):
        if token_id >= vocab_size:
            raise RequestError(
                f"prompt[{place}] is {token_id}, out of range: the vocabulary has ids 0 to {vocab_size - 1}"
            )
    check_prompt_length(len(ids), max_model_len)
    return ids


def check_prompt_length(num_tokens: int, max_model_len: int) -> None:
    """Raises PromptTooLongError for a prompt that leaves no room for an answer."""
    if num_tokens >= max_model_len:
        why = f"more than max_model_len {max_model_len}"
        if num_tokens == max_model_len:
            why = f"which leaves no room to generate within max_model_len {max_model_len}"
        raise PromptTooLongError(
            f"the prompt has {num_tokens} tokens, {why}: shorten it, or build the engine with a larger "
            "max_model_len"
        )
