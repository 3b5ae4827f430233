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


class Matcher:
    """Behind no token, at first. One thread at a time, of a lane."""

    def __init__(self, matcher: "LLMatcher", vocabulary: Vocabulary, end_ids: frozenset[int]) -> None:
        """matcher: llguidance's, which is then this one's."""
        self.vocab_size = len(vocabulary.tokens)
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._end_ids = end_ids

    def step(self, num_back: int, tokens: Sequence[int], words: memoryview | None) -> int:
        """Takes tokens back, then takes in those of `tokens` that may stand, up to one that may not or that
        ends the text -> how many. If all were taken, fills words, uint32 [ceil(vocab_size / 32)]: bit i of
        them is 1 where token i may follow. Raises ValueError if the form became too complex.
        """
        matcher, taken = self._matcher, 0
        if num_back:
            matcher.rollback(num_back)
        if tokens:
            plain = list(tokens)
            for place, token in enumerate(plain):
                if token in self._end_ids or token >= self.vocab_size:
                    del plain[place:]
                    break
            taken = matcher.try_consume_tokens(plain) if plain else 0
        if words is not None and taken == len(tokens):
            view = np.frombuffer(words, np.uint32)
            matcher.unsafe_compute_mask_ptr(view.ctypes.data, view.nbytes)
        self._check()
        return taken

    def forced(self) -> list[int]:
        """Tokens that stand next in every text of the form, as the tokenizer cuts them. Not the last of them,
        if it may be cut in another way with what follows.
        """
        matcher = self._matcher
        found = matcher.compute_ff_bytes()
        if not found:
            self._check()
            return []
        cut = self._vocabulary.cut(found[:LONGEST_FORCED])
        taken = matcher.try_consume_tokens(cut) if cut else 0
        is_sure = taken == len(cut) and len(found) <= LONGEST_FORCED and self._is_sure(cut)
        if taken:
            matcher.rollback(taken)
        self._check()
        return list(cut[:taken] if is_sure or taken < len(cut) else cut[:-1])

    def _is_sure(self, cut: Sequence[int]) -> bool:
        """Whether the last of these tokens, which were taken in, is itself whatever follows."""
        matcher = self._matcher
        if not cut or self._vocabulary.is_whole(cut[-1]) or matcher.is_accepting():
            return True
        matcher.rollback(1)
        bits = int.from_bytes(matcher.compute_bitmask(), "little")
        matcher.try_consume_tokens(cut[-1:])
        return bits.bit_count() == 1

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
