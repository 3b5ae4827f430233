"""Cases of attention over the paged KV cache, and of the kernel that fills it.

The cache is what has to be cold: each rotated copy is a cache of its own under one block table. Blocks lie in
random order, in groups that flash-attn's larger pages can follow, so that every peer reads the same memory.
Buffers are made on torch's default device, in bf16 by default.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib import import_module

import torch

from bench.kernel_cases import peers, traffic
from bench.kernel_cases.case import Job, Spec, job_of, spoil
from bench.kernel_cases.linear import BF16, EPS, ROWS, random, workspace
from pearl_rt.kernels.base.shapes import SHAPES, ModelShape

BLOCK_SIZE = 16  # the engine's own
CONTEXTS = (256, 4096, 32768)
QUICK = {("Llama-3.1-8B", 8, 4096), ("Llama-3.1-8B", 8, 32768), ("Llama-3.2-1B", 1, 4096)}
BATCHED = (8, 4096)  # batch and context of the cases with more than one sequence, at the 8B shape
PER_PAGE = peers.FLASH_BLOCK // BLOCK_SIZE


def page_table(batch: int, context: int) -> torch.Tensor:
    """Pages of FLASH_BLOCK positions in random order: [B, pages] int32."""
    pages = -(-context // peers.FLASH_BLOCK)
    order = torch.randperm(batch * pages, dtype=torch.int32)
    return order.view(batch, pages)


def block_table_of(pages: torch.Tensor) -> torch.Tensor:
    """The same as blocks of BLOCK_SIZE: [B, pages * PER_PAGE] int32."""
    within = torch.arange(PER_PAGE, device=pages.device, dtype=torch.int32)
    return (pages[:, :, None] * PER_PAGE + within).flatten(1).contiguous()


def gathered(cache: torch.Tensor, pages: torch.Tensor, context: int) -> torch.Tensor:
    """A cache [NB, BS, Hkv, D] as rows in order: [B, Hkv, context, D]."""
    whole = cache.view(-1, peers.FLASH_BLOCK, *cache.shape[2:])
    rows = whole[pages.long()].flatten(1, 2)[:, :context]
    return rows.transpose(1, 2).contiguous()


def exact_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal bottom-right attention in fp32. q [B, Hq, q, D]; k, v [B, Hkv, context, D] -> [B * q, Hq, D]."""
    batch, heads, q_len, head_dim = q.shape
    kv_heads, context = k.shape[1:3]
    grouped = q.float().view(batch, kv_heads, -1, q_len, head_dim)
    scores = torch.einsum("bkgqd,bkcd->bkgqc", grouped, k.float()) * scale
    hidden = torch.ones(q_len, context, dtype=torch.bool, device=q.device).triu(context - q_len + 1)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    out = torch.einsum("bkgqc,bkcd->bkgqd", weights, v.float()).reshape(batch, heads, q_len, head_dim)
    return out.transpose(1, 2).reshape(batch * q_len, heads, head_dim)


