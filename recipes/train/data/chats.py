"""Conversations that a chat model writes alone, for a draft that is to learn how it answers.

Fed nothing but the beginning of a user's turn, it writes a question (Magpie, arXiv 2406.08464); then it
answers it. One file a conversation, with the marks of its template, so that the folder is a corpus as any
other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pearl_rt import Engine, SamplingParams
from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.errors import RequestError

JUDGE = "coupled"  # by which a seed is a text, whatever is drafted
_TOGETHER = 64  # conversations that are written, and then kept, at a time
_PASSAGE = 1200  # characters of an earlier answer that a question may be about
ABOUT_A_PASSAGE = (
    "Summarize the following text:\n\n{}",
    "Rewrite this in simpler words:\n\n{}",
    "List the main points of this text:\n\n{}",
)


def turn_marks(template: ChatTemplate) -> tuple[str, str]:
    """What a template puts before the user's first text, and between that and the answer. Raises RequestError
    for one that does not write the text as it is.
    """
    mark = "\u2063text\u2063"
    rendered = template.render([{"role": "user", "content": mark}], add_generation_prompt=True)
    before, found, behind = rendered.partition(mark)
    if not found:
        raise RequestError("the chat template does not write the user's text as it is: take another target")
    return before, behind


def write_chats(
    engine: Engine,
    template: ChatTemplate,
    directory: Path,
    count: int,
    *,
    question_tokens: int = 160,
    answer_tokens: int = 400,
    temperature: float = 0.8,
    seed: int = 0,
    told: Callable[[int], object] = lambda written: None,
) -> int:
    """`count` files chat-00000.txt, ..; those that are there are kept. Every second answer is greedy, the
    others at `temperature`. Every third question is about an earlier answer. Returns the tokens of the
    answers that were written; told: of how many conversations were, each time.
    """
    before, behind = turn_marks(template)
    directory.mkdir(parents=True, exist_ok=True)
    tokens, passages = 0, [""]
    for first in range(0, count, _TOGETHER):
        numbers = [n for n in range(first, min(first + _TOGETHER, count)) if not _file(directory, n).exists()]
        if numbers:
            asked = [
                SamplingParams(temperature=1.0, top_p=0.95, max_tokens=question_tokens, seed=seed + number)
                for number in numbers
            ]
            questions = [
                output.text.strip() for output in engine.generate([before] * len(numbers), asked, judge=JUDGE)
            ]
            for i, number in enumerate(numbers):
                if number % 3 == 2 and passages[number % len(passages)]:
                    form = ABOUT_A_PASSAGE[number // 3 % len(ABOUT_A_PASSAGE)]
                    questions[i] = form.format(passages[number % len(passages)])
            prompts = [before + question + behind for question in questions]
            params = [
                SamplingParams(
                    temperature=temperature * (number % 2), max_tokens=answer_tokens, seed=seed + number
                )
                for number in numbers
            ]
            outputs = engine.generate(prompts, params, judge=JUDGE)
            for number, prompt, output in zip(numbers, prompts, outputs, strict=True):
                partial = _file(directory, number).with_suffix(".partial")
                partial.write_text(prompt + output.text, encoding="utf-8")
                partial.replace(_file(directory, number))
                tokens += len(output.token_ids)
            passages = [output.text[:_PASSAGE] for output in outputs]
        told(len(numbers))
    return tokens


def _file(directory: Path, number: int) -> Path:
    return directory / f"chat-{number:05d}.txt"
