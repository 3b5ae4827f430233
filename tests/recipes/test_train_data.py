"""The tokenizer, the corpus, and the rows that are cut from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pearl_rt.errors import RequestError
from recipes.train.data.bpe import train_tokenizer
from recipes.train.data.corpus import is_held_out, read_corpus
from recipes.train.data.stream import PackedStream
from recipes.train.data.tokenised_corpus import TokenisedCorpus

transformers = pytest.importorskip("transformers")


class TestTokenizer:
    @pytest.mark.parametrize(
        "text",
        [
            "",
            "\n",
            "a\r\n\tb\n\n\n    c  ",
            "x" * 300,
            "naïve — 日本語 🎉\x00\x7f",
            " \n \n",
            "<|endoftext|>x",
            "  # y",
        ],
        ids=["empty", "newline", "mixed-space", "long-word", "unicode", "blank-lines", "special", "comment"],
    )
    def test_any_text_survives(self, tokenised: TokenisedCorpus, text: str) -> None:
        ids = tokenised.tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenised.tokenizer.decode(ids, skip_special_tokens=False) == text

    def test_line_end_and_indentation_are_one_token(self, tokenised: TokenisedCorpus) -> None:
        assert len(tokenised.tokenizer.encode("\n    ").ids) == 1

    def test_transformers_reads_it(self, tokenised: TokenisedCorpus, tokenizer_directory: Path) -> None:
        theirs = transformers.AutoTokenizer.from_pretrained(tokenizer_directory)
        text = tokenised.corpus.held_out[0].text
        assert theirs.encode(text) == tokenised.tokenizer.encode(text).ids
        assert theirs.eos_token_id == tokenised.eos_id == 0

    @pytest.mark.parametrize("size", [0, 256, 1 << 30])
    def test_impossible_vocabulary_is_refused(self, size: int) -> None:
        with pytest.raises(RequestError, match=str(size)):
            train_tokenizer([], size)


class TestCorpus:
    def test_held_out_files_are_apart_and_do_not_move(self) -> None:
        names = [f"pkg/module{i}.py" for i in range(4000)]
        held_out = [n for n in names if is_held_out(n)]
        assert 60 <= len(held_out) <= 140  # 100 expected, 4 standard deviations: false alarm 1 in 15,000
        assert (
            is_held_out("fractions.py")
            and not is_held_out("heapq.py")
            and not is_held_out("test/fractions.py")
        )

    def test_nothing_to_read_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="0 text files"):
            read_corpus(str(tmp_path))
        with pytest.raises(RequestError, match="neither"):
            read_corpus(str(tmp_path / "absent"))


class TestStream:
    def test_rows_are_a_function_of_seed_and_index(self) -> None:
        documents = [np.arange(100 * i, 100 * i + 37) for i in range(20)]
        first, second = (PackedStream(documents, [1.0] * 20, 16, seed=3) for _ in range(2))
        expected = [first.batch(4 * i, 4) for i in range(60)]  # several epochs
        for i in (59, 0, 30, 31):
            assert torch.equal(second.batch(4 * i, 4), expected[i])
        assert not torch.equal(PackedStream(documents, [1.0] * 20, 16, seed=4).batch(0, 4), expected[0])

    def test_an_epoch_reads_every_token_once_but_for_its_ends(self) -> None:
        documents = [np.arange(100 * i, 100 * i + 37) for i in range(20)]
        rows = PackedStream(documents, [1.0] * 20, 16, seed=0).batch(0, (20 * 37 - 16) // 16)[:, 1:]
        tokens = rows.flatten().tolist()
        assert len(set(tokens)) == len(tokens) >= 20 * 37 - 32

    def test_weight_is_the_chance_of_a_document(self) -> None:
        documents = [np.full(64, i) for i in range(2)]
        rows = PackedStream(documents, [1.0, 0.25], 16, seed=0).batch(0, 1200)
        share = (rows == 1).double().mean().item()
        assert 0.15 < share < 0.25  # 0.2 expected: 0.25 of a document to every whole one

    def test_text_shorter_than_a_row(self) -> None:
        assert PackedStream([np.arange(5)], [1.0], 64, seed=0).batch(7, 3).shape == (3, 65)
