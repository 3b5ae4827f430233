"""Chat templates render what transformers renders, and what they refuse, or break, is told."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tiny_pairs import Pair, byte_tokenizer

from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.cli.chat import Conversation
from pearl_rt.engine import Engine
from pearl_rt.errors import CheckpointError, ConfigError, RequestError
from pearl_rt.types.sampling_params import SamplingParams

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA2 = """\
{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}\
{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}\
{% set system_message = false %}{% endif %}{% for message in loop_messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if loop.index0 == 0 and system_message != false %}\
{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}\
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}\
{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""
LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" + system_message +
"<|eot_id|>" }} {%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim +
    '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
QWEN3 = """\
{%- set ns = namespace(last=messages|length - 1, seen=[]) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" %}{%- set ns.last = index %}{%- break %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {{- '<|im_start|>assistant\\n' }}{% generation %}{{
        message.content.split('</think>')[-1].lstrip('\\n') }}{% endgeneration %}{{ '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
    {%- if loop.index0 == ns.last %}{{- '(last)' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%-
    endif %}
{%- endif %}
"""
ODD = """\
{% set config = dict(kind="x") %}
{% for message in messages %}
  {{ loop.index }} {{ message | tojson }} {{ message.content | tojson(indent=2) }} {{ config.kind }}
    {% if not message.name is defined %}no name{% endif %}
{% endfor %}
{{ tools is none }} {{ pad_token is defined }} {{ unk_token }}
"""
TEMPLATES = {"chatml": CHATML, "llama2": LLAMA2, "llama3": LLAMA3, "qwen3": QWEN3, "odd": ODD}
TALKS = {
    "one": [{"role": "user", "content": "  Hi <there> & 'you' "}],
    "system": [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": "Héllo 🧠"},
        {"role": "assistant", "content": "<think>\nwell\n</think>\n\nYes.", "name": None},
        {"role": "user", "content": "More"},
    ],
}
ADDED = {"__type": "AddedToken", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
TOKENS = {"bos_token": "<s>", "eos_token": {"content": "</s>", **ADDED}, "unk_token": "<unk>"}


def saved(path: Path, template: object, as_file: bool = False) -> Path:
    """A directory with a tokenizer and that template."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|eot_id|>"])
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **TOKENS}
    if as_file:
        (path / "chat_template.jinja").write_text(str(template), encoding="utf-8")
    else:
        settings["chat_template"] = template
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    (path / "config.json").write_text(json.dumps({"vocab_size": 288}))
    return path


@pytest.mark.parametrize("as_file", (False, True), ids=("in the settings", "as a file"))
@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_as_transformers_does(name: str, as_file: bool, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    path = saved(tmp_path / name, TEMPLATES[name], as_file)
    reference = PreTrainedTokenizerFast.from_pretrained(path)
    template, tokenizer = ChatTemplate.from_pretrained(path), Tokenizer.from_pretrained(path)
    for talk in TALKS.values():
        for prompted in (False, True):
            for variables in ({}, {"enable_thinking": False, "date_string": "1 Jan 2020"}):
                expected = reference.apply_chat_template(
                    talk, tokenize=False, add_generation_prompt=prompted, **variables
                )
                rendered = template.render(talk, add_generation_prompt=prompted, **variables)
                assert rendered == expected
                ids = reference.apply_chat_template(
                    talk, add_generation_prompt=prompted, return_dict=False, **variables
                )
                assert tokenizer.encode(rendered, add_special_tokens=False) == ids


def test_the_date_is_todays() -> None:
    before = datetime.now().strftime("%d %b %Y")
    text = ChatTemplate(LLAMA3).render(TALKS["one"])
    assert before in text or datetime.now().strftime("%d %b %Y") in text


def test_named_templates_give_their_default(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    assert ChatTemplate.from_pretrained(saved(tmp_path, named)).render(TALKS["one"]) == "yes"


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("mine {{ bos_token }}")
    path = saved(tmp_path / "model", CHATML)
    assert ChatTemplate.from_pretrained(path, file).render(TALKS["one"]) == "mine <s>"
    with pytest.raises(CheckpointError, match="cannot be read as a chat template"):
        ChatTemplate.from_pretrained(path, tmp_path / "nowhere")


def test_what_a_template_refuses_is_a_request_error() -> None:
    talk = [{"role": "assistant", "content": "I first"}]
    with pytest.raises(RequestError, match="roles must alternate"):
        ChatTemplate(LLAMA2, {"bos_token": "", "eos_token": ""}).render(talk)
    with pytest.raises(RequestError, match="messages is empty"):
        ChatTemplate(CHATML).render([])
    with pytest.raises(RequestError, match="refuses these messages"):
        ChatTemplate("{{ messages[0].content + 1 }}").render(talk)


@pytest.mark.parametrize(
    "escape",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% set ns = namespace(__class__=1) %}{{ ns }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ dict.__class__.__mro__ }}",
        "{{ lipsum.__globals__['os'].popen('id') }}",
    ],
)
def test_a_template_stays_in_its_sandbox(escape: str) -> None:
    with pytest.raises(RequestError, match="refuses"):
        if ChatTemplate(escape).render(TALKS["one"]) == "":  # undefined, and so harmless
            raise RequestError("refuses")


def test_what_is_no_template(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not valid Jinja"):
        ChatTemplate("{% for %}")
    with pytest.raises(CheckpointError, match="is no text"):
        ChatTemplate.from_pretrained(saved(tmp_path / "a", 5))
    with pytest.raises(ConfigError, match=r"has no chat template.*--chat-template"):
        ChatTemplate.from_pretrained(saved(tmp_path / "b", None))
    with pytest.raises(CheckpointError, match="/c: the chat template is not valid Jinja") as caught:
        ChatTemplate.from_pretrained(saved(tmp_path / "c", "{% " + "x\n" * 900 + " %}"))
    assert len(str(caught.value)) < 600 and str(caught.value).isprintable()
    named = [{"name": ["default"], "template": "a"}, 5, {"name": "default", "template": "b"}]
    assert ChatTemplate.from_pretrained(saved(tmp_path / "d", named)).source == "b"


def test_a_conversation_is_the_template_of_all_that_was_said(tmp_path: Path) -> None:
    target, draft = Pair.make("half-right").save(tmp_path)
    params = SamplingParams(max_tokens=6)
    with Engine.from_pretrained(target, draft, max_model_len=160) as engine:
        template = ChatTemplate(CHATML)
        conversation = Conversation(engine, template, params, system="S")
        first = "".join(conversation.ask("one"))
        second = "".join(conversation.ask("two"))
        said = [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": first},
            {"role": "user", "content": "two"},
        ]
        [expected] = engine.generate(template.render(said), params)
        assert second == expected.text
        assert conversation.messages[-1] == {"role": "assistant", "content": second}
        before = list(conversation.messages)
        with pytest.raises(RequestError, match="max_model_len"):
            "".join(conversation.ask("long " * 100))
        assert conversation.messages == before
        conversation.reset()
        assert "".join(conversation.ask("one")) == first


@pytest.mark.parametrize(
    ("roles", "otherwise", "is_known"),
    [
        ("['system', 'user']", "", False),
        ("['system', 'user']", "{{ raise_exception('no such role') }}", False),
        ("['system', 'user']", "as a developer: [{{ m.role }}]{{ m.content }}", False),
        ("['system', 'user', 'developer']", "", True),
        (
            "['system', 'user']",
            "{% if m['role'] == 'developer' %}[{{ m.role }}]{{ m.content }}{% endif %}",
            True,
        ),
    ],
    ids=["drops", "raises", "writes-any", "knows", "knows-apart"],
)
def test_a_developer_is_the_system_where_a_template_knows_none(
    roles: str, otherwise: str, is_known: bool
) -> None:
    template = ChatTemplate(
        "{% for m in messages %}{% if m.role in "
        + roles
        + " %}[{{ m.role }}]{{ m.content }}{% else %}"
        + otherwise
        + "{% endif %}{% endfor %}"
    )
    said = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert template.render(said) == f"[{'developer' if is_known else 'system'}]be brief[user]hi"
    assert said[0]["role"] == "developer"


CALLS = (
    "{% for m in messages %}{% if m.tool_calls %}<call>{{ m.tool_calls[0].function.name }}"
    "%s{% endif %}{% if m.content is not none %}<{{ m.role }}>{{ '' + m.content }}{% endif %}{% endfor %}"
)
HOW_ARGUMENTS_ARE_WRITTEN = {
    "as-text": "{{ '' + m.tool_calls[0].function.arguments }}",
    "as-json": "{{ m.tool_calls[0].function.arguments | tojson }}",
    "by-member": "{% for k, v in m.tool_calls[0].function.arguments.items() %}{{ k }}={{ v }}{% endfor %}",
    "not-at-all": "",
}


@pytest.mark.parametrize("how", HOW_ARGUMENTS_ARE_WRITTEN)
def test_calls_with_null_content_and_arguments_as_text(how: str) -> None:
    """As OpenAI's clients send them: templates see none, and arguments in the form that they can write."""
    function = {"name": "weather", "arguments": '{"city": "Bern"}'}
    said: list[dict[str, Any]] = [
        {"role": "user", "content": "hi", "tool_calls": None},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]
    written = {"as-text": '{"city": "Bern"}', "as-json": '{"city": "Bern"}', "by-member": "city=Bern"}
    template = ChatTemplate(CALLS.replace("%s", HOW_ARGUMENTS_ARE_WRITTEN[how]))
    assert template.render(said) == f"<user>hi<call>weather{written.get(how, '')}<tool>sunny"
    assert said[1]["tool_calls"][0]["function"] == function
    said[1]["tool_calls"][0]["function"]["arguments"] = "no JSON"
    if how != "by-member":
        assert "weather" in template.render(said)


TRIMS = CHATML.replace("message['content']", "message['content'] | trim")


@pytest.mark.parametrize("source", [CHATML, TRIMS], ids=("keeps-space", "trims"))
@pytest.mark.parametrize("begun", ["x = ", "x =", " x", "", "<|im_end|>x", "hi", "\n"])
def test_the_last_message_is_continued(source: str, begun: str) -> None:
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": begun}]
    told = ChatTemplate(source).render(said, continue_final_message=True)
    opening = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    if source == CHATML:
        assert told == opening + begun
    else:  # where all is trimmed, so is the line end before it
        assert told == (opening + begun.strip()).rstrip() or told == opening + begun.strip()


def test_what_cannot_be_continued() -> None:
    said = [{"role": "user", "content": "hi"}]
    with pytest.raises(RequestError, match="does not show the text of the last message"):
        ChatTemplate("nothing").render(said, continue_final_message=True)
    with pytest.raises(RequestError, match="whose content is text"):
        ChatTemplate(CHATML).render([*said, {"role": "assistant"}], continue_final_message=True)


@pytest.mark.parametrize("name", ["self", "messages_", "loop", "range", "a b", "class", "namespace", "1", ""])
def test_variables_have_any_name(name: str) -> None:
    assert ChatTemplate("{{ messages[0].content }}").render(TALKS["one"], **{name: 1})


@pytest.mark.parametrize(
    "source",
    [
        "{{ [][5] }}{{ messages[99].content.x }}",
        "{{ {}['a'].b }}",
        "{{ ''.join(5) }}",
        "{{ messages[0].content.encode('utf-8').hex.x.y }}",
        "{{ 'a'.center(-1, 'xx') }}",
        "{{ 1 / 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ strftime_now(5) }}",
        "{{ 'x' | tojson(indent=[]) }}{{ raise_exception('y' * 100000) }}",
    ],
)
def test_whatever_a_template_raises_is_its_refusal(source: str) -> None:
    with pytest.raises(RequestError, match="refuses these messages") as caught:
        ChatTemplate(source).render(TALKS["one"])
    assert len(str(caught.value)) < 1200


@pytest.mark.parametrize("source", ["{% if 1 %}" * 200 + "{% endif %}" * 200, "{{ " + "(" * 3000 + "}}"])
def test_a_template_that_cannot_be_compiled_is_told(source: str) -> None:
    with pytest.raises(CheckpointError, match="not valid Jinja"):
        ChatTemplate(source)


def test_nothing_is_evaluated_before_a_template_is_rendered() -> None:
    ChatTemplate("{{ 'a' * 10**12 }}{% set x = [0] * 10**12 %}")
