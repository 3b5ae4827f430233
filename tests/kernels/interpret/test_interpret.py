"""The engine on the kernels, in the interpreter: every strategy gives the CPU executor's tokens."""

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from compiled import skip_where_compiled
from tiny_pairs import Pair, random_tensors

from pearl_rt import Engine, RequestError, RequestOutput, SamplingParams
from pearl_rt.backends.interpret import InterpretBackend
from pearl_rt.checkpoint.config import Environment
from pearl_rt.device.kv_pool import KvPool
from pearl_rt.device.model import DeviceModel
from pearl_rt.errors import ConfigError, NumericsError
from pearl_rt.types.request import Request

MAX_LEN = 24
ONE, LONG = [7], list(range(3, 21))  # LONG crosses a prefill chunk and a page, and leaves room for 6 tokens
PROGRAMS = (("ar", 1), ("sd", 4), ("pearl", 1), ("pearl", 4))  # of 2 and 3: in batches below
SMALL: dict[str, Any] = {  # every operator costs by its programs here, and these have few
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_key_value_heads": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": MAX_LEN,
}


@cache
def pair_of(draft: str) -> Pair:
    return Pair.make(draft, **SMALL)


@cache
def engine_of(device: str, draft: str = "half-right") -> Engine:
    options = {"num_threads": 1} if device == "cpu" else {}
    return pair_of(draft).engine(device=device, max_model_len=MAX_LEN, placement="shared", **options)


@pytest.fixture(scope="module", autouse=True)
def closed_at_the_end() -> Iterator[None]:
    yield
    engine_of("cpu").close()
    engine_of("interpret").close()
    engine_of.cache_clear()


def answer(device: str, prompt: list[int], params: SamplingParams, **options: Any) -> RequestOutput:
    [output] = engine_of(device).generate(prompt, params, **options)
    return output


def text_of(output: RequestOutput) -> tuple[list[int], str]:
    return output.token_ids, output.finish_reason


def verdicts_of(output: RequestOutput) -> tuple[int, ...]:
    metrics = output.metrics
    return metrics.rounds, metrics.accepted, metrics.judged, metrics.rejections


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "gamma"), PROGRAMS)
def test_greedy_tokens_and_verdicts_are_the_executors(strategy: str, gamma: int) -> None:
    """To the number of tokens asked for, and to the end of max_model_len."""
    options = {"strategy": strategy, "gamma": gamma}
    for prompt, limit in ((ONE, 7), (LONG, 10**9)):
        params = SamplingParams(max_tokens=limit)
        output = answer("interpret", prompt, params, **options)
        assert text_of(output) == text_of(answer("cpu", prompt, params, strategy="ar"))
        assert verdicts_of(output) == verdicts_of(answer("cpu", prompt, params, **options))
    assert len(output.token_ids) == MAX_LEN - len(LONG)
    assert {row.lane for row in output.metrics.trace} == (
        {"target"} if strategy == "ar" else {"target", "draft"}
    )


@pytest.mark.slow
@pytest.mark.parametrize("judge", ["coupled", "rejection"])
@pytest.mark.parametrize(("strategy", "gamma"), [("ar", 1), ("sd", 3), ("pearl", 3)])
def test_sampled_tokens_are_the_executors(strategy: str, gamma: int, judge: str) -> None:
    """With judge "rejection" too: both draw the same numbers."""
    params = SamplingParams(temperature=0.8, seed=2**64 - 1, max_tokens=7)
    output = answer("interpret", ONE, params, strategy=strategy, gamma=gamma, judge=judge)
    native = answer("cpu", ONE, params, strategy=strategy, gamma=gamma, judge=judge)
    assert text_of(output) == text_of(native)
    assert verdicts_of(output) == verdicts_of(native)
    if judge == "coupled":
        assert text_of(output) == text_of(answer("cpu", ONE, params, strategy="ar", judge="coupled"))


PROCESSED: dict[str, dict[str, Any]] = {
    "penalties": {
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.7,
        "logit_bias": {3: 1.5, 9: -100.0},
    },
    "filters": {"temperature": 0.9, "top_k": 8, "top_p": 0.9, "min_p": 0.02},
    "all": {
        "temperature": 1.2,
        "top_p": 0.8,
        "repetition_penalty": 1.5,
        "min_tokens": 5,
        "stop_token_ids": tuple(range(0, 32, 2)),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "judge", "name"),
    [
        ("ar", "coupled", "filters"),
        ("sd", "rejection", "all"),
        ("pearl", "coupled", "penalties"),
        ("pearl", "rejection", "all"),
    ],
)
def test_shaped_tokens_are_the_executors(strategy: str, judge: str, name: str) -> None:
    """Filters, penalties and min_tokens on the kernels: the executor's tokens and verdicts."""
    params = SamplingParams(max_tokens=6, seed=5, **PROCESSED[name])
    output = answer("interpret", ONE, params, strategy=strategy, gamma=3, judge=judge)
    native = answer("cpu", ONE, params, strategy=strategy, gamma=3, judge=judge)
    assert text_of(output) == text_of(native)
    assert verdicts_of(output) == verdicts_of(native)
    assert text_of(output) != text_of(answer("cpu", ONE, SamplingParams(max_tokens=6, seed=5), strategy="ar"))


