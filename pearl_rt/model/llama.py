"""The Llama family on the kernels: packed weights, and a forward pass as launches on static buffers.

Llama, Mistral, Qwen2 (biases on q, k, v), Qwen3 (norms on q and k). It knows pages and rows; not tokens'
meaning, sequences' states, or the order of lanes. A pass allocates nothing and never asks the device for
anything, so that it can be captured; its buffers belong to one lane, and one pass runs at a time.

    embedding
    per layer   qkv_proj (linear), qkv_rope_store, attention, o_proj (linear, added to the residual)
                gate_up_silu, down_proj (linear, added to the residual)
    logits      head (linear), of the rows that are asked for

RMSNorm has no launch: the layer that adds to the residual writes it scaled by the next norm's weight, with
sums of its squares. The layer that reads it multiplies its own sums by the row's factor
(pearl_rt.kernels.forward.linear).
The residual stream is fp32, and so are the sums of every kernel; in between, activations are the weights'
dtype. The bits of a row do not depend on the other rows: a pass of more than MAX_ROWS rows runs its linear
layers over blocks of MAX_ROWS, but for a prefill chunk, which always has the same number of rows and goes to
torch.mm as one. Matrices of codes have blocks there too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypedDict

import torch

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.rope import rope_tables
from pearl_rt.kernels.forward.attention import MAX_Q_LEN
from pearl_rt.kernels.forward.attention import workspace_size as attention_workspace
from pearl_rt.kernels.forward.embedding import embedding
from pearl_rt.kernels.forward.gate_up_silu import gate_up_silu
from pearl_rt.kernels.forward.gate_up_silu import workspace_size as gate_up_workspace
from pearl_rt.kernels.forward.linear import MAX_ROWS, linear, num_parts
from pearl_rt.kernels.forward.linear import workspace_size as linear_workspace
from pearl_rt.kernels.forward.qkv_rope_store import qkv_rope_store
from pearl_rt.model.attention_backends import attention_backend
from pearl_rt.model.coded_matrix import CodedMatrix, Part
from pearl_rt.model.forward_batch import ForwardBatch
from pearl_rt.model.kv_cache import CacheShape, PagedKVCache
from pearl_rt.model.packing import Matrix, Packing

Tensor = torch.Tensor
Keep: TypeAlias = Callable[[int, Tensor], None]  # is given a layer, and the rows that it is fed
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer. Linear weights are [out, in]."""

    input_layernorm: Tensor  # [H]
    qkv_proj: Matrix  # [(Hq + 2 * Hkv) * D, H]: q rows, then k, then v
    qkv_bias: Tensor | None  # [(Hq + 2 * Hkv) * D]
    q_norm: Tensor | None  # [D]
    k_norm: Tensor | None  # [D]
    o_proj: Matrix  # [H, Hq * D]
    post_attention_layernorm: Tensor  # [H]
    gate_up_proj: Matrix  # [2 * I, H]: gate rows, then up rows
    down_proj: Matrix  # [H, I]


