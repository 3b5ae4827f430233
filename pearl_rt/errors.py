"""What can go wrong, by whose fault: five errors, each of which names the value and the way out.

Whoever calls pearl_rt needs to catch only `PearlError`. A message says what was found, what was expected and
what to do; it never says only that something failed.
"""


class PearlError(Exception):
    """Any error that pearl_rt raises on purpose."""


class ConfigError(PearlError, ValueError):
    """A model or an engine is described in a way that cannot be run: an architecture, an option."""


class CheckpointError(PearlError, ValueError):
    """Files of a checkpoint are missing, damaged, or do not fit the configuration beside them."""


class RequestError(PearlError, ValueError):
    """A request cannot be served as asked: an empty prompt, an id out of range, a negative temperature."""


class NumericsError(PearlError, RuntimeError):
    """Logits were NaN or infinite; the message names the lane, the step and the position."""


class ResourceError(PearlError, RuntimeError):
    """The machine has not got what was asked for: memory, cores, instructions."""
