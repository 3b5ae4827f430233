"""The kernels of others, as calls on the same buffers. Each library is optional; one that isn't there is
named.

Knows nothing of our operators. Imports of libraries happen here and nowhere else in the bench.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F

from bench.harness.environment import version_of
from bench.kernel_cases.case import Variant

LIBRARIES = {"flash-attn": "flash-attn", "flashinfer": "flashinfer-python", "vllm": "vllm"}
FLASH_BLOCK = 256  # flash-attn 2 takes KV blocks of multiples of this
FLASHINFER_WORKSPACE = 128 << 20


def installed() -> dict[str, str | None]:
    """Version of each library by the name it has in the table; None where it isn't installed."""
    return {name: version_of(package) for name, package in LIBRARIES.items()}


def library(name: str) -> ModuleType | None:
    """The module, or None if it isn't installed or cannot be imported here."""
    try:
        return importlib.import_module(name)
    except Exception:  # a broken install of a peer is an absent peer
        return None


def optional(make: Callable[..., Variant | None], *arguments: Any) -> Variant | None:
    """What `make` returns; a peer that cannot be set up becomes one that fails, and so gives its reason."""
    try:
        return make(*arguments)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"

        def fail() -> None:
            raise RuntimeError(reason)

        return Variant([fail])


def matmul(xs: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> Variant:
    """torch.mm (cuBLAS) into an output of its own. xs [T, K], weights [N, K]."""
    outs = [x.new_empty(x.shape[0], w.shape[0]) for x, w in zip(xs, weights, strict=True)]
    calls = [
        partial(torch.mm, x, weight.t(), out=out) for x, weight, out in zip(xs, weights, outs, strict=True)
    ]
    return Variant(calls, outs.__getitem__)


def matmul_add(
    xs: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], residuals: Sequence[torch.Tensor]
) -> Variant:
    """torch.mm, then the sum with an fp32 residual, in place."""
    outs = [x.new_empty(x.shape[0], w.shape[0]) for x, w in zip(xs, weights, strict=True)]

    def add(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, residual: torch.Tensor) -> None:
        residual.add_(torch.mm(x, weight.t(), out=out))

    calls = [partial(add, *buffers) for buffers in zip(xs, weights, outs, residuals, strict=True)]
    return Variant(calls, residuals.__getitem__)


def torch_call(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Variant:
    """A function of torch on each tuple of arguments; the output that it allocates is kept."""
    outs: list[Any] = [None] * len(arguments)

    def call(i: int) -> None:
        outs[i] = function(*arguments[i])

    return Variant([partial(call, i) for i in range(len(arguments))], outs.__getitem__)


def compiled(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Variant:
    """The same through torch.compile, for these shapes alone."""
    torch._dynamo.reset()
    return torch_call(torch.compile(function, dynamic=False), arguments)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
    """x and weight fp32 -> dtype."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps).to(dtype)


def residual_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype
) -> torch.Tensor:
    """residual += x, then its norm."""
    residual.add_(x)
    return rms_norm(residual, weight, eps, dtype)


def gate_up_silu(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Two matmuls in one, then silu(gate) * up."""
    gate, up = torch.mm(x, weight.t()).chunk(2, dim=-1)
    return F.silu(gate) * up


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """torch's attention over gathered K, V, causal bottom-right. All [B, H, tokens, D] -> [B * q, Hq, D]."""
    from torch.nn.attention.bias import causal_lower_right

    mask = None if q.shape[2] == 1 else causal_lower_right(q.shape[2], k.shape[2])
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2).reshape(-1, q.shape[1], q.shape[3])


def flash_attention(
    queries: Sequence[torch.Tensor],
    caches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    block_table: torch.Tensor,
    context_lens: torch.Tensor,
    scale: float,
) -> Variant | None:
    """flash_attn_with_kvcache. queries [B, q, Hq, D]; caches [NB, FLASH_BLOCK, Hkv, D]; table [B, MB]."""
    module = library("flash_attn")
    if module is None:
        return None

    def attend(q: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        out = module.flash_attn_with_kvcache(
            q, *cache, cache_seqlens=context_lens, block_table=block_table, softmax_scale=scale, causal=True
        )
        return out.reshape(-1, *q.shape[2:])

    return torch_call(attend, list(zip(queries, caches, strict=True)))


def flashinfer_attention(
    queries: Sequence[torch.Tensor],
    caches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    block_table: torch.Tensor,
    context_len: int,
    q_len: int,
    scale: float,
) -> Variant | None:
    """Paged prefill attention, planned once. queries [T, Hq, D]; caches [NB, BS, Hkv, D]; table [B, MB]."""
    module = library("flashinfer")
    if module is None:
        return None
    block_size, kv_heads, head_dim = caches[0][0].shape[1:]
    batch = block_table.shape[0]
    used = -(-context_len // block_size)
    counts = torch.arange(batch + 1, dtype=torch.int32)
    workspace = torch.zeros(FLASHINFER_WORKSPACE, dtype=torch.uint8, device=block_table.device)
    wrapper = module.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
    wrapper.plan(
        (counts * q_len).to(block_table.device),
        (counts * used).to(block_table.device),
        block_table[:, :used].reshape(-1).contiguous(),
        torch.full(
            (batch,), (context_len - 1) % block_size + 1, dtype=torch.int32, device=block_table.device
        ),
        queries[0].shape[1],
        kv_heads,
        head_dim,
        block_size,
        causal=True,
        sm_scale=scale,
        q_data_type=queries[0].dtype,
        kv_data_type=caches[0][0].dtype,
    )
    return torch_call(lambda q, cache: wrapper.run(q, cache), list(zip(queries, caches, strict=True)))


def sample(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """The exponential race over a softmax."""
    probabilities = (logits / temperature).softmax(-1)
    return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(-1)


def filter_thresholds(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """The smallest logit that top-k, then top-p keep, by sorting: [R]."""
    kept = logits.topk(top_k, dim=-1).values  # descending
    mass = (kept / temperature).softmax(-1)
    stays = mass.cumsum(-1) - mass < top_p
    return kept.masked_fill(~stays, float("inf")).amin(-1)
