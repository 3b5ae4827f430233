"""Which back end runs an engine: CPU cores, GPUs, or the kernels in their interpreter.

Knows devices by name, and what each option is for; a back end is imported when it is asked for.
"""

import importlib.util
import re
from dataclasses import dataclass
from typing import Any

from pearl_rt.backends.base import Backend
from pearl_rt.backends.cpu import CpuBackend
from pearl_rt.checkpoint.config import Environment
from pearl_rt.device.kv_pool import checked_kv_cache_tokens
from pearl_rt.errors import ConfigError, RequestError
from pearl_rt.strategy.options import DEFAULT_NUM_SEQS, DEVICES, FORMS, choice, threads
from pearl_rt.strategy.planner import MAX_GAMMA
from pearl_rt.types.sampling_params import integer

GPU_NAME = re.compile(r"cuda(:\d{1,3})?")


@dataclass(frozen=True)
class Asked:
    """The options of an engine that say where and how its lanes run, as its caller gave them."""

    device: Any = "auto"
    draft_device: Any = None
    form: Any = "events"
    rounds_ahead: Any = 2
    max_memory: Any = None
    num_threads: Any = None
    isa: Any = None
    placement: Any = "auto"
    gamma: Any = None
    max_num_seqs: Any = None
    kv_cache_tokens: Any = None


def gpu_can_run() -> bool:
    """Whether device="auto" is a GPU: torch sees one that kernels run on, and triton is there."""
    import torch

    if not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability() >= (8, 0)


def device_name(asked: Asked, environment: Environment) -> str:
    """The device that was asked for, "auto" decided. Raises ConfigError for what is none."""
    device = environment.device if asked.device == "auto" and environment.device else asked.device
    if isinstance(device, str) and GPU_NAME.fullmatch(device):
        return device
    choice("device", device, DEVICES)
    if device == "cuda:N":
        raise ConfigError("device 'cuda:N' wants a number for N: pass 'cuda:0'")
    if device != "auto":
        return str(device)
    for_cores = asked.num_threads is not None or asked.isa is not None or asked.placement == "split"
    return "cuda" if not for_cores and gpu_can_run() else "cpu"


def draft_device_name(asked: Asked, device: str, has_draft: bool) -> str | None:
    """The draft's own device, or None: the target's. Raises ConfigError for what is none, or of no use."""
    own = asked.draft_device
    if own is None:
        return None
    if not isinstance(own, str) or (own != "cpu" and not GPU_NAME.fullmatch(own)):
        raise ConfigError(
            f"draft_device {own!r} is not supported: pass 'cpu', 'cuda:N', or None for the target's"
        )
    if not has_draft:
        raise ConfigError(f"draft_device {own!r} was given without a draft: pass draft=..., or drop it")
    if own == device:
        return None
    if not GPU_NAME.fullmatch(device):
        raise ConfigError(
            f"draft_device {own!r} is for a target on a GPU, and this one is on {device!r}: pass "
            "device='cuda', or drop it"
        )
    return own


def backend(asked: Asked, *, has_draft: bool) -> Backend:
    """The back end that was asked for. Raises ConfigError for what makes no sense, ResourceError for what
    this machine has not got.
    """
    environment = Environment.read()
    device = device_name(asked, environment)
    draft_device = draft_device_name(asked, device, has_draft)
    choice("form", asked.form, FORMS)
    num_slots = None if asked.max_num_seqs is None else _whole("max_num_seqs", asked.max_num_seqs, 1, 256)
    kv_cache_tokens = checked_kv_cache_tokens(asked.kv_cache_tokens)
    num_threads, isa = threads(asked.num_threads, environment.num_threads), asked.isa or environment.isa
    if device == "cpu":
        return CpuBackend(num_threads, isa, num_slots or DEFAULT_NUM_SEQS, kv_cache_tokens)
    if device == "interpret":
        Environment.interpret_kernels()
    if draft_device != "cpu":
        for name in ("num_threads", "isa"):
            if getattr(asked, name) is not None and device != "interpret":
                raise ConfigError(
                    f"{name} {getattr(asked, name)!r} is for a model on the CPU, and none is: drop it, or "
                    "pass device='cpu' or draft_device='cpu'"
                )
    try:
        if device == "interpret":
            from pearl_rt.backends.interpret import InterpretBackend

            return InterpretBackend(num_slots or 1, kv_cache_tokens)
        from pearl_rt.backends.cuda import CudaBackend
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"device {device!r} needs {error.name}, which is not installed: `pip install 'pearl_rt[gpu]'`, "
            "or pass device='cpu'"
        ) from None
    return CudaBackend(
        device,
        draft_device,
        form=asked.form,
        rounds_ahead=_whole("rounds_ahead", asked.rounds_ahead, 1, 32),
        max_memory=None if asked.max_memory is None else _whole("max_memory", asked.max_memory, 1),
        gamma=asked.gamma if asked.gamma in range(1, MAX_GAMMA + 1) else None,
        cpu=CpuBackend(num_threads, isa, num_slots or 1, kv_cache_tokens) if draft_device == "cpu" else None,
        num_slots=num_slots or 1,
        kv_cache_tokens=kv_cache_tokens,
    )


def _whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    try:
        number = integer(name, value)
    except RequestError as refused:
        raise ConfigError(str(refused)) from None
    if number < least or (most is not None and number > most):
        limits = f"{least} or more" if most is None else f"{least} to {most}"
        raise ConfigError(f"{name} {number} is out of range: pass {limits}")
    return int(number)
