"""A lookup in front of a model: a window is the lookup's where what it expects of it is worth more than those
of the model have been. The definition that csrc/drafters/chain/chain_drafter.cpp matches window for window.

Knows counts, and nothing of models, noise or clocks. A round of 1 + e tokens that costs a step of the target
is compared with one of 1 + stood / windows tokens that costs a step and the model's passes.

The law is kept: which of the two drafts depends on final tokens, on pending ones, whose fall takes the window
with them, and on counts of drafts up to the first that fell. It must not depend on a draft behind that one:
its position is drafted again with the same noise, so a choice that knew the token would draw it from another
law than its row. So windows behind pending tokens are not counted in `streak`, lengths that a rule gave are
not counted at all, and what the target said behind rejected drafts is read only where drafts cannot change
the text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pearl_rt.reference.drafters.lookup import ONE, Lookup
from pearl_rt.reference.noise import Floats

MOST_WINDOWS = 16  # half of the counts go then, so that the last windows count most
PRIOR_WINDOWS, PRIOR_STOOD = 2, 4
LONGEST_STREAK = 16  # windows of the lookup behind which half of the model's counts go


@dataclass
class Chain:
    """The lookup of one request, and what it knows of the model behind it.

    cost        of a pass of the model, of ONE for a step of the target
    is_free     drafts cannot change the text: greedy, or the judge is "coupled"
    at_once     one pass of the model fills a window
    ends_early  a rule ends the model's windows
    """

    cost: int
    is_free: bool
    at_once: bool = False
    ends_early: bool = False
    windows: int = 0  # of the model, whose first draft was judged
    stood: int = 0  # of their drafts
    streak: int = 0
    model_drafts: list[tuple[int, int, bool]] = field(default_factory=list)  # (position, token, is the first)
    lookup: Lookup = field(default_factory=lambda: Lookup(leads=True))

    def told(self, committed: Sequence[int], next_token: int, rows: Sequence[Floats]) -> None:
        """See Lookup."""
        if self.is_free:
            self.lookup.told(committed, next_token, rows)

    def window(self, committed: Sequence[int], pending: Sequence[int], most: int) -> list[int]:
        """The lookup's; [] where the model drafts."""
        self._learn(committed, pending)
        window = self.lookup.window(committed, pending, most)
        if not self.lookup.expected or not self._is_worth_more(most):
            return []
        if not pending:
            self.streak += 1
            if self.streak == LONGEST_STREAK:
                self.streak, self.windows, self.stood = 0, self.windows // 2, self.stood // 2
        return window

    def model_drafted(self, drafts: Sequence[tuple[int, int]], is_final: bool) -> None:
        """The model's (position, token) of a window. is_final: it follows final tokens."""
        self.model_drafts += [(*draft, place == 0) for place, draft in enumerate(drafts)]
        if drafts and is_final:
            self.streak = 0

    def _learn(self, committed: Sequence[int], pending: Sequence[int]) -> None:
        for number, (position, token, is_first) in enumerate(self.model_drafts):
            if position >= len(committed):
                self.model_drafts = self.model_drafts[number:] if pending else []
                return
            if is_first:
                self.windows += 1
                if self.windows == MOST_WINDOWS:
                    self.windows, self.stood = self.windows // 2, self.stood // 2
            if committed[position] != token:
                break
            self.stood += 1
        self.model_drafts = []

    def _is_worth_more(self, most: int) -> bool:
        windows, stood = self.windows + PRIOR_WINDOWS, self.stood + PRIOR_STOOD
        passes = most * windows
        if self.at_once:
            passes = windows
        elif self.ends_early:
            passes = min(passes, windows + stood)
        gain = (ONE + self.lookup.expected) * (ONE * windows + self.cost * passes)
        return gain >= ONE * ONE * (windows + stood)
