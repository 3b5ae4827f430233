"""From what a caller passes as prompts to token ids that can run, and the request made of them.

Knows a tokenizer only by its encode(). Nothing here touches a lane: a refused request has cost nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pearl_rt.errors import RequestError
from pearl_rt.sampling_params import token_ids


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


@dataclass(frozen=True)
class Prompt:
    """A prompt that fits: its text if it was given as text, and its ids."""

    text: str | None
    token_ids: tuple[int, ...]


def prompt_list(prompts: Any) -> list[Any]:
    """One prompt (a text, or a list of ids) or a list of prompts -> a list of prompts."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, (list, tuple)):
        raise RequestError(
            f"a prompt is a text or a list of token ids, got {type(prompts).__name__}: pass a str, a list "
            f"of int, "
            "or a list of either"
        )
    if not prompts:
        raise RequestError("the prompt is empty: give at least one token, or a list of prompts")
    if any(isinstance(item, (str, list, tuple)) for item in prompts):
        return list(prompts)
    return [prompts]


def prepare_prompt(prompt: Any, encoder: Encoder | None, vocab_size: int, max_model_len: int) -> Prompt:
    """Checks one prompt, and encodes it if it is text. Raises RequestError, which names the value and the way
    out.
    """
    text = prompt if isinstance(prompt, str) else None
    if text is None:
        if not isinstance(prompt, (list, tuple)):
            raise RequestError(f"a prompt is a text or a list of token ids, got {prompt!r} among the prompts")
        ids = token_ids("prompt", prompt)
    elif encoder is None:
        raise RequestError(f"this engine has no tokenizer for the text {text[:40]!r}: pass token ids")
    else:
        ids = tuple(encoder.encode(text)) if text else ()
    if not ids:
        raise RequestError(f"the prompt {prompt!r} is empty: give at least one token")
    for place, token_id in enumerate(ids):
        if token_id >= vocab_size:
            raise RequestError(
                f"prompt[{place}] is {token_id}, out of range: the vocabulary has ids 0 to {vocab_size - 1}"
            )
    if len(ids) > max_model_len:
        raise RequestError(
            f"the prompt has {len(ids)} tokens, more than max_model_len {max_model_len}: shorten it, or "
            f"build the "
            "engine with a larger max_model_len"
        )
    if len(ids) == max_model_len:
        raise RequestError(
            f"the prompt has {len(ids)} tokens, which leaves no room to generate within max_model_len "
            f"{max_model_len}: shorten it, or build the engine with a larger max_model_len"
        )
    return Prompt(text, ids)
