"""Whether a text is another model's greedy text, up to rounding: by that model's own logits along the text.

Two programs that compute in half precision round in different orders. Where a model's first two choices are
within rounding of each other they may pick differently, and then their texts have nothing more to do with
each other: comparing them says little. Here the other model is fed our text, and each of our tokens is looked
up in its logits: it is the first choice, or so close to it that rounding decides (a near-tie), or wrong.

    near-tie: (best logit - our token's) <= TIE[dtype] * |best logit|

which is 2 to 4 units in the last place of a logit in half precision. It holds for text that is far too long
to be equal, and it fails for a model that computes something else. Knows no engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

TIE = {torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9, torch.float32: 1e-4}


@dataclass(frozen=True)
class TeacherForced:
    """Our tokens by another model's choice."""

    tokens: int
    first_choice: int
    near_ties: int
    worst: float  # the largest (best - ours) / |best|
    first_wrong: tuple[int, int] | None  # (prompt, token)

    @property
    def holds(self) -> bool:
        return self.first_wrong is None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"holds": self.holds}


def misses(model: Any, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> torch.Tensor:
    """[len(token_ids)] fp32 on the host: (best logit - our token's) / |best|, 0 for the first choice.

    model: a causal language model of transformers, or anything that returns an object with `logits`.
    """
    device = next(model.parameters()).device
    ids = torch.tensor([[*prompt_ids, *token_ids]], device=device)
    with torch.inference_mode():
        logits = model(ids).logits[0, len(prompt_ids) - 1 : -1].float()  # [T, V]
    best = logits.max(dim=1).values
    ours = logits.gather(1, ids[0, len(prompt_ids) :, None])[:, 0]
    return ((best - ours) / best.abs().clamp_min(1e-30)).cpu()


def compare_forced(model: Any, texts: Iterable[tuple[int, Sequence[int], Sequence[int]]]) -> TeacherForced:
    """texts: (number of the prompt, its ids, our ids)."""
    dtype = next(model.parameters()).dtype
    tokens = first = near = 0
    worst, wrong = 0.0, None
    for prompt, prompt_ids, token_ids in texts:
        distance = misses(model, prompt_ids, token_ids)
        tokens += len(token_ids)
        first += int((distance == 0).sum())
        near += int(((distance > 0) & (distance <= TIE[dtype])).sum())
        worst = max(worst, float(distance.max()))
        beyond = (~(distance <= TIE[dtype])).nonzero()  # NaN is beyond too
        if len(beyond) and wrong is None:
            wrong = prompt, int(beyond[0])
    return TeacherForced(tokens, first, near, worst, wrong)


def format_forced(name: str, found: TeacherForced) -> str:
    """A line."""
    text = (
        f"along our text {name} has our token as its first choice {found.first_choice} times of "
        f"{found.tokens}, within rounding of it {found.near_ties} times"
    )
    if found.first_wrong is None:
        return f"{text}: the same model"
    prompt, token = found.first_wrong
    return f"{text}, and BEYOND ROUNDING in prompt {prompt}, token {token}: no speed-ups over it"
