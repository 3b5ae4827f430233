"""A lookup in front of a model: a window is the lookup's where what it expects of it is worth more than those
of the model have been. The definition that csrc/drafters/chain/chain_drafter.cpp matches window for window.

Knows counts, and nothing of models, noise or clocks. A round of 1 + e tokens that costs a step of the target
is compared with one of 1 + stood / windows tokens that costs a step and the model's passes.

The law is kept: which of the two drafts depends on final tokens, on pending ones, whose fall takes the window
with them, and on counts of drafts up to the first that fell. It must not depend on a draft behind that one:
its position is drafted again with the same noise, so a choice that knew the token would draw it from another
law than its row. So windows behind pending tokens are not counted in `streak`; of the lengths that a rule
gave, only whether a window behind final tokens is empty is counted; and what the target said behind rejected
drafts is read only where drafts cannot change the text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pearl_rt.reference.drafters.lookup import ONE, Lookup
from pearl_rt.reference.noise import Floats
from pearl_rt.reference.step_costs import StepCosts

MOST_WINDOWS = 16  # half of the counts go then, so that the last windows count most
PRIOR_WINDOWS, PRIOR_STOOD = 2, 4
LONGEST_STREAK, OF_LOOKUP = 64, 4  # rounds without the model behind which half of its counts go


@dataclass
class Chain:
    """The lookup of one request, and what it knows of the model behind it.

    cost        of a pass of the model, of ONE for a step of the target
    is_free     drafts cannot change the text: greedy, or the judge is "coupled"
    passes      of the model, which fill a window, at most; 0: one for each draft
    ends_early  a rule ends the model's windows
    costs       times of scores, and of the model's windows
    follows     a pass of the model follows each verdict, with a window or without

    With times a window is weighed: the lookup's, the model's and none, each by its tokens for its time.
    """

    cost: int
    is_free: bool
    passes: int = 0
    ends_early: bool = False
    costs: StepCosts = field(default_factory=StepCosts)
    follows: bool = False
    rests: bool = False  # whether the last window is empty, and not the model's
    windows: int = 0  # of the model, whose first draft was judged, or that its rule left empty
    stood: int = 0  # of their drafts
    streak: int = 0
    model_drafts: list[tuple[int, int, bool]] = field(default_factory=list)  # (position, token, is the first)
    lookup: Lookup = field(init=False)

    def __post_init__(self) -> None:
        self.lookup = Lookup(leads=True, costs=self.costs.scores)

    def told(self, committed: Sequence[int], next_token: int, rows: Sequence[Floats]) -> None:
        """See Lookup."""
        if self.is_free:
            self.lookup.told(committed, next_token, rows)

    def window(self, committed: Sequence[int], pending: Sequence[int], most: int) -> list[int]:
        """The lookup's; [] where the model drafts, or none of them (`rests`)."""
        self._learn(committed, pending)
        window = self.lookup.window(committed, pending, most)
        if self.costs.scores:
            if self._weighs_more(window, most):
                self.rests = False
                return []
        elif not self.lookup.expected or not self._is_worth_more(most):
            return []
        self.rests = not window
        if not pending:
            self.streak += OF_LOOKUP if window else 1
            if self.streak >= LONGEST_STREAK:
                self.streak, self.windows, self.stood = 0, self.windows // 2, self.stood // 2
        return window

    def model_drafted(
        self, drafts: Sequence[tuple[int, int]], is_final: bool, is_refused: bool = False
    ) -> None:
        """The model's (position, token) of a window. is_final: it follows final tokens. is_refused: a rule
        ended it before its first row, which was computed.
        """
        self.model_drafts += [(*draft, place == 0) for place, draft in enumerate(drafts)]
        if drafts and is_final:
            self.streak = 0
        if is_refused and is_final:
            self._add_window()

    def _add_window(self) -> None:
        self.windows += 1
        if self.windows == MOST_WINDOWS:
            self.windows, self.stood = self.windows // 2, self.stood // 2

    def _learn(self, committed: Sequence[int], pending: Sequence[int]) -> None:
        for number, (position, token, is_first) in enumerate(self.model_drafts):
            if position >= len(committed):
                self.model_drafts = self.model_drafts[number:] if pending else []
                return
            if is_first:
                self._add_window()
            if committed[position] != token:
                break
            self.stood += 1
        self.model_drafts = []

    def _weighs_more(self, window: Sequence[int], most: int) -> bool:
        """Whether the model's window has more tokens for its time than the lookup's, or none: what it costs
        beyond a round without it, it has to be worth in tokens of such a round, one token in all forgiven. A
        window that a rule may end has one draft more than are likely to stand; one pass computes all its
        rows.
        """
        if not most:
            return False
        windows, stood = self.windows + PRIOR_WINDOWS, self.stood + PRIOR_STOOD
        judged = min(most, 1 + stood // windows) if self.ends_early else most
        spent = self.costs.score(judged) + self.costs.window(most if self.passes else judged)
        anyway = self.costs.window(1) if self.follows else 0
        plain = self.costs.score(0) + anyway
        if not window:
            return (self.stood + 1) * plain >= (spent - plain) * self.windows
        tokens = ONE * (windows + min(stood, most * windows)) // windows
        return tokens * (self.costs.score(len(window)) + anyway) > self.lookup.tokens * spent

    def _is_worth_more(self, most: int) -> bool:
        windows, stood = self.windows + PRIOR_WINDOWS, self.stood + PRIOR_STOOD
        passes = windows * (min(most, self.passes) if self.passes else most)
        if self.ends_early:
            passes = min(passes, windows + stood)
        gain = (ONE + self.lookup.expected) * (ONE * windows + self.cost * passes)
        return gain >= ONE * ONE * (windows + stood)
