"""Checks of what a launcher is given, on the host: shapes, dtypes, strides, devices; not what tensors hold.

Knows no kernel. Every refusal is a ValueError that names the operator, the argument and its value.
"""

from __future__ import annotations

import torch
import triton

MAX_VOCAB = 2**31 - 2**16  # what int32 indices of a row reach, tiles included


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter: TRITON_INTERPRET=1, set before they are imported."""
    return bool(triton.knobs.runtime.interpret)


def runs_kernels(device: torch.device) -> bool:
    """Whether kernels of this process can be launched on tensors there: on a GPU, in the interpreter, or on
    the device of a driver that Triton was given.
    """
    if device.type == "cuda" or interpreting():
        return True
    try:
        active = triton.runtime.driver.active
    except RuntimeError:  # there is none
        return False
    return bool(active.get_active_torch_device().type == device.type)


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
    op: str,
    name: str,
    tensor: torch.Tensor,
    shape: tuple[int | None, ...],
    *dtypes: torch.dtype,
    contiguous: bool = True,
) -> None:
    """Of that shape (None: any size), one of these dtypes (if given). Raises ValueError."""
    found = tuple(tensor.shape)
    if len(found) != len(shape) or any(w is not None and w != f for w, f in zip(shape, found, strict=True)):
        wanted = ", ".join("*" if size is None else str(size) for size in shape)
        raise ValueError(f"{op}: {name} has shape {list(found)}, expected [{wanted}]")
    if dtypes and tensor.dtype not in dtypes:
        raise ValueError(f"{op}: {name} is {tensor.dtype}, expected {' or '.join(map(str, dtypes))}")
    if contiguous and not tensor.is_contiguous():
        raise ValueError(f"{op}: {name} has strides {tensor.stride()}: pass a contiguous tensor")


def check_rows(op: str, name: str, rows: torch.Tensor, dims: int) -> None:
    """Entries of a row side by side, rows anywhere; indices that fit. Raises ValueError."""
    if rows.dim() != dims or rows.shape[-1] < 1:
        raise ValueError(
            f"{op}: {name} has shape {list(rows.shape)}, expected {dims} dimensions, vocabulary >= 1"
        )
    if rows.shape[-1] > MAX_VOCAB:
        raise ValueError(f"{op}: {name} has a vocabulary of {rows.shape[-1]}, the limit is {MAX_VOCAB}")
    if rows.shape[-1] > 1 and rows.stride(-1) != 1:
        raise ValueError(f"{op}: {name} has strides {rows.stride()}: make its last dimension contiguous")


def check_even_rows(op: str, name: str, rows: torch.Tensor) -> None:
    """rows [B, R, V] at one stride through all of them. Raises ValueError."""
    if rows.stride(0) != rows.shape[1] * rows.stride(1):
        raise ValueError(f"{op}: {name} has strides {rows.stride()}: rows must lie evenly")


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
