"""Whole decode steps through the runtime's model: forward, head and greedy sample, with random weights.

A step of a large model reads many times the L2, so one copy is cold by itself. It is compared with the same
model in plain torch: with the exact one, in fp32, by the measure of the plain one in half precision, which is
also its peer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F

from bench.kernel_cases import traffic
from bench.kernel_cases.attention import exact_attention
from bench.kernel_cases.case import Job, Spec, Variant, rms, spoil
from bench.kernel_cases.linear import BF16, EPS, random, workspace
from bench.kernel_cases.peers import sdpa
from bench.model_pairs.shapes import config_of
from pearl_rt.checkpoint.shapes import bits_of
from pearl_rt.kernels.base.shapes import MODELS, SHAPES, ModelShape
from pearl_rt.reference.groups import GroupForm

ROWS = (1, 5, 8, 16)
CONTEXTS = (256, 4096)
QUICK = {("SmolLM-135M", 1, 256), ("Llama-3.2-1B", 1, 256), ("Llama-3.2-1B", 8, 256)}
ROUNDED = ("int8", "int4")
QUICK_ROUNDED = ("int4", 1)
BLOCK_SIZE = 16
SEVERAL = 1 << 30  # bytes of a step above which one copy is enough
SLACK = 2.0  # times the error of plain torch in half precision
BONUS = 3  # the purpose of noise that a target draws alone
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]


def random_weights(shape: ModelShape, dtype: torch.dtype, rounded: str) -> Any:
    """LlamaWeights whose activations stay of the size of one. rounded: "auto", or "int8", "int4"."""
    llama, coded = import_module("pearl_rt.model.llama"), import_module("pearl_rt.model.coded_matrix")

    def matrix(n: int, k: int, scale: float, name: str = "") -> Any:
        values, bits = random(n, k, dtype=dtype, scale=scale), bits_of(name, rounded)
        form = GroupForm.joined([None], bits)
        return values if form is None else coded.CodedMatrix.pack({name: values}, form, bits, values.device)

    hidden, q_size = shape.hidden, shape.heads * shape.head_dim
    kv_size = shape.kv_heads * shape.head_dim
    deep = (2 * shape.layers) ** -0.5

    def layer() -> Any:
        return llama.LayerWeights(
            input_layernorm=torch.ones(hidden, dtype=dtype),
            qkv_proj=matrix(q_size + 2 * kv_size, hidden, hidden**-0.5),
            qkv_bias=None,
            q_norm=None,
            k_norm=None,
            o_proj=matrix(hidden, q_size, deep * q_size**-0.5),
            post_attention_layernorm=torch.ones(hidden, dtype=dtype),
            gate_up_proj=matrix(2 * shape.intermediate, hidden, hidden**-0.5),
            down_proj=matrix(hidden, shape.intermediate, deep * shape.intermediate**-0.5),
        )

    embedding = matrix(shape.vocab, hidden, 1.0, "model.embed_tokens.weight")
    head = matrix(shape.vocab, hidden, hidden**-0.5, "lm_head.weight")
    layers = tuple(layer() for _ in range(shape.layers))
    return llama.LlamaWeights(embedding, layers, torch.ones(hidden, dtype=dtype), head)


def values_of(weight: Any, dtype: torch.dtype) -> torch.Tensor:
    """A matrix of a model as elements."""
    if isinstance(weight, torch.Tensor):
        return weight.to(dtype)
    definition = import_module("pearl_rt.kernels.reference.forward.coded")
    return definition.values_of(weight.codes, weight.scales, weight.group, weight.k).to(dtype)


def make_model(shape: ModelShape, rows: int, context: int, dtype: torch.dtype, rounded: str) -> Any:
    """A Llama with a cache full of random keys and values."""
    llama = import_module("pearl_rt.model.llama")
    config = config_of(shape, max_position_embeddings=context)
    sizes = llama.Sizes(
        step_tokens=rows,
        prefill_chunk=rows,
        logit_rows=rows,
        max_sequences=1,
        max_model_len=context,
        block_size=BLOCK_SIZE,
    )
    model = llama.Llama(config, random_weights(shape, dtype, rounded), sizes)
    for pages in (*model.kv_cache.keys, *model.kv_cache.values):
        pages.normal_()
    return model


def make_batch(vocab: int, rows: int, context: int) -> Any:
    """The last `rows` tokens of a context of one sequence, in pages in random order."""
    from pearl_rt.model.forward_batch import ForwardBatch

    table = torch.randperm(-(-context // BLOCK_SIZE), dtype=torch.int32)[None, :].contiguous()
    positions = torch.arange(context - rows, context, dtype=torch.int32)
    pages = table[0].long()[(positions // BLOCK_SIZE).long()]
    return ForwardBatch(
        input_ids=torch.randint(vocab, (rows,), dtype=torch.int32),
        positions=positions,
        slot_mapping=pages * BLOCK_SIZE + positions % BLOCK_SIZE,
        cu_seqlens_q=torch.tensor([0, rows], dtype=torch.int32),
        context_lens=torch.tensor([context], dtype=torch.int32),
        block_table=table,
        max_q_len=rows,
    )


class PlainStep:
    """The same forward in plain torch, over keys and values in order, computed in `dtype`."""

    def __init__(self, model: Any, batch: Any, context: int, dtype: torch.dtype, attend: Attend) -> None:
        self.weights, self.dtype, self.attend = model.weights, dtype, attend
        self.ids, self.positions = batch.input_ids.long(), batch.positions.long()
        self.cos = model.cos[self.positions][:, None, :].to(dtype)
        self.sin = model.sin[self.positions][:, None, :].to(dtype)
        pages = batch.block_table[0].long()

        def in_order(cache: torch.Tensor) -> torch.Tensor:
            """[NB, BS, Hkv, D] -> [1, Hkv, context, D]."""
            rows = cache[pages].flatten(0, 1)[:context]
            return rows.transpose(0, 1).to(dtype, copy=True).contiguous()[None]

        self.keys: Sequence[torch.Tensor] = [in_order(cache) for cache in model.kv_cache.keys]
        self.values: Sequence[torch.Tensor] = [in_order(cache) for cache in model.kv_cache.values]
        self.kv_heads, self.head_dim = self.keys[0].shape[1], self.keys[0].shape[3]

    def __call__(self) -> torch.Tensor:
        """Logits [T, V] fp32."""
        weights = self.weights
        x = values_of(weights.embed_tokens, self.dtype)[self.ids]
        for layer, keys, values in zip(weights.layers, self.keys, self.values, strict=True):
            x = x + self.attention(self.norm(x, layer.input_layernorm), layer, keys, values)
            gate, up = self.linear(self.norm(x, layer.post_attention_layernorm), layer.gate_up_proj).chunk(
                2, -1
            )
            x = x + self.linear(F.silu(gate) * up, layer.down_proj)
        return self.linear(self.norm(x, weights.norm), weights.lm_head).float()

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight.to(self.dtype), EPS)

    def linear(self, x: torch.Tensor, weight: Any) -> torch.Tensor:
        return x @ values_of(weight, self.dtype).t()

    def attention(
        self, x: torch.Tensor, layer: Any, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        heads = self.linear(x, layer.qkv_proj).unflatten(-1, (-1, self.head_dim))  # [T, Hq + 2 Hkv, D]
        turned, v = heads[:, : -self.kv_heads], heads[:, -self.kv_heads :]
        low, high = turned.chunk(2, dim=-1)
        turned = torch.cat((low * self.cos - high * self.sin, high * self.cos + low * self.sin), dim=-1)
        q, k = turned[:, : -self.kv_heads], turned[:, -self.kv_heads :]
        keys.index_copy_(2, self.positions, k.transpose(0, 1)[None])
        values.index_copy_(2, self.positions, v.transpose(0, 1)[None])
        out = self.attend(q.transpose(0, 1)[None], keys, values, self.head_dim**-0.5)
        return self.linear(out.reshape(x.shape[0], -1), layer.o_proj)


class Step:
    """One model with one batch: our step, the plain one, and what both should give."""

    def __init__(
        self, shape: ModelShape, rows: int, context: int, dtype: torch.dtype, rounded: str = "auto"
    ) -> None:
        self.sampling = import_module("pearl_rt.kernels.sampling.sample")
        self.model = make_model(shape, rows, context, dtype, rounded)
        self.batch = make_batch(shape.vocab, rows, context)
        self.row_ids = torch.arange(rows, dtype=torch.int32)
        self.logits = torch.empty(rows, shape.vocab, dtype=torch.float32)
        self.tokens = torch.empty(rows, dtype=torch.int32)
        self.greedy, self.seed = torch.zeros(rows), torch.zeros(rows, dtype=torch.int64)
        self.places = self.batch.positions.long() + 1
        self.workspace = workspace(self.sampling.workspace_size(rows, shape.vocab))
        with torch.inference_mode():
            self.exact = PlainStep(self.model, self.batch, context, torch.float32, exact_attention)()
        self.plain = PlainStep(self.model, self.batch, context, dtype, sdpa)
        self.plain_logits = torch.empty(0)
        self.plain_tokens = torch.empty(0)
        self.rounding: float | None = None  # error of the plain step

    def ours(self) -> None:
        self.model.forward(self.batch, self.batch.num_live)
        self.model.logits(self.row_ids, self.logits, self.batch.num_live)
        self.sampling.sample(
            self.logits, self.greedy, self.seed, self.places, BONUS, self.tokens, None, self.workspace
        )

    def theirs(self) -> None:
        with torch.inference_mode():
            self.plain_logits = self.plain()
            self.plain_tokens = self.plain_logits.argmax(-1)

    def wrong(self, found: torch.Tensor) -> str | None:
        """By the measure of plain torch in half precision."""
        if self.rounding is None:
            with torch.inference_mode():
                self.rounding = rms(self.plain() - self.exact)
        error, limit = rms(found - self.exact), SLACK * self.rounding + 1e-3 * rms(self.exact)
        if error <= limit:  # False for NaN
            return None
        return f"logits are off by {error:.2e} rms (limit {limit:.2e}), logits {rms(self.exact):.2e} rms"


def step_job(
    copies: int,
    shape: ModelShape,
    rows: int,
    context: int,
    *,
    dtype: torch.dtype = BF16,
    rounded: str = "auto",
) -> Job:
    steps = [Step(shape, rows, context, dtype, rounded) for _ in range(copies)]
    return Job(
        Variant([step.ours for step in steps], lambda i: steps[i].logits),
        {"torch": Variant([step.theirs for step in steps], lambda i: steps[i].plain_logits)},
        lambda found, i: steps[i].wrong(found),
        lambda: spoil([step.logits for step in steps]),
    )


def step_spec(shape: ModelShape, rows: int, context: int, rounded: str = "auto") -> Spec:
    """rounded: to what weights are rounded; goals are about those that are not."""
    num_bytes = traffic.decode_step(shape, 1, rows, context, rounded)
    is_wide = rounded == "auto"
    return Spec(
        "step" if is_wide else "coded step",
        f"step {shape.name} T{rows} ctx{context}" + ("" if is_wide else f" {rounded}"),
        num_bytes,
        lambda copies: step_job(copies if num_bytes < SEVERAL else 1, shape, rows, context, rounded=rounded),
        {"shape": shape.name, "rows": rows, "context": context},
        quick=(shape.name, rows, context) in QUICK if is_wide else (rounded, rows) == QUICK_ROUNDED,
    )


def coded_specs() -> list[Spec]:
    """Of 8B in 8 and 4 bits."""
    return [step_spec(MODELS["8b"], rows, CONTEXTS[0], rounded) for rounded in ROUNDED for rows in (1, 8)]


def specs() -> list[Spec]:
    short = [step_spec(shape, rows, CONTEXTS[0]) for shape in SHAPES for rows in ROWS]
    long = [step_spec(shape, rows, CONTEXTS[1]) for shape in SHAPES for rows in (1, 8)]
    return [*short, *long, *coded_specs()]
