"""The state of one answer's form: which tokens may follow, and which follow anyway.

csrc/core/token_mask.h has the seam. Ends of text are no part of a form: the answer is over where one stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pearl_rt.errors import one_line
from pearl_rt.grammar.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher


LONGEST_FORCED = 64  # bytes: a form may force text without end
MOST_SPELLINGS = 64  # tokens that a forced text may begin with


class Matcher:
    """Behind no token, at first. One thread at a time, of a lane."""

    def __init__(self, matcher: "LLMatcher", vocabulary: Vocabulary, end_ids: frozenset[int]) -> None:
        """matcher: llguidance's, which is then this one's."""
        self.vocab_size = len(vocabulary.tokens)
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._end_ids = end_ids
        self._words = np.zeros(-(-self.vocab_size // 32), np.uint32)  # what may follow, if _is_filled
        self._is_filled = False

    def step(self, num_back: int, tokens: Sequence[int], words: memoryview | None) -> int:
        """Takes tokens back, then takes in those of `tokens` that may stand, up to one that may not or that
        ends the text -> how many. If all were taken, fills words, uint32 [ceil(vocab_size / 32)]: bit i of
        them is 1 where token i may follow. Raises ValueError if the form became too complex.
        """
        if num_back:
            self._matcher.rollback(num_back)
        self._is_filled = False
        first_end = next((place for place, token in enumerate(tokens) if self._is_end(token)), len(tokens))
        plain = list(tokens[:first_end])
        taken = self._matcher.try_consume_tokens(plain) if plain else 0
        if words is not None and taken == len(tokens):
            self._fill()
            np.frombuffer(words, np.uint32)[:] = self._words
            self._is_filled = True
        self._check()
        return taken

    def forced(self) -> list[int]:
        """Tokens that stand next in every text of the form, as the tokenizer cuts them. Not the last of them,
        if it may be cut in another way with what follows.
        """
        found, taken, is_sure = b"", 0, False
        tokens, first_bytes = self._vocabulary.tokens, self._vocabulary.first_bytes
        while len(found) < LONGEST_FORCED:
            if taken or not self._is_filled:
                self._fill()
            ids = np.flatnonzero(np.unpackbits(self._words.view(np.uint8), bitorder="little"))
            if len(ids) == 0 or any(token in self._end_ids for token in ids[:MOST_SPELLINGS]):
                is_sure = taken > 0
                break
            if (first_bytes[ids] != first_bytes[ids[0]]).any():
                break
            longest = max(ids[:MOST_SPELLINGS], key=lambda token: len(tokens[token]))
            is_sure = len(ids) == 1
            if len(ids) > MOST_SPELLINGS or not all(tokens[longest].startswith(tokens[i]) for i in ids):
                found += tokens[longest][:1]
                break
            found += tokens[longest]
            taken += self._matcher.try_consume_tokens([int(longest)])
        if taken:
            self._matcher.rollback(taken)
            self._is_filled = False
        self._check()
        cut = self._vocabulary(found) if found else []
        cut = cut if is_sure else cut[:-1]
        return cut[: self._matcher.validate_tokens(cut)] if cut else cut

    def _fill(self) -> None:
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)

    def _is_end(self, token: int) -> bool:
        return token in self._end_ids or token >= self.vocab_size

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ValueError(first_line(self._matcher.get_error()))


@dataclass(frozen=True)
class Form:
    """A form that was compiled. llguidance's matcher stays behind no token: answers have copies of it."""

    pristine: "LLMatcher"
    vocabulary: Vocabulary
    end_ids: frozenset[int]

    @property
    def vocab_size(self) -> int:
        """Ids of the model."""
        return len(self.vocabulary.tokens)

    def matcher(self) -> Matcher:
        """For one answer."""
        return Matcher(self.pristine.deep_copy(), self.vocabulary, self.end_ids)


def first_line(text: str) -> str:
    """What llguidance says, short: states and grammars follow in further lines."""
    return one_line(text.strip().split("\n")[0])
