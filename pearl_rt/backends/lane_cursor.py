"""Where one lane is in its lists: the prologue once, then the body round after round.

Knows programs; not what an op does, or what other lanes do.
"""

from collections.abc import Mapping

from pearl_rt.strategy.program import LaneProgram, Op


class LaneCursor:
    """The next op of a lane, and how often it has waited."""

    def __init__(self, name: str, lane: LaneProgram) -> None:
        self.name = name
        self._prologue, self._body = lane.prologue, lane.body
        self._next = 0
        self._waits: dict[str, int] = {}

    def next_op(self) -> tuple[int, Op] | None:
        """(round, op), the prologue's as round 0; None at the end."""
        place = self._next - len(self._prologue)
        if place < 0:
            return 0, self._prologue[self._next]
        if not self._body:
            return None
        return 1 + place // len(self._body), self._body[place % len(self._body)]

    def done(self) -> None:
        """Goes on to the next op."""
        self._next += 1

    def passes(self, op: Op, records: Mapping[str, int]) -> bool:
        """Whether a wait is over: its event was recorded once more than it was waited for."""
        waited = self._waits.get(op.event, 0)
        if records[op.event] <= waited:
            return False
        self._waits[op.event] = waited + 1
        return True
