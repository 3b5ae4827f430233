"""Drafts that are views of their target, on the kernels: the target without layers, and an exit layer.

The text is that of plain decoding, drafts are those of the CPU's executor, and weights the target's memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import fake_cuda
import pytest
import torch
from fake_gpu import FakeWorld, fresh
from tiny_pairs import SMALL, TINY, byte_tokenizer, random_tensors

from pearl_rt import ConfigError, DevicePair, Engine, Request, RequestOutput, ResourceError, SamplingParams
from pearl_rt.checkpoint.loader import save_checkpoint
from pearl_rt.checkpoint.shapes import tensor_shapes
from pearl_rt.checkpoint.source import pair_sources
from pearl_rt.checkpoint.views.exit_layer import ExitConfig, exit_shapes, save_exit
from pearl_rt.device.kv_pool import KvPool
from pearl_rt.device.model import DeviceModel, device_dtype
from pearl_rt.device.pair_sizes import PairSizes, held_bytes
from pearl_rt.strategy.step_timing import NOMINAL_TIMES

MAX_LEN = 24
TARGET = replace(TINY, **SMALL | {"num_hidden_layers": 3})
EXIT = ExitConfig(hidden_size=16, vocab_size=32, exit_layer=2, intermediate_size=32)
KINDS = ("self", "exit")
AT_ONCE = ("self, masks", "exit, masks")  # windows of one pass; the target then keeps all of its layers
PROMPTS = [[7], list(range(3, 21))]  # the second one crosses a prefill chunk and a page
GREEDY, LOUD = SamplingParams(max_tokens=5), SamplingParams(temperature=0.9, max_tokens=5, seed=3)
needs_fake = pytest.mark.skipif(not fake_cuda.has_compiler(), reason="no C++ compiler")


@cache
def tensors() -> dict[str, torch.Tensor]:
    """Layer 1 adds little, and layer 2 less: drafts without them stand often, and fall."""
    found = random_tensors(TARGET, 0)
    for (layer, share), part in product(((1, 0.5), (2, 0.2)), ("self_attn.o_proj", "mlp.down_proj")):
        found[f"model.layers.{layer}.{part}.weight"] = found[f"model.layers.{layer}.{part}.weight"] * share
    return found


@cache
def own_layer() -> dict[str, torch.Tensor]:
    """In bf16; with a norm that is not the target's."""
    config = EXIT.draft_config(TARGET)
    shapes = exit_shapes(config)
    own = {n: t.to(torch.bfloat16) for n, t in random_tensors(config, 1).items() if n in shapes}
    for part in ("self_attn.o_proj", "mlp.down_proj"):
        own[f"model.layers.2.{part}.weight"] *= 0.2
    own["model.norm.weight"] = torch.linspace(0.5, 1.5, 16).to(torch.bfloat16)
    return own


def engine_of(kind: str, device: str, **options: Any) -> Engine:
    is_masked = kind in AT_ONCE
    draft = (replace(EXIT, pard_token=31 if is_masked else None), own_layer()) if "exit" in kind else ()
    target = replace(TARGET, pard_token=31) if kind == "self, masks" else TARGET
    chosen: dict[str, Any] = {} if draft else {"drafter": "self", "skip_layers": None if is_masked else [1]}
    shape = {"max_model_len": MAX_LEN, "max_num_seqs": 2, "device": device, "judge": "coupled"}
    shape |= {"num_threads": 1, "placement": "shared"} if device == "cpu" else {}
    return Engine(target, tensors(), *draft, **shape | chosen | options)


def drafted(outputs: list[RequestOutput]) -> list[tuple[list[int], int, int, int]]:
    """Tokens, rounds, drafts that stood, and rounds in which one fell."""
    metrics = [one.metrics for one in outputs]
    return [(o.token_ids, m.rounds, m.accepted, m.rejections) for o, m in zip(outputs, metrics, strict=True)]


RUNS = (("sd", 3, GREEDY, "coupled"), ("pearl", 2, LOUD, "coupled"), ("sd", 2, LOUD, "rejection"))


