"""The forms in which models write calls and reasoning, by name, and which of them a template shows.

Knows templates by their text alone.
"""

import re
from dataclasses import dataclass

from pearl_rt.errors import ConfigError
from pearl_rt.serve.parsing.hermes import HermesCalls
from pearl_rt.serve.parsing.llama_json import LlamaCalls
from pearl_rt.serve.parsing.marked_calls import MarkedCalls
from pearl_rt.serve.parsing.mistral import MistralCalls

CALLS: dict[str, type[MarkedCalls]] = {
    "hermes": HermesCalls,
    "llama3_json": LlamaCalls,
    "mistral": MistralCalls,
}
THINK = ("<think>", "</think>")
REASONING: dict[str, tuple[str, str]] = {
    "deepseek_r1": THINK,
    "qwen3": THINK,
    "mistral": ("[THINK]", "[/THINK]"),
}
_LLAMA = re.compile(r'<\|python_tag\|>|"name": ?[^{}]{1,60}"parameters"')


@dataclass(frozen=True)
class Forms:
    """How the answers of one checkpoint are read.

    calls      None: no form of calls is known
    reasoning  marks of begin and end; None: there is no reasoning
    """

    calls: type[MarkedCalls] | None = None
    reasoning: tuple[str, str] | None = None

    @classmethod
    def of(cls, template: str, calls: str = "auto", reasoning: str = "auto") -> "Forms":
        """Those of a template, but for what is named. "none": not looked for. Raises ConfigError for a name
        that is none.
        """
        for flag, name, known in (
            ("--tool-call-parser", calls, CALLS),
            ("--reasoning-parser", reasoning, REASONING),
        ):
            if name not in ("auto", "none", *known):
                names = ", ".join(known)
                raise ConfigError(f"{flag} {name!r} is not known: pass one of {names}, auto or none")
        return cls(
            _calls_of(template) if calls == "auto" else CALLS.get(calls),
            _reasoning_of(template) if reasoning == "auto" else REASONING.get(reasoning),
        )


def _calls_of(template: str) -> type[MarkedCalls] | None:
    if HermesCalls.mark in template:
        # <function=name> stands in it where arguments are written as tags, and not as JSON.
        return None if "<function=" in template else HermesCalls
    if MistralCalls.mark in template:
        return MistralCalls
    return LlamaCalls if _LLAMA.search(template) else None


def _reasoning_of(template: str) -> tuple[str, str] | None:
    return next((marks for marks in REASONING.values() if marks[1] in template), None)
