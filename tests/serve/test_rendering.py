"""Templates in a process of their own: what they write, and what ends those that loop or grow."""

from __future__ import annotations

import os
import signal
import time

import pytest

from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.errors import RequestError
from pearl_rt.serve.rendering import MAX_CHARACTERS, Renderer

SAID = [{"role": "user", "content": "hé\u2028\ud83d"}]


def test_as_in_this_process() -> None:
    template = ChatTemplate("{{ bos_token }}{{ messages[0].content }}{{ self_ }}", {"bos_token": "<s>"})
    renderer = Renderer(template)
    for options in ({}, {"self_": "x"}, {"add_generation_prompt": False}):
        assert renderer.render(SAID, options) == template.render(SAID, **options)
    assert renderer.render(SAID, {"self": 1}) == template.render(SAID)
    with pytest.raises(RequestError, match="messages is empty"):
        renderer.render([], {})


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10**11 }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{{ 7 ** (10 ** 9) }}",
    ],
    ids=("loops", "grows-at-once", "grows", "one-call-of-C"),
)
def test_what_takes_too_long_or_too_much_is_refused(source: str) -> None:
    renderer = Renderer(ChatTemplate("{% if messages[0].content == 'bomb' %}" + source + "{% endif %}done"))
    for _ in range(2):
        with pytest.raises(RequestError, match=r"it takes over 2 s|MemoryError|takes over 2 s or 512 MiB"):
            renderer.render([{"role": "user", "content": "bomb"}], {})
        assert renderer.render(SAID, {}) == "done"


def test_a_text_that_is_too_long_is_refused() -> None:
    renderer = Renderer(ChatTemplate(f"{{{{ 'a' * {MAX_CHARACTERS + 1} }}}}"))
    with pytest.raises(RequestError, match=f"wrote {MAX_CHARACTERS + 1} characters: send less"):
        renderer.render(SAID, {})


def test_a_child_that_was_killed_is_started_again() -> None:
    renderer = Renderer(ChatTemplate("a"))
    for _ in range(2):
        assert renderer.render(SAID, {}) == "a"
        os.kill(renderer._child.pid, signal.SIGKILL)
        renderer._child.wait()


def test_the_child_ends_with_its_renderer() -> None:
    renderer = Renderer(ChatTemplate("a"))
    child = renderer._child
    del renderer
    deadline = time.monotonic() + 30
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert child.poll() is not None
