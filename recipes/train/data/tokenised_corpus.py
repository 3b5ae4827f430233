"""A corpus as one tokenizer sees it: what a training stage reads and what evaluation reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from pearl_rt.errors import RequestError
from recipes.train.data.bpe import EOS, encode_documents, read_tokenizer
from recipes.train.data.corpus import Corpus, read_corpus


@dataclass(frozen=True)
class TokenisedCorpus:
    """Token arrays lie beside their documents, in the same order; each ends with `eos_id`."""

    tokenizer: Tokenizer
    eos_id: int
    corpus: Corpus
    train: list[np.ndarray]
    held_out: list[np.ndarray]

    @property
    def weights(self) -> list[float]:
        return [d.weight for d in self.corpus.train]


def frequent_ids(documents: Sequence[np.ndarray], vocab_size: int, count: int) -> Tensor:
    """The `count` ids of a vocabulary that documents have most often, ascending: [count] int64."""
    counts = np.bincount(np.concatenate([*documents, np.zeros(0, np.int64)]), minlength=vocab_size)
    often = np.sort(np.argsort(-counts[:vocab_size], kind="stable")[:count])
    return torch.from_numpy(often.astype(np.int64))


def tokenise_corpus(data: str, tokenizer_directory: Path, eos_id: int | None = None) -> TokenisedCorpus:
    """Reads and encodes `data`. `eos_id`: None takes the tokenizer's own <|endoftext|>."""
    tokenizer = read_tokenizer(tokenizer_directory)
    if eos_id is None:
        eos_id = tokenizer.token_to_id(EOS)
    if eos_id is None:
        raise RequestError(f"the tokenizer in {tokenizer_directory} has no {EOS} to end documents with")
    corpus = read_corpus(data)
    return TokenisedCorpus(
        tokenizer,
        eos_id,
        corpus,
        encode_documents(tokenizer, corpus.train, eos_id),
        encode_documents(tokenizer, corpus.held_out, eos_id),
    )
