"""What cannot run on a GPU is refused by name, before anything is taken: devices, memory, options."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_cuda
import pytest
import torch
from fake_gpu import FakeWorld, fresh
from tiny_pairs import Pair

from pearl_rt import ConfigError, Engine, RequestError, ResourceError, SamplingParams
from pearl_rt.backends.select import device_name
from pearl_rt.checkpoint.config import Environment
from pearl_rt.checkpoint.source import ModelSource
from pearl_rt.cli.commands import main
from pearl_rt.strategy.engine_options import EngineOptions
from pearl_rt.strategy.step_timing import NOMINAL_TIMES

ROOT = Path(__file__).resolve().parents[2]
needs_fake = pytest.mark.skipif(not fake_cuda.has_compiler(), reason="the fake driver needs a compiler")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWorld]:
    monkeypatch.setattr("pearl_rt.backends.cuda_lanes.measure", lambda lanes: NOMINAL_TIMES)
    yield from fresh(fake_cuda.load(), monkeypatch)


@pytest.fixture
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One GPU of the generation before the kernels'."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla T4")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu() -> None:
    for device in ("cuda", "cuda:1"):
        with pytest.raises(ResourceError, match=f"device '{device}'.*no GPU.*pass device='cpu'"):
            Pair.make("equal").engine(device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_command_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "--target", str(ROOT / "models" / "target"), "--prompt", "a", "--device", "cuda"]
    assert main([*command, "--form", "graph"]) == 2
    assert "device 'cuda': torch finds no GPU" in capsys.readouterr().err
    assert main([*command, "--draft-device", "cpu"]) == 2
    assert "draft_device 'cpu' was given without a draft" in capsys.readouterr().err


def test_a_gpu_that_is_too_old(old_gpu: None) -> None:
    with pytest.raises(ResourceError, match=r"Tesla T4 has compute capability 7.5.*8.0.*device='cpu'"):
        Pair.make("equal").engine(device="cuda")
    with pytest.raises(ResourceError, match="there are 1 GPUs"):
        Pair.make("equal").engine(device="cuda:3")
    assert device_name(EngineOptions(), Environment()) == "cpu"  # "auto" does not take it


def test_what_auto_is(old_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert device_name(EngineOptions(), Environment()) == "cuda"
    assert device_name(EngineOptions(), Environment(device="cpu")) == "cpu"
    assert device_name(EngineOptions(device="cuda:1"), Environment(device="cpu")) == "cuda:1"
    for options in ({"num_threads": 1}, {"isa": "portable"}, {"placement": "split"}):
        assert device_name(EngineOptions(**options), Environment()) == "cpu"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert device_name(EngineOptions(), Environment()) == "cpu"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"device": "gpu"}, "device 'gpu' is not supported.*'cuda:N'"),
        ({"device": "cuda:"}, "device 'cuda:' is not supported"),
        ({"device": "cuda:-1"}, "device 'cuda:-1' is not supported"),
        ({"device": "cuda:N"}, "pass 'cuda:0'"),
        ({"device": 0}, "device 0 is not supported"),
        ({"draft_device": "cuda:0"}, "draft_device 'cuda:0' is for a target on a GPU.*'cpu'.*device='cuda'"),
        ({"draft_device": "tpu"}, "draft_device 'tpu' is not supported"),
        ({"pdl": True}, "pdl is how kernels are launched on a GPU, and the target is on 'cpu': drop it"),
        ({"pdl": 1}, "pdl must be True or False, got 1"),
        ({"form": "while"}, "form 'while' is not supported: pass one of 'events', 'graph', 'eager'"),
    ],
    ids=str,
)
def test_options(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Pair.make("equal").engine(**options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"rounds_ahead": 0}, "rounds_ahead 0 is out of range: pass 1 to 32"),
        ({"rounds_ahead": 1.5}, "rounds_ahead.*1.5"),
        ({"max_memory": 0}, "max_memory 0 is out of range: pass 1 to "),
        ({"num_threads": 1}, "num_threads 1 is for a model on the CPU"),
        ({"isa": "portable"}, "isa 'portable' is for a model on the CPU"),
        ({"dtype": "int8"}, "dtype 'int8'.*'float16'"),
        ({"placement": "split"}, "placement 'split' is one of CPU cores"),
        ({"placement": "devices"}, "placement 'devices' needs a second device.*draft_device"),
        (
            {"placement": "shared", "draft_device": "cpu"},
            "placement 'shared' is one device.*drop draft_device",
        ),
        ({"form": "eager", "draft_device": "cuda:1"}, "form 'eager' runs both models on one GPU"),
    ],
    ids=str,
)
@needs_fake
def test_options_of_a_gpu(world: FakeWorld, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Pair.make("equal").engine(device="cuda", **options)


@needs_fake
@pytest.mark.parametrize("old", (0, 1), ids=["target", "draft"])
def test_pdl_needs_compute_capability_9(world: FakeWorld, old: int) -> None:
    world.find(f"cuda:{old}").capability = (8, 9)
    found = (
        f"pdl .programmatic dependent launch. needs compute capability 9.0, and Fake {old} has 8.9: drop pdl"
    )
    with pytest.raises(ConfigError, match=found):
        Pair.make("equal").engine(device="cuda", draft_device="cuda:1", pdl=True)


@needs_fake
def test_a_draft_device_without_a_draft(world: FakeWorld) -> None:
    pair = Pair.make("equal")
    with pytest.raises(ConfigError, match="draft_device 'cpu' was given without a draft"):
        Engine(pair.config, pair.target, device="cuda", draft_device="cpu")
    alone = Engine(pair.config, pair.target, device="cuda", max_model_len=32)
    with alone, pytest.raises(RequestError, match="'devices' needs a draft model"):
        alone.generate([1], placement="devices")


@needs_fake
def test_too_little_memory(world: FakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair.make("equal")
    parts = "target's weights.*draft's weights.*tokens of KV cache.*logits and state.*graphs"
    with pytest.raises(ResourceError, match=f"Fake 0.*needed.*{parts}.*max_memory is .*lower max_model_len"):
        pair.engine(device="cuda", max_model_len=64, max_memory=2**20)
    monkeypatch.setattr("fake_gpu.FakeGpu.free_memory", lambda gpu: 2**20 if gpu.ordinal else 2**40)
    with pytest.raises(ResourceError, match=r"Fake 1.*0.00 GiB for the draft's weights.*GiB free: lower"):
        pair.engine(device="cuda", draft_device="cuda:1", max_model_len=64)
    remedies = "pass dtype='bfloat16', pass weights='int8' or 'int4', put the draft elsewhere"
    with pytest.raises(ResourceError, match=f"Fake 1.*{remedies}"):
        pair.engine(device="cuda:1", max_model_len=64)


@needs_fake
def test_memory_is_counted_by_blocks(world: FakeWorld) -> None:
    """Those that all sequences share: what an engine can do with less is said."""
    from pearl_rt.backends.cuda import CudaBackend

    config = Pair.make("equal", max_position_embeddings=4096).config
    models = [ModelSource(name, config, "float32", {}) for name in ("target", "draft")]
    for tokens, form, parts in (
        (None, "events", "135168 tokens of KV cache, .* for logits and state, .* for activations"),
        (8190, "eager", "8192 tokens of KV cache, .* for logits and state, .* for activations"),
    ):
        backend = CudaBackend(
            "cuda",
            None,
            form=form,
            rounds_ahead=2,
            max_memory=1,
            cpu=None,
            num_slots=33,
            kv_cache_tokens=tokens,
        )
        with pytest.raises(
            ResourceError, match=f"{parts}.*lower max_model_len or kv_cache_tokens, lower max_num"
        ):
            backend.check_memory(models, backend.kv_pool(4096), num_placements=1)


@needs_fake
def test_requests(world: FakeWorld) -> None:
    with Pair.make("equal", vocab_size=70).engine(device="cuda", max_model_len=32) as engine:
        params = SamplingParams(stop_token_ids=tuple(range(33)))
        with pytest.raises(RequestError, match="33 end-of-text and stop ids; this lane takes 32"):
            engine.generate([1], params, strategy="ar")
        with pytest.raises(RequestError, match="logit_bias has 65 ids; the device takes 64: pass less"):
            engine.generate([1], SamplingParams(logit_bias=dict.fromkeys(range(65), 1.0)))
        with pytest.raises(RequestError, match="placement 'split'"):
            engine.generate([1], placement="split")


@needs_fake
def test_slots_are_padded_to_a_size_that_steps_are_captured_for(world: FakeWorld) -> None:
    from pearl_rt.backends.cuda import CudaBackend

    pair = Pair.make("equal")
    options: dict[str, Any] = {"form": "events", "rounds_ahead": 2, "max_memory": None, "cpu": None}
    backend = CudaBackend("cuda", None, num_slots=3, **options)
    packed = [
        backend.pack(ModelSource(name, pair.config, "float32", pair.target), 32)
        for name in ("target", "draft")
    ]
    lanes = backend.lanes("shared", *packed, backend.kv_pool(32))  # type: ignore[arg-type]
    assert lanes.target_steps.state.sizes.num_slots == 4 and backend.num_slots == 3
    lanes.close()
