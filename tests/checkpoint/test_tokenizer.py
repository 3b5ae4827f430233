"""Tokenizers of both styles, byte-level and SentencePiece: ids, text, and text that arrives in pieces."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.errors import CheckpointError, ConfigError, PromptTooLongError, RequestError

TEXT = [
    "def f(x):\n    return x  # naïve café",
    "hello  hello world",
    "你好世界",
    "🙂🙃 été",
    "a b c d e f",
] * 3
SPECIAL = ["<s>", "</s>"]


def byte_level() -> tokenizers.Tokenizer:
    """As Llama 3 and Qwen: text as bytes, each shown as a character."""
    tok = tokenizers.Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tok.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return tok


def sentencepiece() -> tokenizers.Tokenizer:
    """As Llama 2: spaces as U+2581, one put first, unknown characters as bytes."""
    tok = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    first = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    ascii_only = ["".join(c if ord(c) < 128 else " " for c in text) for text in TEXT]
    tok.train_from_iterator(ascii_only, trainers.BpeTrainer(vocab_size=340, special_tokens=first))
    content = json.loads(tok.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if not t["content"].startswith("<0x")]
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def metaspace() -> tokenizers.Tokenizer:
    """As newer conversions from SentencePiece: the same by a pre-tokenizer."""
    tok = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tok.decoder = decoders.Metaspace(prepend_scheme="first")
    tok.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", *SPECIAL]))
    return tok


STYLES: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "byte-level": byte_level,
    "sentencepiece": sentencepiece,
    "metaspace": metaspace,
}
TOKENIZERS = {name: Tokenizer(build()) for name, build in STYLES.items()}
WHOLE_TEXT = ["byte-level", "sentencepiece"]  # the styles that can write any text


def with_bos(tok: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tok.token_to_id("<s>"))]
    )
    return tok


def saved(path: Path, tok: tokenizers.Tokenizer, vocab_size: int = 0, **settings_: object) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"vocab_size": vocab_size}))
    (path / "tokenizer_config.json").write_text(json.dumps(settings_))
    tok.save(str(path / "tokenizer.json"))
    return path


def pieces(tokenizer: Tokenizer, ids: list[int], after: list[int], sizes: list[int]) -> list[str]:
    decoder, out, start = tokenizer.decoder(after=after), [], 0
    for size in [*sizes, len(ids)]:
        out.append(decoder.push(ids[start : start + size]))
        start += size
    return [*out, decoder.finish()]


@pytest.mark.parametrize("style", STYLES)
def test_bytes_of_tokens_are_those_of_the_text(style: str) -> None:
    """A part of a character has its own, and a space that a word begins with stays."""
    tokenizer = TOKENIZERS[style]
    text = "hello  naïve café 🙂" if style in WHOLE_TEXT else "hello  hello world"
    told = b"".join(tokenizer.token_bytes(i) for i in tokenizer.encode(text))
    assert told.decode().removeprefix(" ") == text
    assert tokenizer.token_bytes(tokenizer._tokenizer.token_to_id("<s>")) == b"<s>"
    assert tokenizer.token_bytes(10**6) == b""
    for i in range(tokenizer.vocab_size):
        assert tokenizer.token_text(i) == tokenizer.token_bytes(i).decode(errors="replace")


def test_a_text_that_cannot_fit_is_known_by_its_length() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    longest = max(map(len, tokenizer._tokenizer.get_vocab()))
    tokenizer.check_length("a" * (longest * 7), 7)
    with pytest.raises(PromptTooLongError, match=f"{longest * 7 + 1} characters, more than 7 tokens"):
        tokenizer.check_length("a" * (longest * 7 + 1), 7)


@pytest.mark.slow
@pytest.mark.parametrize("style", WHOLE_TEXT)
@settings(max_examples=150, deadline=None)
@given(
    text=st.text(st.characters(codec="utf-8", exclude_characters="▁�"), max_size=40),
    sizes=st.lists(st.integers(0, 3), max_size=30),
)
def test_streamed_text_is_the_text(style: str, text: str, sizes: list[int]) -> None:
    if any(special in text for special in (*SPECIAL, "<unk>")):
        return
    tokenizer = TOKENIZERS[style]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    for cut in ([], [1] * len(ids), sizes):
        streamed = pieces(tokenizer, ids, [], cut)
        assert "".join(streamed) == text
        assert not any("�" in piece for piece in streamed)


@pytest.mark.parametrize("style", STYLES)
def test_a_continuation_keeps_the_space_it_begins_with(style: str) -> None:
    tokenizer = TOKENIZERS[style]
    ids = tokenizer.encode("hello world hello")
    for cut in range(1, len(ids)):
        prompt, rest = ids[:cut], ids[cut:]
        written = tokenizer.decode(rest, after=prompt)
        assert tokenizer.decode(prompt) + written == "hello world hello"
        assert "".join(pieces(tokenizer, rest, prompt, [1] * len(rest))) == written


@pytest.mark.parametrize("style", STYLES)
def test_special_tokens_are_skipped_and_hide_no_space(style: str) -> None:
    tokenizer = TOKENIZERS[style]
    ids, end = tokenizer.encode("hello world"), tokenizer._tokenizer.token_to_id("</s>")
    spread = [token for i in ids for token in (end, i, end)]
    assert tokenizer.decode(spread) == "hello world"
    assert "".join(pieces(tokenizer, spread, [], [1] * len(spread))) == "hello world"


@pytest.mark.parametrize("style", WHOLE_TEXT)
def test_a_character_waits_for_its_last_byte(style: str) -> None:
    tokenizer = TOKENIZERS[style]
    ids = tokenizer.encode("a\U0001f9e0")  # of its four bytes, no merge covers more than two
    assert len(ids) >= 4
    decoder = tokenizer.decoder()
    streamed = [decoder.push([i]) for i in ids]
    assert streamed[-1] == "\U0001f9e0" and streamed[-3:-1] == ["", ""]
    assert decoder.finish() == ""
    half = tokenizer.decoder(after=ids[:-1])  # the prompt ends inside the character
    assert half.push(ids[-1:]) == "\U0001f9e0"


@pytest.mark.parametrize("style", WHOLE_TEXT)
def test_an_unfinished_character_is_shown_at_the_end(style: str) -> None:
    tokenizer = TOKENIZERS[style]
    decoder = tokenizer.decoder()
    assert decoder.push(tokenizer.encode("ab\U0001f9e0")[:-1]) == "ab"
    assert set(decoder.finish()) == {"�"}
    assert decoder.finish() == ""


@pytest.mark.parametrize("style", WHOLE_TEXT)
def test_invalid_bytes_are_not_held_for_ever(style: str) -> None:
    tokenizer = TOKENIZERS[style]
    token = {"byte-level": "ÿ", "sentencepiece": "<0xFF>"}[style]
    decoder = tokenizer.decoder()
    streamed = [decoder.push([tokenizer._tokenizer.token_to_id(token)]) for _ in range(100)]
    assert "".join(streamed).count("�") > 60
    assert len(decoder._window) < 40


@pytest.mark.parametrize("style", WHOLE_TEXT)
def test_pushes_that_all_end_inside_characters_show_no_replacement(style: str) -> None:
    tokenizer = TOKENIZERS[style]
    text = "\U0001f9e0\U0001f680" * 12  # no token holds a whole one
    ids = tokenizer.encode(text)
    for size in (3, 5, 7):
        streamed = pieces(tokenizer, ids, [], [0, 1, *[size] * (len(ids) // size)])
        assert "".join(streamed) == text
        assert not any("\ufffd" in piece for piece in streamed)


@pytest.mark.parametrize("style", STYLES)
def test_text_does_not_depend_on_how_tokens_were_divided(style: str) -> None:
    tokenizer = TOKENIZERS[style]
    rng = random.Random(1)
    for _ in range(20):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(60)]
        sizes = [rng.randrange(9) for _ in ids]
        found = {"".join(pieces(tokenizer, ids, [], cut)) for cut in ([], [1] * len(ids), sizes)}
        assert len(found) == 1


@pytest.mark.parametrize("style", STYLES)
def test_random_ids_decode_and_stream(style: str) -> None:
    tokenizer = TOKENIZERS[style]
    rng = random.Random(0)
    ids = [rng.randrange(tokenizer.vocab_size) for _ in range(2000)]
    streamed = "".join(pieces(tokenizer, ids, [], [1] * len(ids)))
    assert len(streamed) == pytest.approx(len(tokenizer.decode(ids)), rel=0.1)
    assert streamed == tokenizer.decode(ids) or style == "sentencepiece"  # there one bad byte spoils its run


def test_work_per_token_does_not_grow() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer.encode("hello world é " * 800)

    def seconds(n: int) -> float:
        best = float("inf")
        for _ in range(3):
            decoder, begin = tokenizer.decoder(), time.process_time()
            for i in ids[:n]:
                decoder.push([i])
            best = min(best, time.process_time() - begin)
        return best

    assert len(ids) > 4000
    assert seconds(4000) < 30 * seconds(400)  # ten times as much; a hundred times if it grew


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("bad", [-1, 10**6, 2**70])
def test_ids_out_of_range(style: str, bad: int) -> None:
    tokenizer = TOKENIZERS[style]
    decoder = tokenizer.decoder()
    for call in (tokenizer.decode, decoder.push):
        with pytest.raises(RequestError, match=f"token id {bad} is out of range"):
            call([5, bad])
    with pytest.raises(RequestError, match="out of range"):
        tokenizer.decoder(after=[bad])


def test_text_that_is_no_text() -> None:
    for text in ("\ud800", None, 7):
        with pytest.raises(RequestError, match="cannot be encoded"):
            TOKENIZERS["byte-level"].encode(text)  # type: ignore[arg-type]


def test_padded_rows_of_the_model_stand_for_no_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(saved(tmp_path, sentencepiece(), vocab_size=400))
    assert tokenizer.vocab_size == 400
    ids = tokenizer.encode("hello world")
    spread = [token for i in ids for token in (399, i)]
    assert tokenizer.decode(spread) == "hello world"
    assert "".join(pieces(tokenizer, spread, [], [1] * len(spread))) == "hello world"
    with pytest.raises(RequestError, match="400 is out of range: the vocabulary has 400"):
        tokenizer.decode([400])


def test_the_end_of_the_text_is_not_shown_whatever_its_flag(tmp_path: Path) -> None:
    tok = byte_level()
    tok.add_tokens(
        [tokenizers.AddedToken(name, special=False, normalized=False) for name in ("<end>", "<b>")]
    )
    end, other = tok.token_to_id("<end>"), tok.token_to_id("<b>")
    for asked, shown in (
        ({}, "a<end><b>"),
        ({"eos_token": "<end>"}, "a<b>"),
        ({"eos_token": "<gone>"}, "a<end><b>"),
    ):
        tokenizer = Tokenizer.from_pretrained(saved(tmp_path, tok, **asked))
        ids = [*tokenizer.encode("a"), end, other]
        assert tokenizer.decode(ids) == "".join(pieces(tokenizer, ids, [], [1, 1, 1])) == shown
    hiding = tokenizer.hiding([end, other, 10**6])
    assert hiding.decode(ids) == "a" and (hiding.hidden[end], hiding.hidden[other]) == ("<end>", "<b>")
    assert tokenizer.decode(ids) == "a<end><b>"
    assert hiding.fingerprint == tokenizer.fingerprint
    assert hiding.hiding([end]) is hiding


@pytest.mark.parametrize(
    ("in_file", "asked", "expected"),
    [
        (True, {}, 1),
        (True, {"add_bos_token": True, "bos_token": "<s>"}, 1),
        (False, {"add_bos_token": True, "bos_token": "<s>"}, 1),
        (False, {"add_bos_token": True, "bos_token": {"content": "<s>"}}, 1),
        (False, {"add_bos_token": False, "bos_token": "<s>"}, 0),
        (False, {"bos_token": "<s>"}, 0),
        (False, {"add_bos_token": True, "bos_token": None}, 0),
    ],
)
def test_bos_comes_once(tmp_path: Path, in_file: bool, asked: dict[str, object], expected: int) -> None:
    tok = with_bos(byte_level()) if in_file else byte_level()
    tokenizer = Tokenizer.from_pretrained(saved(tmp_path, tok, **asked))
    assert (
        tokenizer.encode("hello").count(0) == expected
        and tokenizer.encode("hello")[:expected] == [0] * expected
    )
    assert tokenizer.encode("") == [0] * expected
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    tok = byte_level()
    tok.enable_truncation(4)
    tok.enable_padding(length=64)
    tokenizer = Tokenizer.from_pretrained(saved(tmp_path, tok))
    text = "hello world " * 5
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("a")) == 1


def test_ids_equal_those_of_transformers(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    for style, build in STYLES.items():
        path = saved(tmp_path / style, with_bos(build()), tokenizer_class="PreTrainedTokenizerFast")
        reference = PreTrainedTokenizerFast.from_pretrained(path)
        tokenizer = Tokenizer.from_pretrained(path)
        for text in ("hello world", "  x", "def f(x):\n    return x", ""):
            assert tokenizer.encode(text) == reference(text)["input_ids"]


def test_a_draft_must_share_the_vocabulary(tmp_path: Path) -> None:
    target = Tokenizer.from_pretrained(saved(tmp_path / "target", byte_level(), vocab_size=300))
    padded = Tokenizer.from_pretrained(saved(tmp_path / "padded", with_bos(byte_level()), vocab_size=384))
    assert target.fingerprint == padded.fingerprint
    target.check_draft(padded)
    content = json.loads(byte_level().to_str())
    vocab = content["model"]["vocab"]
    one, two = (next(t for t, i in vocab.items() if i == n) for n in (40, 41))
    vocab[one], vocab[two] = 41, 40
    swapped = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)))
    with pytest.raises(
        ConfigError, match=r"differs from the target's in 2 of \d+ ids, first in 40"
    ) as caught:
        target.check_draft(swapped)
    assert repr(one) in str(caught.value) and repr(two) in str(caught.value)
    with pytest.raises(ConfigError, match="draft of the target's family"):
        target.check_draft(TOKENIZERS["metaspace"])


def test_special_tokens_of_a_draft_may_have_other_names() -> None:
    def made(*names: str) -> Tokenizer:
        tok = byte_level()
        tok.add_special_tokens(list(names))
        return Tokenizer(tok)

    target = made("<|im_start|>", "<|im_end|>")
    for names in ((), ("<|im_start|>", "<end_of_turn>"), ("<|im_start|>", "<|im_end|>", "<|extra|>")):
        target.check_draft(made(*names))
        made(*names).check_draft(target)


def test_tokens_that_only_the_settings_name(tmp_path: Path) -> None:
    tok = byte_level()
    size = tok.get_vocab_size()
    listed = {
        str(size + 1): {"content": "<tool>", "special": False, "normalized": False},
        str(size): {"content": "<|end|>", "special": True},
        "0": {"content": "<s>", "special": True},
        "99999": {"content": 5},
    }
    told = Tokenizer.from_pretrained(saved(tmp_path, tok, added_tokens_decoder=listed))
    assert told.encode("a<|end|>b<tool>")[1::2] == [size, size + 1]
    assert told.decode([size, size + 1]) == "<tool>"
    assert told.vocab_size == size + 2
    assert Tokenizer(tok, bos_token_id=7).encode("") == [7]


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json.*token ids"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a")
    with pytest.raises(CheckpointError, match=r"only tokenizer\.model.*save_pretrained"):
        Tokenizer.from_pretrained(tmp_path)
    for content in ("", "{", "[]", '{"model": {"type": "BPE"}}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a readable tokenizer"):
            Tokenizer.from_pretrained(tmp_path)
    saved(tmp_path, byte_level(), add_bos_token=True, bos_token="<bos>")
    with pytest.raises(CheckpointError, match=r"first token '<bos>', which tokenizer\.json does not"):
        Tokenizer.from_pretrained(tmp_path)
    for name in ("bos_token", "eos_token"):
        saved(tmp_path, byte_level(), add_bos_token=True, **{name: 5})
        with pytest.raises(CheckpointError, match=rf"{name} of tokenizer_config\.json is 5, not text"):
            Tokenizer.from_pretrained(tmp_path)
