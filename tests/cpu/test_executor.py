"""The CPU executor: logits against a forward pass in plain torch; bits that do not depend on the company."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from pearl_rt import _C, _testing
from pearl_rt.backends.cpu import bytes_of
from pearl_rt.reference.groups import Groups
from pearl_rt.reference.groups import linear as grouped_linear

ISAS = [*_C.available_isas(), "amx_emulated"]
CPUS = sorted(os.sched_getaffinity(0))
MAX_LEN = 256
NUM_TOKENS = 200


@dataclass
class Shape:
    """A model small enough for a test, with one thing in it that could go wrong."""

    vocab_size: int = 300
    hidden_size: int = 64
    intermediate_size: int = 96
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 16
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    qk_norm: bool = False
    tie_word_embeddings: bool = False


SHAPES = {
    "gqa": Shape(),
    "mha-tied": Shape(num_key_value_heads=4, tie_word_embeddings=True),
    "mqa-wide-group": Shape(num_attention_heads=20, num_key_value_heads=1, head_dim=8),
    "ragged-sizes": Shape(
        vocab_size=131, hidden_size=72, intermediate_size=90, head_dim=10, tie_word_embeddings=True
    ),
    "head-80": Shape(head_dim=80),
    "head-96-three-layers": Shape(head_dim=96, num_hidden_layers=3),
    "head-128": Shape(head_dim=128, num_attention_heads=2, num_key_value_heads=1),
    "qkv-bias": Shape(attention_bias=True),
    "qk-norm": Shape(qk_norm=True, head_dim=24),
    "deep-k": Shape(hidden_size=32, intermediate_size=4100),  # panels of two blocks
}


@dataclass
class Model:
    """Random tensors of a shape, and what a forward pass needs beside them."""

    shape: Shape
    max_len: int = MAX_LEN
    seed: int = 0
    tensors: dict[str, torch.Tensor] = field(init=False)
    cos: torch.Tensor = field(init=False)
    sin: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        s, generator = self.shape, torch.Generator().manual_seed(self.seed)

        def matrix(n: int, k: int) -> torch.Tensor:  # bf16 values, so that both dtypes hold the same model
            return (torch.randn(n, k, generator=generator) / math.sqrt(k)).bfloat16().float()

        def vector(n: int, mean: float) -> torch.Tensor:
            return mean + 0.3 * torch.randn(n, generator=generator)

        q, kv = s.num_attention_heads * s.head_dim, s.num_key_value_heads * s.head_dim
        t = {
            "model.embed_tokens.weight": matrix(s.vocab_size, s.hidden_size) * 4,
            "model.norm.weight": vector(s.hidden_size, 1),
        }
        if not s.tie_word_embeddings:
            t["lm_head.weight"] = matrix(s.vocab_size, s.hidden_size)
        for i in range(s.num_hidden_layers):
            prefix = f"model.layers.{i}."
            for name, n in (("q", q), ("k", kv), ("v", kv)):
                t[f"{prefix}self_attn.{name}_proj.weight"] = matrix(n, s.hidden_size)
                if s.attention_bias:
                    t[f"{prefix}self_attn.{name}_proj.bias"] = vector(n, 0)
            t[f"{prefix}self_attn.o_proj.weight"] = matrix(s.hidden_size, q)
            t[f"{prefix}mlp.gate_proj.weight"] = matrix(s.intermediate_size, s.hidden_size)
            t[f"{prefix}mlp.up_proj.weight"] = matrix(s.intermediate_size, s.hidden_size)
            t[f"{prefix}mlp.down_proj.weight"] = matrix(s.hidden_size, s.intermediate_size)
            t[f"{prefix}input_layernorm.weight"] = vector(s.hidden_size, 1)
            t[f"{prefix}post_attention_layernorm.weight"] = vector(s.hidden_size, 1)
            if s.qk_norm:
                t[f"{prefix}self_attn.q_norm.weight"] = vector(s.head_dim, 1)
                t[f"{prefix}self_attn.k_norm.weight"] = vector(s.head_dim, 1)
        self.tensors = t
        frequencies = 10000.0 ** -(torch.arange(0, s.head_dim, 2) / s.head_dim)
        angles = torch.outer(torch.arange(self.max_len).float(), frequencies)
        self.cos, self.sin = angles.cos().contiguous(), angles.sin().contiguous()

    def token_ids(self, n: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.randint(self.shape.vocab_size, (n,), generator=generator).tolist()

    def weights(
        self,
        dtype: str = "bfloat16",
        isa: str = "",
        storage: torch.dtype = torch.float32,
        bits: int = 0,
    ) -> Any:
        kept = {name: tensor.to(storage).contiguous() for name, tensor in self.tensors.items()}
        described = {
            name: (bytes_of(tensor), str(tensor.dtype).removeprefix("torch."), list(tensor.shape))
            for name, tensor in kept.items()
        }
        if isa == "amx_emulated":
            return _testing.emulated_weights(vars(self.shape), described, dtype, bits)
        return _C.LlamaWeights(vars(self.shape), described, dtype, isa, bits=bits)

    def executor(self, weights: Any, cpus: list[int] = CPUS[:1], num_slots: int = 2) -> Any:
        """An executor whose KV rows are all NaN, so that a row read before it is written shows."""
        tables = (self.cos.numpy(), self.sin.numpy())
        executor = _C.LlamaExecutor(weights, _C.CoreSet(cpus), num_slots, self.max_len, *tables)
        for slot in range(num_slots):
            _testing.poison(executor, slot, 0)
        return executor


def reference_logits(
    model: Model,
    ids: list[int],
    dtype: torch.dtype = torch.float32,
    groups: Mapping[str, Groups] | None = None,
) -> np.ndarray:
    """[len(ids), vocab]: in fp32 with inputs of products rounded to dtype. groups: for layers over codes."""
    s, t, n = model.shape, model.tensors, len(ids)

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return x.to(dtype).float()

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + s.rms_norm_eps) * weight

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        y = rounded(x) @ rounded(t[name + ".weight"]).T
        if groups is not None:
            y = torch.from_numpy(grouped_linear(x.numpy(), groups[name + ".weight"]))
        return y + t[name + ".bias"] if name + ".bias" in t else y

    def rope(x: torch.Tensor) -> torch.Tensor:  # [heads, n, head_dim]
        first, second = x.chunk(2, -1)
        cos, sin = model.cos[:n], model.sin[:n]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

    def heads(x: torch.Tensor, count: int) -> torch.Tensor:
        return x.view(n, count, s.head_dim).transpose(0, 1)

    x = rounded(t["model.embed_tokens.weight"])[ids]
    later = torch.ones(n, n, dtype=torch.bool).triu(1)
    for i in range(s.num_hidden_layers):
        layer = f"model.layers.{i}."
        attention = layer + "self_attn."
        y = norm(x, t[layer + "input_layernorm.weight"])
        q = heads(linear(y, attention + "q_proj"), s.num_attention_heads)
        k = heads(linear(y, attention + "k_proj"), s.num_key_value_heads)
        v = heads(linear(y, attention + "v_proj"), s.num_key_value_heads)
        if s.qk_norm:
            q, k = norm(q, t[attention + "q_norm.weight"]), norm(k, t[attention + "k_norm.weight"])
        group = s.num_attention_heads // s.num_key_value_heads
        q, k, v = (
            rounded(rope(q)),
            rounded(rope(k)).repeat_interleave(group, 0),
            rounded(v).repeat_interleave(group, 0),
        )
        scores = (q @ k.transpose(1, 2) / math.sqrt(s.head_dim)).masked_fill(later, -math.inf)
        p = rounded((scores - scores.amax(-1, keepdim=True)).exp())
        out = (p @ v) / p.sum(-1, keepdim=True)
        x = x + linear(out.transpose(0, 1).reshape(n, -1), attention + "o_proj")
        y = norm(x, t[layer + "post_attention_layernorm.weight"])
        gated = torch.nn.functional.silu(linear(y, layer + "mlp.gate_proj")) * linear(
            y, layer + "mlp.up_proj"
        )
        x = x + linear(gated, layer + "mlp.down_proj")
    head = "model.embed_tokens" if s.tie_word_embeddings else "lm_head"
    return linear(norm(x, t["model.norm.weight"]), head).numpy()


@cache
def expected(name: str) -> tuple[Model, list[int], np.ndarray, np.ndarray]:
    """A shape's model, its tokens, and their logits in fp32 and in bf16."""
    model = Model(SHAPES[name])
    ids = model.token_ids(NUM_TOKENS)
    return model, ids, reference_logits(model, ids), reference_logits(model, ids, torch.bfloat16)


