"""A draft that was made for fewer tokens than the target: past them the target goes on alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_pairs import SMALL, Pair

from pearl_rt import ConfigError, Engine, SamplingParams

SHORT = 48
PAIR = Pair.make("half-right")
DRAFT = replace(PAIR.config, max_position_embeddings=SHORT)


def built(**options: object) -> Engine:
    return Engine(PAIR.config, PAIR.target, DRAFT, PAIR.draft, num_threads=2, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return built(max_model_len=300, judge="coupled", max_num_seqs=4)


@pytest.mark.parametrize("placement", ["shared", "split"])
@pytest.mark.parametrize("strategy", ["sd", "pearl", "auto"])
@pytest.mark.parametrize("length", [1, 40, SHORT - 1, SHORT, SHORT + 1, 200])
def test_tokens_are_the_targets_to_the_end(
    engine: Engine, strategy: str, placement: str, length: int
) -> None:
    prompt = [(5 * place + length) % 256 for place in range(length)]
    for params in (SamplingParams(max_tokens=90), SamplingParams(max_tokens=90, temperature=0.8, seed=3)):
        [alone] = engine.generate([prompt], params, strategy="ar")
        [output] = engine.generate([prompt], params, strategy=strategy, placement=placement)
        assert output.token_ids == alone.token_ids and len(output.token_ids) == 90
        if length >= SHORT - 1:  # the first token comes without drafts
            assert output.metrics.judged == 0
        elif strategy != "auto":
            assert 0 < output.metrics.judged <= 16 * SHORT


def test_in_a_batch(engine: Engine) -> None:
    """Some past the draft's end, some that cross it, joined at different times."""
    prompts = [[place % 256 for place in range(length)] for length in (3, 60, 47, 250, 48, 20, 130, 46)]
    params = SamplingParams(max_tokens=40)
    alone = [engine.generate([prompt], params, strategy="ar")[0].token_ids for prompt in prompts]
    for strategy in ("sd", "pearl"):
        handles = [engine.submit(prompt, params, strategy=strategy) for prompt in prompts]
        assert [handle.result(60).token_ids for handle in handles] == alone


def test_the_stats_say_so(engine: Engine) -> None:
    stats = engine.stats()
    assert (stats["max_model_len"], stats["draft_max_model_len"]) == (300, SHORT)
    with built() as other:
        assert other.max_model_len == 4096  # the target's
    with Engine(PAIR.config, PAIR.target, max_model_len=64) as single:
        assert single.stats()["draft_max_model_len"] is None


def test_kernels_name_the_draft() -> None:
    pair = Pair.make("equal", **SMALL)
    draft = replace(pair.config, max_position_embeddings=12)
    with pytest.raises(ConfigError, match="the draft's max_position_embeddings 12: pass 12 or less"):
        Engine(pair.config, pair.target, draft, pair.draft, device="interpret", max_model_len=24)
