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

    def step(
        self, num_back: int, tokens: Sequence[int], skip: int, wanted: int, masks: memoryview
    ) -> tuple[int, list[int], bool, list[int]]:
        """Takes tokens back, then takes in those of `tokens` that may stand, up to one that may not or that
        ends the text, and looks at the places behind `skip` and more of them -> (how many it took, the
        places where text is certain, whether the wanted place has a mask, what stands next).

        llguidance's mask of a place where text is certain is often one token, the tokenizer's own, although
        it takes others that spell the text. So these places have a row each of masks, uint32 [rows,
        ceil(vocab_size / 32)]: bit i is 1 where token i may follow. Elsewhere those that may follow are
        those that are taken in, and ends of text; a mask is made if the steps end at place `wanted`, in the
        row behind the others. If all tokens were taken, the last of the results are tokens that stand next
        in every text, as the tokenizer cuts them. Raises ValueError if the form became too complex.
        """
        matcher, fixed = self._matcher, list[int]()
        if num_back:
            matcher.rollback(num_back)
        plain = list(tokens)
        for place, token in enumerate(plain):
            if token in self._end_ids or token >= self.vocab_size:
                del plain[place:]
                break
        front = plain[:skip]
        taken = matcher.try_consume_tokens(front) if front else 0
        certain = b""
        while taken >= skip:
            certain = matcher.compute_ff_bytes()
            if certain:
                self._make_mask(masks, len(fixed))
                fixed.append(taken)
            if taken == len(plain) or not matcher.try_consume_tokens([plain[taken]]):
                break
            taken += 1
        has_wanted = taken == wanted and not certain
        if has_wanted:
            self._make_mask(masks, len(fixed))
        forced = self._forced(certain) if certain and taken == len(tokens) else []
        if matcher.is_error():
            raise ValueError(first_line(matcher.get_error()))
        return taken, fixed, has_wanted, forced

    def _make_mask(self, masks: memoryview, row: int) -> None:
        words = -(-self.vocab_size // 32)
        view = np.frombuffer(masks, np.uint32)[row * words : (row + 1) * words]
        self._matcher.unsafe_compute_mask_ptr(view.ctypes.data, view.nbytes)

    def _forced(self, certain: bytes) -> list[int]:
        """Not the last of them, if it may be cut in another way with what follows."""
        matcher = self._matcher
        cut = self._vocabulary(certain[:LONGEST_FORCED])
        taken = matcher.try_consume_tokens(cut) if cut else 0
        is_sure = taken == len(cut) and len(certain) <= LONGEST_FORCED and self._is_sure(cut)
        if taken:
            matcher.rollback(taken)
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
