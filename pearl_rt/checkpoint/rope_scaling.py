"""How a checkpoint stretches its rotary frequencies: the type and its parameters, checked.

Knows transformers' names for them; not where they are read, nor what the tables look like (models/rope).
"""

import math
from dataclasses import asdict, dataclass, fields

from pearl_rt.errors import ConfigError
from pearl_rt.types.json import Json


def is_number(value: object) -> bool:
    """A finite one, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class RopeScaling:
    """How the rotary frequencies are stretched: type and parameters, as transformers names them.

    linear  positions divided by `factor` (kaiokendev)
    llama3  low frequencies divided by `factor`, high ones kept, a ramp between them (Llama 3.1)
    yarn    the same idea by number of rotations, and cos/sin scaled (YaRN, arXiv 2309.00071)
    """

    rope_type: str
    factor: float
    original_max_position_embeddings: int | None = None  # llama3, yarn
    low_freq_factor: float | None = None  # llama3
    high_freq_factor: float | None = None  # llama3
    attention_factor: float | None = None  # yarn; None: from factor, mscale and mscale_all_dim
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    mscale: float | None = None  # yarn
    mscale_all_dim: float | None = None  # yarn
    truncate: bool = True  # yarn: round the ramp's ends outwards to whole dimensions

    def __post_init__(self) -> None:
        if self.rope_type not in ("linear", "llama3", "yarn"):
            raise ConfigError(
                f"rope type {self.rope_type!r} is not supported (default, linear, llama3 and yarn are): "
                "use a checkpoint with one of these"
            )
        wanted = {"linear": (), "yarn": ("original_max_position_embeddings",)}.get(
            self.rope_type, ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
        )
        for name in ("factor", *wanted):
            value = getattr(self, name)
            if not is_number(value) or value <= 0:
                raise ConfigError(f"rope type {self.rope_type!r} needs a positive {name}, got {value!r}")
        if self.rope_type == "llama3" and not self.low_freq_factor < self.high_freq_factor:  # type: ignore[operator]
            raise ConfigError(
                "rope type 'llama3' needs low_freq_factor < high_freq_factor, "
                f"got {self.low_freq_factor} and {self.high_freq_factor}"
            )

    def to_dict(self) -> Json:
        """The content of `rope_scaling` in config.json: the type, and what is not at its default."""
        defaults = {f.name: f.default for f in fields(self)}
        return {k: v for k, v in asdict(self).items() if v != defaults[k]}
