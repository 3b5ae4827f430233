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
from typing import Any, ParamSpec

import torch
import triton

Arguments = ParamSpec("Arguments")
LIBRARY = torch.library.Library("pearl_rt", "DEF")


def register(schema: str, launcher: Callable[..., None]) -> None:
    """Makes torch.ops.pearl_rt.<name> of a launcher. schema: "name(Tensor x, Tensor(a!) out, ...) -> ()".

    CUDA and CPU tensors both go to the launcher; on the CPU it needs Triton's interpreter (check_device).
    """
    name = LIBRARY.define(schema)
    for key in ("CUDA", "CPU"):
        LIBRARY.impl(name, launcher, key)
    torch.library.register_fake(f"pearl_rt::{name}", _writes_only_arguments, lib=LIBRARY)


def _writes_only_arguments(*args: object, **kwargs: object) -> None:
    """What an operator does to shapes and dtypes: nothing."""


def on_their_device(launcher: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """The launcher, run with the device of its first tensor as the current one: Triton launches there.

    Every launcher is decorated with this. Costs a comparison where that device is current already.
    """

    @wraps(launcher)
    def launch(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        given = (*args, *kwargs.values())
        device = next((value.device for value in given if isinstance(value, torch.Tensor)), None)
        if device is None or device.type != "cuda" or device.index == torch.cuda.current_device():
            launcher(*args, **kwargs)
            return
        with torch.cuda.device(device):
            launcher(*args, **kwargs)

    return launch


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter: TRITON_INTERPRET=1, set before they are imported."""
    return bool(triton.knobs.runtime.interpret)


def runs_kernels(device: torch.device) -> bool:
    """Whether kernels of this process can be launched on tensors there."""
    return device.type == "cuda" or interpreting()


def check_device(op: str, **tensors: torch.Tensor | None) -> None:
    """All on one device, and one that can run kernels. Raises ValueError."""
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    devices = {tensor.device for tensor in present.values()}
    if len(devices) > 1:
        places = ", ".join(f"{name} on {tensor.device}" for name, tensor in present.items())
        raise ValueError(f"{op}: tensors on several devices ({places}): move them to one")
    device = devices.pop()
    if not runs_kernels(device):
        raise ValueError(
            f"{op}: tensors on {device}, but kernels are compiled for CUDA: move them there, or set "
            "TRITON_INTERPRET=1 before pearl_rt.kernels is imported"
        )


def check(
    op: str, name: str, tensor: torch.Tensor, shape: tuple[int | None, ...], *dtypes: torch.dtype
) -> None:
    """Contiguous, of that shape (None: any size), one of these dtypes (if given). Raises ValueError."""
    found = tuple(tensor.shape)
    if len(found) != len(shape) or any(w is not None and w != f for w, f in zip(shape, found, strict=True)):
        wanted = ", ".join("*" if size is None else str(size) for size in shape)
        raise ValueError(f"{op}: {name} has shape {list(found)}, expected [{wanted}]")
    if dtypes and tensor.dtype not in dtypes:
        raise ValueError(f"{op}: {name} is {tensor.dtype}, expected {' or '.join(map(str, dtypes))}")
    if not tensor.is_contiguous():
        raise ValueError(f"{op}: {name} has strides {tensor.stride()}: pass a contiguous tensor")


def check_all(op: str, **given: tuple[Any, ...]) -> None:
    """name=(tensor or None, and what `check` takes behind it, or nothing): each as it must be, all on one
    device that can run kernels. Raises ValueError."""
    for name, (tensor, *expected) in given.items():
        if tensor is not None and expected:
            check(op, name, tensor, *expected)
    check_device(op, **{name: tensor for name, (tensor, *_) in given.items()})


def check_computed_rightly(op: str, name: str, tensor: torch.Tensor) -> None:
    """Not bfloat16 in Triton's interpreter, which computes and rounds it wrongly. Raises ValueError."""
    if tensor.dtype == torch.bfloat16 and interpreting():
        raise ValueError(
            f"{op}: {name} is torch.bfloat16, which Triton's interpreter computes wrongly: use float16"
        )


def check_workspace(op: str, workspace: torch.Tensor, num_bytes: int) -> None:
    """uint8, one dimension, at least num_bytes, 16-byte aligned. Raises ValueError."""
    if workspace.dtype != torch.uint8 or workspace.dim() != 1 or not workspace.is_contiguous():
        raise ValueError(
            f"{op}: workspace is {workspace.dtype} {list(workspace.shape)}, expected uint8 [bytes]"
        )
    if workspace.numel() < num_bytes:
        raise ValueError(
            f"{op}: workspace has {workspace.numel()} bytes, needs {num_bytes}: see workspace_size"
        )
    if workspace.data_ptr() % 16:
        raise ValueError(f"{op}: workspace starts at {workspace.data_ptr():#x}: align it to 16 bytes")
