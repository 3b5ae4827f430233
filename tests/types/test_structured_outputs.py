"""The form of an answer: exactly one, each within its bounds; on the command line a flag for each."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from pearl_rt import RequestError, SamplingParams, StructuredOutputsParams
from pearl_rt.cli.flags import add_flags, sampling_params
from pearl_rt.types.structured_outputs import MAX_CHOICES, MAX_FORM_CHARACTERS, MAX_SCHEMA_DEPTH

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"enum": ["ä", None]}}}


def nested(levels: int) -> Any:
    found: Any = {}
    for _ in range(levels - 1):
        found = {"not": found}
    return found


@pytest.mark.parametrize(
    ("fields", "form", "kept"),
    [
        ({"json": SCHEMA}, "json", SCHEMA),
        ({"json": json.dumps(SCHEMA)}, "json", SCHEMA),
        ({"json": {}}, "json", {}),
        ({"json": True}, "json", True),
        ({"json": nested(MAX_SCHEMA_DEPTH)}, "json", nested(MAX_SCHEMA_DEPTH)),
        ({"json_object": True}, "json_object", True),
        ({"regex": "a|b"}, "regex", "a|b"),
        ({"choice": ["yes", "no"]}, "choice", ("yes", "no")),
        ({"choice": "yes"}, "choice", ("yes",)),
        ({"choice": [f"word {i}" for i in range(10_000)]}, "choice", None),
        ({"grammar": 'start: "a"'}, "grammar", 'start: "a"'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_form_is_taken(fields: dict[str, Any], form: str, kept: object) -> None:
    params = StructuredOutputsParams(**fields)
    found = getattr(params, form)
    assert params.form == form
    assert kept is None or (json.loads(found) if form == "json" else found) == kept
    assert SamplingParams(structured_outputs=params).structured_outputs is params
    assert SamplingParams(structured_outputs=fields).structured_outputs == params  # type: ignore[arg-type]
    assert hash(SamplingParams(structured_outputs=params)) is not None


def test_properties_keep_their_order() -> None:
    """In which a model writes them."""
    text = StructuredOutputsParams(json=SCHEMA).json
    assert text is not None and text.index('"b"') < text.index('"a"') and "ä" in text


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "takes exactly one of json, json_object, regex, choice, grammar; got none"),
        ({"json": {}, "regex": "a"}, "got json and regex"),
        ({"json_object": False}, "got none"),
        ({"choice": []}, "got none"),
        ({"json": "{"}, "json is no JSON: .*line 1"),
        ({"json": "[" * 10**5}, "json is no JSON|json has more than"),
        ({"json": [1]}, r"json must be a JSON schema: an object, or its text; got \[1\]"),
        ({"json": 3}, "json must be a JSON schema"),
        ({"json": '"text"'}, "json must be a JSON schema"),
        ({"json": {"a": {1, 2}}}, "json is not a value of JSON"),
        ({"json": {"minimum": float("nan")}}, "json is not a value of JSON"),
        ({"json": {"const": "\ud800"}}, "json is not a value of JSON"),
        ({"json": nested(MAX_SCHEMA_DEPTH + 1)}, f"json has more than {MAX_SCHEMA_DEPTH} levels"),
        ({"json": nested(10**5)}, f"json has more than {MAX_SCHEMA_DEPTH} levels"),
        ({"json": {"enum": ["x" * MAX_FORM_CHARACTERS]}}, f"json has {MAX_FORM_CHARACTERS + 13} characters"),
        ({"json_object": 1}, "json_object must be True or False"),
        ({"regex": ""}, "regex must be a text that is not empty"),
        ({"regex": 3}, "regex must be a text"),
        ({"regex": "a" * (MAX_FORM_CHARACTERS + 1)}, f"regex has .* pass {MAX_FORM_CHARACTERS} at most"),
        ({"choice": ["a", ""]}, r"choice\[1\] must be a text that is not empty"),
        ({"choice": ["a"] * (MAX_CHOICES + 1)}, f"choice has {MAX_CHOICES + 1} texts"),
        ({"choice": ["a" * 600_000] * 2}, "choice has 1200000 characters"),
        ({"grammar": b"start"}, "grammar must be a text"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_wrong_forms_are_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError, match=named) as found:
        StructuredOutputsParams(**fields)
    assert len(str(found.value)) < 400
    with pytest.raises(RequestError, match=rf"structured_outputs.*({named})"):
        SamplingParams(structured_outputs=fields)  # type: ignore[arg-type]


def test_a_loop_is_an_error() -> None:
    loop: dict[str, Any] = {}
    loop["not"] = loop
    with pytest.raises(RequestError, match="levels"):
        StructuredOutputsParams(json=loop)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["json", 3, ["json"], {"jason": {}}, object()])
def test_what_is_no_form_is_named(value: object) -> None:
    with pytest.raises(RequestError, match=r"^structured_outputs (must be|has no field 'jason')"):
        SamplingParams(structured_outputs=value)  # type: ignore[arg-type]


def parsed(*words: str) -> SamplingParams:
    parser = argparse.ArgumentParser()
    add_flags(parser, SamplingParams)
    return sampling_params(parser.parse_args(words))


def test_each_form_has_a_flag(tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "a.lark"
    schema.write_text(json.dumps(SCHEMA, ensure_ascii=False), encoding="utf-8")
    grammar.write_text('start: "a"')
    forms = {
        ("--json-schema", str(schema)): StructuredOutputsParams(json=SCHEMA),
        ("--json-object",): StructuredOutputsParams(json_object=True),
        ("--regex", "a+"): StructuredOutputsParams(regex="a+"),
        ("--choice", "a", "--choice", "b"): StructuredOutputsParams(choice=("a", "b")),
        ("--grammar", str(grammar)): StructuredOutputsParams(grammar='start: "a"'),
    }
    for words, form in forms.items():
        assert parsed(*words).structured_outputs == form
    assert parsed().structured_outputs is None
    with pytest.raises(RequestError, match=r"exactly one .* got json_object and regex"):
        parsed("--json-object", "--regex", "a")
    with pytest.raises(RequestError, match=r"--grammar .*nowhere cannot be read"):
        parsed("--grammar", str(tmp_path / "nowhere"))
    (tmp_path / "latin").write_bytes(b"\xff\xfe")
    with pytest.raises(RequestError, match=r"--json-schema .*latin cannot be read"):
        parsed("--json-schema", str(tmp_path / "latin"))
