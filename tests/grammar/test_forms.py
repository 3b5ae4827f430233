"""Forms as they are compiled: what may follow, what is forced, what is refused; by each kind of tokenizer."""

from __future__ import annotations

import random
import sys
from typing import Any

import pytest
from asked_matcher import PERSON, allowed, forced_by, forms_of, step, taken
from random_schemas import schema
from tiny_pairs import byte_tokenizer

from pearl_rt import ConfigError, RequestError, StructuredOutputsParams
from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.grammar import forms as forms_module
from pearl_rt.grammar.forms import KEPT, Forms
from pearl_rt.grammar.matcher import LONGEST_FORCED, Matcher


@pytest.fixture(scope="module", params=["shipped", "sentencepiece", "bytes"])
def kind(request: pytest.FixtureRequest) -> tuple[Forms, Tokenizer, int]:
    return forms_of(request.param)


@pytest.fixture(scope="module")
def shipped() -> tuple[Forms, Tokenizer, int]:
    return forms_of("shipped")


def test_what_may_follow(kind: tuple[Forms, Tokenizer, int]) -> None:
    """Each token that is allowed begins or goes on with a text of the form, and no other is."""
    forms, tokenizer, end = kind
    matcher = forms.form(StructuredOutputsParams(choice=["ab", "abba", "b\n"])).matcher()
    texts = [b"ab", b"abba", b"b\n"]

    def check(before: bytes, found: list[int] | None) -> None:
        assert found is not None
        plain = [i for i in range(tokenizer.vocab_size) if i not in tokenizer.hidden]
        spelled = {i: tokenizer.token_bytes(i) for i in plain}
        last = {own: i for i, own in spelled.items() if own}  # of two with the same bytes
        wanted = {i for own, i in last.items() if any(text.startswith(before + own) for text in texts)}
        assert set(found) - {end} == wanted
        assert (end in found) == (before in texts)

    check(b"", allowed(matcher))
    a = next(i for i in allowed(matcher) or () if tokenizer.token_bytes(i) == b"a")
    check(b"a", allowed(matcher, [a]))
    b = next(i for i in allowed(matcher) or () if tokenizer.token_bytes(i) == b"b")
    check(b"ab", allowed(matcher, [b]))
    assert allowed(matcher, [end]) is None and allowed(matcher, [tokenizer.vocab_size + 3]) is None
    assert taken(matcher, [b, b, b]) == 1
    check(b"a", allowed(matcher, (), num_back=2))
    check(b"", allowed(matcher, (), num_back=1))


def test_forced_tokens_are_those_of_the_tokenizer(shipped: tuple[Forms, Tokenizer, int]) -> None:
    forms, tokenizer, end = shipped
    matcher = forms.form(StructuredOutputsParams(json=PERSON)).matcher()

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    assert forced_by(matcher) == ids('{"name":')
    assert taken(matcher, ids('{"name":')) == len(ids('{"name":'))
    assert forced_by(matcher) == []  # a quote, or one with what follows
    assert taken(matcher, ids('"Bo"')) == len(ids('"Bo"'))
    assert forced_by(matcher) == ids(',"age":')
    taken(matcher, ids(',"age":'))
    assert forced_by(matcher) == []
    assert end not in (allowed(matcher) or [end])
    taken(matcher, ids("7"))
    assert forced_by(matcher) == []
    taken(matcher, ids("}"))
    assert forced_by(matcher) == [] and allowed(matcher) == [end]


@pytest.mark.parametrize("number", range(0, 60, 4))
def test_what_is_forced(kind: tuple[Forms, Tokenizer, int], number: int) -> None:
    """Whatever may follow begins with it, or is its beginning; and to ask changes no mask, with tokens that
    are taken back or not.
    """
    forms, tokenizer, end = kind
    rng = random.Random(number)
    form = forms.form(StructuredOutputsParams(json=schema(number)))
    asked, plain = form.matcher(), form.matcher()
    path: list[int] = []
    for _ in range(40):
        found = allowed(asked)
        assert found == allowed(plain)
        forced = forced_by(asked) if rng.random() < 0.7 else []
        text = b"".join(map(tokenizer.token_bytes, forced))
        assert not forced or end not in (found or ())
        for token in (found or ()) if text else ():
            own = tokenizer.token_bytes(token)
            assert own.startswith(text) or text.startswith(own)
        open_ids = [token for token in found or () if token != end]
        if forced and rng.random() < 0.5:
            more = forced
        elif open_ids:
            more = [rng.choice(open_ids)]
        else:
            more = []
        back = rng.randint(0, len(path)) if not more or rng.random() < 0.2 else 0
        more = [] if back else more
        for matcher in (asked, plain):
            assert step(matcher, more, num_back=back, skip=99)[0] == len(more)
        path = path[: len(path) - back] + more


