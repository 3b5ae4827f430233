"""A draft that fills a window in a few passes (SpecDiff, arXiv 2408.05636): in a window of mask tokens some
have their token already, and the rows of the others learn what the target says there.

A step feeds a text and, behind it, windows for many places of it at once. A row of a window sees the text up
to its place and the whole window, which is what a draft sees when it fills a window there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pearl_rt.errors import RequestError
from pearl_rt.strategy.program import MAX_GAMMA
from pearl_rt.types.config_keys import MOST_PASSES
from recipes.train.data.remembered import LearntRows
from recipes.train.drafts.parallel import MaskRows, mask_rows, parallel_model
from recipes.train.drafts.run_length import WindowPlaces
from recipes.train.loss import mean_loss
from recipes.train.model.llama import LlamaForCausalLM


@dataclass(frozen=True)
class Windows:
    """How windows are cut out of a text. length: the longest, in places. keep, least: see mask_rows()."""

    length: int = 8
    keep: float = 0.7
    least: float = 0.2

    def __post_init__(self) -> None:
        if not 2 <= self.length <= MAX_GAMMA:
            raise RequestError(f"--window {self.length}: give 2 to {MAX_GAMMA} places")
        for name in ("keep", "least"):
            if not 0 <= getattr(self, name) <= 1:
                raise RequestError(f"--{name} {getattr(self, name)}: give a share from 0 to 1")


@dataclass(frozen=True)
class WindowRows:
    """The rows of a text of T tokens and of its windows, in one forward of L rows."""

    rows: MaskRows  # a window's row at position i says what stands at i + 1
    has_token: Tensor  # [L] bool: it is fed the text's token, and no mask
    learns: Tensor  # [rows that learn] int64: all of the text, and those whose next place has no token

    @property
    def places(self) -> WindowPlaces:
        """Of the rows that learn."""
        every = self.rows.places
        return WindowPlaces(every.starts[self.learns], every.depths[self.learns])

    def to(self, device: torch.device) -> WindowRows:
        """The same on another device."""
        return WindowRows(self.rows.to(device), self.has_token.to(device), self.learns.to(device))

    def fed(self, text: Tensor, mask_token: int) -> Tensor:
        """text [B, T] int64 -> [B, L]."""
        return torch.where(self.has_token, text[:, self.rows.positions], mask_token)


def window_rows(length: int, windows: Windows, generator: torch.Generator) -> WindowRows:
    """For random places of a text of `length` tokens, the same in all texts of a step. Of each window of n
    rows a random number, 0 to n, have their token: if any, the first one, as in decoding, and others by
    chance.
    """
    most = windows.length - 1
    rows = mask_rows(length, most, windows.keep, windows.least, generator, sees_later=True)
    total = len(rows.positions)
    places, depths = rows.places.starts, rows.depths
    # [places, depths] which window rows there are, and an order of them by chance, whose first one is fixed.
    exists = torch.zeros(length, most + 1, dtype=torch.bool)
    exists[places, depths] = True
    order = torch.rand(length, most + 1, generator=generator)
    order[:, 1] = -1
    order[~exists] = 2
    order[:, 0] = 2
    rank = order.argsort(dim=1).argsort(dim=1)
    sizes = exists.sum(dim=1) - 1
    known = (torch.rand(length, generator=generator) * (sizes + 1)).long()
    has_token = (rank < known[:, None]) & exists
    has_token[:, 0] = True
    # The row behind is the first of no window, and that of another place is of another window.
    behind = torch.cat((has_token, torch.zeros(length, 1, dtype=torch.bool)), dim=1)
    learns = ~behind[places, depths + 1] | (depths == 0)
    return WindowRows(rows, has_token[places, depths], torch.arange(total)[learns])


def diffusion_loss(
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    rows: LearntRows,
    divergence: str,
    windows: Windows,
    run_length: bool = False,
) -> Tensor:
    """Of texts: the mean divergence of the draft's rows that learn from the target's at their positions.
    Which windows there are follows from the texts, so that a run that goes on has the same ones. run_length:
    rows count by run_length_weights(); a place that has its token stands.
    """
    inputs, wanted = rows.tokens[:, :-1], rows.tokens[:, 1:]
    chance = torch.Generator().manual_seed(int(rows.tokens.sum()))
    made = window_rows(inputs.shape[1], windows, chance).to(inputs.device)
    learnt = made.rows.positions[made.learns]
    assert draft.config.diffusion_mask_token is not None
    with torch.no_grad():
        states = target.hidden_states(inputs) if rows.states is None else rows.states
    fed = made.fed(inputs, draft.config.diffusion_mask_token)
    own = draft.hidden_states(fed, positions=made.rows.positions, visible=made.rows.visible)
    heads = target.head_weight, draft.head_weight[: target.config.vocab_size]
    places = made.places if run_length else None
    return mean_loss(
        states[:, learnt], own[:, made.learns], wanted[:, learnt], heads, divergence, places=places
    )


def diffusion_model(draft: LlamaForCausalLM, mask_token: int | None, passes: int) -> LlamaForCausalLM:
    """The draft to begin with, which names its mask token, as parallel_model() finds it, and its passes.
    Raises RequestError for an id outside the vocabulary, and for passes that cannot be.
    """
    if not 1 <= passes <= MOST_PASSES:
        raise RequestError(f"--passes {passes}: give 1 to {MOST_PASSES}")
    made = parallel_model(draft, mask_token)
    made.config = replace(
        made.config.without_masks(), diffusion_mask_token=made.config.pard_token, diffusion_passes=passes
    )
    return made
