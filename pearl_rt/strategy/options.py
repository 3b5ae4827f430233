"""How an engine may be told to run: strategy, window, placement, dtype, length, cores, each checked by name.

Knows configurations and the planner's range; not lanes, and nothing of requests but that they may override.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.errors import ConfigError, PearlError, RequestError
from pearl_rt.strategy.planner import GAMMAS, MAX_GAMMA, STRATEGIES
from pearl_rt.strategy.program import PLACEMENTS
from pearl_rt.types.sampling_params import integer

DEVICES = ("auto", "cpu", "cuda", "cuda:N", "interpret")
CAPTURED_FORMS = ("events", "graph")
FORMS = (*CAPTURED_FORMS, "eager")
JUDGES = ("rejection", "coupled")
MIN_MODEL_LEN = 8
DEFAULT_NUM_SEQS = 8  # on the CPU
DEFAULT_MAX_MODEL_LEN = 4096  # the KV cache is allocated at load: more has to be asked for


def choice(name: str, value: Any, allowed: Sequence[str], error: type[PearlError] = ConfigError) -> str:
    """`value` if it is one of `allowed`; else an error that lists them."""
    if not isinstance(value, str) or value not in allowed:
        raise error(f"{name} {value!r} is not supported: pass one of {', '.join(map(repr, allowed))}")
    return value


@dataclass(frozen=True)
class Limits:
    """What an engine has got: without a draft there is only ar, and a device has placements of its own."""

    has_draft: bool
    placements: tuple[str, ...] = ("shared",)
    refused: Mapping[str, str] = field(default_factory=dict)  # placement -> why not, and the way out


@dataclass(frozen=True)
class Wanted:
    """Which programs may run: a fixed strategy, window and placement, or "auto" and None for the planner's
    choice.
    """

    strategy: str = "auto"
    gamma: int | None = None
    placement: str = "auto"

    @classmethod
    def checked(
        cls,
        strategy: Any,
        gamma: Any,
        placement: Any,
        limits: Limits,
        error: type[PearlError] = ConfigError,
    ) -> "Wanted":
        """From what a caller passed. Raises `error` for what is unknown, or cannot run with this draft and
        cores.
        """
        choice("strategy", strategy, ("auto", *STRATEGIES), error)
        choice("placement", placement, ("auto", *PLACEMENTS), error)
        if gamma is not None:
            try:
                gamma = integer("gamma", gamma)
            except RequestError as refused:
                raise error(str(refused)) from None
            if not 1 <= gamma <= MAX_GAMMA:
                raise error(
                    f"gamma {gamma} is out of range: pass 1 to {MAX_GAMMA}, None for the planner's choice, "
                    "or strategy='ar' to draft nothing"
                )
        if not limits.has_draft and strategy in ("sd", "pearl"):
            raise error(f"strategy {strategy!r} needs a draft model: pass draft=..., or strategy='ar'")
        if not limits.has_draft and placement in ("split", "devices"):
            raise error(f"placement {placement!r} needs a draft model: pass draft=..., or placement='shared'")
        if placement not in ("auto", *limits.placements):
            own = ", ".join(map(repr, limits.placements))
            why = f"placement {placement!r} is not one of this device: pass {own} or 'auto'"
            raise error(limits.refused.get(placement, why))
        return cls(strategy, gamma, placement)

    def override(self, strategy: Any, gamma: Any, placement: Any, limits: Limits) -> "Wanted":
        """These, but for what a call asks for (not None). Raises RequestError as checked() does."""
        strategy = self.strategy if strategy is None else strategy
        gamma = self.gamma if gamma is None else gamma
        placement = self.placement if placement is None else placement
        return Wanted.checked(strategy, gamma, placement, limits, RequestError)

    def narrowed(self, limits: Limits) -> "Candidates":
        """What is left to choose from."""
        strategies: Iterable[str] = STRATEGIES if limits.has_draft else ("ar",)
        if self.strategy != "auto":
            strategies = (self.strategy,)
        placements = limits.placements if limits.has_draft else limits.placements[:1]
        if self.placement != "auto":
            placements = (self.placement,)
        gammas = GAMMAS if self.gamma is None else (self.gamma,)
        return Candidates(tuple(strategies), tuple(placements), gammas)


@dataclass(frozen=True)
class Candidates:
    """The programs that may run: the product of these, in which ar has no window."""

    strategies: tuple[str, ...]
    placements: tuple[str, ...]
    gammas: tuple[int, ...]

    def windows(self, strategy: str) -> tuple[int, ...]:
        """Those that a program of this strategy may have from round to round; 0 is as good as ar."""
        return () if strategy == "ar" else (*((0,) if "ar" in self.strategies else ()), *self.gammas)


def threads(num_threads: Any, from_environment: int | None) -> int | None:
    """The number of cores asked for, by argument before environment; None is all."""
    if num_threads is None:
        return from_environment
    try:
        num_threads = integer("num_threads", num_threads)
    except RequestError as refused:
        raise ConfigError(str(refused)) from None
    if num_threads < 1:
        raise ConfigError(f"num_threads {num_threads} runs nothing: pass 1 or more, or None for all cores")
    return int(num_threads)


def waiting_limit(asked: Any) -> int:
    """How many submitted requests may wait. Raises ConfigError for what is no number, or negative."""
    try:
        limit = integer("max_waiting", asked)
    except RequestError as refused:
        raise ConfigError(str(refused)) from None
    if limit < 0:
        raise ConfigError(f"max_waiting {limit} is negative: pass 0 to queue nothing, or more")
    return limit


def own_dtype(name: str, dtype: str, config: ModelConfig) -> str:
    """What a model computes in: "auto" is what its checkpoint is stored in."""
    if dtype != "auto":
        return dtype
    if config.torch_dtype == "float16":
        raise ConfigError(
            f"the {name}'s checkpoint is float16, which the executor does not compute in: pass "
            f"dtype='bfloat16' "
            "(fast, rounds weights) or dtype='float32' (exact)"
        )
    return config.torch_dtype


def max_length(asked: Any, configs: Sequence[ModelConfig]) -> int:
    """Tokens of prompt and answer that all models can take, or the number asked for if they can take that."""
    if asked is None:
        return min(DEFAULT_MAX_MODEL_LEN, *(config.default_max_model_len for config in configs))
    try:
        length = integer("max_model_len", asked)
    except RequestError as refused:
        raise ConfigError(str(refused)) from None
    if length < MIN_MODEL_LEN:
        raise ConfigError(
            f"max_model_len {length} has no room for a prompt and an answer: pass {MIN_MODEL_LEN} or more"
        )
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
            f"a draft "
            "of the same family, or distil one: `python -m recipes.train`, in a checkout"
        )


def check_tokenizer(target: ModelConfig, tokenizer: Tokenizer | None) -> None:
    """A model may emit any of its ids, so its tokenizer must know what to do with each."""
    if tokenizer is not None and tokenizer.vocab_size < target.vocab_size:
        raise ConfigError(
            f"the tokenizer knows {tokenizer.vocab_size} ids, the model has {target.vocab_size}: build it "
            f"with "
            f"Tokenizer(..., vocab_size={target.vocab_size}) if the others stand for no text"
        )
