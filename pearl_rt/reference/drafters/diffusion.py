"""Windows that get their tokens in a few passes, the surest places first (SpecDiff, arXiv 2408.05636): the
definition that csrc/drafters/diffusion/diffusion_drafter.cpp matches token for token.

A window of n places lies behind a text. The row of a place is that of the token before it, as in any Llama.
So the first place has the row of the text's last token, which sees the text alone. Each other row is fed the
token of the place before, or a mask while that has none; it sees the text, and all rows of the window.

A pass guesses each place that has no token, from the front: the likeliest token of its row, as the request
transforms it behind the tokens and guesses before it. Then the surest guesses become tokens: of T passes the
t-th leaves ceil(n t / T) places with one, and one more than before at least. The first place's is always
among them: its row would say the same again.

How a draft came is known to no judge: it is certain, and stands with p(x). It is a function of the text
alone, so that no noise that draws or judges is seen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pearl_rt.reference import noise
from pearl_rt.reference.noise import Floats
from pearl_rt.reference.processors import inverse_temperature, scaled, total, usable

DEFAULT_PASSES = 2

# (text, fed) -> the rows of the text's last token and of each token fed behind it, [1 + len(fed)].
WindowRows = Callable[[Sequence[int], Sequence[int]], Sequence[Floats]]


@dataclass(frozen=True)
class Diffusion:
    """The windows of one request. transform: a row of logits behind a prefix -> as it is sampled from."""

    rows: WindowRows
    mask_token: int
    passes: int
    temperature: float
    transform: Callable[[Floats, Sequence[int]], Floats]

    def told(self, committed: Sequence[int], next_token: int, rows: Sequence[Floats]) -> None:
        """See CertainDrafter: nothing is learned."""

    def window(self, committed: Sequence[int], pending: Sequence[int], most: int) -> list[int]:
        """`most` drafts, or those before a place for which the draft has no token that may stand."""
        text = [*committed, *pending]
        tokens: list[int | None] = [None] * most
        window: list[int] = []
        for number in range(1, self.passes + 1):
            fed = [self.mask_token if token is None else token for token in tokens[:-1]]
            if None not in tokens:
                break
            window, doubts = [], {}
            for place, row in enumerate(self.rows(text, fed)):
                token = tokens[place]
                if token is None:
                    shaped = self.transform(row, [*text, *window])
                    if not usable(shaped):
                        return window
                    token, doubts[place] = int(np.argmax(shaped)), self._doubt(shaped)
                window.append(token)
            known = most - len(doubts)
            wanted = max(-(-most * number // self.passes), known + 1) - known
            # The first place's guess, if it is one, before the surest.
            for place in sorted(doubts, key=lambda place: (place > 0, doubts[place], place))[:wanted]:
                tokens[place] = window[place]
        return window

    def _doubt(self, row: Floats) -> float:
        """1 / the probability of a row's likeliest token, at temperature 1 if it is 0."""
        inverse = inverse_temperature(self.temperature) if np.float32(self.temperature) > 0 else np.float32(1)
        return float(total(noise.exp(scaled(row, inverse))))
