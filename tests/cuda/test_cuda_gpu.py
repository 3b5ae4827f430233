"""Engines on a real GPU: captures, replays, forms, devices and faults. Runs only where there is one."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pairs import Pair

from pearl_rt import ConfigError, DeviceError, Engine, RequestError, ResourceError, SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MAX_LEN = 512
PROGRAMS = (("ar", 1), ("sd", 1), ("sd", 4), ("pearl", 1), ("pearl", 4), ("pearl", 8))
PROMPTS = ([7], [3, 1, 4, 1, 5, 9, 2, 6], list(range(3, 285)))  # the last one crosses a chunk
GREEDY = SamplingParams(max_tokens=80)
SAMPLED = SamplingParams(max_tokens=80, temperature=0.8, seed=2**64 - 1)


@cache
def pair_of(dtype: str) -> Pair:
    return Pair.make("half-right", torch_dtype=dtype, num_hidden_layers=3)


def engine_of(dtype: str = "bfloat16", **options: Any) -> Engine:
    return pair_of(dtype).engine(**{"device": "cuda", "max_model_len": MAX_LEN, "judge": "coupled"} | options)


def answers(engine: Engine, **options: Any) -> list[list[int]]:
    return [
        output.token_ids
        for params in (GREEDY, SAMPLED)
        for output in engine.generate([list(prompt) for prompt in PROMPTS], params, **options)
    ]


@cache
def expected(dtype: str) -> list[list[int]]:
    """Of ar, kernel by kernel."""
    with engine_of(dtype, form="eager") as engine:
        return answers(engine, strategy="ar")


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    yield
    gc.collect()


@pytest.mark.parametrize(
    ("dtype", "form", "programs"),
    [
        ("bfloat16", "eager", (("sd", 4), ("pearl", 4))),
        ("bfloat16", "events", PROGRAMS),
        ("bfloat16", "graph", PROGRAMS),
        ("float16", "events", (("ar", 1), ("pearl", 4))),
        ("float32", "graph", (("ar", 1), ("pearl", 4))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_program_and_form_gives_the_same_bits(
    dtype: str, form: str, programs: tuple[tuple[str, int], ...]
) -> None:
    with engine_of(dtype, form=form) as engine:
        for strategy, gamma in programs:
            assert answers(engine, strategy=strategy, gamma=gamma) == expected(dtype), (strategy, gamma)


@pytest.mark.parametrize("form", ["events", "graph", "eager"])
def test_requests_that_wait_for_blocks(form: str) -> None:
    """Four slots over the blocks of the longest request: each answer as it is alone."""
    with engine_of(
        form=form, strategy="pearl", gamma=4, max_num_seqs=4, kv_cache_tokens=len(PROMPTS[2]) + 80
    ) as engine:
        assert answers(engine) == expected("bfloat16")
        blocks = engine.stats()["kv_blocks"]
        assert blocks["total"] == blocks["free"] == 23


@pytest.mark.parametrize("draft_device", ["cpu", "cuda:1"])
def test_a_draft_elsewhere(draft_device: str) -> None:
    if draft_device != "cpu" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    with engine_of(draft_device=draft_device) as engine:
        for strategy, gamma in PROGRAMS[2:]:
            assert answers(engine, strategy=strategy, gamma=gamma) == expected("bfloat16"), (strategy, gamma)


@pytest.mark.parametrize("form", ["events", "eager"])
def test_a_lookup_on_the_host(form: str) -> None:
    """Twice: the second time the answers are found among the earlier ones."""
    pair = pair_of("bfloat16")
    shape: dict[str, Any] = {"max_model_len": MAX_LEN, "judge": "coupled", "form": form}
    with Engine(pair.config, pair.target, drafter="lookup", device="cuda", **shape) as engine:
        for _ in range(2):
            assert answers(engine, strategy="sd", gamma=4) == expected("bfloat16")
        assert engine.stats()["drafter"]["tokens_per_round"] > 1.5


@pytest.mark.parametrize("form", ["events", "graph"])
def test_log_probabilities_are_those_of_eager(form: str) -> None:
    """The same bits; ar's rounds go round the ring."""
    processed = replace(SAMPLED, top_k=50, repetition_penalty=1.2)
    asked = [replace(params, logprobs=20) for params in (GREEDY, SAMPLED, processed)]

    def told(engine: Engine) -> list[Any]:
        return [
            (output.token_ids, output.logprobs)
            for strategy, gamma in (("ar", 1), ("pearl", 4))
            for params in asked
            for output in engine.generate([list(p) for p in PROMPTS], params, strategy=strategy, gamma=gamma)
        ]

    with engine_of(form="eager") as engine:
        expected = told(engine)
    with engine_of(form=form) as engine:
        assert told(engine) == expected


