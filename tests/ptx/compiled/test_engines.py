"""Whole engines in bf16 on compiled kernels: every strategy writes the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tiny_pairs import Pair

from pearl_rt import Engine, SamplingParams

PROMPTS = [7], list(range(3, 40))  # the second crosses a prefill chunk and a page
PROGRAMS = [("ar", 1), ("sd", 1), ("sd", 4), ("pearl", 1), ("pearl", 4)]
GREEDY = SamplingParams(max_tokens=20)
SAMPLED = SamplingParams(max_tokens=20, temperature=0.8, seed=2**63 + 5)
SHAPED = SamplingParams(
    *(), max_tokens=20, temperature=1.1, seed=3, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.3
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    pair = Pair.make("half-right", torch_dtype="bfloat16", max_position_embeddings=128)
    with pair.engine(device="interpret", judge="coupled", placement="shared", max_num_seqs=2) as made:
        yield made


def tokens(engine: Engine, prompt: list[int], params: SamplingParams, **options: Any) -> list[int]:
    [output] = engine.generate(prompt, params, **options)
    return output.token_ids


def test_the_engine_computes_in_bf16_by_compiled_kernels(engine: Engine) -> None:
    stats = engine.stats()
    assert (stats["isa"], stats["dtype"]) == ("triton", {"target": "bfloat16", "draft": "bfloat16"})


@pytest.mark.parametrize("params", [GREEDY, SAMPLED, SHAPED], ids=["greedy", "sampled", "shaped"])
@pytest.mark.parametrize("prompt", PROMPTS, ids=["one-token", "two-chunks"])
def test_strategies_write_the_same_tokens(engine: Engine, prompt: list[int], params: SamplingParams) -> None:
    written = {
        program: tokens(engine, prompt, params, strategy=program[0], gamma=program[1]) for program in PROGRAMS
    }
    assert len(written["ar", 1]) == 20 and len(set(written["ar", 1])) > 3
    assert all(each == written["ar", 1] for each in written.values()), written


def test_a_batch_writes_what_each_sequence_writes_alone(engine: Engine) -> None:
    alone = [tokens(engine, prompt, SAMPLED, strategy="ar") for prompt in PROMPTS]
    outputs = engine.generate(list(PROMPTS), SAMPLED, strategy="pearl", gamma=4)
    assert [output.token_ids for output in outputs] == alone


def test_rejection_draws_by_compiled_kernels(engine: Engine) -> None:
    """Twice the same, and the draft's window counts."""
    first = tokens(engine, PROMPTS[0], SAMPLED, strategy="pearl", gamma=3, judge="rejection")
    assert first == tokens(engine, PROMPTS[0], SAMPLED, strategy="pearl", gamma=3, judge="rejection")