@dataclass(frozen=True)
class LlamaWeights:
    """A model's tensors on their device, in one dtype or as codes, packed as kernels read them. Immutable."""

    embed_tokens: Matrix  # [V, H]
    layers: tuple[LayerWeights, ...]
    norm: Tensor  # [H]
    lm_head: Matrix  # [V, H]; the embedding's own memory if the head is tied

    @property
    def dtype(self) -> torch.dtype:
        """Of activations, and of all that is not codes."""
        return self.norm.dtype

    @property
    def device(self) -> torch.device:
        return self.norm.device

    @classmethod
    def pack(
        cls,
        config: ModelConfig,
        tensors: Mapping[str, Part],
        *,
        dtype: torch.dtype,
        device: torch.device,
        weights: str = "auto",
        advance: Callable[[int], object] = lambda _: None,
        target: "LlamaWeights | None" = None,
        shared: Sequence[int] = (),
    ) -> "LlamaWeights":
        """From Hugging Face's tensors, which may be dropped afterwards. See Packing for codes.

        weights: what wider matrices are rounded to. advance: called with the bytes of each layer once the
        layer is there. target: of a view, which begins with its layers `shared` and has its embedding, its
        head, and its norm if `tensors` have none: the same tensors, which are not copied; only what is behind
        these layers is packed. Raises CheckpointError for weights that cannot be rounded.
        """
        packing = Packing(tensors, dtype, device, weights)
        tensor, matrix = packing.tensor, packing.matrix

        def layer(index: int) -> LayerWeights:
            prefix = f"model.layers.{index}"
            projections = [f"{prefix}.self_attn.{name}_proj" for name in "qkv"]
            packed = LayerWeights(
                input_layernorm=tensor(f"{prefix}.input_layernorm.weight"),
                qkv_proj=matrix(*(f"{name}.weight" for name in projections)),
                qkv_bias=tensor(*(f"{name}.bias" for name in projections)) if config.attention_bias else None,
                q_norm=tensor(f"{prefix}.self_attn.q_norm.weight") if config.qk_norm else None,
                k_norm=tensor(f"{prefix}.self_attn.k_norm.weight") if config.qk_norm else None,
                o_proj=matrix(f"{prefix}.self_attn.o_proj.weight"),
                post_attention_layernorm=tensor(f"{prefix}.post_attention_layernorm.weight"),
                gate_up_proj=matrix(f"{prefix}.mlp.gate_proj.weight", f"{prefix}.mlp.up_proj.weight"),
                down_proj=matrix(f"{prefix}.mlp.down_proj.weight"),
            )
            advance(sum(t.nbytes for t in vars(packed).values() if t is not None))
            return packed

        if target is not None:
            own = tuple(layer(index) for index in range(len(shared), config.num_hidden_layers))
            norm = tensor("model.norm.weight") if "model.norm.weight" in tensors else target.norm
            embedding, head = (
                matrix(name) if name in tensors else its
                for name, its in ((EMBEDDING, target.embed_tokens), (HEAD, target.lm_head))
            )
            layers = tuple(target.layers[index] for index in shared) + own
            return cls(embedding, layers, norm, head)
        embed_tokens = matrix(EMBEDDING)
        advance(embed_tokens.nbytes)
        layers = tuple(layer(index) for index in range(config.num_hidden_layers))
        lm_head = embed_tokens if config.tie_word_embeddings else matrix(HEAD)
        return cls(embed_tokens, layers, tensor("model.norm.weight"), lm_head)