def attention_job(
    copies: int, shape: ModelShape, batch: int, q_len: int, context: int, *, dtype: torch.dtype = BF16
) -> Job:
    op = import_module("pearl_rt.kernels.forward.attention")
    heads, kv_heads, head_dim = shape.heads, shape.kv_heads, shape.head_dim
    scale = head_dim**-0.5
    pages = page_table(batch, context)
    table = block_table_of(pages)
    size = (copies, pages.numel() * PER_PAGE, BLOCK_SIZE, kv_heads, head_dim)
    keys, values = random(*size, dtype=dtype), random(*size, dtype=dtype)
    queries = random(copies, batch * q_len, heads, head_dim, dtype=dtype)
    outs = [torch.empty_like(queries[0]) for _ in range(copies)]
    context_lens = torch.full((batch,), context, dtype=torch.int32)
    starts = torch.arange(batch + 1, dtype=torch.int32) * q_len
    space = workspace(op.workspace_size(batch * q_len, heads, head_dim, table.shape[1] * BLOCK_SIZE, q_len))
    counters = torch.zeros(batch * q_len * heads, dtype=torch.int32)

    def run(i: int) -> None:
        batch = op.PagedBatch(queries[i], keys[i], values[i], table, context_lens, starts, outs[i])
        op.attention(batch, scale, q_len, space, counters)

    def dense(i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q = queries[i].view(batch, q_len, heads, head_dim).transpose(1, 2)
        return q, gathered(keys[i], pages, context), gathered(values[i], pages, context)

    rows = [dense(i) for i in range(copies)]
    per_page = [
        tuple(cache[i].view(-1, peers.FLASH_BLOCK, kv_heads, head_dim) for cache in (keys, values))
        for i in range(copies)
    ]
    in_blocks = [(keys[i], values[i]) for i in range(copies)]
    batched = [queries[i].view(batch, q_len, heads, head_dim) for i in range(copies)]
    found = {
        "sdpa": peers.torch_call(peers.sdpa, [(*row, scale) for row in rows]),
        "flash-attn": peers.optional(peers.flash_attention, batched, per_page, pages, context_lens, scale),
        "flashinfer": peers.optional(
            peers.flashinfer_attention, list(queries), in_blocks, table, context, q_len, scale
        ),
    }
    present = {name: peer for name, peer in found.items() if peer is not None}
    return job_of(run, outs, lambda i: exact_attention(*rows[i], scale), present)


def attention_spec(shape: ModelShape, batch: int, q_len: int, context: int) -> Spec:
    return Spec(
        "attention",
        f"attention {shape.name} B{batch} q{q_len} ctx{context}",
        traffic.attention(
            [q_len] * batch, [context] * batch, shape.heads, shape.kv_heads, shape.head_dim, BLOCK_SIZE
        ),
        partial(attention_job, shape=shape, batch=batch, q_len=q_len, context=context),
        {"shape": shape.name, "batch": batch, "rows": q_len, "context": context},
        quick=batch == 1 and (shape.name, q_len, context) in QUICK,
    )


def store_job(copies: int, shape: ModelShape, rows: int, *, dtype: torch.dtype = BF16) -> Job:
    """Rotary positions and the KV store for the next `rows` tokens of one sequence."""
    op = import_module("pearl_rt.kernels.forward.qkv_rope_store")
    heads, kv_heads, head_dim = shape.heads, shape.kv_heads, shape.head_dim
    first, capacity = 1000, 2048
    qkvs = [random(rows, (heads + 2 * kv_heads) * head_dim, dtype=torch.float32) for _ in range(copies)]
    positions = torch.arange(first, first + rows, dtype=torch.int32)
    angles = torch.outer(
        torch.arange(capacity, dtype=torch.float32), 10000.0 ** -torch.linspace(0, 1, head_dim // 2)
    )
    cos, sin = angles.cos(), angles.sin()
    slots = torch.randperm(capacity)[:rows].contiguous()
    size = (copies, capacity // BLOCK_SIZE, BLOCK_SIZE, kv_heads, head_dim)
    keys, values = (torch.zeros(size, dtype=dtype) for _ in range(2))
    outs = [torch.empty(rows, heads, head_dim, dtype=dtype) for _ in range(copies)]

    def run(i: int) -> None:
        op.qkv_rope_store(qkvs[i], positions, cos, sin, slots, outs[i], keys[i], values[i], None, None, EPS)

    def written(i: int) -> torch.Tensor:
        stored = [kv[i].view(capacity, kv_heads, head_dim)[slots] for kv in (keys, values)]
        return torch.cat((outs[i], *stored), dim=1)

    def exact(i: int) -> torch.Tensor:
        split = qkvs[i].float().view(rows, -1, head_dim)
        turned, v = split[:, : heads + kv_heads], split[:, heads + kv_heads :]
        low, high = turned.chunk(2, dim=-1)
        c, s = (t[positions.long()][:, None, :] for t in (cos, sin))
        return torch.cat((torch.cat((low * c - high * s, high * c + low * s), dim=-1), v), dim=1)

    return job_of(run, outs, exact, output=written, reset=lambda: spoil([*outs, keys, values]))


def store_specs() -> Iterator[Spec]:
    for shape in SHAPES:
        for rows in (1, 8):
            yield Spec(
                "qkv_rope_store",
                f"qkv_rope_store {shape.name} T{rows}",
                traffic.qkv_rope_store(rows, shape.heads, shape.kv_heads, shape.head_dim, qkv=traffic.FLOAT),
                partial(store_job, shape=shape, rows=rows),
                {"shape": shape.name, "rows": rows},
                quick=shape.name == "Llama-3.1-8B" and rows == 8,
            )


def attention_specs() -> Iterator[Spec]:
    for shape in SHAPES:
        for context in CONTEXTS:
            for q_len in ROWS:
                yield attention_spec(shape, 1, q_len, context)
        if shape.name == "Llama-3.1-8B":
            for q_len in (1, 8):
                yield attention_spec(shape, BATCHED[0], q_len, BATCHED[1])


def specs() -> list[Spec]:
    return [*attention_specs(), *store_specs()]
