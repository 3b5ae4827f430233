"""Engine.chat, and one SamplingParams for each prompt: what generate() gives for the same ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chains import save_answers, save_chain

from pearl_rt import ConfigError, Engine, RequestError, SamplingParams

ANSWERS = {"P": ["plain ", "text"], "x": ["more", "!"]}
TEMPLATE = (
    "{{ tools | length if tools else '' }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{{ '' if add_generation_prompt else ' ' }}{{ loud or '' }}"
)
TALK = [{"role": "user", "content": "P"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = save_answers(tmp_path_factory.mktemp("model"), ANSWERS)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(model, num_threads=1) as built:
        yield built


def prompt(output: Any) -> str:
    return bytes(output.prompt_token_ids).decode()


def test_a_conversation_is_rendered_and_answered(engine: Engine) -> None:
    [output] = engine.chat(TALK)
    assert (prompt(output), output.text) == ("[user]P", "plain text")
    [output] = engine.chat(TALK, SamplingParams(max_tokens=1), strategy="ar")
    assert output.text == "plain " and output.metrics.strategy == "ar"


def test_several_conversations_with_parameters_of_their_own(engine: Engine) -> None:
    told = engine.chat(
        [TALK, [*TALK, {"role": "user", "content": "x"}]], [SamplingParams(max_tokens=1), SamplingParams()]
    )
    assert [output.text for output in told] == ["plain ", "more!"]
    assert [prompt(output) for output in told] == ["[user]P", "[user]P[user]x"]


def test_options_of_the_template(engine: Engine) -> None:
    [output] = engine.chat(TALK, tools=[{}, {}], chat_template_kwargs={"loud": "!x"})
    assert (prompt(output), output.text) == ("2[user]P!x", "more!")
    [output] = engine.chat(TALK, add_generation_prompt=False)
    assert prompt(output) == "[user]P "
    [output] = engine.chat(TALK, continue_final_message=True)
    assert prompt(output) == "[user]P"
    [output] = engine.chat(TALK, chat_template="<{{ messages[0].content }}x")
    assert (prompt(output), output.text) == ("<Px", "more!")


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "messages must be a list"),
        ("P", "messages must be a list"),
        ([5], "a message is a dict"),
        ([TALK, 5], "a message is a dict"),
        ([{"content": "a"}], "a message is a dict"),
        ([[]], "messages is empty"),
    ],
    ids=str,
)
def test_what_is_no_conversation(engine: Engine, messages: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        engine.chat(messages)
    assert engine.chat(TALK)[0].text == "plain text"


def test_without_a_template(tmp_path: Path) -> None:
    with Engine.from_pretrained(save_chain(tmp_path / "m", {80: 97}), num_threads=1) as engine:
        with pytest.raises(ConfigError, match="no chat template"):
            engine.chat(TALK)
        assert engine.chat(TALK, SamplingParams(max_tokens=1), chat_template="P")[0].text == "a"


def test_parameters_for_each_prompt(engine: Engine) -> None:
    several = [SamplingParams(max_tokens=1), SamplingParams(stop="!"), SamplingParams(temperature=1, n=2)]
    told = engine.generate(["P", "x", "x"], several)
    assert [output.text for output in told] == ["plain ", "more", "more!", "more!"]
    assert [output.index for output in told] == [0, 0, 0, 1]
    for params, said in (
        ([SamplingParams()], "3 prompts and 1 SamplingParams"),
        ([], "3 prompts and 0 SamplingParams"),
        ([SamplingParams(), SamplingParams(), 5], "params must be pearl_rt.SamplingParams, got 5"),
        ("abc", "params must be"),
    ):
        with pytest.raises(RequestError, match=said):
            engine.generate(["P", "x", "x"], params)  # type: ignore[arg-type]
