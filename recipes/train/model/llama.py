"""The Llama family in torch, trainable: Llama, Mistral, Qwen2 (biases on q, k, v), Qwen3 (norms on q and k).

The state dict has Hugging Face's names and shapes. This is the model that `recipes.train` trains and samples
from; nothing here knows of files, devices, optimisers, or of how a model is run fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.rope import rope_tables


@dataclass
class KVCache:
    """Keys and values of `length` positions of a batch; forward appends. All rows are of one length."""

    keys: list[Tensor]  # per layer [B, KV, capacity, D]
    values: list[Tensor]
    length: int = field(default=0)

    @classmethod
    def empty(cls, config: ModelConfig, batch: int, capacity: int, like: Tensor) -> KVCache:
        """Room for `capacity` positions, in the dtype and on the device of `like`."""
        shape = (batch, config.num_key_value_heads, capacity, config.head_dim)
        keys, values = ([like.new_empty(shape) for _ in range(config.num_hidden_layers)] for _ in range(2))
        return cls(keys, values)

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[2]


class RMSNorm(nn.Module):
    """x * weight / sqrt(mean(x^2) + eps) over the last dimension (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864), halves rotated together. x: [B, H, T, D]; cos, sin: [T, D/2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        hidden, head = config.hidden_size, config.head_dim
        q_size, kv_size = config.num_attention_heads * head, config.num_key_value_heads * head
        self.layer, self.head_dim = layer, head
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self.q_proj = nn.Linear(hidden, q_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(hidden, kv_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(hidden, kv_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(q_size, hidden, bias=False)
        self.q_norm = RMSNorm(head, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(head, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))  # [B, T, H, D]

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, visible: Tensor | None
    ) -> Tensor:
        q = self.q_norm(self._heads(self.q_proj(x))).transpose(1, 2)
        k = self.k_norm(self._heads(self.k_proj(x))).transpose(1, 2)
        v = self._heads(self.v_proj(x)).transpose(1, 2)  # [B, KV, T, D]
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        num_new, num_past = q.shape[2], 0
        if cache is not None:
            num_past = cache.length
            k_rows, v_rows = cache.keys[self.layer], cache.values[self.layer]
            k_rows[:, :, num_past : num_past + num_new] = k
            v_rows[:, :, num_past : num_past + num_new] = v
            k, v = k_rows[:, :, : num_past + num_new], v_rows[:, :, : num_past + num_new]
        k, v = k.repeat_interleave(self.groups, dim=1), v.repeat_interleave(self.groups, dim=1)
        mask = visible
        if num_past and num_new > 1:  # row i sees num_past + i + 1 keys
            mask = torch.ones(num_new, num_past + num_new, dtype=torch.bool, device=x.device).tril(num_past)
        is_causal = mask is None and num_new > 1
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, visible: Tensor | None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache, visible)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and final norm: everything before the head."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        cos, sin = rope_tables(config, config.max_position_embeddings)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(
        self,
        token_ids: Tensor,
        cache: KVCache | None,
        positions: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        start = 0 if cache is None else cache.length
        end = start + token_ids.shape[1]
        room = self.cos.shape[0] if cache is None else min(self.cos.shape[0], cache.capacity)
        assert end <= room or positions is not None, f"position {end - 1} asked for, room for {room}"
        x = self.embed_tokens(token_ids)
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        at = slice(start, end) if positions is None else positions
        cos, sin = self.cos[at].to(dtype), self.sin[at].to(dtype)
        for layer in self.layers:
            x = layer(x, cos, sin, cache, visible)
        if cache is not None:
            cache.length = end
        return self.norm(x)


class LlamaForCausalLM(nn.Module):
    """token ids [B, T] int64 -> logits [B, T, V], in the dtype of the weights (or of autocast).

    A tied head is the embedding itself and has no tensor of its own in the state dict.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """[V, hidden]."""
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def hidden_states(
        self,
        token_ids: Tensor,
        cache: KVCache | None = None,
        *,
        positions: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """What the head multiplies: [B, T, hidden]. Without a cache, positions [T] int64 may be others than 0
        .. T - 1, and visible [T, T] bool says to which rows each attends, itself among them.
        """
        return self.model(token_ids, cache, positions, visible)

    def forward(self, token_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        return F.linear(self.hidden_states(token_ids, cache), self.head_weight)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Normal, 1/sqrt(fan in); embeddings 0.02; what is added to the residual stream starts at zero."""
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif parameter.dim() == 1 or name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
            else:
                is_embedding = name.endswith("embed_tokens.weight")
                parameter.normal_(
                    0, 0.02 if is_embedding else parameter.shape[1] ** -0.5, generator=generator
                )
