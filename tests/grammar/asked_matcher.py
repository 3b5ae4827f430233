"""Matchers of three kinds of tokenizers, and what they say of a place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tiny_pairs import byte_tokenizer

from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.grammar.forms import Forms
from pearl_rt.grammar.matcher import Matcher

SHIPPED = Path(__file__).resolve().parents[2] / "models" / "target"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def sentencepiece() -> tokenizers.Tokenizer:
    """A small vocabulary as Llama 2's: spaces are ▁, one is put in front, bytes are <0x0A>."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁a", "a", "ab", "b", "▁b", '{"', "name", '":', '"']
    model = tokenizers.models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], byte_fallback=True, unk_token="<unk>"
    )
    made = tokenizers.Tokenizer(model)
    made.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    made.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


def forms_of(name: str) -> tuple[Forms, Tokenizer, int]:
    """(forms, tokenizer, the end of text); the model has ids behind the tokens."""
    if name == "shipped":
        tokenizer, end = Tokenizer.from_pretrained(SHIPPED), 0
    elif name == "sentencepiece":
        tokenizer, end = Tokenizer(sentencepiece()), 2
    else:
        tokenizer, end = Tokenizer(byte_tokenizer(), vocab_size=300), 256
    return Forms(tokenizer, tokenizer.vocab_size + 41, [end]), tokenizer, end


def step(
    matcher: Matcher, tokens: Sequence[int] = (), *, num_back: int = 0, skip: int = 0, wanted: int = -1
) -> tuple[int, list[int], list[list[int]], list[int]]:
    """(tokens that were taken, places where text is certain, the ids that the masks allow, what is forced)"""
    masks = np.zeros((len(tokens) + 2, -(-matcher.vocab_size // 32)), np.uint32)
    found = matcher.step(num_back, tokens, skip, wanted, memoryview(masks).cast("B"))
    taken, fixed, has_wanted, forced = found
    rows = masks[: len(fixed) + has_wanted]
    return taken, fixed, [np.flatnonzero(bits_of(row)).tolist() for row in rows], forced


def bits_of(mask: np.ndarray[Any, np.dtype[np.uint32]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.unpackbits(mask.view(np.uint8), bitorder="little")


def taken(matcher: Matcher, tokens: Sequence[int]) -> int:
    return step(matcher, tokens, skip=len(tokens) + 1)[0]


def forced_by(matcher: Matcher) -> list[int]:
    return step(matcher)[3]


def allowed(matcher: Matcher, tokens: Sequence[int] = (), num_back: int = 0) -> list[int] | None:
    """None: not all tokens were taken."""
    count, _, masks, _ = step(matcher, tokens, num_back=num_back, skip=len(tokens), wanted=len(tokens))
    return masks[-1] if count == len(tokens) else None
