"""What a config.json may hold: each key that is read, with what its value may be.

Knows names, kinds and ranges; not what a key means, nor which of them a model has.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pearl_rt.errors import ConfigFileError, shown

MOST = 2**31 - 1  # sizes and ids are 32-bit integers where they are used
MOST_LAYERS = 4096
LARGEST = 1e30  # of a number, which has room to multiply in fp32
SMALLEST = 1e-30  # of one that has to be positive, likewise
MASK_KEYS = ("pard_token", "diffusion_mask_token", "diffusion_passes")  # of drafts that fill windows
MOST_PASSES = 16  # of a window, which has no more places


@dataclass(frozen=True)
class Kind:
    """What a value may be: `fits`, in `words`. Null is as good as no key, unless is_needed. limit: in words,
    behind the value.
    """

    words: str
    fits: Callable[[object], bool]
    is_needed: bool = False
    limit: str = ""


def is_number(value: object) -> bool:
    """A finite one, as large as a double can be, and no truth value."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that no double holds
        return False


def _is_integer(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _size(high: int = MOST, *, is_needed: bool = True) -> Kind:
    limit = "" if high == MOST else f", and {high} is the most"
    return Kind("a positive integer", lambda value: _is_integer(value, 1, high), is_needed, limit)


def _number(low: float) -> Kind:
    words = "a positive number" if low == 0 else "a number"
    least = SMALLEST if low == 0 else low
    return Kind(words, lambda value: is_number(value) and least <= float(value) <= LARGEST)  # type: ignore[arg-type]


def _is_ids(value: object) -> bool:
    """-1 stands for none, in converted checkpoints."""
    ids = value if isinstance(value, list) else [value]
    return all(_is_integer(token_id, -1, MOST) for token_id in ids)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_FLAG = Kind("true or false", lambda value: isinstance(value, bool))
_TEXT = Kind("a text", lambda value: isinstance(value, str))
_TEXTS = Kind("a list of texts", _is_texts)
_IDS = Kind("a token id or a list of them", _is_ids)
_OBJECT = Kind("an object", lambda value: isinstance(value, dict))
_COUNT = Kind("an integer from 0 on", lambda value: _is_integer(value, 0, MOST))

KEYS: Mapping[str, Kind] = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"), _size()),
    "num_hidden_layers": _size(MOST_LAYERS),
    **dict.fromkeys(
        (
            *("num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window"),
            "original_max_position_embeddings",
        ),
        _size(is_needed=False),
    ),
    **dict.fromkeys(("max_window_layers", "num_local_experts", "num_experts"), _COUNT),
    **dict.fromkeys(("rms_norm_eps", "rope_theta"), _number(0)),
    **dict.fromkeys(("partial_rotary_factor",), _number(-LARGEST)),
    **dict.fromkeys(
        ("attention_bias", "mlp_bias", "tie_word_embeddings", "use_sliding_window"),
        _FLAG,
    ),
    **dict.fromkeys(("hidden_act", "torch_dtype", "dtype"), _TEXT),
    **dict.fromkeys(("architectures", "layer_types"), _TEXTS),
    **dict.fromkeys(("bos_token_id", "eos_token_id"), _IDS),
    **dict.fromkeys(("rope_scaling", "rope_parameters"), _OBJECT),
    **dict.fromkeys(
        ("pard_token", "diffusion_mask_token"),
        Kind(_COUNT.words, _COUNT.fits, limit=": give the id of the mask token, or leave the key out"),
    ),
    "diffusion_passes": Kind(
        f"an integer from 1 to {MOST_PASSES}",
        lambda value: _is_integer(value, 1, MOST_PASSES),
        limit=": give the passes that fill a window, or leave the key out for 2",
    ),
}
ROPE_KEYS: Mapping[str, Kind] = {
    **dict.fromkeys(("rope_type", "type"), _TEXT),
    **dict.fromkeys(
        ("rope_theta", "low_freq_factor", "high_freq_factor", "attention_factor", "mscale", "mscale_all_dim"),
        _number(0),
    ),
    **dict.fromkeys(("beta_fast", "beta_slow", "partial_rotary_factor"), _number(-LARGEST)),
    "original_max_position_embeddings": _size(is_needed=False),
    "truncate": _FLAG,
}


def check_masks(vocab_size: int, pard: int | None, diffusion: int | None, passes: int | None) -> None:
    """Raises ConfigFileError for a token outside the vocabulary, and for keys that do not go together: the
    values of MASK_KEYS, each an integer or None.
    """
    for name, token in (("pard_token", pard), ("diffusion_mask_token", diffusion)):
        if token is not None and not 0 <= token < vocab_size:
            raise ConfigFileError(
                f"{name} {token} is not in the vocabulary, whose ids are 0 to {vocab_size - 1}: give the "
                "mask token that the draft was trained with, or leave the key out, for a draft that goes "
                "token by token"
            )
    if pard is not None and diffusion is not None:
        raise ConfigFileError(
            f"pard_token {pard} fills windows in one pass, and diffusion_mask_token {diffusion} in several: "
            "leave out the one that the draft was not trained with"
        )
    if passes is not None and (diffusion is None or not 1 <= passes <= MOST_PASSES):
        raise ConfigFileError(
            f"diffusion_passes {passes} wants a diffusion_mask_token, and is 1 to {MOST_PASSES}: give both, "
            "or leave it out"
        )


def check_keys(content: Mapping[str, object]) -> None:
    """Raises ConfigFileError, which names the key and the value, for what none of the readers could use."""
    _check(content, KEYS, "")
    for name in ("rope_scaling", "rope_parameters"):
        rope = content.get(name)
        if isinstance(rope, dict):
            _check(rope, ROPE_KEYS, f" of {name}")


def _check(content: Mapping[str, object], keys: Mapping[str, Kind], where: str) -> None:
    for name, kind in keys.items():
        if name not in content or (content[name] is None and not kind.is_needed):
            continue
        if not kind.fits(content[name]):
            raise ConfigFileError(
                f"{name}{where} must be {kind.words}, got {shown(content[name])}{kind.limit}"
            )
