"""A parameter stands in one table, from which dataclass, command line, server and Engine take it."""

from __future__ import annotations

import argparse
import inspect
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest

from pearl_rt import ConfigError, Engine, EngineOptions, RequestError, SamplingParams
from pearl_rt.cli.flags import add_flags, flag_of, given
from pearl_rt.serve import completion_request
from pearl_rt.serve.completion_request import read_completion
from pearl_rt.types import values
from pearl_rt.types.structured_outputs import Structured, StructuredOutputsParams
from pearl_rt.types.values import (
    Boolean,
    Choice,
    Integer,
    Layers,
    Number,
    NumbersById,
    Parameter,
    Text,
    Texts,
    TokenIds,
)

BODY = {"model": "tiny", "prompt": "a"}


def right(row: Parameter) -> Any:
    """A value that the row takes, and that is not its default."""
    rule = row.rule
    if isinstance(rule, Boolean):
        return not row.default
    if isinstance(rule, Integer):
        return next(n for n in (rule.low + 1, rule.low + 2) if n != row.default)
    if isinstance(rule, Number):
        return next(x for x in (rule.high / 2, rule.high / 4) if x != row.default)
    if isinstance(rule, Choice):
        return next(name for name in rule.names if name not in (row.default, "cuda:N"))
    if isinstance(rule, Structured):
        return StructuredOutputsParams(regex="x")
    return {Text: "x", Texts: ("x", "y"), TokenIds: (3, 4), Layers: (3, 4), NumbersById: {3: 1.5}}[type(rule)]


def words(row: Parameter, value: Any) -> list[str]:
    """The flags that say so."""
    if isinstance(row.rule, Boolean):
        return [flag_of(row)]
    if isinstance(row.rule, Structured):
        return ["--regex=x"]
    many = [f"{key}={amount}" for key, amount in value.items()] if isinstance(value, dict) else value
    many = many if isinstance(many, (tuple, list)) else [value]
    return [f"{flag_of(row)}={each}" for each in many]


def from_flags(table: type, arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_flags(parser, table)
    return given(parser.parse_args(arguments), table)


def rows(table: type) -> Any:
    return pytest.mark.parametrize("row", values.parameters(table), ids=lambda row: row.name)


@pytest.mark.parametrize("table", (SamplingParams, EngineOptions))
def test_every_row_is_described_and_its_default_is_right(table: type) -> None:
    assert all(row.help for row in values.parameters(table))
    assert asdict(table()) == {row.name: row.default for row in values.parameters(table)}
    assert from_flags(table, []) == {}


@pytest.mark.parametrize("table", (SamplingParams, EngineOptions))
def test_every_row_is_a_flag(table: type) -> None:
    for row in values.parameters(table):
        value = right(row)
        found = from_flags(table, words(row, value))
        assert found.keys() == {row.name}
        hot = {"temperature": 1.0, "max_tokens": None} if table is SamplingParams else {}
        assert getattr(table(**hot | found), row.name) == value


@rows(SamplingParams)
def test_every_parameter_is_a_field_of_a_body(row: Parameter) -> None:
    value = right(row)
    json = {str(key): amount for key, amount in value.items()} if isinstance(value, dict) else value
    json = list(json) if isinstance(json, tuple) else json
    json = {"regex": "x"} if isinstance(row.rule, Structured) else json
    params = read_completion(
        {**BODY, row.name: json, **({} if row.name == "max_tokens" else {"max_tokens": 99})}
    )
    assert getattr(params.params, row.name) == value


@rows(SamplingParams)
def test_flag_and_body_refuse_with_the_words_of_the_dataclass(row: Parameter) -> None:
    if not isinstance(row.rule, (Integer, Number)):
        return
    wrong = row.rule.low - 1
    with pytest.raises(RequestError) as expected:
        SamplingParams(**{row.name: wrong})
    with pytest.raises(RequestError) as by_flag:
        SamplingParams(**from_flags(SamplingParams, words(row, wrong)))
    with pytest.raises(RequestError) as by_body:
        read_completion({**BODY, row.name: wrong})
    assert str(expected.value) == str(by_flag.value) == str(by_body.value)
    assert str(expected.value).startswith(f"{row.name} ")


def test_a_row_more_is_a_field_a_flag_and_a_field_of_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Wider(SamplingParams):
        """Parameters, and one more.

        warmth    how warm, 1 to 5
        """

        warmth: int = values.parameter(2, Integer(1, 5))

    [row] = [row for row in values.parameters(Wider) if row.name == "warmth"]
    assert (row.default, row.help) == (2, "how warm, 1 to 5")
    with pytest.raises(RequestError, match="warmth 6 is out of range: pass 1 to 5"):
        Wider(warmth=6)
    assert from_flags(Wider, ["--warmth", "4"]) == {"warmth": 4}
    monkeypatch.setattr(completion_request, "SamplingParams", Wider)
    assert read_completion({**BODY, "warmth": 3}).params.warmth == 3
    with pytest.raises(RequestError, match="warmth 6 is out of range: pass 1 to 5"):
        read_completion({**BODY, "warmth": 6})


def test_an_engine_has_the_options_of_the_table_as_keywords() -> None:
    keywords = inspect.signature(Engine).parameters
    own = {name: keyword.default for name, keyword in keywords.items() if "tensors" not in name}
    own = {name: default for name, default in own.items() if "config" not in name and "tokenizer" not in name}
    assert own == asdict(EngineOptions())
    assert list(own) == list(asdict(EngineOptions()))


@rows(EngineOptions)
def test_what_an_engine_cannot_be_is_named(row: Parameter) -> None:
    with pytest.raises(ConfigError, match=f"^{row.name} "):
        EngineOptions(**{row.name: 1.5})
    assert replace(EngineOptions(), **{row.name: right(row)}) != EngineOptions()
