"""A tokenizer as llguidance reads it: the bytes of each token, and how a text is cut into tokens.

Knows Tokenizer by its calls, and so checkpoints of every kind; not grammars.
"""

from collections.abc import Collection
from itertools import pairwise
from typing import TYPE_CHECKING

from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.errors import ConfigError

if TYPE_CHECKING:
    from llguidance import LLTokenizer

MOST_CUTS, LONGEST_CUT = 4096, 256  # texts, bytes of one
NEEDED = "structured_outputs needs the package llguidance: pip install 'pearl_rt[structured]'"


class Vocabulary:
    """The attributes that llguidance asks of a tokenizer. Ids without a token have no bytes, and are never
    allowed.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: Collection[int]) -> None:
        """vocab_size: ids of the model, which may be more than tokens. end_ids: its ends of text."""
        self._tokenizer = tokenizer
        special = {*tokenizer.hidden, *end_ids}
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(vocab_size)]
        self.special_token_ids = sorted(token_id for token_id in special if token_id < vocab_size)
        self.eos_token_id = min(end_ids)
        self.bos_token_id = None
        # Of two tokens with the same bytes the later one: <0x61> stands before the letter a in these lists.
        self._ids = {own: i for i, own in enumerate(self.tokens) if own and i not in special}
        for token_id, own in enumerate(self.tokens):
            if token_id not in special and self._ids.get(own) != token_id:
                self.tokens[token_id] = b""
        self._longest = max(map(len, self._ids), default=1)
        ordered = sorted(self._ids)  # what goes on from a token stands behind it
        self._goes_on = {self._ids[own] for own, after in pairwise(ordered) if after.startswith(own)}
        self._cuts: dict[bytes, list[int]] = {}

    def is_whole(self, token_id: int) -> bool:
        """Whether no other token begins with this one's bytes."""
        return token_id not in self._goes_on

    def __call__(self, text: str | bytes) -> list[int]:
        """The tokenizer's ids where they spell the text, as they do unless it adds a space; else the longest
        token at each place. Short ones are remembered, since forms have few texts that are certain: not to
        be changed.
        """
        raw = text.encode() if isinstance(text, str) else bytes(text)
        found = self._cuts.get(raw)
        if found is None:
            found = self._cut(raw)
            if len(raw) <= LONGEST_CUT:
                if len(self._cuts) >= MOST_CUTS:
                    self._cuts.clear()
                self._cuts[raw] = found
        return found

    def _cut(self, raw: bytes) -> list[int]:
        ids = self._tokenizer.encode(raw.decode(errors="replace"), add_special_tokens=False)
        if b"".join(self.tokens[token_id] for token_id in ids if token_id < len(self.tokens)) == raw:
            return ids
        found, place = [], 0
        while place < len(raw):
            lengths = range(min(self._longest, len(raw) - place), 0, -1)
            length = next((n for n in lengths if raw[place : place + n] in self._ids), 0)
            if length == 0:
                break  # no token spells this byte: what was found is all that can be said
            found.append(self._ids[raw[place : place + length]])
            place += length
        return found


def native_vocabulary(vocabulary: Vocabulary, end_ids: Collection[int]) -> "LLTokenizer":
    """llguidance's own; takes about a second. Raises ConfigError without the package."""
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError:
        raise ConfigError(NEEDED) from None
    num_ids = len(vocabulary.tokens)
    return LLTokenizer(TokenizerWrapper(vocabulary), n_vocab=num_ids, eos_token=sorted(end_ids))
