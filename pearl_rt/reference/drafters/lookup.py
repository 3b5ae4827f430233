"""Drafts that were said before: what followed the last tokens of a text when they stood there earlier. The
definition that csrc/drafters/lookup_drafter.cpp matches token for token, but for earlier answers of others.

Knows text, and what the target says at rejected rows; no model, no noise, no clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pearl_rt.reference.noise import Floats

WORDS = 512  # tokens of rejected rows that are kept
GAP = -1  # in place of a token: nothing reaches across it
MATCHES, LONGEST = 16, 32  # places that are looked at, tokens that are compared
ONE = 4096  # a chance of 1
LEAST = ONE // 16  # a window ends before it stands with less
MOST_COUNTS, LONGEST_REST, PRIOR = 64, 32, 8
HOPES = {"text": (2, 3, 4, 5, 6, 7), "words": (1, 2, 3, 3, 3, 3)}  # of PRIOR, by class of length


def class_of(length: int) -> int:
    """1, 2, 3, 4 and 5, 6 to 8, longer."""
    return length - 1 if length < 4 else 3 if length < 6 else 4 if length < 9 else 5


def places(text: Sequence[int], tail: Sequence[int]) -> list[tuple[int, int]]:
    """(next, length): where the last tokens of `tail` stood in `text`, latest first; in two tokens or more if
    there are such places, else in one.
    """
    found: dict[int, list[tuple[int, int]]] = {1: [], 2: []}
    for at in range(len(text) - 1, 0, -1):
        agree = 0
        while agree < min(at, len(tail), LONGEST) and text[at - 1 - agree] == tail[-1 - agree]:
            agree += 1
        if agree and text[at] != GAP:
            found[min(agree, 2)].append((at, agree))
    return (found[2] or found[1])[:MATCHES]


@dataclass
class Rate:
    """How often drafts of a source and a length stood."""

    stood: int = 0
    judged: int = 0

    def add(self, stands: bool) -> None:
        """One more; at MOST_COUNTS half of the counts go."""
        self.stood, self.judged = self.stood + stands, self.judged + 1
        if self.judged == MOST_COUNTS:
            self.stood, self.judged = self.stood // 2, self.judged // 2


@dataclass
class Lookup:
    """The drafter of one request."""

    words: list[int] = field(default_factory=list)  # the target's at rejected rows
    rates: dict[tuple[str, int], Rate] = field(default_factory=dict)
    drafted: list[tuple[int, int, tuple[str, int]]] = field(default_factory=list)  # (position, token, rate)
    leads: bool = (
        False  # another drafts where these are not taken (chain.py): a doubtful draft waits for nothing
    )
    costs: Sequence[int] = ()  # [n - 1] the time of a score over n rows, in any unit; empty: not weighed
    expected: int = 0  # of ONE: drafts of the last window that are likely to stand
    tokens: int = ONE  # of a round with it, if it was weighed
    quiet: int = 0  # rounds without a draft since the last one
    rest: int = 0  # such rounds that are wanted before a doubtful draft

    def told(self, committed: Sequence[int], next_token: int, rows: Sequence[Floats]) -> None:
        """What a verdict left: final tokens, the last of which is `next_token`, and the target's rows behind
        it, as if the rejected drafts stood.
        """
        if len(rows):
            own = [int(np.argmax(row)) for row in rows]
            said = [GAP, *committed[max(len(committed) - 3, 0) : -1], next_token, *own]
            self.words = (self.words + said)[-WORDS:]

    def window(self, committed: Sequence[int], pending: Sequence[int], most: int) -> list[int]:
        """At most so many drafts behind the pending ones."""
        self._learn(committed, pending)
        end = len(committed) + len(pending)
        self.drafted = [one for one in self.drafted if one[0] < end]  # behind it stands what another drafted
        self.expected = 0
        tail = [*committed, *pending][-LONGEST:]
        window: list[int] = []
        source, matches = "", list[tuple[int, int]]()
        text, token, rate, chance, all_stand = list[int](), GAP, 0, 0, ONE
        waits_for_nothing = self.leads or bool(self.costs)
        tokens = [ONE]  # of ONE: of a round with no draft, with the first, with the first two, ..
        while len(window) < most:
            if not source:
                for name, said in (("text", committed), ("words", self.words)):
                    found = places(said, tail)
                    candidate = self._best(name, said, found)
                    if candidate[2] > chance:
                        source, text, matches = name, list(said), found
                        token, rate, chance = candidate
            if not source:
                break
            all_stand = all_stand * chance // ONE
            is_doubtful = all_stand < LEAST
            if is_doubtful and (window or (not waits_for_nothing and self.quiet < self.rest)):
                break
            self.expected += all_stand
            self.drafted.append((end + len(window), token, (source, rate)))
            window.append(token)
            tail.append(token)
            tokens.append(tokens[-1] + all_stand)
            if is_doubtful:
                break
            matches = [
                (at + 1, min(length + 1, LONGEST))
                for at, length in matches
                if text[at] == token and at + 1 < len(text) and text[at + 1] != GAP
            ]
            token, rate, chance = self._best(source, text, matches)
            source = source if chance else ""
        if self.costs:
            window = window[: self._best_length(tokens)]  # what is left out is compared with the text as well
        self.tokens = tokens[len(window)]
        self.quiet = 0 if window else self.quiet + 1
        return window

    def _best_length(self, tokens: Sequence[int]) -> int:
        """Of a window, 0 too: with the most tokens for the time of its score, the shortest of equals."""
        times = [self.costs[min(length, len(self.costs) - 1)] for length in range(len(tokens))]
        best = 0
        for length in range(1, len(tokens)):
            if tokens[length] * times[best] > tokens[best] * times[length]:
                best = length
        return best

    def _learn(self, committed: Sequence[int], pending: Sequence[int]) -> None:
        for number, (position, token, key) in enumerate(self.drafted):
            if position >= len(committed):
                self.drafted = self.drafted[number:] if pending else []
                return
            stands = committed[position] == token
            self.rates.setdefault(key, Rate()).add(stands)
            if number == 0:
                self.rest = 0 if stands else min(max(2 * self.rest, 1), LONGEST_REST)
            if not stands:
                break
        self.drafted = []

    def _best(
        self, source: str, text: Sequence[int], matches: Sequence[tuple[int, int]]
    ) -> tuple[int, int, int]:
        """(token, class, chance): what most of the longest matches go on with, the latest among equals."""
        if not matches:
            return GAP, 0, 0
        longest = max(class_of(length) for _, length in matches)
        nexts = [text[at] for at, length in matches if class_of(length) == longest]
        token = max(nexts, key=nexts.count)  # the first of the largest
        rate = self.rates.get((source, longest), Rate())
        stood = rate.stood + HOPES[source][longest]
        chance = ONE * stood // (rate.judged + PRIOR) * nexts.count(token) // len(nexts)
        return token, longest, chance