@cache
def executed(kind: str) -> tuple[list[Any], list[Any]]:
    """The tokens of ar, and what drafted() says, of each run on the CPU."""
    with engine_of(kind, "cpu") as engine:
        plain = [[one.token_ids for one in engine.generate(PROMPTS, p, strategy="ar")] for _, _, p, _ in RUNS]
        return plain, [drafted(run(engine, *each)) for each in RUNS]


def run(engine: Engine, strategy: str, gamma: int, params: SamplingParams, judge: str) -> list[RequestOutput]:
    return engine.generate(PROMPTS, params, strategy=strategy, gamma=gamma, judge=judge)


@pytest.mark.parametrize("kind", [*KINDS, *AT_ONCE])
def test_drafts_are_the_executors(kind: str) -> None:
    """A batch. Greedy and coupled tokens are those of ar; which drafts stand says that layers are the right
    ones.
    """
    plain, expected = executed(kind)
    assert any(stood > 0 and fell > 0 for outputs in expected for _, _, stood, fell in outputs)
    with engine_of(kind, "interpret") as engine:
        for each, tokens, wanted in zip(RUNS, plain, expected, strict=True):
            found = drafted(run(engine, *each))
            assert found == wanted, each
            assert each[3] == "rejection" or [one[0] for one in found] == tokens
        stats = engine.stats()["drafter"]
    layers = {"self": (0, 2), "self, masks": (0, 1, 2)}.get(kind, (0, 1))
    assert (stats["kind"], stats["shared_layers"]) == (kind.partition(",")[0], layers)


def test_rounded_weights_do_not_change_the_text() -> None:
    """Of the target in 8 bits, and of a layer in 4."""
    with engine_of("exit", "interpret", weights="int8", draft_weights="int4") as engine:
        for params in (GREEDY, LOUD):
            expected = [one.token_ids for one in engine.generate(PROMPTS, params, strategy="ar")]
            assert [one[0] for one in drafted(run(engine, "sd", 3, params, "coupled"))] == expected


def parts_of(owner: object) -> list[torch.Tensor]:
    """The tensors of packed weights, in order."""
    if isinstance(owner, tuple):
        return [tensor for one in owner for tensor in parts_of(one)]
    if isinstance(owner, torch.Tensor):
        return [owner]
    return parts_of(tuple(vars(owner).values())) if hasattr(owner, "__dict__") else []


def pointers(*owners: object) -> set[int]:
    """Where these tensors lie."""
    return {tensor.data_ptr() for tensor in parts_of(owners)}


@pytest.mark.parametrize(("kind", "weights"), list(product(KINDS, ("auto", "int8", "int4"))))
def test_weights_are_the_targets_memory(kind: str, weights: str) -> None:
    """But for the own layer and norm, which are counted as they are packed."""
    given = (EXIT, own_layer()) if kind == "exit" else (None, None)
    sources = pair_sources(
        *(TARGET, tensors(), *given),
        dtype="float32",
        drafter="self" if kind == "self" else "auto",
        skip_layers=[1] if kind == "self" else None,
        weights=weights,
        draft_weights=weights if kind == "exit" else "auto",
    )
    target = DeviceModel.of_source(sources[0], torch.device("cpu"))
    draft = target.view(sources[1])
    whole, view = target.weights, draft.weights
    kept = (0, 2) if kind == "self" else (0, 1)
    assert all(view.layers[at] is whole.layers[layer] for at, layer in enumerate(kept))
    assert pointers(view.embed_tokens, view.lm_head) == pointers(whole.embed_tokens, whole.lm_head)
    own = (view.layers[2], view.norm) if kind == "exit" else ()
    assert pointers(view) - pointers(whole) == pointers(*own) and (kind == "exit") == (len(view.layers) == 3)
    assert view.dtype == view.norm.dtype == torch.float32
    assert held_bytes(whole, view) == held_bytes(whole) + held_bytes(*own)
    if kind == "exit":  # packed as in a model that has all these tensors
        merged = replace(sources[1], tensors=tensors() | own_layer())
        alone = DeviceModel.of_source(merged, torch.device("cpu")).weights
        pairs = zip(parts_of(own), parts_of((alone.layers[2], alone.norm)), strict=True)
        assert all(torch.equal(found, wanted) for found, wanted in pairs)

    pool = KvPool.of(None, num_slots=1, max_model_len=MAX_LEN, block_size=16)
    sizes = PairSizes.of(TARGET, draft.config, pool, num_slots=1, prefill_chunk=16)
    parts = sizes.memory(sources)
    assert parts["the target's weights"] == held_bytes(whole)
    assert parts["the draft's weights"] == held_bytes(*own)
    fewer = PairSizes.of(TARGET, None, pool, num_slots=1, prefill_chunk=16).memory(sources[:1])
    cache_part = f"{pool.num_tokens} tokens of KV cache"
    assert parts[cache_part] == fewer[cache_part] * (3 + draft.config.num_hidden_layers) // 3


