"""pearl_rt: parallel speculative decoding for Llama-family models.

Names are loaded when they are first used.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pearl_rt.device.state import RoundRow
    from pearl_rt.engine import Engine
    from pearl_rt.errors import (
        CheckpointError,
        ConfigError,
        DeviceError,
        EngineClosedError,
        NumericsError,
        PearlError,
        PromptTooLongError,
        QueueFullError,
        RequestError,
        ResourceError,
    )
    from pearl_rt.lowlevel.pair import DevicePair
    from pearl_rt.lowlevel.round import Round
    from pearl_rt.lowlevel.round_graph import RoundGraph
    from pearl_rt.reference.logprobs import Logprob
    from pearl_rt.scheduling.handle import RequestHandle
    from pearl_rt.strategy.engine_options import EngineOptions
    from pearl_rt.types.metrics import RequestMetrics
    from pearl_rt.types.outputs import GenerationInterrupted, RequestOutput, StreamChunk
    from pearl_rt.types.request import Request
    from pearl_rt.types.sampling_params import SamplingParams
    from pearl_rt.types.structured_outputs import StructuredOutputsParams

__version__ = "0.1.0"

_HOMES = {
    "DevicePair": "lowlevel.pair",
    "Engine": "engine",
    "EngineOptions": "strategy.engine_options",
    "Request": "types.request",
    "Round": "lowlevel.round",
    "RoundGraph": "lowlevel.round_graph",
    "RoundRow": "device.state",
    "SamplingParams": "types.sampling_params",
    "StructuredOutputsParams": "types.structured_outputs",
    "RequestOutput": "types.outputs",
    "StreamChunk": "types.outputs",
    "GenerationInterrupted": "types.outputs",
    "RequestHandle": "scheduling.handle",
    "Logprob": "reference.logprobs",
    "RequestMetrics": "types.metrics",
    **dict.fromkeys(
        (
            *("PearlError", "ConfigError", "CheckpointError", "RequestError", "EngineClosedError"),
            *("PromptTooLongError", "QueueFullError", "NumericsError", "ResourceError", "DeviceError"),
        ),
        "errors",
    ),
}
__all__ = [
    "CheckpointError",
    "ConfigError",
    "DeviceError",
    "DevicePair",
    "Engine",
    "EngineClosedError",
    "EngineOptions",
    "GenerationInterrupted",
    "Logprob",
    "NumericsError",
    "PearlError",
    "PromptTooLongError",
    "QueueFullError",
    "Request",
    "RequestError",
    "RequestHandle",
    "RequestMetrics",
    "RequestOutput",
    "ResourceError",
    "Round",
    "RoundGraph",
    "RoundRow",
    "SamplingParams",
    "StreamChunk",
    "StructuredOutputsParams",
]


if not TYPE_CHECKING:  # which would take every name for one of ours

    def __getattr__(name: str) -> object:
        """Engine brings torch with it, which takes seconds to import; errors and parameters do not."""
        if name not in _HOMES:
            raise AttributeError(f"module 'pearl_rt' has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"pearl_rt.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
