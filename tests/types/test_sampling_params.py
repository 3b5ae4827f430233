"""What a caller may ask for: every field has its range, and a wrong value is named with it."""

from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from pearl_rt import RequestError, SamplingParams
from pearl_rt.reference.noise import sample_seed
from pearl_rt.types.values import Number, parameters


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"temperature": -0.1}, "temperature -0.1 is out of range: pass 0 to 1000 .0 for greedy"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"max_tokens": 0}, "max_tokens 0 is out of range: pass 1 or more"),
        ({"seed": 2**64}, "seed 18446744073709551616 is out of range: pass 0 to"),
        ({"seed": -2}, "seed -2 is out of range: pass 0 to 2..64 - 1, or -1"),
        ({"ignore_eos": 1}, "ignore_eos must be True or False, got 1"),
        ({"top_k": -2}, "top_k -2 is out of range: pass 1 to 2147483647, or 0"),
        ({"top_k": 1.0}, "top_k must be an integer, got 1.0"),
        ({"top_k": 2**31}, "top_k 2147483648"),
        ({"top_p": -0.1}, "top_p -0.1 is out of range: pass 0 to 1"),
        ({"top_p": 1.01}, "top_p 1.01"),
        ({"top_p": float("nan")}, "top_p nan"),
        ({"top_p": "0.9"}, "top_p must be a number, got '0.9'"),
        ({"top_p": True}, "top_p must be a number, got True"),
        ({"min_p": -0.01}, "min_p -0.01 is out of range: pass 0 to 1"),
        ({"min_p": 1.5}, "min_p 1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty 0 is out of range"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty inf"),
        ({"repetition_penalty": -1}, "repetition_penalty -1"),
        ({"presence_penalty": 2.1}, "presence_penalty 2.1 is out of range: pass -2 to 2"),
        ({"frequency_penalty": -3}, "frequency_penalty -3"),
        ({"frequency_penalty": None}, "frequency_penalty must be a number, got None"),
        ({"logit_bias": [1]}, r"logit_bias must map token ids to numbers, got \[1\]"),
        ({"logit_bias": {-1: 0.0}}, "logit_bias has -1: token ids start at 0"),
        ({"logit_bias": {"7": 0.0}}, "logit_bias key '7' must be an integer"),
        ({"logit_bias": {3: 101}}, r"logit_bias\[3\] 101 is out of range: pass -100 to 100"),
        ({"min_tokens": -1}, "min_tokens -1 is out of range"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens 9 is out of range: pass 0 to max_tokens 8"),
        ({"stop": [""]}, r"stop\[0\] must be a text that is not empty"),
        ({"stop": ["a", 3]}, r"stop\[1\] .*got 3"),
        ({"stop": 3}, "stop must be a text or a list of texts, got 3"),
        ({"stop_token_ids": [-4]}, r"stop_token_ids\[0\] is -4"),
        ({"logprobs": 21}, "logprobs 21 is out of range: pass 0 to 20"),
        ({"logprobs": -1}, "logprobs -1"),
        ({"logprobs": True}, "logprobs must be an integer, got True"),
        ({"n": 0, "temperature": 1.0}, "n 0 is out of range: pass 1 to 16384"),
        ({"n": 2}, "n 2 greedy answers would all be the same: pass n=1, or a temperature of"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_wrong_values_are_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError, match=named):
        SamplingParams(**fields)


class Odd:
    """What is neither a number nor to be shown."""

    def __float__(self) -> float:
        raise MemoryError("no")

    def __index__(self) -> int:
        raise KeyError("no")

    def __repr__(self) -> str:
        raise ValueError("no")


NUMBERS = [row.name for row in parameters(SamplingParams) if isinstance(row.rule, Number)]


@pytest.mark.parametrize("name", [row.name for row in parameters(SamplingParams)])
@pytest.mark.parametrize(
    "value",
    [np.array([1.0, 2.0]), np.array(1.5), np.array([[1, 2]]), np.zeros((0, 3, 0)), Odd(), b"a", 1j, object()],
    ids=("array", "scalar-array", "matrix", "empty-array", "odd", "bytes", "complex", "object"),
)
def test_odd_objects_are_clear_errors(name: str, value: object) -> None:
    """Or they are taken, as an array of one number is; nothing else is raised."""
    with suppress(RequestError):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("name", [*NUMBERS, "max_tokens", "seed", "top_k", "logprobs", "n", "stop"])
def test_huge_values_are_clear_and_short_errors(name: str) -> None:
    values: list[object] = [10**400, 10**5000, [10**5000] * 3, {"x" * 10**6: 1}, ["", "y" * 10**6]]
    for value in values:
        with suppress(RequestError):
            SamplingParams(**{name: value})
        if name == "max_tokens" and isinstance(value, int):
            continue  # as many as fit
        with pytest.raises(RequestError) as found:
            SamplingParams(**{name: value})
        assert len(str(found.value)) < 400
    with pytest.raises(RequestError, match="temperature inf is out of range"):
        SamplingParams(temperature=10**400)
    with pytest.raises(RequestError, match=r"logit_bias\[5\] inf is out of range"):
        SamplingParams(logit_bias={5: 10**400})


@pytest.mark.parametrize("temperature", [1e-4, 1e-5, 1e-8, 1e-40, 5e-324])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    assert SamplingParams(temperature=temperature) == SamplingParams()


def test_what_clients_send_for_none() -> None:
    drawn = {SamplingParams(seed=-1).seed for _ in range(20)}
    assert len(drawn) == 20 and -1 not in drawn
    assert 0 < SamplingParams(top_p=0).top_p < 1e-20  # the likeliest token alone


def test_defaults_and_ends_of_ranges() -> None:
    """vLLM's defaults, but for temperature, max_tokens and seed."""
    assert SamplingParams() == SamplingParams(
        0.0, 128, 0, False, (), 0, 1.0, 0.0, 1.0, 0.0, 0.0, {}, 0, (), None, 1
    )
    params = SamplingParams(
        temperature=np.float32(0.5),
        top_k=-1,
        top_p=np.float64(1),
        min_p=1,
        repetition_penalty=1e30,
        presence_penalty=-2,
        frequency_penalty=2,
        logit_bias={np.int64(3): 100, 0: -100},
        min_tokens=4,
        max_tokens=4,
        stop="end",
        logprobs=0,
        n=16384,
    )
    assert (params.top_k, params.stop, params.logit_bias) == (0, ("end",), {3: 100.0, 0: -100.0})
    assert SamplingParams(max_tokens=None, min_tokens=10**9).max_tokens is None
    assert SamplingParams(stop=None, logit_bias=None) == SamplingParams()  # type: ignore[arg-type]
    assert hash(params) is not None


def test_a_seed_that_is_drawn_is_told() -> None:
    drawn = {SamplingParams(seed=None).seed for _ in range(20)}
    assert len(drawn) == 20 and all(seed is not None and 0 <= seed < 2**64 for seed in drawn)


def test_seeds_of_n_answers() -> None:
    """Pure, all different, also from neighbours' and from seeds in use; the first is the seed itself."""
    params = SamplingParams(temperature=1.0, seed=7, n=50)
    seeds = [params.sample(index).seed for index in range(50)]
    assert seeds == [sample_seed(7, index) for index in range(50)] and seeds[0] == 7
    assert params.sample(3).n == 1
    everyone = {sample_seed(seed, index) for seed in range(40) for index in range(40)}
    assert len(everyone) == 1600 and everyone & set(range(40)) == set(range(40))
    assert sample_seed(7, 1) == 0x9389F94C488503CC  # for ever
