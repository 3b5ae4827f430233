"""The text of one answer as it grows: whole characters only, cut exactly at the first stop string.

Knows a decoder only by push() and finish(). The first stop string is the one that is complete first, as the
text is read character by character; of several that end at once, the longest. So the cut depends on the text
alone, not on how it was divided into tokens or rounds.

A stop string that names a token without text, a special one, is looked for in the text with such names in
their places. They are not shown, but as part of a stop string that is.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol


class Decoder(Protocol):
    """Token ids in, whole characters out: pearl_rt.checkpoint.tokenizer.IncrementalDecoder."""

    def push(self, token_ids: Sequence[int]) -> str: ...
    def finish(self) -> str: ...


class StopMatcher:
    """How far into one stop string the text has come, character by character (Knuth, Morris, Pratt)."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0  # of the text's last characters, how many are a beginning of `stop`
        self._shorter = [0] * len(
            stop
        )  # [n - 1]: the next shorter beginning that n matched characters end in
        for place in range(1, len(stop)):
            self._shorter[place] = self._next(stop[place], self._shorter[place - 1])

    def push(self, character: str) -> bool:
        """Takes the next character -> whether the stop string is complete."""
        if self.matched == len(self.stop):  # an earlier one that did not count
            self.matched = self._shorter[-1]
        self.matched = self._next(character, self.matched)
        return self.matched == len(self.stop)

    @property
    def held(self) -> int:
        """How many of the last characters may still become the stop string."""
        return self._shorter[-1] if self.matched == len(self.stop) else self.matched

    def _next(self, character: str, matched: int) -> int:
        while matched and self.stop[matched] != character:
            matched = self._shorter[matched - 1]
        return matched + (self.stop[matched] == character)


class TextStream:
    """Text that can be shown: nothing that may still become a stop string or is half a character.

    include_stop_str_in_output  the stop string that ended the text is its end, rather than cut away
    min_tokens                  a stop string that is complete before so many tokens is none
    """

    def __init__(
        self,
        decoder: Decoder | None,
        stop: Sequence[str] = (),
        *,
        hidden: Mapping[int, str] | None = None,
        include_stop_str_in_output: bool = False,
        min_tokens: int = 0,
    ) -> None:
        """hidden: the names of the tokens that `decoder` leaves out."""
        self._decoder = decoder
        names = set((hidden or {}).values()) - {""}
        named = {text for text in stop if any(name in text for name in names)}
        self._matchers = [StopMatcher(text) for text in stop]
        self._naming = [matcher for matcher in self._matchers if matcher.stop in named]  # hear names as well
        self._hidden = (hidden or {}) if named else {}
        self._include_stop = include_stop_str_in_output
        self._min_tokens = min_tokens
        self._held: list[tuple[str, bool]] = []  # characters, perhaps the beginning of a stop string; shown?
        self.num_tokens = 0  # taken so far; the last one completed the stop string, if there was one
        self.stop: str | None = None  # the stop string that ended the text

    def push(self, token_ids: Sequence[int], *, is_end: bool = False) -> str:
        """The text that `token_ids` let out. After a stop string nothing more is taken. is_end: the last of
        them is what ended the answer, and no part of its text.
        """
        if self._decoder is None:
            self.num_tokens += len(token_ids)
            return ""
        shown = ""
        last = len(token_ids) - 1 if is_end and not self._include_stop else -1
        # One at a time: the last one taken is the one that completed the stop string.
        for place, token_id in enumerate(token_ids):
            if self.stop is not None:
                break
            self.num_tokens += 1
            if place != last:
                shown += self._filtered(self._decoder.push([token_id]))
            if token_id in self._hidden and self.stop is None:
                shown += self._filtered(self._hidden[token_id], is_shown=False)
        return shown

    def finish(self) -> str:
        """What is still held back, once no token will follow; "" after a stop string."""
        if self._decoder is None or self.stop is not None:
            return ""
        return self._filtered(self._decoder.finish()) + self._let_out(len(self._held))

    def _filtered(self, text: str, *, is_shown: bool = True) -> str:
        """What of the held text and `text` can be shown."""
        if not self._matchers:
            return text
        hearing = self._matchers if is_shown else self._naming
        for character in text:
            self._held.append((character, is_shown))
            complete = [matcher for matcher in hearing if matcher.push(character)]
            if complete and self.num_tokens >= self._min_tokens:
                first = max(complete, key=lambda matcher: len(matcher.stop))
                self.stop = first.stop
                shown = self._let_out(self._begin(first, len(first.stop)))
                self._held.clear()
                return shown + (first.stop if self._include_stop else "")
        return self._let_out(min(self._begin(matcher, matcher.held) for matcher in self._matchers))

    def _begin(self, matcher: StopMatcher, heard: int) -> int:
        """Where in what is held the last characters begin that a matcher has heard, so many of them."""
        place, hears_names = len(self._held), matcher in self._naming
        while heard:
            place -= 1
            heard -= hears_names or self._held[place][1]
        return place

    def _let_out(self, count: int) -> str:
        """The first `count` held characters, as they are shown."""
        out, self._held = self._held[:count], self._held[count:]
        return "".join([character for character, is_shown in out if is_shown])
