"""What a caller asks of one request: temperature, limits, seed and stop ids.

Knows nothing of models: whether an id is in the vocabulary or a prompt fits is for the engine to say.
"""

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pearl_rt.errors import RequestError

MIN_TEMPERATURE = 1e-3  # below it logits / temperature leaves the range where fp32 tells tokens apart
MAX_TEMPERATURE = 1e3
MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class SamplingParams:
    """How to sample and when to stop. Checked when built; raises RequestError with the value and the way out.

    temperature     0 is greedy; otherwise MIN_TEMPERATURE to MAX_TEMPERATURE
    max_tokens      tokens to generate at most (also cut where max_model_len is reached)
    seed            0 to 2**64 - 1; with the position it fixes every random number of the request
    ignore_eos      go on past end-of-text tokens (stop_token_ids still stop)
    stop_token_ids  stop after any of these; the token that stops is the last one returned, as with end of
                    text
    """

    temperature: float = 0.0
    max_tokens: int = 128
    seed: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperature", _temperature(self.temperature))
        object.__setattr__(self, "max_tokens", integer("max_tokens", self.max_tokens))
        object.__setattr__(self, "seed", integer("seed", self.seed))
        object.__setattr__(self, "stop_token_ids", token_ids("stop_token_ids", self.stop_token_ids))
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens {self.max_tokens} would generate nothing: pass 1 or more")
        if not 0 <= self.seed <= MAX_SEED:
            raise RequestError(f"seed {self.seed} is not a 64-bit number: pass 0 to 2**64 - 1")
        if not isinstance(self.ignore_eos, bool):
            raise RequestError(f"ignore_eos must be True or False, got {self.ignore_eos!r}")


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


def token_ids(name: str, values: Any) -> tuple[int, ...]:
    """`values` as a tuple of ids, none negative. Raises RequestError, which names the place and the value."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise RequestError(f"{name} must be a list of token ids, got {values!r}")
    ids = tuple(integer(f"{name}[{place}]", value) for place, value in enumerate(values))
    for place, token_id in enumerate(ids):
        if token_id < 0:
            raise RequestError(f"{name}[{place}] is {token_id}: token ids start at 0")
    return ids


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
