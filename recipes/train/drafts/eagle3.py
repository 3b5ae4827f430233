"""A head that drafts from what its target computed (EAGLE-3, arXiv 2503.01840): one layer, which is fed a
token and the inputs of three of the target's layers at the place before it, learns what the target says next.

A head goes on from its own rows behind the last token that is final, so that is trained too ("training-time
test"): every row of a text is computed `steps` times, each from what the row before it gave the last time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.rope import rope_tables
from pearl_rt.checkpoint.views.codes import rounded
from pearl_rt.checkpoint.views.draft_ids import OFFSETS
from pearl_rt.checkpoint.views.eagle3 import Eagle3Config, save_eagle3
from pearl_rt.errors import RequestError
from recipes.train.data.remembered import LearntRows
from recipes.train.data.tokenised_corpus import frequent_ids
from recipes.train.divergence import DIVERGENCES, row_acceptance
from recipes.train.drafts.run_length import WindowPlaces, run_length_mean
from recipes.train.model.llama import DecoderLayer, LlamaForCausalLM, RMSNorm, rotate
from recipes.train.model.taps import taps_of

DECAY = 0.8  # of the weight of a step, against the one before it
MOST_IDS = 32_000


class HeadLayer(DecoderLayer):
    """A layer whose attention is fed a token's embedding and its feature, each behind a norm of its own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, 0)
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        attention, inputs = self.self_attn, 2 * config.hidden_size
        attention.q_proj = nn.Linear(inputs, attention.q_proj.out_features, bias=config.attention_bias)
        attention.k_proj = nn.Linear(inputs, attention.k_proj.out_features, bias=config.attention_bias)
        attention.v_proj = nn.Linear(inputs, attention.v_proj.out_features, bias=config.attention_bias)


class HeadDecoder(nn.Module):
    """The layer and the final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([HeadLayer(config)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Eagle3Model(nn.Module):
    """The head, whose state dict has the names that pearl_rt runs it with, and the ids that it drafts."""

    cos: Tensor
    sin: Tensor
    target_ids: Tensor  # [ids of the head] int64, ascending

    def __init__(self, config: Eagle3Config, target: ModelConfig, target_ids: Tensor) -> None:
        super().__init__()
        self.config, self.target_config = config, target
        self.model = HeadDecoder(config.layer)
        self.fc = nn.Linear(config.tap_size, config.layer.hidden_size, bias=False)
        self.lm_head = nn.Linear(config.layer.hidden_size, config.draft_vocab_size, bias=False)
        cos, sin = rope_tables(config.layer, config.layer.max_position_embeddings)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.register_buffer("target_ids", target_ids, persistent=False)

    @property
    def layer(self) -> HeadLayer:
        """The only one."""
        layer = self.model.layers[0]
        assert isinstance(layer, HeadLayer)
        return layer

    def rows(self, embedded: Tensor, features: Tensor, past: list[tuple[Tensor, Tensor]]) -> Tensor:
        """What the layer leaves at n rows, [B, n, hidden], from the tokens' embeddings and features, both
        [B, n, hidden]. past: keys and values of the rows of earlier steps, to which this adds its own.
        """
        layer = self.layer
        attention, number, count = layer.self_attn, len(past), embedded.shape[1]
        x = torch.cat((layer.input_layernorm(embedded), layer.hidden_norm(features)), dim=-1)
        cos, sin = self.cos[:count].to(x.dtype), self.sin[:count].to(x.dtype)

        def heads(projected: Tensor, norm: nn.Module | None) -> Tensor:
            split = projected.unflatten(-1, (-1, attention.head_dim))
            if norm is None:
                return split.transpose(1, 2)
            return rotate(norm(split).transpose(1, 2), cos, sin).to(projected.dtype)

        q = heads(attention.q_proj(x), attention.q_norm)
        past.append((heads(attention.k_proj(x), attention.k_norm), heads(attention.v_proj(x), None)))
        k, v = (
            torch.cat(part, dim=2).repeat_interleave(attention.groups, dim=1)
            for part in zip(*past, strict=True)
        )
        mask = torch.cat(seen_rows(count, number), dim=1).to(x.device)
        out = F.scaled_dot_product_attention(q, k, v, mask)
        hidden = features + attention.o_proj(out.transpose(1, 2).flatten(2))
        output: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return output


def seen_rows(count: int, number: int) -> list[Tensor]:
    """For each step up to `number`, which of its rows a row of step `number` attends to: [count, count] bool.
    Row t stands `number` rows behind the last one that has the target's feature: of the first step it sees
    the rows up to that, of each later one the row of its own window.
    """
    place = torch.arange(count)
    back = place[:, None] - place[None, :]
    return [back >= number, *(back == number - step for step in range(1, number + 1))]


def _mean_of_steps(losses: Sequence[Tensor]) -> Tensor:
    """Of the means of each step's rows, [B, T - n] for step n; each counts DECAY of the one before it."""
    weights = [DECAY**number for number in range(len(losses))]
    total = losses[0].new_zeros(())
    for weight, far in zip(weights, losses, strict=True):
        total = total + weight * far.mean()
    return total / sum(weights)


