"""What a caller asks of one request: how to sample, when to stop, and what to return.

Names, defaults and ranges are vLLM's, but for temperature (0 here: greedy), max_tokens (128), seed (0: a call
is repeatable unless it asks not to be) and values that would need a guess, which are refused. Knows nothing
of models: whether an id is in the vocabulary or a prompt fits is for the engine to say.

The dataclass is the table of all parameters: the flags of the command line and the fields of a server's body
are made from it.
"""

import copy
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from pearl_rt.errors import RequestError, shown
from pearl_rt.reference.noise import sample_seed
from pearl_rt.types.draft_stop import DraftStop
from pearl_rt.types.structured_outputs import Structured, StructuredOutputsParams
from pearl_rt.types.values import (
    Boolean,
    Integer,
    Number,
    NumbersById,
    Texts,
    TokenIds,
    check_fields,
    out_of_range,
    parameter,
)

MIN_TEMPERATURE = 1e-3  # below it logits / temperature leaves the range where fp32 can separate tokens
SMALLEST_TOP_P = 1e-30  # what 0 stands for: less than any token's mass that is the likeliest
MAX_TEMPERATURE = 1e3
MAX_SEED = 2**64 - 1
MAX_TOP_K = 2**31 - 1
MAX_PENALTY = 2.0
MAX_REPETITION_PENALTY = 1e30  # and its inverse: normal in fp32, with room to multiply
MAX_LOGIT_BIAS = 100.0
MAX_LOGPROBS = 20
MAX_SAMPLES = 16384
PENALTY = Number(-MAX_PENALTY, MAX_PENALTY, off="0 for none")


