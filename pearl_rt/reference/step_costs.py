"""What windows are weighed by: how long steps take. They are measured before the run, and constants of it.
csrc/core/step_costs.h has the same for several sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StepCosts:
    """Of one sequence, in any unit; of more rows or drafts than there are times for: the last.

    scores   [n - 1] of a score over n rows; empty: nothing is weighed
    windows  [n - 1] of a window of n drafts of a model
    """

    scores: Sequence[int] = ()
    windows: Sequence[int] = ()

    def score(self, window: int) -> int:
        """Of a score behind a window of that length."""
        return self.scores[min(window, len(self.scores) - 1)]

    def window(self, count: int) -> int:
        """Of a window of so many drafts."""
        return self.windows[min(count, len(self.windows)) - 1] if count else 0
