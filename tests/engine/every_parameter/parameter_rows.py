"""The rows of the table: each sampling parameter, at values that must show in the answer.

Knows SamplingParams, and which tokens greedy decoding of definition.PAIR gives; nothing of ways to run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from definition import EOS, answers, text_of

from pearl_rt import SamplingParams

PROMPT = (4, 23)
TO_EOS = (9, 21)  # greedy: 26, 6, 29, EOS
LIMIT = 10
GREEDY = answers(PROMPT, SamplingParams(max_tokens=LIMIT), "ar", "coupled")[0].token_ids
FOURTH, FIFTH = GREEDY[3], GREEDY[4]  # 1 and 4: GREEDY goes round 16, 1, 4 from its third token on
UNSEEN = next(token for token in range(32) if token not in GREEDY)
LOUD = {"temperature": 5.0, "ignore_eos": True}  # the likeliest token has 5 of 100
WARM = {"temperature": 0.5, "ignore_eos": True}


@dataclass(frozen=True)
class Row:
    """name: of the parameter. beside: what else is asked, with it and without it. is_greedy: all that this
    value leaves of sampling is the likeliest token.
    """

    name: str
    value: Any
    beside: Mapping[str, Any] = field(default_factory=dict)
    prompt: tuple[int, ...] = PROMPT
    is_greedy: bool = False

    @property
    def without(self) -> SamplingParams:
        return SamplingParams(**{"max_tokens": LIMIT} | dict(self.beside))

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(**{"max_tokens": LIMIT} | dict(self.beside) | {self.name: self.value})

    def __str__(self) -> str:
        own = "".join(f" {name}={value}" for name, value in self.beside.items())
        return f"{self.name}={self.value}{own}".replace("'", "")


ROWS = (
    Row("temperature", 5.0),
    Row("temperature", 0.5, {"ignore_eos": True}),
    Row("max_tokens", 3),
    Row("max_tokens", 1),
    Row("max_tokens", None),
    Row("seed", 2**64 - 1, LOUD),
    Row("seed", 1, WARM),
    Row("ignore_eos", True, prompt=TO_EOS),
    Row("stop_token_ids", (FOURTH,)),
    Row("stop_token_ids", tuple(range(31)), LOUD),
    Row("top_k", 1, LOUD, is_greedy=True),
    Row("top_k", 4, LOUD),
    Row("top_p", 1e-6, LOUD, is_greedy=True),
    Row("top_p", 0.3, LOUD),
    Row("min_p", 1.0, LOUD, is_greedy=True),
    Row("min_p", 0.8, LOUD),
    Row("repetition_penalty", 1e30),
    Row("repetition_penalty", 6.0, WARM),
    Row("presence_penalty", 2.0),
    Row("presence_penalty", -2.0, WARM),
    Row("frequency_penalty", 0.7, {"logit_bias": {GREEDY[2]: 3.0}}),  # the more often, the less likely
    Row("frequency_penalty", 1.1, WARM),
    Row("logit_bias", {UNSEEN: 100.0}),
    Row("logit_bias", {GREEDY[0]: -100.0, UNSEEN: 2.5}, WARM),
    Row("min_tokens", 6, {"stop_token_ids": (FIFTH,)}),
    Row("min_tokens", 6, {"logit_bias": {EOS: 100.0}}),
    Row("min_tokens", 6, {"logit_bias": {EOS: 100.0}, "ignore_eos": True}),  # forbidden all the same
    Row("min_tokens", 7, {"stop": (text_of(GREEDY[2:4]),)}),
    Row("stop", (text_of(GREEDY[3:5]),)),
    Row("include_stop_str_in_output", True, {"stop": (text_of(GREEDY[3:5]),)}),
    Row("logprobs", 0),
    Row("logprobs", 20, LOUD),
    Row("n", 3, LOUD),
)
# One request that asks for all that a captured run can be made for.
EVERYTHING = SamplingParams(
    max_tokens=LIMIT,
    temperature=1.5,
    seed=3,
    top_k=12,
    top_p=0.9,
    min_p=0.05,
    repetition_penalty=1.4,
    presence_penalty=0.3,
    frequency_penalty=0.2,
    logit_bias={FOURTH: 1.5, 30: -100.0},
    min_tokens=4,
    stop_token_ids=(FIFTH,),
    logprobs=20,
)
PLAIN = SamplingParams(max_tokens=LIMIT)