@dataclass(frozen=True)
class Sizes:
    """The most that a pass is ever given: what buffers are made for."""

    step_tokens: int  # T: rows of a pass that drafts or scores, all sequences together
    prefill_chunk: int  # rows of a pass that feeds a prompt, one sequence alone
    logit_rows: int  # rows of one call of logits
    max_sequences: int  # B
    max_model_len: int  # positions of a sequence
    block_size: int = 16  # positions of a page of the KV cache
    num_blocks: int | None = None  # pages; None: enough for every sequence at its longest

    @property
    def max_tokens(self) -> int:
        """Rows of the largest pass."""
        return max(self.step_tokens, self.prefill_chunk)

    @property
    def max_blocks(self) -> int:
        """Pages of a sequence at its longest."""
        return -(-self.max_model_len // self.block_size)


class Buffers:
    """Every tensor that a pass writes but for the KV cache and the logits: one owner, fixed addresses."""

    def __init__(self, config: ModelConfig, sizes: Sizes, weights: LlamaWeights, *, vocab_size: int) -> None:
        heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        rows, hidden = sizes.max_tokens, config.hidden_size
        inners = {layer.down_proj.shape[1] for layer in weights.layers}  # an exit layer's may be another

        def empty(*shape: int, dtype: torch.dtype = weights.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=weights.device)

        self.residual = empty(rows, hidden, dtype=torch.float32)
        self.scaled = empty(rows, hidden)  # the residual times the weight of the norm that is next
        self.squares = empty(rows, num_parts(hidden), dtype=torch.float32)  # of the residual, summed by parts
        self.qkv = empty(rows, (heads + 2 * kv_heads) * head_dim, dtype=torch.float32)
        self.q = empty(rows, heads, head_dim)
        self.attended = empty(rows, heads, head_dim)
        self.activated = empty(rows * max(inners))  # rows of a layer, as wide as that is
        widths = [replace(config, intermediate_size=inner) for inner in inners]
        fed = max(layer.qkv_proj.shape[1] for layer in weights.layers)  # a head's layer is fed twice as much
        num_bytes = max(workspace_bytes(each, sizes, vocab_size=vocab_size, fed=fed) for each in widths)
        self.workspace = empty(max(num_bytes, 16), dtype=torch.uint8)
        # Of attention, which leaves them at 0: all layers, captured or not, run one after another.
        self.counters = torch.zeros(rows * heads, dtype=torch.int32, device=weights.device)


def workspace_bytes(config: ModelConfig, sizes: Sizes, *, vocab_size: int, fed: int) -> int:
    """What the hungriest launch of a pass needs; they run one after another and share it. fed: columns that
    qkv_proj reads.
    """
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    hidden, inner = config.hidden_size, config.intermediate_size
    linears = (
        ((heads + 2 * kv_heads) * head_dim, fed),
        (hidden, heads * head_dim),
        (hidden, inner),
    )
    # Rows of the linear layers' blocks, and of a prefill chunk that is one block by itself.
    blocks = {min(sizes.max_tokens, MAX_ROWS), sizes.prefill_chunk}
    # Splits of attention are for short queries: a chunk of more rows has no workspace.
    rows = max(sizes.step_tokens, sizes.prefill_chunk if sizes.prefill_chunk <= MAX_Q_LEN else 0)
    return max(
        *(linear_workspace(num_rows, n, k) for n, k in linears for num_rows in blocks),
        *(gate_up_workspace(num_rows, inner, hidden) for num_rows in blocks),
        linear_workspace(min(sizes.logit_rows, MAX_ROWS), vocab_size, hidden),
        attention_workspace(rows, heads, head_dim, sizes.max_blocks * sizes.block_size),
    )


class Codes(TypedDict, total=False):
    """What operators are told of a weight of codes; nothing of elements."""

    scales: Tensor
    group: int


def operands(weight: Matrix) -> tuple[Tensor, Codes]:
    """A weight as operators are given it."""
    if isinstance(weight, CodedMatrix):
        return weight.codes, {"scales": weight.scales, "group": weight.group}
    return weight, {}


def row_blocks(num_rows: int) -> "list[slice[int, int, None]]":
    """Rows in blocks that the linear kernel takes: it computes more than MAX_ROWS with other bits."""
    return [slice(at, min(at + MAX_ROWS, num_rows)) for at in range(0, num_rows, MAX_ROWS)]


def blocks_of(weight: Matrix, batch: ForwardBatch) -> "list[slice[int, int, None]]":
    """Rows of a pass as a linear layer takes them: a prefill chunk is one block, where there are no codes."""
    is_chunk = batch.max_q_len > MAX_ROWS
    return (
        [slice(0, batch.num_tokens)]
        if is_chunk and isinstance(weight, Tensor)
        else row_blocks(batch.num_tokens)
    )


class Llama:
    """One model of one lane: weights, rotary tables, pages and buffers."""

    def __init__(
        self,
        config: ModelConfig,
        weights: LlamaWeights,
        sizes: Sizes,
        *,
        backend: str = "triton",
        vocab_size: int | None = None,
        pdl: bool = False,
    ) -> None:
        """vocab_size: columns of the logits, the first of the head's; None: all. A draft must not say what
        its target has no id for. pdl: see kernels/base/dependent.py.
        """
        self.config = config
        self.vocab_size = min(config.vocab_size, vocab_size or config.vocab_size)
        head = weights.lm_head
        rows = self.vocab_size
        self._head: Matrix = head.first_rows(rows) if isinstance(head, CodedMatrix) else head[:rows]
        self.weights = weights
        self.sizes, self.pdl = sizes, pdl
        num_blocks = sizes.num_blocks
        shape = CacheShape(
            num_layers=config.num_hidden_layers,
            num_blocks=sizes.max_sequences * sizes.max_blocks if num_blocks is None else num_blocks,
            block_size=sizes.block_size,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            dtype=weights.dtype,
        )
        self._attention = attention_backend(backend, shape, config.num_attention_heads, pdl)
        self.kv_cache = PagedKVCache(shape, weights.device)
        self.buffers = Buffers(config, sizes, weights, vocab_size=self.vocab_size)
        cos, sin = rope_tables(config, sizes.max_model_len)
        self.cos, self.sin = cos.contiguous().to(weights.device), sin.contiguous().to(weights.device)

    def forward(
        self, batch: ForwardBatch, num_live: Tensor | None = None, keep: Keep | None = None
    ) -> Tensor:
        """The residual stream behind the last layer, [T, H] fp32, in a buffer that the next pass overwrites,
        and for `logits` what the head reads.

        Stores keys and values by slot_mapping. Rows of padding hold garbage. num_live: the batch's, of a
        step that may be launched after all sequences have ended; no weights are read then. keep: is called
        with the residual stream [T, H] before each layer, and with their number behind the last.
        """
        self._check_rows(batch)
        own, rows = self.buffers, batch.num_tokens
        scaled, squares = own.scaled[:rows], own.squares[:rows]
        held, form = operands(self.weights.embed_tokens)
        first_norm = self.weights.layers[0].input_layernorm
        residual = own.residual[:rows]
        embedding(batch.input_ids, held, residual, first_norm, scaled, squares, self.pdl, **form)
        return self._layers(batch, scaled, squares, num_live, keep)

    def _check_rows(self, batch: ForwardBatch) -> None:
        rows, most = batch.num_tokens, self.sizes.max_tokens
        if rows > most:
            raise ValueError(f"the batch has {rows} rows, the buffers {most}: build larger ones")

    def _layers(
        self,
        batch: ForwardBatch,
        x: Tensor,
        sums: Tensor | None,
        num_live: Tensor | None,
        keep: Keep | None = None,
    ) -> Tensor:
        """x [T, K]: what the first layer reads; sums: with the squares of its rows, or None if they are
        normed. The residual stream is in its buffer.
        """
        rows = batch.num_tokens
        own, weights, eps = self.buffers, self.weights, self.config.rms_norm_eps
        residual, qkv, q = own.residual[:rows], own.qkv[:rows], own.q[:rows]
        attended = own.attended[:rows]
        flat, scaled, squares = attended.view(rows, -1), own.scaled[:rows], own.squares[:rows]
        norms = [*(layer.input_layernorm for layer in weights.layers[1:]), weights.norm]

        def add(x: Tensor, weight: Matrix, next_norm: Tensor) -> None:
            held, form = operands(weight)
            for block in blocks_of(weight, batch):
                linear(
                    *(x[block], held, None, None, residual[block], own.workspace, num_live),
                    next_norm=next_norm,
                    scaled=scaled[block],
                    next_squares=squares[block],
                    pdl=self.pdl,
                    **form,
                )

        for index, (layer, next_norm, k_cache, v_cache) in enumerate(
            zip(weights.layers, norms, self.kv_cache.keys, self.kv_cache.values, strict=True)
        ):
            if keep is not None:
                keep(index, residual)
            held, form = operands(layer.qkv_proj)
            for block in blocks_of(layer.qkv_proj, batch):
                linear(
                    *(x[block], held, qkv[block], layer.qkv_bias, None, own.workspace, num_live),
                    squares=None if sums is None else sums[block],
                    eps=eps,
                    pdl=self.pdl,
                    **form,
                )
            qkv_rope_store(
                *(qkv, batch.positions, self.cos, self.sin, batch.slot_mapping, q, k_cache, v_cache),
                *(layer.q_norm, layer.k_norm, eps, self.pdl),
            )
            self._attention(q, k_cache, v_cache, batch, attended, own.workspace, own.counters)
            add(flat, layer.o_proj, layer.post_attention_layernorm)
            held, form = operands(layer.gate_up_proj)
            inner = layer.down_proj.shape[1]
            activated = own.activated[: rows * inner].view(rows, inner)
            for block in blocks_of(layer.gate_up_proj, batch):
                gate_up_silu(
                    *(scaled[block], held, activated[block], own.workspace, num_live),
                    squares=squares[block],
                    eps=eps,
                    pdl=self.pdl,
                    **form,
                )
            add(activated, layer.down_proj, next_norm)
            x, sums = scaled, squares
        if keep is not None:
            keep(len(weights.layers), residual)
        return residual

    def logits(self, rows: Tensor, out: Tensor, num_live: Tensor | None = None) -> None:
        """out [R, V] fp32 = the head of rows `rows` [R] int32 of the last pass; num_live as above."""
        own = self.buffers
        held, form = operands(self._head)
        for block in row_blocks(rows.shape[0]):
            linear(
                *(own.scaled, held, out[block], None, None, own.workspace, num_live, rows[block]),
                squares=own.squares,
                eps=self.config.rms_norm_eps,
                pdl=self.pdl,
                **form,
            )
