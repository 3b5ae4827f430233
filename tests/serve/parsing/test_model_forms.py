"""Which forms of calls and reasoning a template shows, and which a flag names."""

from __future__ import annotations

import pytest

from pearl_rt import ConfigError
from pearl_rt.serve.parsing.forms import CALLS, REASONING, Forms


@pytest.mark.parametrize(
    ("template", "calls", "reasoning"),
    [
        ("{{ tools }}<tool_call></tool_call><think></think>", "hermes", "qwen3"),
        ("{{ tools }}<tool_call><function=f>", None, None),
        ("{{ tools }}[TOOL_CALLS][ARGS]", "mistral", None),
        ("{{ tools }}<|python_tag|>", "llama3_json", None),
        ('{{ tools }}the form {"name": function name, "parameters": dictionary}.', "llama3_json", None),
        ("{{ messages }}[THINK][/THINK]", None, "mistral"),
        ("{{ messages }}", None, None),
    ],
)  # fmt: skip
def test_forms_that_a_template_shows(template: str, calls: str | None, reasoning: str | None) -> None:
    found = Forms.of(template)
    assert found == Forms(calls and CALLS[calls], reasoning and REASONING[reasoning])
    assert Forms.of(template, "none", "none") == Forms()
    assert Forms.of(template, "hermes", "qwen3") == Forms(CALLS["hermes"], REASONING["qwen3"])
    for flags in (("x", "auto"), ("auto", "x")):
        with pytest.raises(ConfigError, match="'x' is not known: pass one of"):
            Forms.of(template, *flags)
