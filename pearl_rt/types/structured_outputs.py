"""What form an answer must have: a JSON schema, any JSON object, a regular expression, a choice or a grammar.

Names are vLLM's. Knows bounds and shapes; whether a schema or a grammar can be compiled is for
pearl_rt/grammar to say.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pearl_rt.errors import PearlError, RequestError, shown
from pearl_rt.types.values import Boolean, Fault, Rule, Texts, check_fields, parameter

MAX_FORM_CHARACTERS = 2**20  # of a schema, an expression, a grammar, or all choices together
MAX_SCHEMA_DEPTH = 64  # of arrays and objects in each other
MAX_CHOICES = 2**16


@dataclass(frozen=True)
class FormText(Rule):
    """A text that is not empty. None: none."""

    def __call__(self, name: str, value: object, error: Fault = RequestError) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str) or not value:
            raise error(f"{name} must be a text that is not empty, got {shown(value)}")
        _check_length(name, len(value), error)
        return value


@dataclass(frozen=True)
class Schema(Rule):
    """A JSON schema: an object, true or false, or their text. Kept as its text."""

    def __call__(self, name: str, value: object, error: Fault = RequestError) -> str | None:
        if value is None:
            return None
        if isinstance(value, str):
            _check_length(name, len(value), error)
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as cause:
                raise error(f"{name} is no JSON: {cause}") from None
        if not isinstance(value, (Mapping, bool)):
            raise error(f"{name} must be a JSON schema: an object, or its text; got {shown(value)}")
        if _depth(value) > MAX_SCHEMA_DEPTH:
            raise error(f"{name} has more than {MAX_SCHEMA_DEPTH} levels: use $defs and $ref, or fewer")
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            text.encode()
        except (TypeError, ValueError) as cause:
            raise error(f"{name} is not a value of JSON: {cause}") from None
        _check_length(name, len(text), error)
        return text


@dataclass(frozen=True)
class Choices(Rule):
    """Texts, none of them empty. None, or no text: none."""

    def __call__(self, name: str, value: object, error: Fault = RequestError) -> tuple[str, ...]:
        found: tuple[str, ...] = Texts()(name, value, error)
        if len(found) > MAX_CHOICES:
            raise error(f"{name} has {len(found)} texts: pass {MAX_CHOICES} at most")
        _check_length(name, sum(map(len, found)), error)
        return found


@dataclass(frozen=True)
class StructuredOutputsParams:
    """The form of an answer. Exactly one field is given. Raises RequestError with the value and the way out.

    json         a JSON schema, as an object or its text
    json_object  any JSON object
    regex        a regular expression that the whole answer matches (Rust's syntax, without look-around)
    choice       the texts of which the answer is one
    grammar      a grammar in Lark's syntax, or in GBNF
    reasoning    marks of a block of free text that may come before the form: its begin and its end, or the
                 end alone, where the prompt has begun it and it must come
    """

    json: str | None = parameter(None, Schema())
    json_object: bool = parameter(False, Boolean())
    regex: str | None = parameter(None, FormText())
    choice: tuple[str, ...] = parameter((), Choices())
    grammar: str | None = parameter(None, FormText())
    reasoning: tuple[str, ...] = parameter((), Texts())

    def __post_init__(self) -> None:
        check_fields(self, RequestError)
        given = [name for name in FORMS if getattr(self, name)]
        if len(given) != 1:
            raise RequestError(
                f"structured_outputs takes exactly one of {', '.join(FORMS)}; "
                f"got {' and '.join(given) or 'none'}"
            )
        if len(self.reasoning) > 2:
            raise RequestError(
                f"structured_outputs.reasoning has {len(self.reasoning)} marks: pass a begin and an end, or "
                "an end"
            )

    @property
    def form(self) -> str:
        """Which field is given."""
        return next(name for name in FORMS if getattr(self, name))


FORMS = ("json", "json_object", "regex", "choice", "grammar")


@dataclass(frozen=True)
class Structured(Rule):
    """StructuredOutputsParams, or a mapping of its fields. None: free text."""

    def __call__(
        self, name: str, value: object, error: Fault = RequestError
    ) -> StructuredOutputsParams | None:
        if value is None or isinstance(value, StructuredOutputsParams):
            return value
        if not isinstance(value, Mapping):
            raise error(f"{name} must be StructuredOutputsParams, or an object, got {shown(value)}")
        unknown = [key for key in value if key not in FORMS]
        if unknown:
            raise error(f"{name} has no field {shown(unknown[0])}: it has {', '.join(FORMS)}")
        try:
            return StructuredOutputsParams(**value)
        except PearlError as cause:
            raise error(f"{name}: {cause}" if not str(cause).startswith(name) else str(cause)) from None


def _check_length(name: str, length: int, error: Fault) -> None:
    if length > MAX_FORM_CHARACTERS:
        raise error(f"{name} has {length} characters: pass {MAX_FORM_CHARACTERS} at most")


def _depth(value: object) -> int:
    """Levels of arrays and objects, but no more than are looked at."""
    level, depth = [value], 0
    while level and depth <= MAX_SCHEMA_DEPTH:
        inside = [each for each in level if isinstance(each, (Mapping, list, tuple))]
        if not inside:
            break
        depth += 1
        level = [item for each in inside for item in (each.values() if isinstance(each, Mapping) else each)]
    return depth
