"""What cannot run is one clear error that names the value and the way out, and the engine works on."""

import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pairs import TINY, Pair, byte_tokenizer, random_tensors

from pearl_rt import (
    CheckpointError,
    ConfigError,
    Engine,
    NumericsError,
    RequestError,
    ResourceError,
    SamplingParams,
)
from pearl_rt.checkpoint.tokenizer import Tokenizer

FEW = SamplingParams(max_tokens=4)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """A pair with room for 32 tokens and no tokenizer."""
    with Pair.make("half-right").engine(max_model_len=32) as made:
        yield made


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ([], "empty: give at least one token"),
        ("", "no tokenizer"),
        ([[]], "empty"),
        (list(range(40)), "40 tokens, more than max_model_len 32"),
        (list(range(32)), "leaves no room"),
        ([1, 288], "prompt\\[1\\] is 288.*ids 0 to 287"),
        ([2**40], str(2**40)),
        ([1, -1], "prompt\\[1\\] is -1"),
        ([1, True], "True"),
        ([1, 2.0], "2.0"),
        ([1, None], "None"),
        ("some text", "no tokenizer.*'some text'.*pass token ids"),
        (None, "NoneType"),
        (7, "int"),
        (b"bytes", "bytes"),
        ({1: 2}, "dict"),
        (np.zeros(3, np.int64), "ndarray"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_prompts(engine: Engine, prompt: Any, named: str) -> None:
    for call in (lambda: engine.generate(prompt, FEW), lambda: engine.stream(prompt, FEW)):
        with pytest.raises(RequestError, match=named):
            call()
    assert len(engine.generate([1, 2, 3], FEW)[0].token_ids) == 4


def test_empty_text_with_a_tokenizer() -> None:
    pair = Pair.make("equal")
    tokenizer = Tokenizer(byte_tokenizer(), vocab_size=288)
    with Engine(pair.config, pair.target, tokenizer=tokenizer, max_model_len=32) as engine:
        with pytest.raises(RequestError, match="'' is empty"):
            engine.generate("", FEW)
        with pytest.raises(RequestError, match="takes one prompt, got 2"):
            engine.stream(["a", "b"], FEW)
        assert len(engine.generate("a", FEW)[0].token_ids) == 4


@pytest.mark.parametrize(
    ("prompts", "named"),
    [([[1], [999]], r"prompt\[0\] is 999"), ([[1, 2], []], "empty"), ([[1], 2], "2 among the prompts")],
    ids=str,
)
def test_nothing_runs_if_one_prompt_of_a_list_cannot(engine: Engine, prompts: Any, named: str) -> None:
    before = engine.stats()["requests"]
    with pytest.raises(RequestError, match=named):
        engine.generate(prompts, FEW)
    assert engine.stats()["requests"] == before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"strategy": "eagle"}, "strategy 'eagle'.*'pearl'"),
        ({"strategy": 3}, "strategy 3"),
        ({"gamma": 0}, "gamma 0 is out of range: pass 1 to 16.*strategy='ar'"),
        ({"gamma": 17}, "gamma 17"),
        ({"gamma": 10**30}, "gamma 1000"),
        ({"gamma": -1}, "gamma -1"),
        ({"gamma": 2.0}, "gamma.*2.0"),
        ({"gamma": True}, "gamma.*True"),
        ({"placement": "gpu"}, "placement 'gpu'"),
        ({"judge": "typical"}, "judge 'typical'"),
    ],
    ids=str,
)
def test_programs(engine: Engine, options: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError, match=named):
        engine.generate([1], FEW, **options)
    with pytest.raises(ConfigError, match=named):
        Pair.make("equal").engine(max_model_len=32, **options)
    assert len(engine.generate([1], FEW)[0].token_ids) == 4


