"""Whole engines in bf16 on compiled kernels: every strategy writes the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tiny_pairs import Pair

from pearl_rt import Engine, SamplingParams

SHORT, LONG = [7], list(range(3, 40))  # LONG crosses a prefill chunk and a page
PROGRAMS = [("ar", 1), ("sd", 4), ("pearl", 4)]
GREEDY = SamplingParams(max_tokens=9)
SAMPLED = SamplingParams(max_tokens=9, temperature=0.8, seed=2**63 + 5)
SHAPED = SamplingParams(
    max_tokens=6, temperature=1.1, seed=3, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.3
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    pair = Pair.make("half-right", torch_dtype="bfloat16", max_position_embeddings=64, num_hidden_layers=1)
    with pair.engine(device="interpret", judge="coupled", placement="shared", max_num_seqs=2) as made:
        yield made


def tokens(engine: Engine, prompt: list[int], params: SamplingParams, **options: Any) -> list[int]:
    [output] = engine.generate(prompt, params, **options)
    return output.token_ids


def test_the_engine_computes_in_bf16_by_compiled_kernels(engine: Engine) -> None:
    stats = engine.stats()
    assert (stats["isa"], stats["dtype"]) == ("triton", {"target": "bfloat16", "draft": "bfloat16"})


@pytest.mark.parametrize(
    ("prompt", "params"),
    [(LONG, GREEDY), (SHORT, SAMPLED), (SHORT, SHAPED)],
    ids=["greedy", "sampled", "shaped"],
)
def test_strategies_write_the_same_tokens(engine: Engine, prompt: list[int], params: SamplingParams) -> None:
    written = [tokens(engine, prompt, params, strategy=name, gamma=gamma) for name, gamma in PROGRAMS]
    assert len(written[0]) == params.max_tokens and written[1:] == [written[0]] * (len(PROGRAMS) - 1)


def test_a_batch_writes_what_each_sequence_writes_alone(engine: Engine) -> None:
    alone = [tokens(engine, prompt, SAMPLED, strategy="ar") for prompt in (SHORT, LONG)]
    outputs = engine.generate([SHORT, LONG], SAMPLED, strategy="pearl", gamma=4)
    assert [output.token_ids for output in outputs] == alone


def test_rejection_draws_by_compiled_kernels(engine: Engine) -> None:
    """Twice the same."""
    first = tokens(engine, SHORT, SAMPLED, strategy="pearl", gamma=4, judge="rejection")
    assert first == tokens(engine, SHORT, SAMPLED, strategy="pearl", gamma=4, judge="rejection")