def step_places(counts: Sequence[int], device: torch.device) -> WindowPlaces:
    """Of the rows of all steps, which have so many rows each: row i of a step is of the window that starts
    at i.
    """
    starts = [torch.arange(count, device=device) for count in counts]
    depths = [torch.full_like(start, number) for number, start in enumerate(starts)]
    return WindowPlaces(torch.cat(starts), torch.cat(depths))


def eagle3_loss(
    target: LlamaForCausalLM,
    draft: Eagle3Model,
    rows: LearntRows,
    divergence: str,
    steps: int,
    run_length: bool = False,
) -> Tensor:
    """Of texts: the mean divergence of each step from what the target says among the head's ids, weighted by
    DECAY a step. run_length: the mean over the rows of all steps, by run_length_weights() in place of DECAY.
    """
    inputs, taps, states = rows.tokens[:, :-1], rows.taps, rows.states
    if taps is None or states is None:
        parts, states = taps_of(target, inputs, draft.config.taps_of(target.config))
        taps = torch.cat(parts, dim=-1)
    with torch.no_grad():
        embedded = target.model.embed_tokens(inputs[:, 1:])
        p = F.linear(states[:, 1:], target.head_weight[draft.target_ids])
    features = draft.fc(taps[:, :-1].to(embedded.dtype))
    past: list[tuple[Tensor, Tensor]] = []
    losses: list[Tensor] = []
    accepted: list[Tensor] = []
    for number in range(steps):
        outputs = draft.rows(embedded, features, past)
        q = draft.lm_head(draft.model.norm(outputs))
        both = p[:, number:], q[:, number:]
        losses.append(DIVERGENCES[divergence](*both))
        if run_length:
            accepted.append(row_acceptance(*both))
        features = torch.cat((features[:, :1], outputs[:, :-1]), dim=1)
    if not run_length:
        return _mean_of_steps(losses)
    places = step_places([far.shape[1] for far in losses], features.device)
    return run_length_mean(torch.cat(losses, dim=1), torch.cat(accepted, dim=1), places)


def eagle3_model(
    target: LlamaForCausalLM,
    documents: Sequence[np.ndarray],
    draft_vocab: int | None,
    taps: Sequence[int] | None,
) -> Eagle3Model:
    """The head to begin with: of the ids that the documents have most often, with the target's rows for them,
    behind the target's last layer, which also is fed the token. taps: None for 2, L / 2 and L - 3, or the
    last three of a target of few layers. Raises RequestError for a number of ids that it cannot have.
    """
    config, layers = target.config, target.config.num_hidden_layers
    wanted = min(config.vocab_size, MOST_IDS) if draft_vocab is None else draft_vocab
    if not 1 <= wanted <= config.vocab_size:
        raise RequestError(f"--draft-vocab {wanted}: the target has {config.vocab_size} ids, give 1 to that")
    if taps is None and not 2 < layers // 2 < layers - 3:
        taps = range(max(0, layers - 2), layers + 1)
    layer = replace(config.without_masks(), num_hidden_layers=1, tie_word_embeddings=False)
    head = Eagle3Config(layer, wanted, config.hidden_size, None if taps is None else tuple(taps))
    head.check_target(config)
    draft = Eagle3Model(head, config, frequent_ids(documents, config.vocab_size, wanted))
    begin(draft, target)
    return draft.to(next(target.parameters()).device)


@torch.no_grad()
def begin(draft: Eagle3Model, target: LlamaForCausalLM) -> None:
    """Weights to begin with, from the target's; what is fed from the embedding begins small and by chance."""
    last, own = target.model.layers[-1], draft.layer
    hidden, chance = target.config.hidden_size, torch.Generator().manual_seed(0)
    state = last.state_dict()
    for name, parameter in own.named_parameters():
        if name == "hidden_norm.weight":
            parameter.copy_(state["input_layernorm.weight"])
        elif name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            parameter.normal_(0, 0.5 * hidden**-0.5, generator=chance)
            parameter[:, hidden:] += state[name].to(parameter.device)
        else:
            parameter.copy_(state[name])
    draft.model.norm.weight.copy_(target.model.norm.weight)
    draft.lm_head.weight.copy_(target.head_weight[draft.target_ids.to(target.head_weight.device)])
    draft.fc.weight.zero_()
    draft.fc.weight[:, -hidden:] = torch.eye(hidden)


def write_eagle3(draft: Eagle3Model, tokenizer: Tokenizer, directory: Path, bits: int = 16) -> None:
    """In bf16 or its matrices in 8 bits, in the layout of EAGLE. The tokenizer is the target's."""
    tensors = {name: tensor.detach().to(torch.bfloat16) for name, tensor in draft.state_dict().items()}
    tensors[OFFSETS] = draft.target_ids.cpu() - torch.arange(len(draft.target_ids))
    kept = rounded(tensors) if bits == 8 else tensors
    save_eagle3(directory, draft.config, kept, draft.target_config)
