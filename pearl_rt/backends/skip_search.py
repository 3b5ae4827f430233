"""Searches for the layers that a target's own draft leaves out, one more at a time: the one without which the
draft agrees with the target most.

Knows a packed model on the CPU and texts as token ids; not who wrote them, and no clock: what a draft costs
is the weights that it reads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pearl_rt.backends.cpu import Model
from pearl_rt.strategy.planner import GAMMAS, StepTimes, plans

PATIENCE = 3  # layers more that are tried behind the best set


@dataclass(frozen=True)
class Draft:
    """A draft, and what is expected of it."""

    skipped: tuple[int, ...]
    agreement: float  # share of the places of the texts where its likeliest token is the target's
    cost: float  # weights that it reads, over those of the target
    gamma: int  # the best window of `sd`
    speed: float  # with that, over plain decoding

    @classmethod
    def of(cls, skipped: Sequence[int], agreement: float, cost: float) -> "Draft":
        """What an `sd` of this draft is worth, where a pass takes as long as its weights are many."""
        times = {"shared": StepTimes.constant(1.0, cost, overlaps=False)}
        best = plans(times, agreement, strategies=("sd",), gammas=GAMMAS)[0]
        return cls(tuple(sorted(skipped)), agreement, cost, best.gamma, best.tokens_per_second)


def likeliest(model: Model, cores: Sequence[int], texts: Sequence[Sequence[int]]) -> list[int]:
    """The likeliest token behind each prefix of each text."""
    executor = model.executor(cores)
    return [
        int(token)
        for ids in texts
        for token in np.argmax(executor.forward(0, list(ids), 0, len(ids)), axis=1)
    ]


def search(
    model: Model,
    cores: Sequence[int],
    texts: Sequence[Sequence[int]],
    *,
    tried: Callable[[], object] = lambda: None,
) -> list[Draft]:
    """The best draft of each number of layers left out, until PATIENCE more have not paid; the first leaves
    one out. texts: token ids of texts that the target wrote, each within its length. tried() is called behind
    each draft that was tried.
    """
    layers = range(model.config.num_hidden_layers)
    wanted = likeliest(model, cores, texts)
    longest = max(map(len, texts))
    found: list[Draft] = []

    def without(skipped: set[int]) -> Draft:
        kept = [layer for layer in layers if layer not in skipped]
        view = model.view(replace(model.config, num_hidden_layers=len(kept)), kept, max_model_len=longest)
        said = likeliest(view, cores, texts)
        tried()
        cost = view.weights.weight_bytes / model.weights.weight_bytes
        return Draft.of(tuple(skipped), float(np.mean(np.equal(said, wanted))), cost)

    while len(found) + 1 < len(layers):
        before = set(found[-1].skipped) if found else set()
        drafts = [without({*before, layer}) for layer in layers if layer not in before]
        found.append(max(drafts, key=lambda draft: draft.agreement))
        best = max(range(len(found)), key=lambda number: found[number].speed)
        if best + PATIENCE < len(found):
            break
    return found
