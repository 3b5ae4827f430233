"""Text that is shown as it grows, against the definition: decode all of it, cut at the first stop string."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_pairs import byte_tokenizer

from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.scheduling.text_stream import StopMatcher, TextStream

BYTES = Tokenizer(byte_tokenizer())
FEW = st.text("abé🧠", max_size=30)  # one, two and four bytes; few characters, so that stop strings are met
STOPS = st.lists(st.text("abé🧠", min_size=1, max_size=5), max_size=3)


class Words:
    """A decoder whose tokens are several characters each."""

    def __init__(self, words: list[str]) -> None:
        self._words = words

    def push(self, token_ids: list[int]) -> str:
        return "".join(self._words[token_id] for token_id in token_ids)

    def finish(self) -> str:
        return ""


def first_stop(text: str, stops: list[str]) -> tuple[int, str] | None:
    """(where it ends, which): the definition, by looking at every beginning of the text."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return end, max(ending, key=len)
    return None


def naive(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """(what is shown, which stop string ended it)."""
    found = first_stop(text, stops)
    if found is None:
        return text, None
    end, stop = found
    return text[: end if include else end - len(stop)], stop


def windows(ids: list[int], sizes: list[int]) -> list[list[int]]:
    parts, start = [], 0
    for size in [*sizes, len(ids)]:
        parts.append(ids[start : start + size])
        start += size
    return parts


@settings(max_examples=400, deadline=None)
@given(text=FEW, stops=STOPS, include=st.booleans(), sizes=st.lists(st.integers(0, 5), max_size=30))
def test_shown_text_is_the_text_cut_at_the_first_stop(
    text: str, stops: list[str], include: bool, sizes: list[int]
) -> None:
    ids = BYTES.encode(text)  # one id for each byte: characters and stop strings span tokens
    expected, stop = naive(text, stops, include)
    stream = TextStream(BYTES.decoder(), stops, include_stop_str_in_output=include)
    shown = ""
    for part in windows(ids, sizes):
        shown += stream.push(part)
        assert expected.startswith(shown)  # at no time more than the definition shows
        assert "�" not in shown
    assert shown + stream.finish() == expected
    assert stream.stop == stop
    if stop is not None:
        taken = BYTES.decode(ids[: stream.num_tokens])
        assert first_stop(taken, stops) is not None
        assert first_stop(BYTES.decode(ids[: stream.num_tokens - 1]).rstrip("�"), stops) is None
    else:
        assert stream.num_tokens == len(ids)


@settings(max_examples=300, deadline=None)
@given(
    words=st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=6),
    stops=st.lists(st.text("ab", min_size=1, max_size=7), min_size=1, max_size=4),
    data=st.data(),
)
def test_the_cut_does_not_depend_on_windows(words: list[str], stops: list[str], data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, len(words) - 1), max_size=12))
    text = "".join(words[i] for i in ids)
    found = set()
    for sizes in ([], [1] * len(ids), data.draw(st.lists(st.integers(0, 4), max_size=12))):
        stream = TextStream(Words(words), stops)
        shown = "".join(stream.push(part) for part in windows(ids, sizes))
        found.add((shown + stream.finish(), stream.stop, stream.num_tokens))
    assert len(found) == 1
    assert next(iter(found))[:2] == naive(text, stops, False)


@settings(max_examples=200, deadline=None)
@given(text=FEW, stops=STOPS)
def test_nothing_is_held_that_cannot_become_a_stop(text: str, stops: list[str]) -> None:
    stream = TextStream(BYTES.decoder(), stops)
    shown = stream.push(BYTES.encode(text))
    if stream.stop is None:
        held = text[len(shown) :]
        longest = max((n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])), default=0)
        assert len(held) == longest


def test_a_stop_string_ends_inside_a_token() -> None:
    words = ["one t", "wo th", "ree four"]
    stream = TextStream(Words(words), ["two th", "th"])
    assert stream.push([0]) == "one "
    assert stream.push([1, 2]) == ""
    assert (stream.stop, stream.num_tokens) == ("two th", 2)
    assert stream.push([2]) == stream.finish() == ""


def test_the_end_of_the_answer_lets_go_of_what_was_held() -> None:
    stream = TextStream(BYTES.decoder(), ["ab!"])
    assert stream.push(BYTES.encode("xab")) == "x"
    assert stream.finish() == "ab"
    assert stream.stop is None
    cut = TextStream(BYTES.decoder(), ["é!"])
    assert cut.push(BYTES.encode("aé")[:-1]) == "a"
    assert cut.finish() == "�"


