"""tokenizer.json and tokenizer_config.json, mutated: text goes to ids and back, or an error of ours tells."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import tokenizers
from fuzzing import Fuzzer
from mutations import json_bytes, mutated, mutated_text
from tiny_pairs import TINY, byte_tokenizer

from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.errors import RequestError

TEXTS = ("Hello wörld <extra>", " two  spaces\n\n", "日本語 \U0001f600", "<s>", "", "\x00")
SETTINGS: dict[str, Any] = {
    "add_bos_token": True,
    "bos_token": "<s>",
    "eos_token": {"content": "</s>", "special": True},
    "added_tokens_decoder": {
        "300": {"content": "<extra>", "special": True, "lstrip": False, "rstrip": False, "normalized": False},
        "301": {"content": "<plain>", "special": False, "single_word": True},
    },
    "chat_template": "{{ messages }}",
}


def byte_level() -> tokenizers.Tokenizer:
    made = byte_tokenizer()
    made.add_special_tokens(["<s>", "</s>"])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 256)]
    )
    return made


def sentencepiece() -> tokenizers.Tokenizer:
    """Spaces are ▁, one is put in front, bytes are <0x0A>."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "o", "lo"]
    model = tokenizers.models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=[("▁", "a")],
        byte_fallback=True,
        unk_token="<unk>",
        fuse_unk=True,
    )
    made = tokenizers.Tokenizer(model)
    normal = tokenizers.normalizers
    made.normalizer = normal.Sequence([normal.Prepend("▁"), normal.Replace(" ", "▁")])
    back = tokenizers.decoders
    made.decoder = back.Sequence(
        [back.Replace("▁", " "), back.ByteFallback(), back.Fuse(), back.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


def words() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2, "hello": 3}, unk_token="[UNK]")
    )
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece()
    return made


def unigram() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(
        tokenizers.models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("a", -2.0), ("lo", -3.0)], 0)
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.decoder = tokenizers.decoders.Metaspace()
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(json.dumps(TINY.to_dict()))
    return path


def test_tokenizer(fuzzer: Fuzzer, folder: Path) -> None:
    bases = [json.loads(made.to_str()) for made in (byte_level(), sentencepiece(), words(), unigram())]
    own = [{**SETTINGS, "bos_token": "a", "eos_token": "a"} if place > 1 else SETTINGS for place in range(4)]

    def draw(rng: Random) -> tuple[bytes, bytes, str]:
        kind = rng.randrange(4)
        files = [json.dumps(bases[kind]).encode(), json.dumps(own[kind]).encode()]
        place = rng.random() < 0.25
        files[place] = json_bytes(mutated((bases, own)[place][kind], rng), rng)
        return (
            files[0],
            files[1],
            mutated_text(rng.choice(TEXTS), rng, ("<s>", "<extra>", "\ud800", "\ufffd")),
        )

    def read(case: tuple[bytes, bytes, str]) -> str:
        for name, data in zip(("tokenizer.json", "tokenizer_config.json"), case, strict=False):
            (folder / name).write_bytes(data)
        tokenizer = Tokenizer.from_pretrained(folder)
        assert tokenizer.vocab_size >= TINY.vocab_size and len(tokenizer.fingerprint) == 64
        for token_id in range(tokenizer.vocab_size if tokenizer.vocab_size < 1000 else 300):
            tokenizer.token_text(token_id)
        for text in (case[2], "Hello wörld"):
            try:
                ids = tokenizer.encode(text)
                assert tokenizer.decode(ids).encode() is not None
                decoder = tokenizer.decoder(after=ids[:1])
                assert isinstance(decoder.push(ids[1:]) + decoder.finish(), str)
                tokenizer.showing_all.decode(ids)
            except RequestError as error:
                assert str(error)
        tokenizer.check_length("a", 8)
        tokenizer.check_draft(tokenizer)
        return "read"

    outcomes = fuzzer.run(400, draw, read)
    assert fuzzer.is_alone or {"read", "CheckpointError"} <= outcomes.keys()
