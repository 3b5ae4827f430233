"""The bytes that an operator must move: every input read once, every output written once. Knows no clocks.

This is the least, not what a kernel does: a kernel that reads an input twice reaches a smaller share of the
bandwidth. Workspaces and partial sums are not counted; activations are, although most of them live in the L2.
"""

from __future__ import annotations

from collections.abc import Sequence

from pearl_rt.checkpoint.shapes import bits_of
from pearl_rt.kernels.base.shapes import ModelShape
from pearl_rt.reference.groups import GroupForm

HALF = 2  # bf16, fp16
FLOAT = 4  # fp32
INT = 4
LONG = 8


def linear(rows: int, n: int, k: int, *, out: int = HALF, residual: bool = False) -> int:
    """x [rows, k] and weight [n, k] in half precision; out of `out` bytes, or an fp32 residual in and out."""
    written = rows * n * (2 * FLOAT if residual else out)
    return (n * k + rows * k) * HALF + written


def gate_up_silu(rows: int, intermediate: int, hidden: int) -> int:
    return (2 * intermediate * hidden + rows * hidden + rows * intermediate) * HALF


def rms_norm(rows: int, hidden: int, *, x: int = FLOAT, residual: bool = False) -> int:
    """x of `x` bytes read, out in half precision; the fp32 residual is read and written."""
    row = hidden * (x + HALF + (2 * FLOAT if residual else 0))
    return rows * row + hidden * HALF


def qkv_rope_store(rows: int, heads: int, kv_heads: int, head_dim: int, *, qkv: int = HALF) -> int:
    """qkv of `qkv` bytes read; q, k and v written; a row of cos and of sin, a position and a slot a token."""
    read = (heads + 2 * kv_heads) * head_dim * qkv + head_dim * FLOAT + INT + LONG
    written = (heads + 2 * kv_heads) * head_dim * HALF
    return rows * (read + written)


def attention(
    q_lens: Sequence[int],
    context_lens: Sequence[int],
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int,
) -> int:
    """K and V of each sequence's context, its block ids, q read and out written."""
    queries = 2 * sum(q_lens) * heads * head_dim * HALF
    kv = sum(context_lens) * 2 * kv_heads * head_dim * HALF
    blocks = sum(-(-length // block_size) for length in context_lens) * INT
    return queries + kv + blocks


def sample(rows: int, vocab: int, *, logits: int = FLOAT) -> int:
    return rows * (vocab * logits + INT)


def verify(batch: int, gamma: int, vocab: int, *, draft: bool = True) -> int:
    """fp32 logits of gamma + 1 target rows and, with `draft`, of gamma draft rows; token ids in and out."""
    rows = gamma + 1 + (gamma if draft else 0)
    return batch * (rows * vocab * FLOAT + (2 * gamma + 1) * INT)


def matrix(n: int, k: int, name: str = "", rounded: str = "auto") -> int:
    """A weight [n, k]: in half precision, or rounded to "int8" or "int4" as the tensor of that name is."""
    form = GroupForm.joined([None], bits_of(name, rounded))
    return n * k * HALF if form is None else form.num_bytes((n, k))


def weights(shape: ModelShape, rounded: str = "auto") -> int:
    """What a decode step reads of the weights: all but the embedding table, where it looks up rows."""
    layer = sum(matrix(n, k, rounded=rounded) for name, (n, k) in shape.linears.items() if name != "lm_head")
    layer += matrix(2 * shape.intermediate, shape.hidden, rounded=rounded) + 2 * shape.hidden * HALF
    head = matrix(shape.vocab, shape.hidden, "lm_head.weight", rounded)
    return shape.layers * layer + shape.hidden * HALF + head


def decode_step(shape: ModelShape, batch: int, rows: int, context: int, rounded: str = "auto") -> int:
    """A forward of `rows` tokens of each of `batch` sequences of `context` positions, logits written."""
    tokens = batch * rows
    kv_row = shape.layers * 2 * shape.kv_heads * shape.head_dim * HALF
    kv = batch * context * kv_row + tokens * kv_row
    return weights(shape, rounded) + kv + tokens * (shape.hidden * HALF + shape.vocab * FLOAT)
