"""Tokenizers from the metadata of GGUF files: the ids of the tokenizers that they were written from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import tokenizers
from gguf_files import byte_vocabulary, write
from test_gguf_models import WIDE, tensors_of
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from pearl_rt import CheckpointError, ConfigError
from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.checkpoint.tokenizer import Tokenizer

AWKWARD = [
    "",
    " ",
    "   three   spaces ",
    "\n\n\ttabs\r\nand lines\n ",
    "It's I'LL we'Ve don't 'tis ''s",
    "12345 3.14 １２３ ½ 1st 100000",
    "naïve café e\u0301 ﬁ Å",
    "你好，世界。日本語テキスト 한국어",
    "🙂🙃👩‍👩‍👧 ☂️",
    "def f(x):\n    return x**2  # ok\n\n\n",
    "a\u00a0b\u2003c\u200bd",
    "<s> </s> <|im_start|>user\n<think>x</think>",
    "\x00\x01\x7f",
    "العربية עברית हिन्दी ไทย",
    "MiXeD CamelCase snake_case kebab-case ALLCAPS/paths\\win",
    "!!!??? ... --- === $$$ £€",
    "Ω≈ç√∫˜µ≤≥÷",
    "\n\n1. one\n\n22 two  ½ 3",
]
LEARNT = [*AWKWARD, *["one\n\ntwo", " ½ one", "banana bandana cabana nabana"] * 9] * 3
SPECIAL = ["<s>", "</s>", "<|im_start|>"]
CASE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# As the tokenizer.json of SmolLM, Llama 3 and Qwen 2 cut text.
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
CUTS = {
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama-bpe": [
        pre_tokenizers.Split(
            Regex(CASE + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + TAIL), behavior="isolated"
        ),
        BYTE_LEVEL,
    ],
    "qwen2": [
        pre_tokenizers.Split(Regex(CASE + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + TAIL), behavior="isolated"),
        BYTE_LEVEL,
    ],
}


def byte_level(name: str) -> tokenizers.Tokenizer:
    tok = tokenizers.Tokenizer(models.BPE())
    if name == "qwen2":
        tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence(CUTS[name])
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tok.train_from_iterator(LEARNT, trainer)
    tok.add_tokens([tokenizers.AddedToken("<think>", normalized=False)])
    return tok


def sentencepiece() -> tokenizers.Tokenizer:
    """As Llama 2: its tokenizer.json puts the space by a normalizer."""
    tok = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    first = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [word for text in LEARNT for word in text.split()]
    tok.train_from_iterator(words, trainers.BpeTrainer(vocab_size=800, special_tokens=first))
    content = json.loads(tok.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if not t["content"].startswith("<0x")]
    tok = tokenizers.Tokenizer.from_str(json.dumps(content))
    tok.add_tokens([tokenizers.AddedToken("<think>", normalized=False)])
    return tok


def written(path: Path, tok: tokenizers.Tokenizer, pre: str | None, **flags: bool) -> Path:
    """A model whose vocabulary is that tokenizer's, as llama.cpp's converter writes it."""
    vocab = sorted(tok.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    tokens = [token for token, _ in vocab]
    merges = [" ".join(merge) for merge in json.loads(tok.to_str())["model"]["merges"]]
    kinds = {"<unk>": 2, "<think>": 4, **dict.fromkeys(SPECIAL, 3)}

    def vocabulary(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama" if pre is None else "gpt2")
        writer.add_token_list(tokens)
        writer.add_token_types([kinds.get(t, 6 if t.startswith("<0x") else 1) for t in tokens])
        if pre is None:  # the score of a token is the place of its merge
            ranks = {merge.replace(" ", ""): -float(rank) for rank, merge in reversed([*enumerate(merges)])}
            writer.add_token_scores([ranks.get(token, -1e6) for token in tokens])
        else:
            writer.add_tokenizer_pre(pre)
            writer.add_token_merges(merges)
        writer.add_bos_token_id(tokens.index("<s>"))
        writer.add_eos_token_id(tokens.index("</s>"))
        if pre is None:
            writer.add_unk_token_id(tokens.index("<unk>"))
        for name, flag in flags.items():
            writer.add_bool(f"tokenizer.ggml.{name}", flag)
        writer.add_chat_template("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ unk_token }}")

    file = path / "model.gguf"
    config = replace(WIDE, vocab_size=len(tokens), num_hidden_layers=1)
    write(file, config, tensors_of(config), vocabulary=vocabulary)
    return file


@pytest.mark.parametrize("pre", [*CUTS, None], ids=[*CUTS, "sentencepiece"])
def test_ids_and_text_are_those_of_the_tokenizer_it_was_written_from(tmp_path: Path, pre: str | None) -> None:
    original = sentencepiece() if pre is None else byte_level(pre)
    tokenizer = Tokenizer.from_pretrained(written(tmp_path, original, pre, add_bos_token=False))
    for text in [*LEARNT[: len(AWKWARD) + 3], "".join(AWKWARD), "\n".join(AWKWARD)]:
        ids = original.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == tokenizer.encode(text, add_special_tokens=False) == ids, text
        assert tokenizer.decode(ids) == original.decode(ids), text
    lengths = [len(original.encode(text).ids) for text in AWKWARD]
    assert sum(lengths) < sum(len(text.encode()) for text in AWKWARD)  # tokens of more than a byte occur
    assert len(tokenizer.hidden) == 3 and tokenizer.encode("<|im_start|>")[-1] in tokenizer.hidden


@pytest.mark.parametrize(
    ("pre", "flags", "puts_bos"),
    [
        ("gpt-2", {}, False),
        ("gpt-2", {"add_bos_token": True}, True),
        ("llama-bpe", {}, True),
        ("llama-bpe", {"add_bos_token": False}, False),
        (None, {}, True),
        (None, {"add_bos_token": False}, False),
    ],
)
def test_a_prompt_begins_with_bos_where_the_file_says_so(
    tmp_path: Path, pre: str | None, flags: dict[str, bool], puts_bos: bool
) -> None:
    original = sentencepiece() if pre is None else byte_level(pre)
    tokenizer = Tokenizer.from_pretrained(written(tmp_path, original, pre, **flags))
    ids, bos = original.encode("hello", add_special_tokens=False).ids, original.token_to_id("<s>")
    assert tokenizer.encode("hello") == [bos] * puts_bos + ids
    assert tokenizer.encode("hello", add_special_tokens=False) == ids


def test_no_space_is_put_where_the_file_says_so(tmp_path: Path) -> None:
    original = sentencepiece()
    file = written(tmp_path, original, None, add_space_prefix=False, add_bos_token=False)
    tokenizer = Tokenizer.from_pretrained(file)
    original.normalizer = normalizers.Replace(" ", "▁")
    assert tokenizer.encode("hello  you") == original.encode("hello  you").ids
    assert tokenizer.decode(tokenizer.encode(" hello")) == " hello"


def test_a_piece_that_is_a_token_needs_no_merges(tmp_path: Path) -> None:
    """Llama 3's ignore_merges."""
    content = json.loads(byte_level("llama-bpe").to_str())
    vocab = content["model"]["vocab"]
    content["added_tokens"] = [token for token in content["added_tokens"] if token["special"]]
    vocab["hello"] = max(vocab.values()) + 1
    content["model"]["ignore_merges"] = True
    original = tokenizers.Tokenizer.from_str(json.dumps(content))
    tokenizer = Tokenizer.from_pretrained(written(tmp_path, original, "llama-bpe", add_bos_token=False))
    assert tokenizer.encode("hello") == original.encode("hello").ids == [vocab["hello"]]


