"""The head of EAGLE-3 (arXiv 2503.01840) as a pure rule: executor and drafter are checked against it.

Row t of the head is fed token t + 1 and a feature of token t, and says what follows token t + 1. At committed
tokens the feature is fc of the target's taps; behind them it is what the head gave at the row before.

Every row is computed anew: there is no cache, and no thread. It knows arrays; no files and no devices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pearl_rt.reference.noise import Floats

LAYER = "model.layers.0."


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """Over the last dimension."""
    normed: Floats = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * weight
    return normed


@dataclass(frozen=True)
class EagleHead:
    """weights: fp32, by the names of pearl_rt/checkpoint/views/eagle3.py, the embedding among them. cos, sin:
    [positions, head_dim / 2]. num_norms, norm_before_residual, norm_output: as Eagle3Config has them.
    """

    weights: Mapping[str, Floats]
    num_heads: int
    num_kv_heads: int
    eps: float
    cos: Floats
    sin: Floats
    target_ids: Sequence[int]
    num_norms: int = 0
    norm_before_residual: bool = False
    norm_output: bool = False
    attention_window: int = 0  # positions that a row attends to, its own and those before it; 0: all

    def _norm(self, x: Floats, name: str) -> Floats:
        return rms_norm(x, self.weights[f"{name}.weight"], self.eps)

    def fused(self, taps: Floats) -> Floats:
        """[n, tap_size] -> the features of n tokens [n, hidden]."""
        if self.num_norms:
            parts = np.split(taps, self.num_norms, axis=1)
            normed = (self._norm(part, f"tap_norms.{i}") for i, part in enumerate(parts))
            taps = np.concatenate(list(normed), axis=1)
        return taps @ self.weights["fc.weight"].T

    def _heads(self, x: Floats, number: int, norm: str) -> Floats:
        """[n, number * D] -> [n, number, D], rotated; normed before, if the layer has such a norm."""
        split = x.reshape(len(x), number, -1)
        if f"{LAYER}self_attn.{norm}.weight" in self.weights:
            split = self._norm(split, f"{LAYER}self_attn.{norm}")
        half = split.shape[-1] // 2
        cos, sin = self.cos[: len(x), None], self.sin[: len(x), None]
        a, b = split[..., :half], split[..., half:]
        return np.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)

    def outputs(self, token_ids: Sequence[int], features: Floats) -> Floats:
        """What the layer leaves at rows 0 .. n - 1, [n, hidden]: row t is fed token_ids[t], features[t]."""
        w, attention = self.weights, f"{LAYER}self_attn."
        count = len(token_ids)
        embedded = self._norm(w["model.embed_tokens.weight"][list(token_ids)], f"{LAYER}input_layernorm")
        feature = self._norm(features, f"{LAYER}hidden_norm")
        x = np.concatenate((embedded, feature), axis=1)
        q = self._heads(x @ w[f"{attention}q_proj.weight"].T, self.num_heads, "q_norm")
        k = self._heads(x @ w[f"{attention}k_proj.weight"].T, self.num_kv_heads, "k_norm")
        v = (x @ w[f"{attention}v_proj.weight"].T).reshape(count, self.num_kv_heads, -1)
        k, v = (np.repeat(part, self.num_heads // self.num_kv_heads, axis=1) for part in (k, v))
        scores = np.einsum("ihd,jhd->hij", q, k) / np.float32(q.shape[-1]) ** np.float32(0.5)
        seen = np.tri(count, dtype=bool) & ~np.tri(count, k=-(self.attention_window or count), dtype=bool)
        scores[:, ~seen] = -np.inf
        chances = np.exp(scores - scores.max(axis=-1, keepdims=True))
        chances /= chances.sum(axis=-1, keepdims=True)
        attended = np.einsum("hij,jhd->ihd", chances, v).reshape(count, -1)
        residual = feature if self.norm_before_residual else features
        hidden = residual + attended @ w[f"{attention}o_proj.weight"].T
        x = self._norm(hidden, f"{LAYER}post_attention_layernorm")
        gate, up = (x @ w[f"{LAYER}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        activated: Floats = gate / (1 + np.exp(-gate)) * up
        output: Floats = hidden + activated @ w[f"{LAYER}mlp.down_proj.weight"].T
        return output

    def logits(self, output: Floats) -> Floats:
        """Of one row: [hidden] -> [rows of the head]."""
        return self.weights["lm_head.weight"] @ self._norm(output, "model.norm")

    def scattered(self, logits: Floats, vocab_size: int) -> Floats:
        """As a row of the target's vocabulary, in which an id that the head lacks has no chance."""
        row = np.full(vocab_size, -np.inf, np.float32)
        row[list(self.target_ids)] = logits
        return row

    def draft_row(self, tokens: Sequence[int], committed: int, taps: Floats, vocab_size: int) -> Floats:
        """The row behind `tokens`, [vocab_size], of which the first `committed` (2 or more) are final. taps:
        the target's, [committed - 1 at least, tap_size].
        """
        features = list(self.fused(taps[: committed - 1]))
        while True:
            outputs = self.outputs(tokens[1 : len(features) + 1], np.stack(features))
            if len(features) == len(tokens) - 1:
                return self.scattered(self.logits(outputs[-1]), vocab_size)
            last = outputs[-1]
            features.append(self._norm(last, "model.norm") if self.norm_output else last)
