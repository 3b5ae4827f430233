"""A corpus of a few small files, its tokenizer and its tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recipes.train.data.bpe import save_tokenizer, train_tokenizer
from recipes.train.data.corpus import read_corpus
from recipes.train.data.tokenised_corpus import TokenisedCorpus, tokenise_corpus

WORDS = [
    "def",
    "return",
    "self",
    "value",
    "number",
    "class",
    "for",
    "in",
    "range",
    "print",
    "(",
    ")",
    ":",
    "=",
]


@pytest.fixture(scope="session")
def text_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 small files with a grammar of sorts: every word has two words that may follow it."""
    directory = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for i in range(60):
        place, words = 0, []
        for _ in range(300):
            place = (3 * place + 1 + 5 * int(rng.integers(2))) % len(WORDS)
            words.append(WORDS[place])
        (directory / f"file{i}.py").write_text(
            "\n    ".join(" ".join(words[j : j + 9]) for j in range(0, 300, 9))
        )
    return directory


@pytest.fixture(scope="session")
def tokenizer_directory(text_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(read_corpus(str(text_directory)).train, 300), directory)
    return directory


@pytest.fixture(scope="session")
def tokenised(text_directory: Path, tokenizer_directory: Path) -> TokenisedCorpus:
    return tokenise_corpus(str(text_directory), tokenizer_directory)
