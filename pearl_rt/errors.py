"""What can go wrong, by whose fault: one type for each, which names the value and the way out.

A caller of pearl_rt needs to catch only `PearlError`. A message says what was found, what was expected and
what to do; it never says only that something failed.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

# What Python, torch and the system say where a process may have no more: of errors of several types.
NO_MORE = re.compile(
    "allocate memory|start new thread|Resource temporarily unavailable|failed to map segment"
)


class PearlError(Exception):
    """Any error that pearl_rt raises on purpose."""


class ConfigError(PearlError, ValueError):
    """A model or an engine is described in a way that cannot be run: an architecture, an option."""


class CheckpointError(PearlError, ValueError):
    """Files of a checkpoint are missing, damaged, or do not fit the configuration beside them."""


class ConfigFileError(CheckpointError, ConfigError):
    """A value in a config.json is none that this key can have."""


class RequestError(PearlError, ValueError):
    """A request cannot be served as asked: an empty prompt, an id out of range, a negative temperature."""


class PromptTooLongError(RequestError):
    """A prompt leaves no room for an answer within max_model_len: a client may shorten it and ask again."""


class EngineClosedError(RequestError):
    """The engine was closed, before the request or while it was in flight."""


class QueueFullError(PearlError, RuntimeError):
    """As many requests wait as may wait: try again later, or build the engine with a larger max_waiting."""


class NumericsError(PearlError, RuntimeError):
    """Logits were NaN or infinite; the message names the lane, the step and the position."""


class ResourceError(PearlError, RuntimeError):
    """The machine has not got what was asked for: memory, cores, instructions."""


class DeviceError(PearlError, RuntimeError):
    """What a GPU or its driver reported: the call, its code, name and text, and the place in our work."""

    def __init__(
        self, message: str, *, call: str = "", code: int = 0, name: str = "", text: str = "", place: str = ""
    ) -> None:
        super().__init__(message)
        self.call = call  # "cuGraphLaunch"
        self.code = code  # 719
        self.name = name  # "CUDA_ERROR_LAUNCH_FAILED"
        self.text = text  # "unspecified launch failure"
        self.place = place  # "in step score of the target lane, round 12"


def shown(value: object, most: int = 100) -> str:
    """A value, as messages give it: its repr, cut where it is long, or its type where it has none."""
    try:
        text = repr(value)
    except Exception:  # of whatever was passed: an int of over 4300 digits has none
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= most else f"{text[: most - 20]}... ({len(text)} characters)"


def one_line(told: object, most: int = 300) -> str:
    """What a file or a library says, as messages repeat it: in one line, cut where it is long, without what
    cannot be shown.
    """
    text = " ".join(str(told).split())[:most]
    return "".join(each if each.isprintable() else "?" for each in text) or type(told).__name__


def gib(size: int) -> str:
    """Bytes, as messages give them."""
    return f"{size / 2**30:.2f} GiB"


@contextmanager
def within_limits() -> Iterator[None]:
    """Around what takes memory and threads: where the process may have no more of them, a ResourceError."""
    try:
        yield
    except PearlError:
        raise
    except (MemoryError, OSError, RuntimeError, ImportError) as error:
        if not isinstance(error, MemoryError) and not NO_MORE.search(str(error)):
            raise
        told = next((line for line in str(error).splitlines() if NO_MORE.search(line)), error)
        raise ResourceError(
            f"the process may have no more memory or threads ({one_line(told)}): raise its limits "
            "(ulimit -v, ulimit -u, or a container's), lower max_model_len or max_num_seqs, or take smaller "
            "models"
        ) from None
