"""What a caller asks of one request: how to sample, when to stop, and what to return.

Names, defaults and ranges are vLLM's, but for temperature (0 here: greedy), max_tokens (128), seed (0: a call
is repeatable unless it asks not to be) and values that would need a guess, which are refused. Knows nothing
of models: whether an id is in the vocabulary or a prompt fits is for the engine to say.
"""

import math
import operator
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pearl_rt.errors import RequestError
from pearl_rt.reference.noise import sample_seed

MIN_TEMPERATURE = 1e-3  # below it logits / temperature leaves the range where fp32 tells tokens apart
MAX_TEMPERATURE = 1e3
MAX_SEED = 2**64 - 1
MAX_TOP_K = 2**31 - 1
MAX_PENALTY = 2.0
MAX_REPETITION_PENALTY = 1e30  # and its inverse: normal in fp32, with room to multiply
MAX_LOGIT_BIAS = 100.0
MAX_LOGPROBS = 20
MAX_SAMPLES = 16384


@dataclass(frozen=True)
class SamplingParams:
    """How to sample and when to stop. Checked when built; raises RequestError with the value and the way out.

    temperature     0 is greedy; otherwise MIN_TEMPERATURE to MAX_TEMPERATURE
    max_tokens      tokens to generate at most (also cut where max_model_len is reached); None: as many as fit
    seed            0 to 2**64 - 1; with the position it fixes every random number of the request. None draws
                    one, which the field then holds
    ignore_eos      go on past end-of-text tokens (stop_token_ids still stop)
    stop_token_ids  stop after any of these; the token that stops is the last one returned, as with end of
                    text
    top_k           keep the k likeliest tokens, and what ties with the last of them; 0 or -1: all
    top_p           keep the likeliest tokens whose mass reaches top_p, in (0, 1]; 1: all
    min_p           keep tokens at least min_p times as likely as the likeliest, 0 to 1; 0: all
    repetition_penalty  above 0: divides positive logits, and multiplies others, of tokens in the prompt or
                    the answer so far; 1: off
    presence_penalty    -2 to 2: taken from the logits of tokens in the answer so far
    frequency_penalty   -2 to 2: taken once for each time that a token is in the answer so far
    logit_bias      {token id: -100 to 100}, added to logits
    min_tokens      tokens before which neither end of text nor a stop id can be sampled (nor stops a string)
    stop            texts that end the answer, and are not part of it; a str, or a list of them
    include_stop_str_in_output  a text that ended the answer is part of it
    logprobs        k: with each token its log-probability and the k likeliest, 0 to MAX_LOGPROBS; None: none.
                    They are the model's own, before any of the above
    n               answers to each prompt; the seed of the i-th is a pure function of (seed, i), and seed
                    itself for the first

    Filters (top_k, top_p, min_p) act at temperature > 0 only; bias, penalties and min_tokens on greedy
    choices too. In order: min_tokens, logit_bias, penalties (repetition, frequency, presence), temperature,
    min_p, top_k, top_p.
    """

    temperature: float = 0.0
    max_tokens: int | None = 128
    seed: int | None = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    n: int = 1
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("temperature", _temperature(self.temperature))
        if self.max_tokens is not None:
            put("max_tokens", _bounded("max_tokens", self.max_tokens, 1, None))
        put("seed", secrets.randbits(64) if self.seed is None else integer("seed", self.seed))
        if not 0 <= self.seed <= MAX_SEED:  # type: ignore[operator]
            raise RequestError(f"seed {self.seed} is not a 64-bit number: pass 0 to 2**64 - 1")
        for name in ("ignore_eos", "include_stop_str_in_output"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{name} must be True or False, got {getattr(self, name)!r}")
        put("stop_token_ids", token_ids("stop_token_ids", self.stop_token_ids))
        top_k = integer("top_k", self.top_k)
        if top_k < -1 or top_k > MAX_TOP_K:
            raise RequestError(f"top_k {top_k} is out of range: pass 1 or more, or 0 (or -1) for all tokens")
        put("top_k", max(top_k, 0))
        put("top_p", number("top_p", self.top_p, 0.0, 1.0, above=True, off="1 for all tokens"))
        put("min_p", number("min_p", self.min_p, 0.0, 1.0, off="0 for all tokens"))
        put("repetition_penalty", _repetition_penalty(self.repetition_penalty))
        for name in ("presence_penalty", "frequency_penalty"):
            put(name, number(name, getattr(self, name), -MAX_PENALTY, MAX_PENALTY, off="0 for none"))
        put("logit_bias", _logit_bias(self.logit_bias))
        put("min_tokens", _bounded("min_tokens", self.min_tokens, 0, self.max_tokens, "max_tokens"))
        put("stop", _stop(self.stop))
        if self.logprobs is not None:
            put("logprobs", _bounded("logprobs", self.logprobs, 0, MAX_LOGPROBS))
        put("n", _bounded("n", self.n, 1, MAX_SAMPLES))
        if self.n > 1 and self.temperature == 0:
            raise RequestError(
                f"n {self.n} greedy answers would all be the same: pass n=1, or temperature > 0"
            )

    def sample(self, index: int) -> "SamplingParams":
        """The parameters of answer `index` of n: alone, with a seed that depends on (seed, index) only."""
        assert self.seed is not None
        return replace(self, n=1, seed=sample_seed(self.seed, index))


def checked(params: Any) -> SamplingParams:
    """What a caller passed as parameters; None stands for the defaults. Raises RequestError for anything
    else.
    """
    if params is None:
        return SamplingParams()
    if not isinstance(params, SamplingParams):
        raise RequestError(f"params must be pearl_rt.SamplingParams, got {params!r}")
    return params


def integer(name: str, value: Any) -> int:
    """`value` as an int if it is one (numpy's too, but no bool and no float). Raises RequestError, which says
    `name`.
    """
    if isinstance(value, bool):
        raise RequestError(f"{name} must be an integer, got {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise RequestError(
            f"{name} must be an integer, got {value!r} of type {type(value).__name__}"
        ) from None


def number(name: str, value: Any, low: float, high: float, *, above: bool = False, off: str) -> float:
    """`value` as a float from low (above it, if `above`) to high. Raises RequestError, which says `name`."""
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise RequestError(f"{name} must be a number, got {value!r}")
    result = float(value)
    if not (low < result if above else low <= result) or not result <= high:
        start = f"a number above {low:g}, up to {high:g}" if above else f"{low:g} to {high:g}"
        raise RequestError(f"{name} {result:g} is out of range: pass {start} ({off})")
    return result


def token_ids(name: str, values: Any) -> tuple[int, ...]:
    """`values` as a tuple of ids, none negative. Raises RequestError, which names the place and the value."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise RequestError(f"{name} must be a list of token ids, got {values!r}")
    ids = tuple(integer(f"{name}[{place}]", value) for place, value in enumerate(values))
    for place, token_id in enumerate(ids):
        if token_id < 0:
            raise RequestError(f"{name}[{place}] is {token_id}: token ids start at 0")
    return ids


def _bounded(name: str, value: Any, low: int, high: int | None, high_name: str = "") -> int:
    result = integer(name, value)
    if result < low or (high is not None and result > high):
        limit = "or more" if high is None else f"to {f'{high_name} ' if high_name else ''}{high}"
        raise RequestError(f"{name} {result} is out of range: pass {low} {limit}")
    return result


def _temperature(value: Any) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise RequestError(f"temperature must be a number, got {value!r}")
    temperature = float(value)
    if temperature == 0:
        return 0.0
    if not math.isfinite(temperature) or not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise RequestError(
            f"temperature {temperature} cannot be sampled at: pass 0 for greedy, "
            f"or {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"
        )
    return temperature


def _repetition_penalty(value: Any) -> float:
    return number(
        "repetition_penalty", value, 1 / MAX_REPETITION_PENALTY, MAX_REPETITION_PENALTY, off="1 for none"
    )


def _logit_bias(value: Any) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RequestError(f"logit_bias must map token ids to numbers, got {value!r}")
    bias = {}
    for key, amount in value.items():
        token_id = integer(f"logit_bias key {key!r}", key)
        if token_id < 0:
            raise RequestError(f"logit_bias has {token_id}: token ids start at 0")
        name = f"logit_bias[{token_id}]"
        bias[token_id] = number(name, amount, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS, off="0 for none")
    return bias


def _stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Iterable):
        raise RequestError(f"stop must be a text or a list of texts, got {value!r}")
    texts = tuple(texts)
    for place, text in enumerate(texts):
        if not isinstance(text, str) or not text:
            raise RequestError(f"stop[{place}] must be a text that is not empty, got {text!r}")
    return texts
