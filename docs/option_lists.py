"""An extension of griffe: a docstring's aligned list of names and meanings, as a list that Markdown knows.

    gamma    drafts per window,      becomes    `gamma`
             1 to 16                            :   drafts per window, 1 to 16

A list is a paragraph whose first line has a name and two spaces; an indented line goes on with the one above.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ENTRY = re.compile(r"(\w+) {2,}(\S.*)")


class OptionLists(griffe.Extension):
    """mkdocstrings loads it by the name of this file."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Each object as it is read."""
        if obj.docstring is not None:
            paragraphs = obj.docstring.value.split("\n\n")
            obj.docstring.value = "\n\n".join(as_list(p) if ENTRY.match(p) else p for p in paragraphs)


def as_list(paragraph: str) -> str:
    """The paragraph as a definition list."""
    lines = []
    for line in paragraph.splitlines():
        if entry := ENTRY.match(line):
            lines.append(f"\n`{entry[1]}`\n:   {entry[2]}")
        else:
            lines.append(f"    {line.strip()}")
    return "\n".join(lines)