def test_chat_template_of_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, sentencepiece(), None)
    assert ChatTemplate.from_pretrained(file).render([{"role": "user", "content": "hi"}]) == "<s>hi</s><unk>"
    own = tmp_path / "own.jinja"
    own.write_text("{{ eos_token }}")
    assert ChatTemplate.from_pretrained(file, own).render([{"role": "user", "content": "hi"}]) == "</s>"
    write(tmp_path / "plain.gguf", WIDE, tensors_of(WIDE), vocabulary=byte_vocabulary)
    with pytest.raises(ConfigError, match=r"plain.gguf has no chat template .*--chat-template FILE"):
        ChatTemplate.from_pretrained(tmp_path / "plain.gguf")


def drop(key: str):  # type: ignore[no-untyped-def]
    return lambda writer: writer.kv_data[0].pop(f"tokenizer.ggml.{key}")


def change(key: str, value: object, kind: gguf.GGUFValueType):  # type: ignore[no-untyped-def]
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0].pop(f"tokenizer.ggml.{key}", None)
        writer.add_key_value(f"tokenizer.ggml.{key}", value, kind)

    return edit


STRING, ARRAY = gguf.GGUFValueType.STRING, gguf.GGUFValueType.ARRAY
BAD = {
    "no-model": (drop("model"), CheckpointError, "no tokenizer: tokenizer.ggml.model is missing"),
    "no-tokens": (drop("tokens"), CheckpointError, "no tokenizer: tokenizer.ggml.tokens is missing"),
    "no-merges": (drop("merges"), CheckpointError, "no tokenizer: tokenizer.ggml.merges is missing"),
    "other-model": (
        change("model", "bert", STRING),
        ConfigError,
        r"tokenizer 'bert' is not supported \(gpt2",
    ),
    "other-pre": (change("pre", "poro-chat", STRING), ConfigError, r"pre-tokenizer 'poro-chat' is not"),
    "no-pre": (drop("pre"), ConfigError, r"pre-tokenizer None is not supported \(gpt-2, "),
    "types": (change("token_type", [1, 2, 3], ARRAY), CheckpointError, "has 3 entries for 257 tokens"),
    "types-nan": (
        change("token_type", [1.0] * 256 + [float("nan")], ARRAY),
        CheckpointError,
        "token_type has nan, expected integers",
    ),
    "twice": (change("tokens", ["a"] * 257, ARRAY), CheckpointError, "token 'a' stands twice"),
    "many": (
        change("tokens", [f"t{i}" for i in range(300)], ARRAY),
        CheckpointError,
        "vocabulary of 300 tokens does not fit its embedding of 272 rows",
    ),
    "merge-of-three": (change("merges", ["a b c"], ARRAY), CheckpointError, "'a b c', expected two tokens"),
    "merge-of-none": (change("merges", ["xx yy"], ARRAY), CheckpointError, "make no tokenizer"),
    "tokens-a-number": (
        change("tokens", 3, gguf.GGUFValueType.UINT32),
        CheckpointError,
        "is 3, expected a list of texts",
    ),
    "scores-missing": (
        lambda writer: (drop("merges")(writer), change("model", "llama", STRING)(writer)),
        CheckpointError,
        "tokenizer.ggml.scores has 0 entries for 257 tokens",
    ),
}


@pytest.mark.parametrize(("edit", "error", "named"), BAD.values(), ids=BAD.keys())
def test_what_makes_no_tokenizer_is_refused(tmp_path: Path, edit, error, named: str) -> None:  # type: ignore[no-untyped-def]
    write(tmp_path / "model.gguf", WIDE, tensors_of(WIDE), edit=edit)
    with pytest.raises(error, match=named) as caught:
        Tokenizer.from_pretrained(tmp_path / "model.gguf")
    assert str(tmp_path / "model.gguf") in str(caught.value)
