"""Which layers of a target a draft has: all but those that it skips (Draft & Verify, arXiv 2309.08168)."""

from collections.abc import Sequence

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.errors import ConfigError


def kept_layers(config: ModelConfig, skipped: Sequence[int]) -> tuple[int, ...]:
    """The layers that are left, in order. Raises ConfigError for a layer that the target has not got, and for
    a draft without layers.
    """
    number = config.num_hidden_layers
    for layer in skipped:
        if layer >= number:
            raise ConfigError(
                f"skip_layers has {layer}, and the target has layers 0 to {number - 1}: name some of these"
            )
    kept = tuple(layer for layer in range(number) if layer not in set(skipped))
    if not kept:
        raise ConfigError(f"skip_layers has all {number} layers of the target: leave the draft at least one")
    return kept