def feed(executor: Any, slot: int, ids: list[int], sizes: list[int], start: int = 0) -> np.ndarray:
    """Logits of all ids, fed in pieces of these sizes."""
    pieces, position = [], 0
    for size in sizes:
        pieces.append(executor.forward(slot, ids[position : position + size], start + position, size))
        position += size
    assert position == len(ids)
    return np.concatenate(pieces)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and not np.isnan(a).any() and np.array_equal(a.view(np.int32), b.view(np.int32))


def largest_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", SHAPES)
def test_fp32_logits_are_the_definitions(name: str, isa: str) -> None:
    model, ids, exact, _ = expected(name)
    executor = model.executor(model.weights("float32", isa), CPUS[:2])
    assert largest_error(executor.forward(0, ids, 0, NUM_TOKENS), exact) < 1e-5


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", SHAPES)
def test_bf16_logits_are_as_near_as_bf16_allows(name: str, isa: str) -> None:
    model, ids, exact, rounded = expected(name)
    logits = model.executor(model.weights("bfloat16", isa), CPUS[:2]).forward(0, ids, 0, NUM_TOKENS)
    assert largest_error(logits, exact) < 2 * largest_error(rounded, exact)
    # Rounded in the same places, only the order of sums differs; it flips roundings, which then spread.
    assert np.abs(logits - rounded).mean() < 0.75 * np.abs(rounded - exact).mean()
    assert np.abs(logits[0] - rounded[0]).max() < 0.1 * np.abs(rounded[0] - exact[0]).max() + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "name", ["gqa", "mqa-wide-group", "ragged-sizes", "head-96-three-layers", "qk-norm", "deep-k"]
)
def test_bits_do_not_depend_on_rows_threads_or_batch(name: str, isa: str, dtype: str) -> None:
    model = Model(SHAPES[name])
    ids, other = model.token_ids(NUM_TOKENS), model.token_ids(NUM_TOKENS)[::-1]
    weights = model.weights(dtype, isa)
    executor = model.executor(weights, CPUS[:1])
    whole = executor.forward(0, ids, 0, NUM_TOKENS)
    every_count = [*range(1, 17), 64]  # 200 rows
    assert same_bits(feed(executor, 1, ids, every_count), whole)
    assert same_bits(feed(executor, 1, ids, [1] * 20 + [16, 5, 2, 63, 94]), whole)
    threaded = model.executor(weights, CPUS[:2])
    assert same_bits(threaded.forward(0, ids, 0, NUM_TOKENS), whole)
    assert same_bits(feed(threaded, 1, ids, every_count[::-1]), whole)
    # Two sequences in one call, in pieces of unlike sizes, across the 128 rows of a step.
    batched: list[list[np.ndarray]] = [[], []]
    for begin, end in ((0, 1), (1, 7), (7, 120), (120, 200)):
        first, second = threaded.forward_batch(
            [(1, ids[begin:end], begin, end - begin), (0, other[begin:end], begin, end - begin)]
        )
        batched[0].append(first)
        batched[1].append(second)
    assert same_bits(np.concatenate(batched[0]), whole)
    assert same_bits(np.concatenate(batched[1]), executor.forward(0, other, 0, NUM_TOKENS))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("isa", ISAS)
