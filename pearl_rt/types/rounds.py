"""What a coordinator says of a round, and how each of its tokens came: as an accepted draft, recovered, a
bonus, forced by the form of the answer, or by plain decoding.

Knows rounds by their fields; not what made them.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

ORIGINS = ("accepted", "recovered", "bonus", "forced", "plain")


class RoundRecord(Protocol):
    """Tokens that a round made final, drafts that it judged, when it ended."""

    @property
    def token_ids(self) -> Sequence[int]: ...
    @property
    def accept_len(self) -> int: ...
    @property
    def num_judged(self) -> int: ...
    @property
    def pending_before(self) -> int: ...
    @property
    def is_refused(self) -> bool: ...
    @property
    def forced(self) -> Sequence[int]: ...
    @property
    def certain(self) -> Sequence[int]: ...
    @property
    def num_cached_tokens(self) -> int: ...
    @property
    def t_ns(self) -> int: ...


class Origin(NamedTuple):
    """How one token came.

    kind   "accepted": a draft that stood; "forced": one that the form of the answer forced, and that stood;
           "recovered": the target's, in place of the first draft that did not; "bonus": the target's, behind
           drafts that all stood; "plain": the target's, where no draft was judged
    round  the verify step that made it final; 0: the prompt's own pass, which gives the first token
    """

    kind: str
    round: int


def origins(rounds: Iterable[RoundRecord], first: int = 0) -> list[Origin]:
    """Of each token of these rounds, the first of which has this number."""
    return [
        Origin(_kind(record, place), number)
        for number, record in enumerate(rounds, first)
        for place in range(len(record.token_ids))
    ]


def _kind(record: RoundRecord, place: int) -> str:
    if place < record.accept_len:
        return "forced" if place in record.forced else "accepted"
    if record.accept_len < record.num_judged:
        return "recovered"
    return "bonus" if record.num_judged else "plain"
