"""Chat templates and messages, mutated: a prompt within bounds of time and memory, or an error of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fuzzing import LIMIT_S, Fuzzer
from mutations import json_bytes, json_text, mutated, mutated_text
from tiny_pairs import TINY

from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.serve.rendering import CPU_SECONDS, _received, _send

LLAMA = (
    "{{- bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}{% if tools is not none %}"
    "{% for t in tools %}{{ t | tojson(indent=4) }}{% endfor %}{% endif %}{% for m in messages %}"
    "{% if m.role not in ['user', 'assistant', 'tool'] %}{{ raise_exception('role ' + m.role) }}{% endif %}"
    "<|start|>{{ m.role }}<|end|>{{ m.content | trim }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>{% endif %}"
)
QWEN = (
    "{% set ns = namespace(last=-1, text='') %}{%- for m in messages[::-1] %}"
    "{% if ns.last < 0 and m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{%- endfor %}"
    "{% macro shown(m, n=3) %}{% if m.content is string %}"
    "{{ m.content.split('</think>')[-1].lstrip('\\n') }}{% else %}{{ m.content }}{% endif %}{% endmacro %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role }}\n{{ shown(m) }}{% for c in m.tool_calls or [] %}"
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}{% generation %}<|im_end|>{% endgeneration %}"
    "{% if loop.index > 5 %}{% continue %}{% endif %}{% endfor %}"
    "{% for i in range(3) %}{{ i * 2 }}{% endfor %}{{ strftime_now('%Y') }}{{ dict(a=1).items() | list }}"
)
PLAIN = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% filter upper %}x{% endfilter %}{{ 'a' ~ 3 * 'b' }}"
)
TEMPLATES = (LLAMA, QWEN, PLAIN)
WORDS = (
    *(
        "{% for a in range(99999) %}",
        "{% endfor %}",
        "{% for b in range(99999) %}{% endfor %}",
        "{{ 'x' * 999999999 }}",
    ),
    *(
        "{% if x %}",
        "{% endif %}",
        "{{",
        "}}",
        "{#",
        "#}",
        "{% raw %}",
        " | ",
        "|tojson",
        "|list",
        "|join",
        "**999999",
    ),
    *(
        "messages",
        "tools",
        ".__class__",
        "['__init__']",
        "self",
        "loop",
        "namespace()",
        "dict",
        "cycler",
        "lipsum()",
    ),
    *(
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{% block a %}{% endblock %}",
        "{% include 'x' %}",
        "%c",
    ),
    *(
        "{% extends x %}",
        "{% import 'os' as os %}",
        "|attr('format')",
        ".format(messages)",
        "{{ [[]] * 999999999 }}",
    ),
    *(
        "{% set messages = messages + messages %}",
        "{{ '%999999999d' % 1 }}",
        "|replace('', 'xxxxxxxx')",
        "|sum",
        "|pprint",
    ),
)
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sea"}'}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "héllo"},
    {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "name": "look", "content": "x"},
]
TOOLS = [
    {"type": "function", "function": {"name": "look", "description": "d", "parameters": {"type": "object"}}}
]
Case = tuple[str, str]


class Child:
    """The process that compiles and renders; again, where it has ended."""

    def __init__(self) -> None:
        self._process = self._started()

    @staticmethod
    def _started() -> subprocess.Popen[bytes]:
        path = [*sys.path, str(Path(__file__).parent)]
        code = f"import sys; sys.path[:] = {path!r}; from template_child import main; main()"
        return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def outcome(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What it found; its end is one too: a server's child may end, and is then started again."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            _send(self._process.stdin, asked)
            found = _received(self._process.stdout)
        except OSError:
            found = None
        if found is None:
            self.close()
            status = self._process.returncode
            self._process = self._started()
            return {"kind": "ended", "told": f"status {status}", "compiled_s": 0.0}
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    made = Child()
    yield made
    made.close()


def draw(rng: Random) -> Case:
    """A template, and messages and tools as JSON."""
    source, said = rng.choice(TEMPLATES), {"messages": MESSAGES, "tools": TOOLS}
    if rng.random() < 0.7:
        source = mutated_text(source, rng, WORDS)
    if rng.random() < 0.5:
        said = mutated(said, rng)
    return source, json_text(said)


def test_template(fuzzer: Fuzzer, child: Child) -> None:
    """In a process of its own, with the bounds of a server: there a case has 2 s of the processor."""

    fuzzer.limit_s = 10 * CPU_SECONDS  # of the clock, beside others; the child bounds its own

    def check(case: Case) -> str:
        source, text = case
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            return "no JSON"
        messages = said.get("messages") if isinstance(said, dict) else None
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            return "no messages"  # a server refuses these before
        found = child.outcome(
            {"source": source, "messages": messages, "options": {"tools": said.get("tools")}}
        )
        assert found["kind"] != "fault", found["told"]
        assert found["compiled_s"] < LIMIT_S, found
        assert len(found["told"]) < 3000
        return str(found["kind"])

    outcomes = fuzzer.run(300, draw, check)
    assert fuzzer.is_alone or {"text", "CheckpointError", "RequestError"} <= outcomes.keys()


def test_settings(fuzzer: Fuzzer, tmp_path: Path) -> None:
    """tokenizer_config.json as the file that has the template."""
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_dict()))
    named = [{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": LLAMA}]
    settings = {"chat_template": named, "bos_token": {"content": "<s>"}, "eos_token": "</s>"}

    def drawn(rng: Random) -> bytes:
        return json_bytes(
            mutated(settings if rng.random() < 0.5 else settings | {"chat_template": PLAIN}, rng), rng
        )

    def read(data: bytes) -> str:
        (tmp_path / "tokenizer_config.json").write_bytes(data)
        template = ChatTemplate.from_pretrained(tmp_path)
        assert (
            template.whole_source
            and (template.for_tools or template).render(MESSAGES[1:2], tools=TOOLS) is not None
        )
        return "read"

    outcomes = fuzzer.run(300, drawn, read)
    assert fuzzer.is_alone or {"read", "ConfigError", "CheckpointError"} <= outcomes.keys()