@dataclass(frozen=True)
class SamplingParams:
    """How to sample and when to stop. Checked when built; raises RequestError with the value and the way out.

    temperature     0 is greedy, and so is what is below 0.001; otherwise up to 1000
    max_tokens      tokens to generate at most (also cut where max_model_len is reached); None: as many as fit
    seed            0 to 2**64 - 1; with the position it fixes every random number of the request. None or -1
                    draws one, which the field then holds
    ignore_eos      go on past end-of-text tokens (stop_token_ids still stop)
    stop_token_ids  stop after any of these; the token that stops is the last one returned, as with end of
                    text
    top_k           keep the k likeliest tokens, and what ties with the last of them; 0 or -1: all
    top_p           keep the likeliest tokens whose mass reaches top_p, 0 to 1; 1: all; 0: the likeliest
    min_p           keep tokens at least min_p times as likely as the likeliest, 0 to 1; 0: all
    repetition_penalty  above 0: divides positive logits, and multiplies others, of tokens in the prompt or
                    the answer so far; 1: off
    presence_penalty    -2 to 2: taken from the logits of tokens in the answer so far
    frequency_penalty   -2 to 2: taken once for each time that a token is in the answer so far
    logit_bias      {token id: -100 to 100}, added to logits
    min_tokens      tokens before which neither end of text nor a stop id can be sampled (nor stops a string)
    stop            texts that end the answer, and are not part of it; a str, or a list of them
    include_stop_str_in_output  a text, or an id of stop_token_ids, that ended the answer is part of it
    logprobs        k: with each token its log-probability and the k likeliest, 0 to 20; None: none.
                    They are the model's own, before any of the above
    prompt_logprobs  k: the same for each token of the prompt but the first. On the CPU
    skip_special_tokens  special tokens are not part of the text; False: they are, by their names
    structured_outputs  the form of the answer: StructuredOutputsParams(json=..., json_object=True, regex=...,
                    choice=[...] or grammar=...); None: free text
    n               answers to each prompt; the seed of the i-th is a pure function of (seed, i), and seed
                    itself for the first
    draft_stop      where windows of a draft model end early, as EngineOptions has it; None: the engine's
                    rule; "none": whole windows. On the CPU
    private         neither prompt nor answer is kept for later requests, in the KV cache or for lookup, and
                    nothing of earlier ones is read

    Filters (top_k, top_p, min_p) act at temperature > 0 only; bias, penalties and min_tokens on greedy
    choices too. In order: min_tokens, logit_bias, penalties (repetition, frequency, presence), temperature,
    min_p, top_k, top_p.
    """

    temperature: float = parameter(0.0, Number(0.0, MAX_TEMPERATURE, off="0 for greedy"))
    max_tokens: int | None = parameter(128, Integer(1, optional=True))
    seed: int | None = parameter(
        0, Integer(-1, MAX_SEED, optional=True, words="0 to 2**64 - 1, or -1 to draw one")
    )
    ignore_eos: bool = parameter(False, Boolean())
    stop_token_ids: tuple[int, ...] = parameter((), TokenIds())
    top_k: int = parameter(0, Integer(-1, MAX_TOP_K, words=f"1 to {MAX_TOP_K}, or 0 (or -1) for all tokens"))
    top_p: float = parameter(1.0, Number(0.0, 1.0, off="1 for all tokens"))
    min_p: float = parameter(0.0, Number(0.0, 1.0, off="0 for all tokens"))
    repetition_penalty: float = parameter(
        1.0, Number(1 / MAX_REPETITION_PENALTY, MAX_REPETITION_PENALTY, off="1 for none")
    )
    presence_penalty: float = parameter(0.0, PENALTY)
    frequency_penalty: float = parameter(0.0, PENALTY)
    logit_bias: Mapping[int, float] = parameter(
        {}, NumbersById(Number(-MAX_LOGIT_BIAS, MAX_LOGIT_BIAS, off="0 for none")), hash=False
    )
    min_tokens: int = parameter(0, Integer(0))
    stop: tuple[str, ...] = parameter((), Texts())
    logprobs: int | None = parameter(None, Integer(0, MAX_LOGPROBS, optional=True))
    n: int = parameter(1, Integer(1, MAX_SAMPLES))
    include_stop_str_in_output: bool = parameter(False, Boolean())
    prompt_logprobs: int | None = parameter(None, Integer(0, MAX_LOGPROBS, optional=True))
    skip_special_tokens: bool = parameter(True, Boolean())
    structured_outputs: StructuredOutputsParams | None = parameter(None, Structured())
    draft_stop: str | None = parameter(None, DraftStop(optional=True))
    private: bool = parameter(False, Boolean())

    def __post_init__(self) -> None:
        check_fields(self, RequestError)
        if self.temperature < MIN_TEMPERATURE:
            object.__setattr__(self, "temperature", 0.0)
        if self.top_p == 0:
            object.__setattr__(self, "top_p", SMALLEST_TOP_P)
        if self.seed in (None, -1):
            object.__setattr__(self, "seed", secrets.randbits(64))
        if self.top_k == -1:
            object.__setattr__(self, "top_k", 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise out_of_range("min_tokens", self.min_tokens, f"0 to max_tokens {self.max_tokens}")
        if self.ignore_eos and self.structured_outputs is not None:
            raise RequestError(
                "ignore_eos and structured_outputs: an answer that has a form ends with the end of text; "
                "leave one of them out"
            )
        if self.n > 1 and self.temperature == 0:
            raise RequestError(
                f"n {self.n} greedy answers would all be the same: pass n=1, or a temperature of "
                f"{MIN_TEMPERATURE} or more"
            )

    def sample(self, index: int) -> "SamplingParams":
        """The parameters of answer `index` of n: alone, with a seed that depends on (seed, index) only."""
        assert self.seed is not None
        sample = copy.copy(self)  # what was checked is not checked again
        object.__setattr__(sample, "n", 1)
        object.__setattr__(sample, "seed", sample_seed(self.seed, index))
        return sample


def checked(params: object) -> SamplingParams:
    """What a caller passed as parameters; None stands for the defaults. Raises RequestError for anything
    else.
    """
    if params is None:
        return SamplingParams()
    if not isinstance(params, SamplingParams):
        raise RequestError(f"params must be pearl_rt.SamplingParams, got {shown(params)}")
    return params
