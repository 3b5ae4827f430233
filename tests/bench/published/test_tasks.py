"""Prompts of tasks: our own, the fields of Spec-Bench, and which of them are read first."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from bench.model_pairs.model_prompts import OF_TASKS, encoded, prompts_for
from bench.model_pairs.prompts import Question, question_of, read_questions, spread
from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.errors import RequestError

ROOT = Path(__file__).resolve().parents[3]
SIX = ("dialogue", "translation", "summary", "question answering", "maths", "retrieval")


def test_our_own_prompts_are_of_the_tasks_of_spec_bench_and_code() -> None:
    questions = read_questions(OF_TASKS)
    assert Counter(question.task for question in questions) == dict.fromkeys(SIX, 7) | {"code": 6}
    assert len({question.text for question in questions}) == 48
    for question in questions:
        roles = [message["role"] for message in question.messages]
        assert roles == (["user", "assistant", "user"] if question.task == "dialogue" else ["user"])


@pytest.mark.parametrize(
    ("record", "task", "text"),
    [
        ({"category": "writing", "turns": ["Write.", "Again."]}, "dialogue", "Write."),
        ({"category": "math_reasoning", "turns": ["2+2?"]}, "maths", "2+2?"),
        ({"category": "rag", "turns": ["Who?"]}, "retrieval", "Who?"),
        ({"prompt": "def f():\n", "entry_point": "f"}, "code", "def f():"),
        ({"prompt": "Once"}, "text", "Once"),
        ({"task": "poem", "prompt": "Once"}, "poem", "Once"),
    ],
    ids=["mt-bench", "maths", "rag", "humaneval", "plain", "named"],
)
def test_a_record_has_a_task(record: dict[str, object], task: str, text: str) -> None:
    found = question_of(record, "here")
    assert (found.task, found.text) == (task, text)
    assert found.messages == ({"role": "user", "content": text},)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "want objects with role and content"),
        ("hello", "want objects"),
        ([{"role": "user"}], "want objects"),
        ([{"role": "user", "content": " "}], "holds no prompt"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            "ends with the role 'assist",
        ),
    ],
)
def test_talks_that_cannot_be_answered_are_refused(messages: object, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        question_of({"messages": messages}, "here")


def made(*counts: int) -> list[Question]:
    """So many questions of task a, then of b, .."""
    names = zip("abc", counts, strict=False)
    return [Question.of(f"{task}{i}", task) for task, count in names for i in range(count)]


@pytest.mark.parametrize(
    ("counts", "limit", "expected"),
    [
        ((4, 4), 4, "a0 b0 a2 b2"),
        ((5,), 3, "a0 a1 a3"),
        ((1, 5, 3), 5, "a0 b0 c0 b2 c1"),
        ((2, 1), None, "a0 b0 a1"),
        ((2, 1), 63, "a0 b0 a1"),
        ((3, 3), 1, "a0"),
    ],
)
def test_tasks_take_turns_and_lie_evenly(counts: tuple[int, ...], limit: int | None, expected: str) -> None:
    assert " ".join(question.text for question in spread(made(*counts), limit)) == expected


def test_a_file_of_one_task_is_read_in_order() -> None:
    questions = made(63)
    assert spread(questions) == questions


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"


def test_chats_are_rendered_and_text_is_not() -> None:
    tokenizer = Tokenizer.from_pretrained(ROOT / "models" / "target")
    talk = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    talk["messages"].append({"role": "user", "content": "c"})
    question = question_of(talk, "here")
    [ids] = encoded([question], tokenizer, ChatTemplate(TEMPLATE))
    wanted = "<user>a\n<assistant>b\n<user>c\n<assistant>"
    assert ids == tokenizer.encode(wanted, add_special_tokens=False)
    assert encoded([question], tokenizer, None) == [tokenizer.encode("a\n\nb\n\nc")]


def test_a_model_without_a_template_reads_held_out_text(tmp_path: Path) -> None:
    target = ROOT / "models" / "target"
    own = prompts_for(target, None, 3)
    assert own.note == "prompts: 3 of models/heldout/prompts.jsonl" and own.tasks == ["text"] * 3
    file = tmp_path / "bench.jsonl"
    rows = [{"category": name, "turns": ["x = 1"]} for name in ("qa", "qa", "rag", "coding")]
    file.write_text("\n".join(map(json.dumps, rows)))
    asked = prompts_for(target, file, 3)
    assert asked.tasks == ["question answering", "retrieval", "dialogue"]
    assert asked.note == "prompts: 3 of bench.jsonl, of 3 tasks in turn" and len(asked.token_ids) == 3