def test_forced_text_is_bounded(kind: tuple[Forms, Tokenizer, int]) -> None:
    forms, tokenizer, _ = kind
    matcher = forms.form(StructuredOutputsParams(regex="(ab){2000}")).matcher()
    forced = forced_by(matcher)
    text = b"".join(map(tokenizer.token_bytes, forced))
    assert (b"ab" * 100).startswith(text) and 0 < len(text) < 2 * LONGEST_FORCED
    assert taken(matcher, forced) == len(forced)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [("a.b", 1), ("[x]{2}|^$&#~-\\", 1), ("line\nend\t", 1), ("ä😀", 1), (" lead", 1), ('say "x"', 1)],
)
def test_choices_are_taken_as_they_are(kind: tuple[Forms, Tokenizer, int], text: str, pieces: int) -> None:
    forms, tokenizer, end = kind
    matcher = forms.form(StructuredOutputsParams(choice=[text, "other"])).matcher()
    by_bytes = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    tokens = [by_bytes[bytes([byte])] for byte in text.encode()]
    assert end in (allowed(matcher, tokens) or ())
    assert taken(matcher, [by_bytes[b"x"]]) == 0


def test_a_form_behind_reasoning(kind: tuple[Forms, Tokenizer, int]) -> None:
    """Free text up to a mark, and then the form alone; a block that is not open may be left out."""
    forms, tokenizer, end = kind
    by_bytes = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}

    def ids(text: str) -> list[int]:
        return [by_bytes[bytes([byte])] for byte in text.encode()]

    def form(*marks: str) -> Matcher:
        return forms.form(StructuredOutputsParams(regex="ab{2}", reasoning=marks)).matcher()

    opened = form(")")
    found = allowed(opened) or []
    assert {*ids("a)x\n{"), by_bytes[b"\xc3"]} <= set(found) and end not in found
    assert end not in (allowed(opened, ids("so (a, é")) or [end])
    assert set(allowed(opened, ids(")")) or ()) >= {*ids("a \n")} and not {*ids("bx)")} & set(
        allowed(opened) or ()
    )
    assert taken(opened, ids("x")) == 0
    assert end in (allowed(opened, ids("\nabb")) or ()) and allowed(opened, ids("b")) is None
    found = allowed(opened, (), num_back=5) or []  # the mark, a line end and the form are taken back
    assert {*ids("ab)x")} <= set(found) and end not in found

    begun = form("((", "))")
    assert {by_bytes[b"("], *ids("a")} <= set(allowed(begun) or ()) and not {*ids("bx) ")} & set(
        allowed(begun) or ()
    )
    assert end in (allowed(begun, ids("((a ) b))abb")) or ())
    assert end in (allowed(form("((", "))"), ids("abb")) or ())
    with pytest.raises(RequestError, match="reasoning has 3 marks"):
        form("a", "b", "c")


GRAMMARS = {
    "lark": 'start: greeting " " NAME\ngreeting: "hi" | "bye"\nNAME: /[a-z]{2,3}/',
    "gbnf": 'root ::= greeting " " name\ngreeting ::= "hi" | "bye"\nname ::= [a-z] [a-z] [a-z]?',
}


@pytest.mark.parametrize("name", GRAMMARS)
def test_grammars(shipped: tuple[Forms, Tokenizer, int], name: str) -> None:
    forms, tokenizer, end = shipped
    matcher = forms.form(StructuredOutputsParams(grammar=GRAMMARS[name])).matcher()
    tokens = tokenizer.encode("bye abc", add_special_tokens=False)
    assert end in (allowed(matcher, tokens) or ())
    tokens = tokenizer.encode("bye a", add_special_tokens=False)
    other = forms.form(StructuredOutputsParams(grammar=GRAMMARS[name])).matcher()
    assert end not in (allowed(other, tokens) or [end])


