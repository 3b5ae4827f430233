"""pearl_rt: parallel speculative decoding for Llama-family models.

Names are loaded when they are first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pearl_rt.engine import Engine
    from pearl_rt.errors import (
        CheckpointError,
        ConfigError,
        NumericsError,
        PearlError,
        RequestError,
        ResourceError,
    )
    from pearl_rt.metrics import RequestMetrics
    from pearl_rt.outputs import GenerationInterrupted, RequestOutput, StreamChunk
    from pearl_rt.sampling_params import SamplingParams

__version__ = "0.1.0"

_HOMES = {
    "Engine": "engine",
    "SamplingParams": "sampling_params",
    "RequestOutput": "outputs",
    "StreamChunk": "outputs",
    "GenerationInterrupted": "outputs",
    "RequestMetrics": "metrics",
    **dict.fromkeys(
        ("PearlError", "ConfigError", "CheckpointError", "RequestError", "NumericsError", "ResourceError"),
        "errors",
    ),
}
__all__ = [
    "CheckpointError",
    "ConfigError",
    "Engine",
    "GenerationInterrupted",
    "NumericsError",
    "PearlError",
    "RequestError",
    "RequestMetrics",
    "RequestOutput",
    "ResourceError",
    "SamplingParams",
    "StreamChunk",
]


def __getattr__(name: str) -> Any:
    """Engine brings torch with it, which takes seconds to import; errors and parameters do not."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pearl_rt' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"pearl_rt.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