def test_a_view_computes_in_what_its_target_does() -> None:
    """A target in fp16 too, which runs as bf16 on the CPU, and is warned of once."""
    half = replace(TARGET, torch_dtype="float16")
    target, draft = pair_sources(half, tensors(), EXIT, own_layer(), dtype="auto")
    gpu = torch.device("cuda")
    assert device_dtype("auto", target.config, gpu) == device_dtype("auto", draft.config, gpu) == "float16"
    with (
        pytest.warns(UserWarning, match="the target's checkpoint is float16") as warned,
        Engine(half, tensors(), EXIT, own_layer(), device="cpu", max_model_len=MAX_LEN) as engine,
    ):
        assert engine.target is not None and engine.draft is not None
        assert engine.target.dtype == engine.draft.dtype == "bfloat16"
    assert len(warned) == 1


def test_what_the_kernels_cannot_run() -> None:
    some = replace(EXIT, draft_vocab_size=20)
    offsets = own_layer() | {"d2t": torch.zeros(20, dtype=torch.int64)}
    named = r"drafts 20 ids of the target \(draft_vocab_size, d2t\), which runs on the CPU only so far: pass"
    with pytest.raises(ConfigError, match=named):
        Engine(TARGET, tensors(), some, offsets, device="interpret")
    with pytest.raises(ConfigError, match=named):
        DevicePair.from_tensors(TARGET, tensors(), some, offsets)


@pytest.mark.parametrize(("kind", "draft_device"), list(product(KINDS, ("cpu", "cuda:1"))))
def test_a_view_has_no_device_of_its_own(kind: str, draft_device: str) -> None:
    named = f"draft_device '{draft_device}' was given with draft '{kind}', whose weights are the target's on"
    with pytest.raises(ConfigError, match=named):
        engine_of(kind, "cuda", draft_device=draft_device)


@pytest.mark.parametrize("kind", KINDS)
def test_low_level_calls(tmp_path: Path, kind: str) -> None:
    """The same drafts, and by them the same rounds."""
    for name, config, own in (("target", TARGET, tensors()), ("exit", None, own_layer())):
        if config is not None:
            save_checkpoint(tmp_path / name, config, own)
            byte_tokenizer().save(str(tmp_path / name / "tokenizer.json"))
        else:
            save_exit(tmp_path / name, EXIT.draft_config(TARGET), own)
    given = (tmp_path / "target", tmp_path / "exit") if kind == "exit" else (tmp_path / "target",)
    skipped = {"skip_layers": [1]} if kind == "self" else {}
    pair = DevicePair.from_pretrained(*given, dtype="float32", max_model_len=MAX_LEN, gamma_max=3, **skipped)
    assert pair.draft_steps is not None
    assert pair.draft_steps.model.weights.embed_tokens is pair.target_steps.model.weights.embed_tokens
    pair.start([Request(prompt_ids=PROMPTS[0], max_tokens=5, gamma=3)])
    pair.prefill()
    pair.verify()
    rows = [pair.wait(0)]
    while not rows[-1].is_last:
        pair.draft()
        pair.score()
        pair.verify()
        rows.append(pair.wait(len(rows)))
    assert executed(kind)[1][0][0] == (
        [token for row in rows for token in row.token_ids],
        len(rows) - 1,  # the first token is no round
        sum(row.accept_len for row in rows),
        sum(row.accept_len < row.num_judged for row in rows),
    )