@pytest.mark.parametrize(
    ("form", "named"),
    [
        ({"json": {"type": "obj"}}, "structured_outputs.json cannot be compiled: Invalid type: obj"),
        ({"json": {"not": {"const": 1}, "if": {}}}, 'keywords that are not supported: "if", "not": leave'),
        ({"json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json": {"$ref": "http://elsewhere/x"}}, "http://elsewhere/x"),
        ({"json": {"$ref": "#/$defs/none"}}, "none"),
        ({"json": {"$ref": "#"}}, "needs '#' inside itself without end"),
        ({"json": {"enum": []}}, "structured_outputs.json cannot be compiled: Unsatisfiable"),
        ({"json": False}, "structured_outputs.json cannot be compiled: Unsatisfiable"),
        ({"json": {"type": "string", "minLength": 3, "maxLength": 2}}, "minLength"),
        ({"json": {"type": "string", "pattern": "a{1000}{1000}"}}, "repeats parts more than"),
        ({"json": {"type": "string", "pattern": "(?=a)b"}}, "structured_outputs.json cannot be compiled"),
        ({"regex": "a("}, "structured_outputs.regex cannot be compiled"),
        ({"regex": "(?=a)b"}, "structured_outputs.regex cannot be compiled"),
        ({"regex": "a{1000}{1000}{1000}"}, "repeats parts more than"),
        ({"regex": "()"}, "structured_outputs.regex allows no text"),
        ({"grammar": "nothing"}, "structured_outputs.grammar is neither Lark"),
        ({"grammar": "start: x"}, "structured_outputs.grammar cannot be compiled"),
        ({"grammar": "root ::= " + "(" * 5000}, "structured_outputs.grammar is neither Lark"),
        ({"grammar": 'start: b{1000}\nb: c{1000}\nc: "x"'}, "repeats parts more than"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_cannot_be_compiled_is_named(
    shipped: tuple[Forms, Tokenizer, int], form: dict[str, Any], named: str
) -> None:
    with pytest.raises(RequestError, match=named) as found:
        shipped[0].form(StructuredOutputsParams(**form))
    assert len(str(found.value)) < 600 and "\n" not in str(found.value)


def test_ten_thousand_words(shipped: tuple[Forms, Tokenizer, int]) -> None:
    forms, tokenizer, end = shipped
    words = [f"word {i}" for i in range(10_000)]
    for asked in (StructuredOutputsParams(json={"enum": words}), StructuredOutputsParams(choice=words)):
        matcher = forms.form(asked).matcher()
        text = '"word 9999"' if asked.json else "word 9999"
        tokens = tokenizer.encode(text, add_special_tokens=False)
        assert allowed(matcher, tokens) == [end]


def test_the_last_forms_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    forms, _, _ = forms_of("bytes")
    first = forms.form(StructuredOutputsParams(regex="first"))
    assert forms.form(StructuredOutputsParams(regex="first")) is first
    for i in range(KEPT):
        forms.form(StructuredOutputsParams(regex=f"x{i}"))
    assert forms.form(StructuredOutputsParams(regex="first")) is not first


def test_what_an_engine_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = StructuredOutputsParams(regex="a")
    tokenizer = Tokenizer(byte_tokenizer(), vocab_size=300)
    with pytest.raises(RequestError, match="no tokenizer for structured_outputs"):
        Forms(None, 300, [256]).form(asked)
    for ends in ([], [300]):
        with pytest.raises(RequestError, match="add eos_token_id"):
            Forms(tokenizer, 300, ends).form(asked)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConfigError, match=r"pip install 'pearl_rt\[structured\]'"):
        Forms(tokenizer, 300, [256]).form(asked)


def test_others_that_are_compiled_are_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    forms, _, _ = forms_of("bytes")
    monkeypatch.setattr(forms_module, "LONGEST_WAIT", 0.01)
    with forms._lock, pytest.raises(forms_module.QueueFullError, match="try again later"):
        forms.form(StructuredOutputsParams(regex="a"))


def test_two_ends_of_text() -> None:
    tokenizer = Tokenizer(byte_tokenizer(), vocab_size=300)
    matcher = Forms(tokenizer, 300, [256, 258]).form(StructuredOutputsParams(regex="a")).matcher()
    a = tokenizer.encode("a", add_special_tokens=False)
    assert allowed(matcher, a) == [256, 258]
