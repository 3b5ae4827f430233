"""The one torch library of the operators, torch.ops.pearl_rt.*, and what every launcher does first.

Knows no kernel. Every operator writes into tensors of its caller and returns nothing, so that it can be
captured. A launcher runs on the device of its tensors, on torch's current stream there, whichever device is
current (on_their_device); shapes and dtypes are checked on the host, and what stands in tensors is not.

Kernels that are given addresses (block ids, slots) check them on the device if they are compiled with their
assertions: set TRITON_DEBUG=1 before Python starts, or triton.knobs.runtime.debug = True before the first
launch. A wrong one is then printed with its file and line, and ends the process's use of the GPU, as any
device-side assertion does; without, it is an access to memory of others. The interpreter asserts in Python.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import torch

from .signature import OperatorSignature

Arguments = ParamSpec("Arguments")
LIBRARY = torch.library.Library("pearl_rt", "DEF")


def operator(launcher: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Makes torch.ops.pearl_rt.<name> of a launcher, which is run behind the checks of its signature.

    CUDA and CPU tensors both go to the launcher; on the CPU it needs Triton's interpreter (check_device).
    """
    described = OperatorSignature(launcher)

    @wraps(launcher)
    def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        described.check(args, kwargs)
        launcher(*args, **kwargs)

    launch = on_their_device(checked)
    name = LIBRARY.define(described.schema)
    for key in ("CUDA", "CPU"):
        LIBRARY.impl(name, described.operator(launch), key)
    torch.library.register_fake(f"pearl_rt::{name}", _writes_only_arguments, lib=LIBRARY)
    return launch


def _writes_only_arguments(*args: object, **kwargs: object) -> None:
    """What an operator does to shapes and dtypes: nothing."""


def on_their_device(launcher: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """The launcher, run with the device of its first tensor as the current one: Triton launches there.

    Costs a comparison where that device is current already.
    """

    @wraps(launcher)
    def launch(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        given = [(*value,) if isinstance(value, tuple) else (value,) for value in (*args, *kwargs.values())]
        tensors = (value for values in given for value in values if isinstance(value, torch.Tensor))
        device = next((tensor.device for tensor in tensors), None)
        if device is None or device.type != "cuda" or device.index == torch.cuda.current_device():
            launcher(*args, **kwargs)
            return
        with torch.cuda.device(device):
            launcher(*args, **kwargs)

    return launch
