"""A byte-level BPE tokenizer for source text, and documents as token arrays.

Indentation is one token with the newline before it (and the punctuation before that), a word takes the space,
dot or bracket before it: about 4 characters a token at a vocabulary of 4096. Any text survives a round trip.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from pearl_rt.checkpoint.gguf.model import GgufModel
from pearl_rt.checkpoint.gguf.vocabulary import read_vocabulary
from pearl_rt.errors import CheckpointError, RequestError
from recipes.train.data.corpus import Document

EOS = "<|endoftext|>"  # id 0; ends every document
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_SPLIT = (
    r"[^\s\p{L}\p{N}_]?[\p{L}_]+"  # a word, with the dot or bracket before it
    r"| [\p{L}_]+"
    r"| ?\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}_]+(?:\n\s*)?"  # punctuation, with the line end and indentation after it
    r"|\n\s*"
    r"|[^\S\n]+(?!\S)"
    r"|\s+"
)
_MAX_TOKEN_LENGTH = 24
_BATCH = 256  # documents encoded at a time


def train_tokenizer(documents: Iterable[Document], vocab_size: int) -> Tokenizer:
    """BPE over bytes, so nothing is unknown. Raises RequestError for a vocabulary without room for them."""
    if not 257 <= vocab_size <= 1 << 20:
        raise RequestError(f"--vocab-size {vocab_size}: give 257 (every byte, and {EOS}) up to {1 << 20}")
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_SPLIT), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=_MAX_TOKEN_LENGTH,
        show_progress=False,
    )
    tokenizer.train_from_iterator((d.text for d in documents), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """tokenizer.json, and the tokenizer_config.json that transformers wants beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": EOS,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def read_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizers object of a model directory or a GGUF file. Raises CheckpointError if there is none."""
    if (gguf := GgufModel.open(directory)) is not None:
        return read_vocabulary(gguf).tokenizer
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist: make one with `python -m recipes.train tokenizer --out {directory}`"
        )
    return Tokenizer.from_file(str(path))


def encode_documents(tokenizer: Tokenizer, documents: Sequence[Document], eos_id: int) -> list[np.ndarray]:
    """One array of ids per document, `eos_id` at its end; uint16 where the vocabulary fits, else int32."""
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.int32
    arrays: list[np.ndarray] = []
    for i in range(0, len(documents), _BATCH):
        texts = [d.text for d in documents[i : i + _BATCH]]
        encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
        arrays += [np.array([*e.ids, eos_id], dtype=dtype) for e in encodings]
    return arrays
