"""Prompts from files: plain text, or JSONL with the fields of HumanEval, GSM8K, MGSM, MT-bench or Spec-Bench.

Knows no tokenizer and no template. What each field becomes, as a text and as the messages of a chat:

    prompt    HumanEval, our own files: the text, without empty lines before it and white space after it
    question  GSM8K, MGSM: "Question: ...\n\nAnswer:"
    turns     MT-bench, Spec-Bench: the first turn
    messages  our own dialogues: the whole talk, the last of a user

Few-shot examples are not added: a file that holds them already is read as it is. A record's task is its
`task`, or what Spec-Bench's `category` belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pearl_rt.errors import RequestError

FIELDS = ("prompt", "question", "turns", "messages")
SEPARATOR = "---"  # a line of its own between the prompts of a plain text file
# Categories of Spec-Bench; those that are missing, of MT-bench, are dialogues.
TASKS = {
    "translation": "translation",
    "summarization": "summary",
    "qa": "question answering",
    "math_reasoning": "maths",
    "rag": "retrieval",
}
MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
NO_TASK = "text"


@dataclass(frozen=True)
class Question:
    """One prompt: as text, and as the messages of a chat, the last of which is a user's."""

    text: str
    messages: tuple[dict[str, str], ...]
    task: str = NO_TASK

    @classmethod
    def of(cls, text: str, task: str = NO_TASK) -> Question:
        """What a user alone says."""
        return cls(text, ({"role": "user", "content": text},), task)


def task_of(record: dict[str, Any]) -> str:
    """Where a record belongs; a program to complete (HumanEval) is code."""
    if isinstance(record.get("task"), str):
        return str(record["task"])
    category = record.get("category")
    if category in MT_BENCH:
        return "dialogue"
    return TASKS.get(str(category), "code" if "entry_point" in record else NO_TASK)


def checked_text(text: Any, place: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise RequestError(f"{place} holds no prompt: its text is {text!r}")
    return text.strip("\n").rstrip()


def talk_of(messages: Any, place: str) -> tuple[dict[str, str], ...]:
    """A chat whose last message is a user's."""
    said = messages if isinstance(messages, list) else []
    if not said or not all(isinstance(m, dict) and m.keys() == {"role", "content"} for m in said):
        raise RequestError(f"{place} holds no prompt: messages want objects with role and content")
    if said[-1]["role"] != "user":
        raise RequestError(f"{place} ends with the role {said[-1]['role']!r}: the last message is a user's")
    return tuple({"role": str(m["role"]), "content": checked_text(m["content"], place)} for m in said)


def question_of(record: dict[str, Any], place: str) -> Question:
    """What one JSON object asks; RequestError says which fields were looked for."""
    if "messages" in record:
        talk = talk_of(record["messages"], place)
        return Question("\n\n".join(message["content"] for message in talk), talk, task_of(record))
    if "prompt" in record:
        text = record["prompt"]
    elif "question" in record:
        text = f"Question: {record['question']}\n\nAnswer:"
    elif "turns" in record:
        turns = record["turns"]
        text = turns[0] if isinstance(turns, list) and turns else None
    else:
        raise RequestError(
            f"{place} has none of the fields {', '.join(FIELDS)} (HumanEval, GSM8K and MGSM, MT-bench and "
            f"Spec-Bench, dialogues); it has {', '.join(record) or 'no fields'}"
        )
    return Question.of(checked_text(text, place), task_of(record))


def read_questions(path: Path) -> list[Question]:
    """All prompts of a file. RequestError names the file and the line that can't be used."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"prompts can't be read from {path}: {error}") from None
    if path.suffix in (".jsonl", ".json"):
        found = [
            question_of(parse_line(line, f"{path}:{number}"), f"{path}:{number}")
            for number, line in enumerate(content.splitlines(), 1)
            if line.strip()
        ]
    else:
        parts = content.split(f"\n{SEPARATOR}\n")
        found = [Question.of(part.strip()) for part in parts if part.strip()]
    if not found:
        raise RequestError(f"{path} holds no prompts")
    return found


def read_prompts(path: Path, limit: int | None = None) -> list[str]:
    """The texts of the first `limit` prompts of a file."""
    return [question.text for question in read_questions(path)[:limit]]


def spread(questions: Sequence[Question], limit: int | None = None) -> list[Question]:
    """At most `limit` of them, one of each task in turn; of a task those that lie evenly over it, in order.

    So the first few are of all tasks, and a file of one task is read from its beginning to its end.
    """
    by_task: dict[str, list[Question]] = {}
    for question in questions:
        by_task.setdefault(question.task, []).append(question)
    wanted = len(questions) if limit is None else min(limit, len(questions))
    counts = dict.fromkeys(by_task, 0)
    while sum(counts.values()) < wanted:
        for task, own in by_task.items():
            if counts[task] < len(own) and sum(counts.values()) < wanted:
                counts[task] += 1
    chosen = {
        task: [by_task[task][i * len(by_task[task]) // count] for i in range(count)]
        for task, count in counts.items()
    }
    longest = max(counts.values())
    return [chosen[task][i] for i in range(longest) for task in chosen if i < counts[task]]


def parse_line(line: str, place: str) -> dict[str, Any]:
    """One line of JSONL as an object."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise RequestError(f"{place} is not JSON: {error}; one object a line is expected") from None
    if not isinstance(record, dict):
        raise RequestError(f"{place} is a JSON {type(record).__name__}; an object is expected")
    return record
