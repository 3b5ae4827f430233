"""The one torch library of the operators, torch.ops.pearl_rt.*, and the checks that every launcher makes.

Knows no kernel. Every operator writes into tensors of its caller and returns nothing, so that it can be
captured.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton

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


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter: TRITON_INTERPRET=1, set before they are imported."""
    return bool(triton.knobs.runtime.interpret)


def check_device(op: str, **tensors: torch.Tensor | None) -> None:
    """All on one device, and one that can run kernels. Raises ValueError."""
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    devices = {tensor.device for tensor in present.values()}
    if len(devices) > 1:
        places = ", ".join(f"{name} on {tensor.device}" for name, tensor in present.items())
        raise ValueError(f"{op}: tensors on several devices ({places}): move them to one")
    device = devices.pop()
    if device.type != "cuda" and not interpreting():
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
