"""Whether models and tokenizers go together: one dtype, length and vocabulary that all can take.

Knows configurations and tokenizers; not devices, and not back ends.
"""

import warnings
from collections.abc import Sequence

from pearl_rt.checkpoint.config import MODEL_LENGTH, ModelConfig
from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.errors import ConfigError

DEFAULT_MAX_MODEL_LEN = 4096  # the KV cache is allocated at load: more has to be asked for


def own_dtype(name: str, dtype: str, config: ModelConfig) -> str:
    """What a model computes in: "auto" is what its checkpoint is stored in, bfloat16 for float16."""
    if dtype != "auto":
        return dtype
    if config.torch_dtype == "float16":
        warnings.warn(
            f"the {name}'s checkpoint is float16, and runs as bfloat16, which rounds its weights: "
            "dtype='float32' is exact, and takes twice the memory",
            stacklevel=2,
        )
        return "bfloat16"
    return config.torch_dtype


def max_length(asked: object, configs: Sequence[ModelConfig]) -> int:
    """Tokens of prompt and answer that all models can take, or the number asked for if they can take that."""
    if asked is None:
        return min(DEFAULT_MAX_MODEL_LEN, *(config.default_max_model_len for config in configs))
    length = MODEL_LENGTH("max_model_len", asked, ConfigError)
    assert length is not None
    for config in configs:
        config.check_max_model_len(length)
    return length


def check_vocabularies(
    target: ModelConfig, draft: ModelConfig, tokenizer: Tokenizer | None, draft_tokenizer: Tokenizer | None
) -> None:
    """A draft speaks the target's tokens, or its drafts mean nothing. Padding is harmless."""
    if tokenizer is not None and draft_tokenizer is not None:
        tokenizer.check_draft(draft_tokenizer)
    elif target.vocab_size != draft.vocab_size:
        raise ConfigError(
            f"the draft has a vocabulary of {draft.vocab_size}, the target one of {target.vocab_size}: take "
            "a draft of the same family, or distil one: `python -m recipes.train`, in a checkout"
        )


def check_tokenizer(target: ModelConfig, tokenizer: Tokenizer | None) -> None:
    """A model may emit any of its ids, so its tokenizer must know what to do with each."""
    if tokenizer is not None and tokenizer.vocab_size < target.vocab_size:
        raise ConfigError(
            f"the tokenizer knows {tokenizer.vocab_size} ids, the model has {target.vocab_size}: build it "
            f"with Tokenizer(..., vocab_size={target.vocab_size}) if the others stand for no text"
        )
