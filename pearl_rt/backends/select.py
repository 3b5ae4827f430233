"""Which back end runs an engine: CPU cores, GPUs, or the kernels in their interpreter.

Knows devices by name, and what each option is for; a back end is imported when it is asked for.
"""

import importlib.util
import re

from pearl_rt.backends.base import Backend
from pearl_rt.backends.cpu import CpuBackend
from pearl_rt.checkpoint.config import Environment
from pearl_rt.errors import ConfigError
from pearl_rt.strategy.engine_options import (
    BRANCHING_DRAFTERS,
    GPU_NAME,
    MODEL_DRAFTERS,
    VIEW_DRAFTERS,
    EngineOptions,
)
from pearl_rt.types.values import rule_of

DEFAULT_NUM_SEQS = 8  # on the CPU


def gpu_can_run() -> bool:
    """Whether device="auto" is a GPU: torch sees one that kernels run on, and triton is there."""
    import torch

    if not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability() >= (8, 0)


def device_name(options: EngineOptions, environment: Environment) -> str:
    """The device that was asked for, "auto" decided. Raises ConfigError for a wrong PEARL_DEVICE."""
    device: str = options.device
    if device == "auto" and environment.device:
        device = rule_of(EngineOptions, "device")("PEARL_DEVICE", environment.device, ConfigError)
    if device != "auto":
        return device
    for_cores = options.num_threads is not None or options.isa is not None or options.placement == "split"
    return "cuda" if not for_cores and gpu_can_run() else "cpu"


def draft_device_name(options: EngineOptions, device: str, has_draft: bool) -> str | None:
    """The draft's own device, or None: the target's. Raises ConfigError for one of no use."""
    own = options.draft_device
    if own is None:
        return None
    if not has_draft:
        raise ConfigError(f"draft_device {own!r} was given without a draft: pass draft=..., or drop it")
    if own == device:
        return None
    if not re.fullmatch(GPU_NAME, device):
        raise ConfigError(
            f"draft_device {own!r} is for a target on a GPU, and this one is on {device!r}: pass "
            "device='cuda', or drop it"
        )
    return own


def check_weights(options: EngineOptions, has_draft: bool) -> None:
    """Raises ConfigError for rounded weights of a draft that is not there, or that the target holds."""
    if options.draft_weights != "auto" and options.drafter == "self":
        raise ConfigError(
            f"draft_weights {options.draft_weights!r} was given with draft 'self', whose weights are the "
            "target's: pass weights=..., or drop it"
        )
    if options.draft_weights != "auto" and not has_draft:
        raise ConfigError(
            f"draft_weights {options.draft_weights!r} was given without a draft: pass draft=..., or drop it"
        )


def drafter_name(options: EngineOptions, device: str, made_for: str | None) -> str:
    """The kind of drafter that was asked for, "auto" decided. made_for: what the draft that was given drafts
    as; None: there is none. Raises ConfigError for one that cannot be.
    """
    kind: str = options.drafter
    if options.skip_layers is not None and kind != "self":
        raise ConfigError(
            f"skip_layers {options.skip_layers} are layers that draft='self' leaves out, and the drafter is "
            f"{kind!r}: pass draft='self', or drop them"
        )
    if kind == "auto" and made_for is None:
        return "lookup" if device == "cpu" else "none"
    if kind == "model" and made_for is None:
        raise ConfigError("drafter 'model' needs a draft model: pass draft=DIRECTORY, or draft='lookup'")
    if made_for is not None and kind not in ("auto", "model"):
        raise ConfigError(f"drafter {kind!r} was asked for, and a draft model was given: drop one of them")
    kind = made_for or kind
    if kind == "diffusion" and device != "cpu":
        raise ConfigError(
            f"draft {kind!r} (the draft has a diffusion_mask_token) runs on the CPU only so far, and the "
            f"target is on {device!r}: pass draft_parallel=False (--no-draft-parallel) for drafts token by "
            "token, or device='cpu'"
        )
    return kind


def check_lookup(kind: str, device: str) -> None:
    """Raises ConfigError for a lookup that has no model behind it."""
    if kind not in MODEL_DRAFTERS:
        raise ConfigError(
            f"draft_lookup looks up in front of a draft model, and the drafter is {kind!r}: pass "
            "draft=DIRECTORY or draft='self', or drop it"
        )
    if device != "cpu":
        raise ConfigError(
            f"draft_lookup runs on the CPU only so far, and the target is on {device!r}: pass device='cpu', "
            "or drop it"
        )