def test_stale_rows_do_not_leak(isa: str, dtype: str) -> None:
    model = Model(SHAPES["gqa"])
    ids, wrong = model.token_ids(60), model.token_ids(60)[::-1]
    executor = model.executor(model.weights(dtype, isa), CPUS[:2])
    whole = executor.forward(0, ids, 0, len(ids))
    for kept in range(1, 40):  # a window is fed past `kept`, then taken back by feeding from there
        _testing.poison(executor, 1, 0)
        executor.forward(1, ids[:kept], 0, 0)
        executor.forward(1, wrong[:9], kept, 9)
        after = executor.forward(1, ids[kept : kept + 3], kept, 3)
        assert same_bits(after, whole[kept : kept + 3]), kept
        _testing.poison(executor, 1, kept + 3)
        again = executor.forward(1, ids[kept + 2 : kept + 8], kept + 2, 6)  # feeds the last of them once more
        assert same_bits(again, whole[kept + 2 : kept + 8]), kept


def test_long_context_agrees_and_does_not_depend_on_chunks() -> None:
    model = Model(
        Shape(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, head_dim=8),
        max_len=8200,
    )
    ids = model.token_ids(8200)
    executor = model.executor(model.weights("float32"), CPUS[:2])
    whole = executor.forward(0, ids, 0, 16)
    executor.forward(1, ids[:4099], 0, 0)
    executor.forward(1, ids[4099:8190], 4099, 0)
    assert same_bits(feed(executor, 1, ids[8190:], [1, 9], start=8190), whole[-10:])
    near = executor.forward(1, ids[:2000], 0, 3)
    assert largest_error(near, reference_logits(model, ids[:2000])[-3:]) < 1e-5


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_checkpoints_of_any_dtype(storage: torch.dtype) -> None:
    model = Model(SHAPES["mha-tied"])
    ids = model.token_ids(9)
    model.tensors = {name: tensor.to(storage).float() for name, tensor in model.tensors.items()}
    logits = model.executor(model.weights("float32", storage=storage)).forward(0, ids, 0, 9)
    assert largest_error(logits, reference_logits(model, ids)) < 1e-5