def test_a_stop_before_min_tokens_is_none() -> None:
    ids = BYTES.encode("ab ab ab")
    for min_tokens, expected in ((0, ""), (2, ""), (3, "ab "), (6, "ab ab "), (9, "ab ab ab")):
        stream = TextStream(BYTES.decoder(), ["ab"], min_tokens=min_tokens)
        assert stream.push(ids) + stream.finish() == expected, min_tokens


def test_a_stop_may_begin_before_min_tokens_and_overlap_one_that_did_not_count() -> None:
    ids = BYTES.encode("aaaab")
    stream = TextStream(BYTES.decoder(), ["aa"], min_tokens=3)
    assert stream.push(ids) + stream.finish() == "a"
    assert stream.num_tokens == 3


def test_without_a_tokenizer_there_is_no_text() -> None:
    stream = TextStream(None)
    assert stream.push([5, 6]) + stream.finish() == ""
    assert stream.num_tokens == 2


@pytest.mark.parametrize("stop", ["aaaaab", "abacabad", "aabaaab"])
def test_a_matcher_follows_every_overlap(stop: str) -> None:
    rng = random.Random(1)
    for _ in range(300):
        text = "".join(rng.choice("aab") for _ in range(25))
        matcher, end = StopMatcher(stop), -1
        for place, character in enumerate(text):
            if matcher.push(character):
                end = place + 1
                break
        assert end == (text.find(stop) + len(stop) if stop in text else -1)


def test_characters_of_several_tokens_in_a_stop_string() -> None:
    ids = BYTES.encode("héllo 🧠 world")
    stream = TextStream(BYTES.decoder(), ["🧠 w"], include_stop_str_in_output=True)
    pieces = [stream.push([i]) for i in ids] + [stream.finish()]
    assert "".join(pieces) == "héllo 🧠 w"
    assert not any("�" in piece for piece in pieces)


def first_stop_among_names(
    pieces: list[tuple[str, bool]], stops: list[str], names: set[str], include: bool
) -> tuple[str, str | None]:
    """(what is shown, which stop string ended it), where some pieces are names that are not shown."""
    characters = [(character, is_shown) for piece, is_shown in pieces for character in piece]
    for end in range(1, len(characters) + 1):
        ending = []
        for stop in stops:
            heard = [n for n in range(end) if characters[n][1] or any(name in stop for name in names)]
            last = heard[-len(stop) :]
            if last[-1:] == [end - 1] and "".join(characters[n][0] for n in last) == stop:
                ending.append((len(stop), stop, last[0]))
        if ending:
            _, stop, begin = max(ending)
            shown = "".join(character for character, is_shown in characters[:begin] if is_shown)
            return shown + (stop if include else ""), stop
    return "".join(character for character, is_shown in characters if is_shown), None


@settings(max_examples=600, deadline=None)
@given(
    ids=st.lists(st.integers(0, 6), max_size=25),
    stops=st.lists(st.sampled_from(["a", "ab", "ba", "<x>", "a<x>b", "<x><y>", "b<y>", "b<"]), max_size=3),
    include=st.booleans(),
)
def test_stop_strings_may_name_tokens_that_are_not_shown(
    ids: list[int], stops: list[str], include: bool
) -> None:
    words, hidden = ["a", "b", "ab", "<x>", "<", "", ""], {5: "<x>", 6: "<y>"}
    stream = TextStream(Words(words), stops, hidden=hidden, include_stop_str_in_output=include)
    shown = "".join(stream.push([token_id]) for token_id in ids) + stream.finish()
    pieces = [(hidden.get(token_id, words[token_id]), token_id not in hidden) for token_id in ids]
    expected = first_stop_among_names(pieces, stops, set(hidden.values()), include)
    assert (shown, stream.stop) == expected


def test_nothing_waits_for_a_name_that_no_stop_string_has() -> None:
    stream = TextStream(Words(["a", ""]), ["ab"], hidden={1: "<x>"})
    assert [stream.push([token_id]) for token_id in (0, 1, 0)] == ["", "", "a"]
    named = TextStream(Words(["a", "b", ""]), ["a<x>"], hidden={2: "<x>"})
    assert [named.push([token_id]) for token_id in (0, 1, 0, 2)] == ["", "ab", "", ""]
    assert (named.stop, named.num_tokens) == ("a<x>", 4)
