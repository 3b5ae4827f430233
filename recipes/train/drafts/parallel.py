"""A draft that fills a window in one pass: the rows of a mask token, which stands for the tokens that are not
drafted yet, learn what the target says there. PARD (arXiv 2504.18583), ParallelSpec (arXiv 2410.05589).

A step feeds a text and, behind it, masks for many places of it at once. A mask sees the text up to its place
and the masks of the same place before it, which is what a draft sees when it fills a window there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pearl_rt.errors import RequestError
from recipes.train.drafts.run_length import WindowPlaces
from recipes.train.model.llama import LlamaForCausalLM


@dataclass(frozen=True)
class MaskRows:
    """The rows of a text of T tokens and of its masks, in one forward of L rows."""

    positions: Tensor  # [L] int64: 0 .. T - 1, then those of the masks, all below T
    visible: Tensor  # [L, L] bool: row i attends to row j
    depths: Tensor  # [L] int64: 0 of the text, d of the d-th mask behind a place

    @property
    def places(self) -> WindowPlaces:
        """A row of the text says what the first place of a window has."""
        return WindowPlaces(self.positions - self.depths, self.depths)

    def to(self, device: torch.device) -> MaskRows:
        """The same on another device."""
        return MaskRows(self.positions.to(device), self.visible.to(device), self.depths.to(device))

    def fed(self, text: Tensor, mask_token: int) -> Tensor:
        """text [B, T] int64 -> [B, L], masks behind it."""
        masks = text.new_full((len(text), len(self.positions) - text.shape[1]), mask_token)
        return torch.cat((text, masks), dim=1)


def mask_rows(
    length: int,
    masks: int,
    keep: float,
    least: float,
    generator: torch.Generator,
    sees_later: bool = False,
) -> MaskRows:
    """Masks for random places of a text of `length` tokens, the same places in all texts of a step. Of the
    places, a share of keep^d has a d-th mask, but `least` of them at least (PARD's conditional drop); d = 1
    .. masks. A place that has a d-th mask has those before it. sees_later: and all of them see each other.
    """
    order = torch.randperm(length, generator=generator)
    places: list[Tensor] = []
    depths: list[Tensor] = []
    for number in range(1, masks + 1):
        chosen = order[: max(1, int(length * max(keep**number, least)))]
        chosen = chosen[chosen + number < length]
        places.append(chosen)
        depths.append(torch.full_like(chosen, number))
    text = torch.arange(length)
    # A token of the text is a row without masks before it, at a place of its own.
    place = torch.cat((text, *places))
    depth = torch.cat((torch.zeros_like(text), *depths))
    is_text = depth == 0
    sees_text = is_text[None, :] & (place[None, :] <= place[:, None])
    sees_masks = depth[None, :] <= depth[:, None]
    if sees_later:
        sees_masks |= ~is_text[:, None] & ~is_text[None, :]
    return MaskRows(place + depth, sees_text | (sees_masks & (place[None, :] == place[:, None])), depth)


def parallel_model(draft: LlamaForCausalLM, mask_token: int | None = None) -> LlamaForCausalLM:
    """The draft to begin with, which names its mask token: an id of the vocabulary that no text has, its own
    one if it has one, else one more id behind the others, whose row is their mean. Raises RequestError for an
    id outside the vocabulary.
    """
    config = draft.config.without_masks()
    known = draft.config.diffusion_mask_token if draft.config.pard_token is None else draft.config.pard_token
    chosen = known if mask_token is None else mask_token
    if chosen is not None:
        if not 0 <= chosen < config.vocab_size:
            raise RequestError(
                f"--mask-token {chosen}: the vocabulary has ids 0 to {config.vocab_size - 1}; leave it out "
                "for one more behind them"
            )
        draft.config = replace(config, pard_token=chosen)
        return draft
    wider = LlamaForCausalLM(replace(config, vocab_size=config.vocab_size + 1, pard_token=config.vocab_size))
    shapes = {name: tensor.shape for name, tensor in wider.state_dict().items()}
    wider.load_state_dict(
        {
            name: tensor if tensor.shape == shapes[name] else torch.cat((tensor, tensor.mean(0)[None]))
            for name, tensor in draft.state_dict().items()
        }
    )
    return wider.to(next(draft.parameters()).device)
