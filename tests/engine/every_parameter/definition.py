"""What an answer must be, by the definitions in numpy alone: the oracle of every way to run.

Knows pearl_rt/reference and the tables of a pair (table_pairs.py); no engine, no lane. SamplingParams are
read here a second time, apart from how requests are made of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from table_pairs import table_of, table_pair

from pearl_rt import SamplingParams
from pearl_rt.reference.judge import ReferenceJudge
from pearl_rt.reference.logprobs import Logprob, logprobs
from pearl_rt.reference.noise import Floats, sample_seed
from pearl_rt.reference.processors import Transform
from pearl_rt.reference.round import Limits, decode

MAX_LEN = 32
GAMMA = 3
EOS = 17
PAIR = table_pair(7, reach=2.0, eos_token_ids=(EOS,))
TARGET, DRAFT = table_of(PAIR.target), table_of(PAIR.draft)


@dataclass(frozen=True)
class Answer:
    """One of n. verdicts: rounds, accepted, judged and rejected drafts; None where a stop string ends the
    answer: how many rounds ran by then is not promised.
    """

    token_ids: list[int]
    text: str
    finish_reason: str
    stop_reason: str | int | None
    verdicts: tuple[int, int, int, int] | None
    logprobs: list[dict[int, Logprob]] | None


def text_of(token_ids: Sequence[int]) -> str:
    """Each id is a character (ways_to_run.py), but the end of text."""
    return "".join(chr(ord("!") + token) for token in token_ids if token != EOS)


def _until_stop_string(token_ids: list[int], params: SamplingParams) -> tuple[int, str | None]:
    """How many tokens are kept, and the stop string that ended them."""
    for count in range(max(1, params.min_tokens), len(token_ids) + 1):
        ended = [stop for stop in params.stop if text_of(token_ids[:count]).endswith(stop)]
        if ended:
            return count, max(ended, key=len)
    return len(token_ids), None


def _answer(
    prompt: tuple[int, ...], params: SamplingParams, seed: int, strategy: str, judge: str, blind: str
) -> Answer:
    stops = {*params.stop_token_ids, *(() if params.ignore_eos else (EOS,))}
    transform = Transform(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=tuple(params.logit_bias.items()),
        min_tokens=params.min_tokens,
        masked_ids=sorted({EOS, *params.stop_token_ids}),
        prompt_len=len(prompt),
    )

    def target(prefix: Sequence[int]) -> Floats:
        row = TARGET[prefix[-1]]
        return row if blind == "target" else transform.row(row, prefix)

    def draft(prefix: Sequence[int]) -> Floats:
        row = DRAFT[prefix[-1]]
        return row if blind == "draft" else transform.row(row, prefix)

    most = MAX_LEN if params.max_tokens is None else min(len(prompt) + params.max_tokens, MAX_LEN)
    sampler = ReferenceJudge(judge, params.temperature, seed)
    rounds = decode(target, draft, prompt, strategy, GAMMA, Limits(most, stops), sampler)
    token_ids = [token for each in rounds for token in each.token_ids]
    count, stop = _until_stop_string(token_ids, params)
    token_ids, reason = token_ids[:count], rounds[-1].finish_reason if stop is None else "stop"
    text, stop_reason = text_of(token_ids), stop or None
    if stop is not None and not params.include_stop_str_in_output:
        text = text.removesuffix(stop)
    ended_by_id = stop is None and reason == "stop" and token_ids[-1] in params.stop_token_ids
    if ended_by_id and not params.include_stop_str_in_output:
        text = text_of(token_ids[:-1])
    accepted = sum(each.accept_len for each in rounds[1:])
    rejected = sum(each.accept_len < each.num_judged for each in rounds[1:])
    told = None
    if params.logprobs is not None:
        before = [prompt[-1], *token_ids[:-1]]
        pairs = zip(before, token_ids, strict=True)
        told = [logprobs(TARGET[last], token, params.logprobs) for last, token in pairs]
    return Answer(
        token_ids=token_ids,
        text=text,
        finish_reason=reason,
        stop_reason=token_ids[-1] if ended_by_id else stop_reason,
        verdicts=None if params.stop else (len(rounds) - 1, accepted, accepted + rejected, rejected),
        logprobs=told,
    )


@cache
def answers(
    prompt: tuple[int, ...], params: SamplingParams, strategy: str, judge: str, blind: str = ""
) -> tuple[Answer, ...]:
    """All n of them. blind: "target" or "draft", a model whose logits no parameter reaches."""
    seed = params.seed
    assert seed is not None
    return tuple(
        _answer(prompt, params, sample_seed(seed, index), strategy, judge, blind) for index in range(params.n)
    )
