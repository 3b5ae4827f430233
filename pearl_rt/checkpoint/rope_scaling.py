"""How a checkpoint stretches its rotary frequencies: the type and its parameters, checked.

Knows transformers' names for them, old and new; not files, nor what the tables look like (rope.py).
"""

from dataclasses import asdict, dataclass, fields

from pearl_rt.errors import ConfigError, shown
from pearl_rt.types.config_keys import LARGEST, SMALLEST, is_number
from pearl_rt.types.json import Json


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
                f"rope type {shown(self.rope_type)} is not supported (default, linear, llama3 and yarn are): "
                "use a checkpoint with one of these"
            )
        wanted = {"linear": (), "yarn": ("original_max_position_embeddings", "beta_fast", "beta_slow")}.get(
            self.rope_type, ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
        )
        for name in ("factor", *wanted):
            value = getattr(self, name)
            if not is_number(value) or not SMALLEST <= value <= LARGEST:
                raise ConfigError(f"rope type {self.rope_type!r} needs a positive {name}, got {shown(value)}")
        if self.rope_type == "llama3" and not self.low_freq_factor < self.high_freq_factor:  # type: ignore[operator]
            raise ConfigError(
                "rope type 'llama3' needs low_freq_factor < high_freq_factor, "
                f"got {self.low_freq_factor} and {self.high_freq_factor}"
            )

    def to_dict(self) -> Json:
        """The content of `rope_scaling` in config.json: the type, and what is not at its default."""
        defaults = {f.name: f.default for f in fields(self)}
        return {k: v for k, v in asdict(self).items() if v != defaults[k]}


def read_rope(d: Json, max_position_embeddings: int) -> tuple[float, RopeScaling | None]:
    """(rope_theta, scaling or None) from `rope_parameters` (new) or `rope_theta` and `rope_scaling` (old)."""
    rope = d.get("rope_scaling") or d.get("rope_parameters") or {}
    if any(isinstance(value, dict) for value in rope.values()):
        raise ConfigError("rope_parameters that differ between kinds of layers are not supported")
    theta = float(rope.get("rope_theta") or d.get("rope_theta") or 10000.0)
    partial = rope.get("partial_rotary_factor", d.get("partial_rotary_factor"))
    if partial not in (None, 1):
        raise ConfigError(f"partial_rotary_factor {shown(partial)} is not supported: only 1 is")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type == "default":
        return theta, None
    known = {f.name for f in fields(RopeScaling)}
    given = {k: v for k, v in rope.items() if k in known and v is not None} | {"rope_type": rope_type}
    if rope_type in ("llama3", "yarn"):
        original = d.get("original_max_position_embeddings") or given.get("original_max_position_embeddings")
        given["original_max_position_embeddings"] = original or max_position_embeddings
    if rope_type == "yarn":
        given = {k: v for k, v in given.items() if v or k not in ("beta_fast", "beta_slow")}
        given.setdefault("factor", max_position_embeddings / given["original_max_position_embeddings"])
        if theta == 1:
            raise ConfigError(
                "rope type 'yarn' needs a rope_theta other than 1, which turns all dimensions alike"
            )
    given.setdefault("factor", None)
    return theta, RopeScaling(**given)
