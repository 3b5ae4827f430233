"""Prompts from files: plain text, or JSONL with the fields of HumanEval, GSM8K, MGSM or MT-bench.

Knows no tokenizer. What each field becomes:

    prompt    HumanEval, our own files: the text, without empty lines before it and white space after it
    question  GSM8K, MGSM: "Question: ...\n\nAnswer:"
    turns     MT-bench: the first turn

Chat templates and few-shot examples are not added: a file that holds them already is read as it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pearl_rt.errors import RequestError

FIELDS = ("prompt", "question", "turns")
SEPARATOR = "---"  # a line of its own between the prompts of a plain text file


def prompt_of(record: dict[str, Any], place: str) -> str:
    """The prompt that one JSON object holds; RequestError says which fields were looked for."""
    if "prompt" in record:
        text = record["prompt"]
    elif "question" in record:
        text = f"Question: {record['question']}\n\nAnswer:"
    elif "turns" in record:
        turns = record["turns"]
        text = turns[0] if isinstance(turns, list) and turns else None
    else:
        raise RequestError(
            f"{place} has none of the fields {', '.join(FIELDS)} (HumanEval, GSM8K and MGSM, MT-bench); "
            f"it has {', '.join(record) or 'no fields'}"
        )
    if not isinstance(text, str) or not text.strip():
        raise RequestError(f"{place} holds no prompt: its text is {text!r}")
    return text.strip("\n").rstrip()


def read_prompts(path: Path, limit: int | None = None) -> list[str]:
    """The first `limit` prompts of a file. RequestError names the file and the line that can't be used."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"prompts can't be read from {path}: {error}") from None
    if path.suffix in (".jsonl", ".json"):
        texts = [
            prompt_of(parse_line(line, f"{path}:{number}"), f"{path}:{number}")
            for number, line in enumerate(content.splitlines(), 1)
            if line.strip()
        ]
    else:
        parts = content.split(f"\n{SEPARATOR}\n")
        texts = [part.strip() for part in parts if part.strip()]
    if not texts:
        raise RequestError(f"{path} holds no prompts")
    return texts[:limit]


def parse_line(line: str, place: str) -> dict[str, Any]:
    """One line of JSONL as an object."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise RequestError(f"{place} is not JSON: {error}; one object a line is expected") from None
    if not isinstance(record, dict):
        raise RequestError(f"{place} is a JSON {type(record).__name__}; an object is expected")
    return record
