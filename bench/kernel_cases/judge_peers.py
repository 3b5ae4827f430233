"""The rejection samplers of others, on the same windows. Each library is optional.

Their tokens are not compared with ours: each draws its own noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any, Protocol

import torch

from bench.kernel_cases.case import Variant
from bench.kernel_cases.peers import library, optional, torch_call

VLLM = "vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils"


class Window(Protocol):
    """B windows of gamma draft tokens."""

    batch: int
    gamma: int
    vocab: int
    target: torch.Tensor  # [B, gamma + 1, V] fp32
    draft: torch.Tensor  # [B, gamma, V] fp32
    tokens: torch.Tensor  # [B, gamma] int32


def torch_judge(
    target: torch.Tensor, draft: torch.Tensor, tokens: torch.Tensor, temperature: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Number of accepted tokens and the token that follows, [B] each, in plain torch."""
    gamma = tokens.shape[1]
    p = (target / temperature[:, None, None]).softmax(-1)
    q = (draft / temperature[:, None, None]).softmax(-1)
    at = tokens.long()[..., None]
    uniform = torch.rand(tokens.shape, device=tokens.device)
    stands = uniform * q.gather(-1, at)[..., 0] <= p[:, :gamma].gather(-1, at)[..., 0]
    accepted = stands.int().cumprod(-1).sum(-1)
    row = accepted[:, None, None].expand(-1, 1, p.shape[-1])
    rest = p.gather(1, row)[:, 0]
    rest = rest - q.gather(1, row.clamp(max=gamma - 1))[:, 0] * (accepted < gamma)[:, None]
    token = (rest.clamp(min=0) / torch.empty_like(rest).exponential_()).argmax(-1)
    return accepted, token


def vllm_judge(
    windows: Sequence[Window], positions: torch.Tensor, temperature: torch.Tensor, seed: torch.Tensor
) -> Variant | None:
    """rejection_sample; the target's logits come divided by the temperature, as it asks."""
    if library("vllm") is None:
        return None
    sample = import_module(VLLM).rejection_sample
    batch, gamma, vocab = windows[0].batch, windows[0].gamma, windows[0].vocab
    device = positions.device
    slots = torch.arange(batch, dtype=torch.int32, device=device)
    local = torch.arange(gamma + 1, dtype=torch.int32, device=device).repeat(batch)
    starts = torch.arange(batch + 1, dtype=torch.int32, device=device) * (gamma + 1)
    expanded = slots.repeat_interleave(gamma + 1)

    def arguments(window: Window) -> tuple[Any, ...]:
        scaled = (window.target / temperature[:, None, None]).view(-1, vocab)
        last = torch.zeros(batch, 1, dtype=torch.int32, device=device)  # the token before the window
        fed = torch.cat((last, window.tokens), dim=1).flatten()
        return (
            scaled,
            window.draft,
            fed,
            starts,
            positions,
            slots,
            expanded,
            local,
            temperature,
            seed,
            gamma,
        )

    return Variant(torch_call(sample, [arguments(window) for window in windows]).calls)


def flashinfer_judge(windows: Sequence[Window], temperature: torch.Tensor, given: bool) -> Variant | None:
    """chain_speculative_sampling, which takes probabilities: given, or by softmax of the same logits."""
    module = library("flashinfer")
    if module is None:
        return None
    chain = module.sampling.chain_speculative_sampling

    def law(logits: torch.Tensor) -> torch.Tensor:
        return (logits / temperature[:, None, None]).softmax(-1)

    def from_logits(window: Window) -> Any:
        return chain(law(window.draft), window.tokens, law(window.target), seed=1, offset=0)

    if not given:
        return Variant(torch_call(from_logits, [(window,) for window in windows]).calls)
    laws = [(law(window.draft), window.tokens, law(window.target)) for window in windows]
    return Variant(torch_call(partial(chain, seed=1, offset=0), laws).calls)


def judges(
    windows: Sequence[Window], positions: torch.Tensor, temperature: torch.Tensor, seed: torch.Tensor
) -> dict[str, Variant]:
    """Every rejection sampler that is here."""
    plain = torch_call(torch_judge, [(w.target, w.draft, w.tokens, temperature) for w in windows])
    found = {
        "torch": Variant(plain.calls),
        "vllm": optional(vllm_judge, windows, positions, temperature, seed),
        "flashinfer": optional(flashinfer_judge, windows, temperature, False),
        "flashinfer, given p and q": optional(flashinfer_judge, windows, temperature, True),
    }
    return {name: variant for name, variant in found.items() if variant is not None}
