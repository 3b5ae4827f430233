"""Prompts for benchmarks, cut from held-out files: a class or function from its first line on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from recipes.train.data.corpus import Document

_DEFINITION = re.compile(r"^(?:class|def|    def|async def) ", re.MULTILINE)
_MAX_TOKENS = 240
_MIN_TOKENS = 120


def _piece(tokenizer: Tokenizer, text: str, start: int) -> str | None:
    """Whole lines from `start`, at most 240 tokens of them; None if fewer than 120 are left."""
    lines: list[str] = []
    for line in text[start:].splitlines(keepends=True):
        if len(tokenizer.encode("".join([*lines, line]), add_special_tokens=False).ids) > _MAX_TOKENS:
            break
        lines.append(line)
    piece = "".join(lines).rstrip() + "\n"
    enough = len(tokenizer.encode(piece, add_special_tokens=False).ids) >= _MIN_TOKENS
    return piece if enough else None


def held_out_prompts(tokenizer: Tokenizer, documents: Sequence[Document], count: int) -> list[dict[str, str]]:
    """At most `count` of {"prompt", "source"}: one from each file, the longest first, then a second round."""
    prompts: list[dict[str, str]] = []
    by_length = sorted(documents, key=lambda d: (-len(d.text), d.name))
    for place in (0.4, 0.7, 0.1):  # of the file
        for document in by_length:
            starts = [m.start() for m in _DEFINITION.finditer(document.text)]
            wanted = [s for s in starts if s >= place * len(document.text)]
            piece = _piece(tokenizer, document.text, wanted[0]) if wanted else None
            if piece is not None and len(prompts) < count:
                prompts.append({"prompt": piece, "source": document.name})
    return prompts


def write_prompts(path: Path, prompts: Sequence[dict[str, str]]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(p) + "\n" for p in prompts))