def test_only_wanted_logits_come_back() -> None:
    model = Model(SHAPES["gqa"])
    ids = model.token_ids(140)
    executor = model.executor(model.weights())
    whole = executor.forward(0, ids, 0, 140)
    for wanted in (0, 1, 13, 139):
        logits = executor.forward(1, ids, 0, wanted)
        assert logits.shape == (wanted, 300)
        assert same_bits(logits, whole[140 - wanted :])


def test_nan_weights_reach_the_logits() -> None:
    model = Model(SHAPES["gqa"])
    model.tensors["model.layers.1.mlp.gate_proj.weight"][3, 5] = math.nan
    for isa in ISAS:
        assert np.isnan(model.executor(model.weights("bfloat16", isa)).forward(0, [1, 2], 0, 2)).all()


def test_weights_count_and_report() -> None:
    model = Model(SHAPES["gqa"])
    described = {n: (bytes_of(t), "float32", list(t.shape)) for n, t in model.tensors.items()}
    seen: list[tuple[int, int]] = []
    weights = _C.LlamaWeights(
        vars(model.shape), described, "bfloat16", None, lambda done, all_: seen.append((done, all_))
    )
    assert seen == [(1, 2), (2, 2)]
    assert weights.isa == _C.detect_isa() == _C.available_isas()[0]
    # qkv + o + gate and up + down, twice, and a head of 300 -> 304 rows.
    assert weights.weight_bytes == 2 * (2 * (128 * 64 + 64 * 64 + 192 * 64 + 64 * 96) + 304 * 64)
    assert weights.memory_bytes >= weights.weight_bytes + 2 * 300 * 64


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([(2, [1], 0, 1)], r"slot 2 is not in \[0, 2\)"),
        ([(-1, [1], 0, 1)], r"slot -1"),
        ([(0, [1], 0, 1), (0, [2], 1, 1)], "slot 0 is in this call twice"),
        ([(0, [], 0, 0)], "num_tokens is 0"),
        ([(0, [1, 2], 255, 1)], r"positions \[255, 257\) are not within max_model_len 256"),
        ([(0, [1], -1, 1)], r"positions \[-1, 0\)"),
        ([(0, [1], 0, 2)], r"num_logits 2 is not in \[0, 1\]"),
        ([(0, [1, 300], 0, 1)], r"token id 300 at position 1 is not in \[0, 300\)"),
        ([(0, [-1], 0, 1)], r"token id -1"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_segments_are_refused_by_value(
    segments: list[tuple[int, list[int], int, int]], message: str
) -> None:
    model = Model(SHAPES["gqa"])
    executor = model.executor(model.weights())
    with pytest.raises(ValueError, match=message):
        executor.forward_batch(segments)
    assert not np.isnan(executor.forward(0, [1], 0, 1)).any()


def test_bad_tensors_and_shapes_are_refused_by_name() -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    model = Model(SHAPES["gqa"])
    kept = model.tensors.pop(name)
    with pytest.raises(ValueError, match=f"'{name}' is missing"):
        model.weights()
    model.tensors[name] = kept[:, :60]
    with pytest.raises(ValueError, match=rf"'{name}' has shape \[32, 60\], expected \[32, 64\]"):
        model.weights()
    wrong = Model(Shape())
    wrong.shape = replace(wrong.shape, head_dim=15)
    with pytest.raises(ValueError, match="head_dim 15 is odd"):
        wrong.weights()
    wrong.shape = replace(wrong.shape, head_dim=16, num_key_value_heads=3)
    with pytest.raises(ValueError, match="num_attention_heads 4 is not a multiple of num_key_value_heads 3"):
        wrong.weights()
    with pytest.raises(ValueError, match="dtype 'int8' is not one of"):
        Model(Shape()).weights("int8")
    with pytest.raises(
        ValueError, match=r"instruction set 'sse9' is not available here; there are: .*portable"
    ):
        Model(Shape()).weights(isa="sse9")


def test_what_does_not_fit_is_refused_with_its_bytes() -> None:
    model = Model(Shape(head_dim=128))
    with pytest.raises(
        MemoryError, match=r"the KV cache of 1000000 x 256 tokens needs \d+ MiB \(\d+ bytes\), and"
    ):
        model.executor(model.weights(), num_slots=1_000_000)