def test_a_replay_is_the_eager_launch_on_whatever_the_state_is() -> None:
    """One capture of each step, two requests: the state that it reads is changed in between."""
    from pearl_rt.device.gpu import TorchGpu
    from pearl_rt.device.model import DeviceModel
    from pearl_rt.lowlevel.pair import DevicePair
    from pearl_rt.types.request import Request

    pair, device = pair_of("bfloat16"), torch.device("cuda", 0)
    models = [
        DeviceModel.pack(pair.config, tensors, device=device, dtype="bfloat16", name="model")
        for tensors in (pair.target, pair.draft)
    ]
    captured, eager = (DevicePair.of_models(*models, max_model_len=MAX_LEN) for _ in range(2))
    assert captured.draft_steps is not None
    stream = TorchGpu(device).stream(0)
    draft_steps, target_steps = captured.draft_steps, captured.target_steps
    draft = stream.capture("draft", lambda: draft_steps.draft(3, "rejection", True))
    score = stream.capture("score", lambda: target_steps.score(3, include_window=True))
    captured.state.whole.draft_logits.zero_()  # where the first launch, on idle slots, left what lay there
    seen = []
    for prompt in (PROMPTS[1], PROMPTS[2]):
        for own in (captured, eager):
            own.start([Request(prompt, gamma=3, temperature=0.9, seed=1)], "rejection")
            own.prefill()
            own.verify()
        eager.draft()
        eager.score()
        torch.cuda.synchronize()
        draft.replay()
        score.replay()
        torch.cuda.synchronize()
        for name in ("draft_token_ids", "num_draft_tokens", "draft_logits", "target_logits", "num_rows"):
            assert torch.equal(getattr(captured.tensors, name), getattr(eager.tensors, name)), name
        seen.append(captured.tensors.target_logits.clone())
    assert not torch.equal(*seen)
    for graph in (draft, score):
        graph.destroy()


def test_what_a_capture_must_not_do_is_said_and_leaves_the_gpu_at_work() -> None:
    from pearl_rt.device.gpu import TorchGpu

    stream = TorchGpu(torch.device("cuda", 0)).stream(-1)
    x = torch.ones(8, device="cuda")
    torch.cuda.synchronize()
    kept: list[torch.Tensor] = []
    with pytest.raises(AssertionError, match="capture of step leaky allocated"):
        stream.capture("leaky", lambda: kept.append(x + 1))
    stream = TorchGpu(torch.device("cuda", 0)).stream(-1)
    with pytest.raises(DeviceError, match="step asking could not be captured"):
        stream.capture("asking", lambda: kept.append(torch.tensor(x.sum().item())))
    graph = stream.capture("good", lambda: x.add_(1))
    graph.replay()
    torch.cuda.synchronize()
    assert x.tolist() == [3.0] * 8  # the run that warmed up, and the replay


def test_two_engines_at_once() -> None:
    with engine_of(strategy="pearl", gamma=4) as one, engine_of(strategy="sd", gamma=4) as two:
        found: list[list[list[int]]] = []
        thread = threading.Thread(target=lambda: found.append(answers(two)))
        thread.start()
        assert answers(one) == expected("bfloat16")
        thread.join()
        assert found == [expected("bfloat16")]


def test_a_stream_that_is_closed_and_an_engine_that_is_closed_twice() -> None:
    engine = engine_of(strategy="pearl", gamma=4)
    stream = engine.stream([7], GREEDY)
    first = next(stream)
    with pytest.raises(RequestError, match="in use"):
        engine.generate([7])
    stream.close()
    assert first.token_ids == expected("bfloat16")[0][: len(first.token_ids)]
    assert answers(engine) == expected("bfloat16")
    engine.close()
    engine.close()
    with pytest.raises(RequestError, match="closed"):
        engine.generate([7])


def test_memory_that_is_said_to_be_needed_is_what_is_taken() -> None:
    """To a tenth: torch rounds each tensor up, and the allowance is not torch's."""
    from pearl_rt.checkpoint.source import ModelSource
    from pearl_rt.device.gpu import find_gpu
    from pearl_rt.device.kv_pool import DEVICE_BLOCK_SIZE, KvPool
    from pearl_rt.device.pair_sizes import ALLOWANCE, PairSizes

    pair = Pair.make("equal", vocab_size=32000, hidden_size=256, intermediate_size=1024)
    gc.collect()
    find_gpu("cuda")
    before = torch.cuda.memory_allocated()
    pool = KvPool.of(None, num_slots=1, max_model_len=MAX_LEN, block_size=DEVICE_BLOCK_SIZE)
    sizes = PairSizes.of(pair.config, pair.config, pool, num_slots=1, prefill_chunk=256)
    models = [ModelSource(name, pair.config, "float32", {}) for name in ("target", "draft")]
    said = sum(sizes.memory(models).values()) - ALLOWANCE
    with pair.engine(device="cuda", max_model_len=MAX_LEN, strategy="ar", form="eager"):
        taken = torch.cuda.memory_allocated() - before
    assert 0.9 * taken < said < 1.1 * taken
    with pytest.raises(ResourceError, match=r"not enough memory.*max_memory"):
        pair.engine(device="cuda", max_model_len=MAX_LEN, max_memory=said)
    with pytest.raises(ConfigError, match="num_threads"):
        pair.engine(device="cuda", num_threads=1)


def test_stats_say_what_was_captured_and_measured() -> None:
    with engine_of() as engine:
        stats = engine.stats()
        assert stats["capture"]["graphs"] > 20 and stats["capture"]["seconds"] > 0
        times = stats["step_times"]["shared"]
        assert all(seconds > 0 for table in times.values() for seconds in table.values())
        before = stats["capture"]["graphs"]
        engine.generate([7], GREEDY, strategy="sd", gamma=4)
        engine.generate([7], GREEDY, strategy="sd", gamma=4)
        assert engine.stats()["capture"]["graphs"] <= before + 5


def test_leaving_without_close() -> None:
    script = """
import sys
sys.path[:0] = ["tests/fakes", "tests/support", "tests/cuda"]
from test_cuda_gpu import engine_of, GREEDY
engine = engine_of(strategy="pearl", gamma=4)
stream = engine.stream([7], GREEDY)
next(stream)
print("left")
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, done.stdout) == (0, "left\n"), done.stderr
    assert "Traceback" not in done.stderr