@pytest.mark.parametrize("strategy", ["sd", "pearl"])
def test_a_stop_id_inside_a_window(strategy: str) -> None:
    free = answer("cpu", ONE, SamplingParams(max_tokens=12), strategy="ar").token_ids
    params = SamplingParams(max_tokens=12, stop_token_ids=(free[3],))
    end = free.index(free[3]) + 1
    assert text_of(answer("interpret", ONE, params, strategy=strategy, gamma=4)) == (free[:end], "stop")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["sd", "pearl"])
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_limits_inside_a_window(strategy: str, limit: int) -> None:
    params = SamplingParams(max_tokens=limit)
    expected = text_of(answer("cpu", ONE, params, strategy="ar"))
    assert expected[1] == "length"
    assert text_of(answer("interpret", ONE, params, strategy=strategy, gamma=4)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("draft_vocab_size", [24, 40])
def test_a_draft_of_another_vocabulary(draft_vocab_size: int) -> None:
    """It is fed ids that it has no row for, and must not say ids that the target has none for."""
    pair = pair_of("half-right")
    config = replace(pair.config, vocab_size=draft_vocab_size)
    target = DeviceModel.pack(pair.config, pair.target, device=torch.device("cpu"))
    tensors = random_tensors(config, seed=9)
    draft = DeviceModel.pack(config, tensors, device=torch.device("cpu"))
    lanes, prompt = (
        InterpretBackend().lanes("shared", target, draft, KvPool(16, 2, MAX_LEN)),
        [SMALL["vocab_size"] - 1, 3],
    )
    lanes.start("pearl", Request(prompt, gamma=2, max_tokens=5, temperature=1.0, seed=1), "coupled")
    found: list[int] = []
    while (results := lanes.coordinator.next()) is not None:
        found += [token for result in results for token in result.token_ids]
    params = SamplingParams(max_tokens=5, temperature=1.0, seed=1)
    assert found == answer("cpu", prompt, params, strategy="ar", judge="coupled").token_ids


def test_a_stream_that_is_closed_leaves_a_working_engine() -> None:
    params = SamplingParams(max_tokens=4)
    engine = engine_of("interpret")
    stream = engine.stream(ONE, params, strategy="sd", gamma=2)
    first = next(stream)
    stream.close()
    assert engine.last_output is not None and engine.last_output.finish_reason == "abort"
    expected = text_of(answer("cpu", ONE, params, strategy="ar"))
    assert first.token_ids == expected[0][: len(first.token_ids)]
    assert text_of(answer("interpret", ONE, params, strategy="sd", gamma=2)) == expected


@pytest.mark.parametrize("broken", ["target", "draft"])
def test_logits_that_are_nan_end_the_run_with_the_lanes_name(broken: str) -> None:
    pair = Pair.make("half-right", **SMALL)
    tensors = dict(getattr(pair, broken))
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], torch.nan)
    setattr(pair, broken, tensors)
    step = "prefill of the target" if broken == "target" else "draft of the draft"
    with pair.engine(device="interpret", max_model_len=MAX_LEN, placement="shared") as engine:
        for _ in range(2):
            with pytest.raises(
                NumericsError, match=f"NaN or infinite logits in step {step} lane, sequence 0"
            ):
                engine.generate(ONE, SamplingParams(max_tokens=6), strategy="sd", gamma=2)


def test_what_the_interpreter_does_not_take() -> None:
    skip_where_compiled()
    pair = pair_of("half-right")
    with pytest.raises(ConfigError, match=r"dtype 'bfloat16' is not computed rightly"):
        pair.engine(device="interpret", dtype="bfloat16")
    wide = Pair.make("half-right", vocab_size=64)
    params = SamplingParams(stop_token_ids=tuple(range(33)))
    with pytest.raises(RequestError, match=r"33 end-of-text and stop ids; this lane takes 32"):
        wide.engine(device="interpret").generate(ONE, params, strategy="ar")


def test_kernels_that_are_compiled_already(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_where_compiled()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match=r"triton was imported before .* set TRITON_INTERPRET=1 before"):
        Environment.interpret_kernels()
    assert "TRITON_INTERPRET" not in os.environ


def test_stats_name_the_interpreter() -> None:
    skip_where_compiled()
    stats = engine_of("interpret").stats()
    assert stats["isa"] == "triton-interpreter"
    assert stats["dtype"] == {"target": "float32", "draft": "float32"}
