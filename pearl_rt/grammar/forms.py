"""The forms that an engine's answers may have, compiled once each: the last ones are kept.

Knows llguidance and a tokenizer; not requests. docs/structured_outputs.md says what a form may be.
"""

import json
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.errors import ConfigError, QueueFullError, RequestError
from pearl_rt.grammar.matcher import Form, first_line
from pearl_rt.grammar.schema import MOST_REFERENCES, endless_reference, references
from pearl_rt.grammar.vocabulary import NEEDED, Vocabulary, native_vocabulary
from pearl_rt.types.structured_outputs import StructuredOutputsParams

if TYPE_CHECKING:
    from llguidance import LLTokenizer

KEPT = 64  # forms
MOST_REPEATS = 20_000
LONGEST_WAIT = 20.0  # seconds, for other forms to be compiled
# As OpenAI's answers are written; x-guidance in a schema says otherwise.
COMPACT: dict[str, bool | str] = {
    "whitespace_flexible": False,
    "item_separator": ",",
    "key_separator": ":",
}
META = re.compile(r"[\\.+*?()|\[\]{}^$#&\-~]")  # what a regular expression takes for more than itself


class Forms:
    """Of one engine. From any thread; one form is compiled at a time, which takes up to some seconds."""

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int, end_ids: Sequence[int]) -> None:
        """vocab_size, end_ids: of the target."""
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._end_ids = frozenset(token_id for token_id in end_ids if token_id < vocab_size)
        self._vocabulary: tuple[Vocabulary, LLTokenizer] | None = None  # made when it is first needed
        self._kept: OrderedDict[StructuredOutputsParams, Form] = OrderedDict()
        self._lock = threading.Lock()

    def form(self, asked: StructuredOutputsParams) -> Form:
        """Raises RequestError for what cannot be compiled or has no answer, ConfigError without llguidance,
        QueueFullError while too many others are compiled.
        """
        if not self._lock.acquire(timeout=LONGEST_WAIT):
            raise QueueFullError("other structured_outputs are being compiled: try again later")
        try:
            if asked not in self._kept:
                self._kept[asked] = self._compiled(asked)
            self._kept.move_to_end(asked)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return self._kept[asked]
        finally:
            self._lock.release()

    def _compiled(self, asked: StructuredOutputsParams) -> Form:
        if self._tokenizer is None:
            raise RequestError("this engine has no tokenizer for structured_outputs: leave them out")
        if not self._end_ids:
            raise RequestError(
                "structured_outputs end with the end of text, which this model's config.json does not name: "
                "add eos_token_id"
            )
        try:
            from llguidance import LLMatcher, LLParserLimits
        except ImportError:
            raise ConfigError(NEEDED) from None
        grammar = _grammar(asked)
        if asked.reasoning:
            special = {name: token_id for token_id, name in self._tokenizer.hidden.items()}
            grammar = _behind_reasoning(grammar, asked.reasoning, special)
        if self._vocabulary is None:
            vocabulary = Vocabulary(self._tokenizer, self._vocab_size, self._end_ids)
            self._vocabulary = vocabulary, native_vocabulary(vocabulary, self._end_ids)
        vocabulary, native = self._vocabulary
        matcher = LLMatcher(native, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
        probe = matcher.deep_copy()  # its first mask may turn out to be too complex
        if probe.is_error():
            raise RequestError(_refusal(asked.form, probe.get_error()))
        bits = np.unpackbits(np.frombuffer(probe.compute_bitmask(), np.uint8), bitorder="little")
        if probe.is_error():
            raise RequestError(_refusal(asked.form, probe.get_error()))
        if self._end_ids.issuperset(np.flatnonzero(bits).tolist()):
            raise RequestError(f"structured_outputs.{asked.form} allows no text: it has no answer")
        return Form(matcher, vocabulary, self._end_ids)


def _check_repeats(form: str, text: str) -> None:
    """Raises RequestError where the least counts of repetitions, multiplied, are beyond what is looked ahead
    in bounded time: x{1000}{1000} stands for a million x, all at once.
    """
    counts = [int(count[:20]) for count in re.findall(r"\{\s*(\d+)", text)]
    if math.prod(count for count in counts if count > 1) > MOST_REPEATS:
        raise RequestError(
            f"structured_outputs.{form} repeats parts more than {MOST_REPEATS} times, its counts {{n}} "
            "multiplied: repeat them less"
        )


def _patterns(schema: object) -> list[str]:
    """Of all that is inside a schema."""
    if isinstance(schema, list):
        return [text for part in schema for text in _patterns(part)]
    if not isinstance(schema, dict):
        return []
    own = [schema["pattern"]] if isinstance(schema.get("pattern"), str) else []
    named = schema.get("patternProperties")
    own += list(named) if isinstance(named, dict) else []
    return own + [text for part in schema.values() for text in _patterns(part)]


def _grammar(asked: StructuredOutputsParams) -> str:
    """As llguidance takes it."""
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    if asked.json is not None:
        schema = json.loads(asked.json)
        if len(references(schema)) > MOST_REFERENCES:
            raise RequestError(
                f"structured_outputs.json has more than {MOST_REFERENCES} different $ref: use fewer"
            )
        if (ref := endless_reference(schema)) is not None:
            raise RequestError(
                f"structured_outputs.json needs {ref!r} inside itself without end: let it be left out, or be "
                "something else"
            )
        for pattern in _patterns(schema):
            _check_repeats("json", pattern)
        if isinstance(schema, bool) or not schema:
            schema = {} if schema is not False else {"anyOf": []}
        return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=COMPACT))
    if asked.json_object:
        return str(LLMatcher.grammar_from_json_schema('{"type":"object"}', defaults=COMPACT))
    if asked.regex is not None:
        _check_repeats("regex", asked.regex)
        return str(LLMatcher.grammar_from_regex(asked.regex))
    if asked.choice:
        texts = (META.sub(r"\\\g<0>", text) for text in asked.choice)
        return str(LLMatcher.grammar_from_regex("|".join(texts)))
    assert asked.grammar is not None
    _check_repeats("grammar", asked.grammar)
    try:
        return str(LLMatcher.grammar_from_lark(any_to_lark(asked.grammar)))
    except Exception as error:  # of the reader of GBNF, which raises no narrower type
        raise RequestError(
            f"structured_outputs.grammar is neither Lark (which has a rule `start`) nor GBNF: "
            f"{first_line(str(error))}"
        ) from None


