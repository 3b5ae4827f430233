"""Whether models and tokenizers go together: one dtype, length and vocabulary that all can take.

Knows configurations and tokenizers; not devices, and not back ends.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace

from pearl_rt.checkpoint.config import MODEL_LENGTH, ModelConfig
from pearl_rt.checkpoint.source import ModelSource
from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.checkpoint.views.draft_ids import shared_tokens
from pearl_rt.errors import ConfigError

DEFAULT_MAX_MODEL_LEN = 4096  # the KV cache is allocated at load: more has to be asked for


def own_dtype(name: str | None, dtype: str, config: ModelConfig) -> str:
    """What a model computes in: "auto" is what its checkpoint is stored in, bfloat16 for float16, with a
    warning by its name. None: no warning, of a view of a model that was warned of.
    """
    if dtype != "auto":
        return dtype
    if config.torch_dtype != "float16":
        return config.torch_dtype
    if name is not None:
        warnings.warn(
            f"the {name}'s checkpoint is float16, and runs as bfloat16, which rounds its weights: "
            "dtype='float32' is exact, and takes twice the memory",
            stacklevel=2,
        )
    return "bfloat16"


def max_length(asked: object, configs: Sequence[ModelConfig]) -> int:
    """Tokens of prompt and answer that all models can take, or the number asked for if they can take that.
    configs: the target's, and the draft's if it must follow to the end.
    """
    if asked is None:
        return min(DEFAULT_MAX_MODEL_LEN, *(config.default_max_model_len for config in configs))
    length = MODEL_LENGTH("max_model_len", asked, ConfigError)
    assert length is not None
    for name, config in zip(("target", "draft"), configs, strict=False):
        config.check_max_model_len(length, name)
    return length


def check_vocabularies(target: ModelConfig, draft: ModelConfig) -> None:
    """Without tokenizers a draft fits by its size. Raises ConfigError."""
    if target.vocab_size != draft.vocab_size:
        raise ConfigError(
            f"the draft has a vocabulary of {draft.vocab_size}, the target one of {target.vocab_size}: take "
            "a draft of the same family, pass both tokenizers, or distil one: `python -m recipes.train`, in "
            "a checkout"
        )


def with_draft_ids(
    sources: Sequence[ModelSource],
    tokenizer: Tokenizer | None,
    draft_tokenizer: Tokenizer | None,
    translates: bool,
) -> list[ModelSource]:
    """The models, a draft with a tokenizer of its own with the ids of the tokens that both have. translates:
    whether its lane can run one. Padding is harmless. Raises ConfigError for a draft that does not fit.
    """
    target, draft = sources[0], sources[-1]
    if draft.shared is not None and not translates:
        check_view(draft)
    if draft.name != "draft" or draft.is_view:
        return list(sources)
    if tokenizer is None or draft_tokenizer is None:
        check_vocabularies(target.config, draft.config)
        return list(sources)
    differs = tokenizer.difference(draft_tokenizer)
    if differs is None:
        return list(sources)
    if not translates:
        raise ConfigError(
            f"{differs}. Take a draft of the target's family, device='cpu', which drafts what both have, or "
            "distil one: `python -m recipes.train`, in a checkout"
        )
    if draft.config.pard_token is not None:
        raise ConfigError(
            f"{differs}. A draft with a tokenizer of its own goes token by token: pass draft_parallel=False "
            "(--no-draft-parallel)"
        )
    ids = shared_tokens(target.config, draft.config, tokenizer, draft_tokenizer)
    warnings.warn(
        f"the draft has a tokenizer of its own: it can draft {ids.num_shared} of the target's "
        f"{len(tokenizer.spelled())} tokens",
        stacklevel=3,
    )
    return [*sources[:-1], replace(draft, ids=ids)]


def check_view(draft: ModelSource) -> None:
    """Raises ConfigError for a view of its target that the kernels cannot run."""
    if draft.ids is not None:
        raise ConfigError(
            f"the exit layer drafts {draft.ids.num_shared} ids of the target (draft_vocab_size, d2t), which "
            "runs on the CPU only so far: pass device='cpu' to an Engine, or train one of all ids: `python "
            "-m recipes.train exit` without --ids, in a checkout"
        )


def check_tokenizer(target: ModelConfig, tokenizer: Tokenizer | None) -> None:
    """A model may emit any of its ids, so its tokenizer must know what to do with each."""
    if tokenizer is not None and tokenizer.vocab_size < target.vocab_size:
        raise ConfigError(
            f"the tokenizer knows {tokenizer.vocab_size} ids, the model has {target.vocab_size}: build it "
            f"with Tokenizer(..., vocab_size={target.vocab_size}) if the others stand for no text"
        )