def test_a_layer_that_is_narrower_than_its_targets() -> None:
    """Buffers are as wide as the widest."""
    narrow = replace(EXIT, intermediate_size=8)
    config = narrow.draft_config(TARGET)
    own = {n: t for n, t in random_tensors(config, 1).items() if n in exit_shapes(config)}
    options: dict[str, Any] = {"dtype": "float32", "max_model_len": MAX_LEN, "gamma_max": 1}
    pair = DevicePair.from_tensors(TARGET, tensors(), narrow, own, **options)
    pair.start([Request(prompt_ids=PROMPTS[1], max_tokens=2, gamma=1)])
    pair.prefill()
    pair.verify()
    pair.draft()
    pair.score()
    pair.verify()
    assert pair.wait(0).token_ids + pair.wait(1).token_ids == executed("exit")[0][0][1][:2]


def test_buffers_are_for_the_widest_layer() -> None:
    """A narrow layer behind wide ones has what they need, and a wide one behind narrow ones too."""
    from pearl_rt.model.llama import Buffers, LlamaWeights, Sizes

    sizes = Sizes(step_tokens=17, prefill_chunk=256, logit_rows=17, max_sequences=1, max_model_len=64)

    def needed(width: int, *others: int) -> tuple[int, int]:
        """Of a model that has a layer of each width, by the configuration of the first."""
        config = replace(TARGET, hidden_size=1024, intermediate_size=width, num_hidden_layers=1 + len(others))
        made = {}
        for layer, inner in enumerate((width, *others)):
            shapes = tensor_shapes(replace(config, intermediate_size=inner))
            made |= {n: torch.empty(s, device="meta") for n, s in shapes.items() if f".{layer}." in n}
        made |= {n: torch.empty(s, device="meta") for n, s in shapes.items() if "layers" not in n}
        packed = LlamaWeights.pack(config, made, dtype=torch.float32, device=torch.device("meta"))
        own = Buffers(config, sizes, packed, vocab_size=32)
        return own.activated.nbytes, own.workspace.nbytes

    assert needed(64) < needed(8192) and needed(64)[1] < needed(8192)[1]
    assert needed(64, 8192) == needed(8192, 64) == needed(8192)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWorld]:
    """Two GPUs that are none; step times are not measured."""
    monkeypatch.setattr("pearl_rt.backends.cuda_lanes.measure", lambda lanes: NOMINAL_TIMES)
    yield from fresh(fake_cuda.load(), monkeypatch)


@needs_fake
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "form"), [("self", "graph"), ("exit", "events"), ("exit", "eager")])
def test_on_the_fake_driver(world: FakeWorld, kind: str, form: str) -> None:
    plain, expected = executed(kind)
    with engine_of(kind, "cuda", form=form, rounds_ahead=1) as engine:
        for each, tokens, wanted in zip(RUNS[:2], plain, expected, strict=False):
            outputs = run(engine, *each)
            assert [one.token_ids for one in outputs] == tokens
            assert each[0] != "sd" or drafted(outputs) == wanted
        assert isinstance(engine.target, DeviceModel) and isinstance(engine.draft, DeviceModel)
        assert engine.draft.weights.embed_tokens is engine.target.weights.embed_tokens


@needs_fake
@pytest.mark.parametrize("kind", KINDS)
def test_memory_of_a_gpu_that_is_short(world: FakeWorld, kind: str) -> None:
    """The way out is not to put the draft elsewhere."""
    with pytest.raises(ResourceError, match=r"for the draft's weights.*weights='int8'") as caught:
        engine_of(kind, "cuda", max_memory=2**20)
    assert "draft_device" not in str(caught.value)