@pytest.mark.parametrize(
    ("options", "named", "kind"),
    [
        ({"device": "tpu"}, "device 'tpu'.*'cpu', 'cuda'", ConfigError),
        ({"dtype": "int4"}, "dtype 'int4'.*'bfloat16'", ConfigError),
        ({"dtype": torch.float32}, "dtype torch.float32", ConfigError),
        ({"num_threads": 0}, "num_threads 0", ConfigError),
        ({"num_threads": 1.5}, "num_threads.*1.5", ConfigError),
        ({"num_threads": 4096}, "num_threads 4096.*this process may use \\d+ cores", ResourceError),
        ({"num_threads": 1, "placement": "split"}, "placement 'split' needs 2 cores", ConfigError),
        ({"max_model_len": 1}, "max_model_len 1", ConfigError),
        ({"max_model_len": 5000}, "max_model_len 5000.*4096", ConfigError),
        ({"max_model_len": "long"}, "max_model_len.*'long'", ConfigError),
        ({"isa": "sse9"}, "isa 'sse9'.*'portable'", ConfigError),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_engines(options: dict[str, Any], named: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=named):
        Pair.make("equal").engine(**options)


@pytest.mark.parametrize(
    "options", [{"strategy": "sd"}, {"strategy": "pearl"}, {"placement": "split"}], ids=str
)
def test_speculation_without_a_draft(options: dict[str, Any]) -> None:
    pair = Pair.make("equal")
    with pytest.raises(ConfigError, match="needs a draft model"):
        Engine(pair.config, pair.target, drafter="none", **options)
    with Engine(pair.config, pair.target, drafter="none", max_model_len=32) as engine:
        with pytest.raises(RequestError, match="needs a draft model"):
            engine.generate([1], FEW, **options)
        assert engine.generate([1], FEW)[0].metrics.strategy == "ar"


def test_drafters_that_cannot_be() -> None:
    pair = Pair.make("equal")
    with pytest.raises(ConfigError, match="'model' needs a draft model: pass draft=DIRECTORY"):
        Engine(pair.config, pair.target, drafter="model")
    with pytest.raises(ConfigError, match="'lookup' was asked for, and a draft model was given: drop one"):
        Engine(pair.config, pair.target, pair.config, pair.draft, drafter="lookup")
    with pytest.raises(ConfigError, match="'split' needs a draft model"):
        Engine(pair.config, pair.target, drafter="lookup", placement="split")
    with pytest.raises(ConfigError, match="needs a draft model"):
        Engine(pair.config, pair.target, drafter="lookup", device="interpret", placement="split")
    with pytest.raises(ConfigError, match="lookup_pool -1"):
        Engine(pair.config, pair.target, lookup_pool=-1)


def test_half_a_draft() -> None:
    pair = Pair.make("equal")
    with pytest.raises(ConfigError, match="pass both, or neither"):
        Engine(pair.config, pair.target, pair.config)


def test_parameters_that_are_none(engine: Engine) -> None:
    with pytest.raises(RequestError, match="SamplingParams"):
        engine.generate([1], {"max_tokens": 3})  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="stop_token_ids has 288"):
        engine.generate([1], SamplingParams(stop_token_ids=(288,)))


def test_float16_checkpoints_run_as_bfloat16_and_say_so() -> None:
    pair, found = Pair.make("equal", torch_dtype="float16"), []
    for asked, dtype in (("auto", "bfloat16"), ("bfloat16", "bfloat16"), ("float32", "float32")):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            engine = pair.engine(max_model_len=32, dtype=asked)
        with engine:
            assert engine.stats()["dtype"] == {"target": dtype, "draft": dtype}
            found.append(engine.generate([1], FEW)[0].token_ids)
        expected = [
            f"the {name}'s checkpoint is float16, and runs as bfloat16" for name in ("target", "draft")
        ]
        texts = [str(warning.message).partition(",")[0] + ", and runs as bfloat16" for warning in said]
        assert texts == (expected if asked == "auto" else [])
    assert found[0] == found[1]


def test_draft_with_another_vocabulary() -> None:
    small = replace(TINY, vocab_size=100)
    target, draft = random_tensors(TINY, 0), random_tensors(small, 1)
    with pytest.raises(ConfigError, match="vocabulary of 100, the target one of 288"):
        Engine(TINY, target, small, draft, max_model_len=32)
    mine = Tokenizer(byte_tokenizer(), vocab_size=288)
    other = byte_tokenizer()
    other.add_tokens(["other"])
    own = {"tokenizer": mine, "draft_tokenizer": Tokenizer(other), "max_model_len": 32}
    with Engine(TINY, target, TINY, target, **own) as engine:  # type: ignore[arg-type]
        assert engine.stats()["drafter"]["shared_ids"] == 256
    with pytest.raises(ConfigError, match="tokenizer differs"):
        Engine(TINY, target, TINY, target, device="interpret", **own)  # type: ignore[arg-type]


def test_a_tokenizer_that_does_not_know_every_id() -> None:
    with pytest.raises(ConfigError, match=r"knows 256 ids, the model has 288.*vocab_size=288"):
        Engine(TINY, random_tensors(TINY, 0), tokenizer=Tokenizer(byte_tokenizer()), max_model_len=32)


@pytest.mark.parametrize("rows", (256, 300), ids=lambda rows: f"draft-rows-{rows}")
def test_a_draft_padded_to_another_size_is_fine(rows: int) -> None:
    """Both have 256 tokens; the target has 288 rows and emits ids that the smaller draft has no row for."""
    tokenizer = Tokenizer(byte_tokenizer(), vocab_size=288)
    config = replace(TINY, vocab_size=rows)
    target = random_tensors(TINY, 0)
    options: dict[str, Any] = {"tokenizer": tokenizer, "draft_tokenizer": tokenizer, "max_model_len": 128}
    with Engine(TINY, target, config, random_tensors(config, 0), **options) as engine:
        params = SamplingParams(max_tokens=60)
        for prompt in ([287, 256], [3]):
            expected = engine.generate(prompt, params, strategy="ar")[0].token_ids
            for strategy in ("sd", "pearl"):
                assert engine.generate(prompt, params, strategy=strategy, gamma=4)[0].token_ids == expected
        sampled = SamplingParams(temperature=1.0, max_tokens=60)
        for strategy in ("sd", "pearl"):
            assert len(engine.generate([287], sampled, strategy=strategy, gamma=4)[0].token_ids) == 60


def test_not_enough_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pearl_rt.backends.cpu.available_memory", lambda: 2**20)
    with pytest.raises(
        ResourceError, match=r"needed.*target's weights.*KV cache.*available: lower max_model_len"
    ):
        Pair.make("equal").engine(max_num_seqs=1)
    monkeypatch.undo()
    Pair.make("equal").engine(max_model_len=32).close()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
        BlockingIOError(11, "Resource temporarily unavailable"),
        RuntimeError("can't start new thread"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=repr,
)
def test_where_the_process_may_have_no_more(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under `ulimit -v`, wherever it is met."""

    def fails(*_: object) -> None:
        raise error

    for place in ("pair_sources", "Scheduler"):
        monkeypatch.setattr(f"pearl_rt.engine.{place}", lambda *_, **__: fails())
        with pytest.raises(ResourceError, match=r"may have no more memory or threads \(.*ulimit -v"):
            Pair.make("equal").engine(max_model_len=32)
        monkeypatch.undo()
    monkeypatch.setattr("pearl_rt.engine.pair_sources", lambda *_, **__: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        Pair.make("equal").engine(max_model_len=32)


def test_a_model_far_larger_than_memory_is_refused_before_it_is_read() -> None:
    huge = replace(TINY, hidden_size=65536, intermediate_size=262144, num_hidden_layers=200)
    with pytest.raises(ResourceError, match="not enough memory"):
        Engine(huge, {}, max_model_len=32)


def test_more_cores_than_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    own = sorted(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {own[0]})
    with pytest.raises(ResourceError, match=r"num_threads 2 asked for.*1 cores"):
        Pair.make("equal").engine(max_model_len=32, num_threads=2)
    with pytest.raises(ConfigError, match="'split' needs 2 cores"):
        Pair.make("equal").engine(max_model_len=32, placement="split")
    with Pair.make("equal").engine(max_model_len=32) as engine:
        assert set(engine.stats()["step_times"]) == {"shared"}


def test_environment_sets_cores_and_isa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEARL_NUM_THREADS", "1")
    monkeypatch.setenv("PEARL_ISA", "portable")
    with Pair.make("equal").engine(max_model_len=32) as engine:
        assert len(engine.stats()["cores"]["shared"]["target"]) == 1
        assert engine.stats()["isa"] == "portable"


@pytest.mark.parametrize("strategy", ("ar", "sd", "pearl"))
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_nan_in_the_target(strategy: str, dtype: str) -> None:
    pair = Pair.make("half-right")
    pair.target["model.embed_tokens.weight"][200] = float("nan")
    options: dict[str, Any] = {"strategy": strategy, "gamma": 3, "placement": "shared"}
    with pair.engine(max_model_len=64, dtype=dtype, **options) as engine:
        clean = engine.generate([5, 6, 7], FEW)[0].token_ids
        with pytest.raises(NumericsError, match="NaN or infinite logits in step prefill of the target"):
            engine.generate([1, 2, 200, 3, 4, 5], FEW)
        assert engine.last_output is not None
        assert engine.last_output.token_ids == []
        assert engine.generate([5, 6, 7], FEW)[0].token_ids == clean  # stale NaN rows are never read


@pytest.mark.parametrize("strategy", ("sd", "pearl"))
def test_nan_in_the_draft(strategy: str) -> None:
    pair = Pair.make("half-right")
    pair.draft["model.embed_tokens.weight"][200] = float("inf")
    options: dict[str, Any] = {"strategy": strategy, "gamma": 3, "placement": "shared"}
    with pair.engine(max_model_len=64, **options) as engine:
        with pytest.raises(NumericsError, match="step draft of the draft lane"):
            engine.generate([1, 200, 2], FEW)
        assert len(engine.last_output.token_ids) == 1  # the target's own first token was verified
        assert len(engine.generate([1, 2], FEW)[0].token_ids) == 4


@pytest.mark.parametrize("model", ("target", "draft"))
def test_a_model_of_nan_does_not_load(model: str) -> None:
    pair = Pair.make("half-right")
    getattr(pair, model)["lm_head.weight"][7, 7] = float("nan")
    with pytest.raises(NumericsError, match=f"NaN or infinite logits in step .* of the {model}"):
        pair.engine(max_model_len=64)


def test_checkpoints_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        Engine.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="not a model"):
        Engine.from_pretrained(tmp_path)
    target, draft = Pair.make("equal").save(tmp_path)
    weights = draft / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        Engine.from_pretrained(target, draft)
    other = byte_tokenizer()
    other.add_tokens(["other"])
    Pair.make("equal").save(tmp_path)
    other.save(str(draft / "tokenizer.json"))
    with pytest.raises(ConfigError, match="tokenizer differs"):
        Engine.from_pretrained(target, draft, device="interpret")
    with Engine.from_pretrained(target, max_model_len=32) as engine:
        assert len(engine.generate("a", FEW)[0].token_ids) == 4
