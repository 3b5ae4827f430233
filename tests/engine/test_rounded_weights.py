"""Engines of weights that are rounded to 8 and 4 bits: every program returns the bits of ar; refusals."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_pairs import Pair

from pearl_rt import ConfigError, ResourceError, SamplingParams
from pearl_rt.backends import cpu
from pearl_rt.checkpoint.shapes import weight_bytes

PROMPTS = ([7], [3, 1, 4, 1, 5, 9, 2, 6], list(range(40, 73)))
ROUNDED = [("int8", "int4"), ("int4", "int8"), ("auto", "int4")]
PROGRAMS = [("sd", "shared"), ("sd", "split"), ("pearl", "shared"), ("pearl", "split")]


def tokens(engine: Any, params: SamplingParams, **program: Any) -> list[list[int]]:
    return [output.token_ids for output in engine.generate(list(PROMPTS), params, **program)]


@pytest.mark.parametrize(("weights", "draft_weights"), ROUNDED)
def test_every_program_is_ar_to_the_bit(weights: str, draft_weights: str) -> None:
    pair = Pair.make("half-right")
    options = {"dtype": "bfloat16", "max_model_len": 128, "judge": "coupled"}
    with (
        pair.engine(weights=weights, draft_weights=draft_weights, **options) as engine,
        pair.engine(weights=weights, num_threads=1, **options) as alone,
    ):
        for params in (SamplingParams(max_tokens=24), SamplingParams(temperature=1.0, max_tokens=24, seed=3)):
            expected = tokens(alone, params, strategy="ar")
            assert tokens(engine, params, strategy="ar") == expected
            for strategy, placement in PROGRAMS:
                for gamma in (1, 3, 8):
                    program = {"strategy": strategy, "placement": placement, "gamma": gamma}
                    assert tokens(engine, params, **program) == expected, program
        assert engine.stats()["weights"] == {"target": weights, "draft": draft_weights}


def test_rounding_changes_a_model_and_a_draft_changes_nothing() -> None:
    """So that the test above compares what it says."""
    pair, params = Pair.make("equal"), SamplingParams(max_tokens=24)
    texts = {}
    for weights in ("auto", "int8", "int4"):
        with pair.engine(max_model_len=128, strategy="sd", weights=weights, draft_weights=weights) as engine:
            texts[weights] = tokens(engine, params)
    assert texts["auto"] != texts["int4"] != texts["int8"]


def test_the_packed_bytes_are_those_that_memory_is_checked_for() -> None:
    pair = Pair.make("equal", hidden_size=128, intermediate_size=256)
    for weights in ("auto", "int8", "int4"):
        with pair.engine(max_model_len=64, weights=weights, dtype="bfloat16") as engine:
            assert isinstance(engine.target, cpu.Model)
            counted = weight_bytes(pair.config, "bfloat16", weights)
            assert counted * 0.95 < engine.target.weights.memory_bytes < counted * 1.1 + 2**21


def test_a_model_that_fits_with_fewer_bits_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair.make("equal")
    needed = weight_bytes(pair.config, "bfloat16") * 2
    monkeypatch.setattr(cpu, "available_memory", lambda: needed // 2)
    with pytest.raises(ResourceError, match="pass weights='int8' or 'int4'"):
        pair.engine(max_model_len=8, dtype="bfloat16")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "int3"}, "weights .*'int3'.*'auto', 'int8', 'int4'|weights .*int3"),
        ({"draft_weights": "int2"}, "draft_weights .*int2"),
    ],
)
def test_what_is_refused(options: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Pair.make("equal").engine(**options)


def test_bits_of_a_draft_that_is_not_there_are_refused() -> None:
    from pearl_rt import Engine

    pair = Pair.make("equal")
    with pytest.raises(ConfigError, match="draft_weights 'int4' was given without a draft"):
        Engine(pair.config, pair.target, draft_weights="int4")
