"""Kernels in the interpreter: the language is patched once. Debug mode finds bad block ids and slots, also in
compiled kernels on the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton
from compiled import skip_where_compiled
from test_attention import FP32, random_case
from test_qkv_rope_store import random_case as rope_case

from pearl_rt.kernels.base import interpreter
from pearl_rt.kernels.base.checks import interpreting

RAISED = (triton.runtime.errors.InterpreterError, RuntimeError)  # the second by a compiled kernel on the host


def test_the_interpreter_patches_the_language_once(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_where_compiled()
    case = random_case([40], [1], (2, 1, 16), 16, FP32, device)
    expected = case.run()[0].clone()
    monkeypatch.setattr("triton.runtime.interpreter._patch_lang_core", None)  # a call would fail
    assert torch.equal(case.run()[0], expected)


@pytest.fixture
def debug(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As with TRITON_DEBUG=1, but on a GPU: there an assertion ends the process's use of it."""
    if device.type == "cuda":
        pytest.skip("an assertion would end the process's use of the GPU")
    with monkeypatch.context() as patch:
        patch.setattr(triton.knobs.runtime, "debug", True)
        if interpreting():
            interpreter.follow_debug()
        yield
    if interpreting():
        interpreter.follow_debug()


@pytest.mark.parametrize("max_q_len", [1, 65], ids=["decode", "prefill"])
@pytest.mark.parametrize("page", [-1, 2147480000])
def test_debug_finds_block_ids(max_q_len: int, page: int, debug: None, device: torch.device) -> None:
    case = random_case([40], [1], (2, 1, 16), 16, FP32, device, max_q_len=max_q_len)
    found = case.run()[0]
    assert not found.isnan().any()
    case.block_table[0, 1] = page
    with pytest.raises(RAISED, match="attention: block id out of range"):
        case.run()


def test_debug_finds_slots(debug: None, device: torch.device) -> None:
    case: Any = rope_case(3, (2, 1, 16), device)
    case.run()
    case.slot_mapping[0] = case.k_cache.shape[0] * case.k_cache.shape[1]
    with pytest.raises(RAISED, match="slot out of range"):
        case.run()