def _behind_reasoning(grammar: str, marks: Sequence[str], special: Mapping[str, int]) -> str:
    """The form behind a block of free text between marks; the begin may be missing, where the prompt has it.
    special: ids of the tokens that no text spells, by name.
    """
    begin, end = marks[0], marks[-1]

    def literal(mark: str) -> str:
        return f"<[{special[mark]}]>" if mark in special else json.dumps(mark, ensure_ascii=False)

    if end in special:
        block = f"block: /(?s:.*)/ {literal(end)}"
    else:
        block = f"block[suffix={literal(end)}]: /(?s:.*)/"
    start = "block space?" if len(marks) == 1 else f"({literal(begin)} block space?)?"
    head = {"lark_grammar": f"start: {start} @answer\n{block}\nspace: /[ \\t\\r\\n]{{1,16}}/"}
    [answer] = json.loads(grammar)["grammars"]
    return json.dumps({"grammars": [head, {**answer, "name": "answer"}]})


def _refusal(form: str, error: str) -> str:
    """What llguidance found, with the way out."""
    if keys := re.search(r"Unimplemented keys: \[(.*)\]", error):
        return f"structured_outputs.{form} has keywords that are not supported: {keys[1]}: leave them out"
    return f"structured_outputs.{form} cannot be compiled: {first_line(error)}"
