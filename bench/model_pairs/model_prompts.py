"""The prompts that a model is measured on, as its token ids: in its chat template, if it has one.

Our own prompts are of seven tasks for a model that chats, else held-out text. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.harness.environment import ROOT
from bench.model_pairs.prompts import Question, read_questions, spread
from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.errors import ConfigError

HELD_OUT = ROOT / "models" / "heldout" / "prompts.jsonl"
OF_TASKS = ROOT / "bench" / "prompts" / "tasks.jsonl"


@dataclass(frozen=True)
class ModelPrompts:
    """Prompts of one model, each with its task."""

    token_ids: list[list[int]]
    tasks: list[str]
    note: str  # a line for the report


def name_of(path: Path) -> str:
    """A path as a reader should see it: relative to the repository if inside it, else its last part."""
    resolved = path.resolve()
    return str(resolved.relative_to(ROOT)) if resolved.is_relative_to(ROOT) else resolved.name


def encoded(
    questions: Sequence[Question], tokenizer: Tokenizer, template: ChatTemplate | None
) -> list[list[int]]:
    """Token ids of texts, or of chats in a template."""
    if template is None:
        return [tokenizer.encode(question.text) for question in questions]
    texts = [template.render(question.messages) for question in questions]
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def prompts_for(model: Path, path: Path | None, limit: int | None) -> ModelPrompts:
    """At most `limit` prompts of a file, or of our own. Raises CheckpointError, RequestError."""
    try:
        template = ChatTemplate.from_pretrained(model)
    except ConfigError:
        template = None
    path = path or (HELD_OUT if template is None else OF_TASKS)
    questions = spread(read_questions(path), limit)
    tasks = [question.task for question in questions]
    num_tasks = len(set(tasks))
    note = f"prompts: {len(questions)} of {name_of(path)}"
    note += f", of {num_tasks} tasks in turn" if num_tasks > 1 else ""
    note += ", in the chat template" if template is not None else ""
    return ModelPrompts(encoded(questions, Tokenizer.from_pretrained(model), template), tasks, note)