def check_candidates(options: EngineOptions, kind: str, draft_device: str | None) -> None:
    """Raises ConfigError for several windows of a sequence where one is all that there is."""
    asked = f"candidates {options.candidates}"
    if draft_device is not None:
        raise ConfigError(
            f"{asked}: several windows of a sequence need both models on one device, and draft_device is "
            f"{draft_device!r}: drop it, or pass candidates=1"
        )
    if options.draft_lookup:
        raise ConfigError(
            f"{asked} begin with tokens of a model's row, and a lookup has none: drop draft_lookup"
        )
    if kind not in BRANCHING_DRAFTERS:
        why = {
            "parallel": "whose rows are of one window: pass draft_parallel=False for drafts token by token",
            "diffusion": "whose windows are filled whole: pass draft_parallel=False",
            "eagle3": "which is fed what the target computed at one window: pass another draft",
        }
        raise ConfigError(
            f"{asked} begin with tokens of a draft model's row, and the drafter is {kind!r}, "
            f"{why.get(kind, 'which has none: pass draft=DIRECTORY of a model')}, or candidates=1"
        )


def backend(options: EngineOptions, made_for: str | None) -> tuple[Backend, str]:
    """The back end that was asked for, and what drafts there: "model", "parallel", "diffusion", "self",
    "exit", "eagle3", "lookup" or "none". made_for: what the draft that was given drafts as; None: there is
    none. Raises ConfigError for what makes no sense, ResourceError for what this machine has not got.
    """
    has_draft = made_for is not None
    environment = Environment.read()
    device = device_name(options, environment)
    draft_device = draft_device_name(options, device, has_draft or options.drafter == "self")
    drafter = drafter_name(options, device, made_for)
    if draft_device is not None and drafter == "eagle3":
        raise ConfigError(
            f"draft_device {draft_device!r} was given with draft 'eagle3', which reads what the target "
            f"computes on {device!r}: drop it, or take a draft model"
        )
    if draft_device is not None and drafter in VIEW_DRAFTERS:
        raise ConfigError(
            f"draft_device {draft_device!r} was given with draft {drafter!r}, whose weights are the target's "
            f"on {device!r}: drop it, or take a draft model"
        )
    check_weights(options, has_draft)
    if options.draft_lookup:
        check_lookup(drafter, device)
    if options.candidates > 1:
        check_candidates(options, drafter, draft_device)
    if options.pdl and device == "cpu":
        raise ConfigError("pdl is how kernels are launched on a GPU, and the target is on 'cpu': drop it")
    num_slots, kv_cache_tokens = options.max_num_seqs, options.kv_cache_tokens
    caches = options.prefix_caching and drafter != "eagle3"  # of a prompt that is found there are no taps
    num_threads = environment.num_threads if options.num_threads is None else options.num_threads
    isa = options.isa or environment.isa
    if device == "cpu":
        by_default = options.draft_lookup is None and options.candidates == 1 and drafter in MODEL_DRAFTERS
        looks_up = drafter == "lookup" or options.draft_lookup or by_default
        lookup_tokens = options.lookup_pool if looks_up else None
        ends = options.draft_stop, options.candidates
        num_slots = num_slots or DEFAULT_NUM_SEQS
        sizes = num_slots, kv_cache_tokens, lookup_tokens, not by_default, *ends
        return CpuBackend(num_threads, isa, *sizes, prefix_caching=caches), drafter
    if device == "interpret":
        Environment.interpret_kernels()
    if draft_device != "cpu":
        for name in ("num_threads", "isa"):
            if getattr(options, name) is not None and device != "interpret":
                raise ConfigError(
                    f"{name} {getattr(options, name)!r} is for a model on the CPU, and none is: drop it, or "
                    "pass device='cpu' or draft_device='cpu'"
                )
    try:
        if device == "interpret":
            from pearl_rt.backends.interpret import InterpretBackend

            interpreted = InterpretBackend(
                *(num_slots or 1, kv_cache_tokens),
                pdl=options.pdl,
                prefix_caching=caches,
                lookup_tokens=options.lookup_pool if drafter == "lookup" else None,
                candidates=options.candidates,
            )
            return interpreted, drafter
        from pearl_rt.backends.cuda import CudaBackend
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"device {device!r} needs {error.name}, which is not installed: `pip install 'pearl_rt[gpu]'`, "
            "or pass device='cpu'"
        ) from None
    on_gpu = CudaBackend(
        device,
        draft_device,
        form=options.form,
        rounds_ahead=options.rounds_ahead,
        max_memory=options.max_memory,
        pdl=options.pdl,
        gamma=options.gamma,
        cpu=CpuBackend(num_threads, isa, num_slots or 1, kv_cache_tokens) if draft_device == "cpu" else None,
        num_slots=num_slots or 1,
        kv_cache_tokens=kv_cache_tokens,
        prefix_caching=caches,
        lookup_tokens=options.lookup_pool if drafter == "lookup" else None,
        candidates=options.candidates,
    )
    return on_gpu, drafter
