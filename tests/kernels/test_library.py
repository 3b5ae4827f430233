"""What every launcher does first: it runs on its tensors' device; and what debug mode finds."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from test_attention import FP32, random_case
from test_qkv_rope_store import random_case as rope_case
from torch._subclasses.fake_tensor import FakeTensorMode

from pearl_rt import kernels
from pearl_rt.kernels.base import interpreter, library
from pearl_rt.kernels.tools.cases import LAUNCHES

ROOT = Path(__file__).resolve().parents[2]


def test_one_import_registers_every_operator() -> None:
    """In a process that imports nothing else of pearl_rt."""
    files = sorted((ROOT / "kernels").rglob("*.py"))
    calls = [re.findall(r"^ *register\(\s*f?\"(\w+)\(", path.read_text(), re.MULTILINE) for path in files]
    names = sorted(name for own in calls for name in own)
    assert len(names) >= 13 and "rms_norm" in names
    code = (
        "import pearl_rt.kernels, torch, sys;"
        "print(*(n for n in sys.argv[1:] if hasattr(torch.ops.pearl_rt, n)))"
    )
    run = subprocess.run([sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.split() == names, run.stderr


@pytest.mark.parametrize("index", [0, 1])
def test_runs_on_the_device_of_its_tensors(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Device 0 is current. A tensor comes first, or behind other arguments, or by name."""
    entered: list[int] = []

    @contextmanager
    def on(device: torch.device) -> Iterator[None]:
        entered.append(device.index)
        yield
        entered.append(-1)

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", on)
    seen = []

    @library.on_their_device
    def launcher(kind: int, x: torch.Tensor | None, y: torch.Tensor | None = None) -> None:
        seen.append((kind, len(entered)))

    with FakeTensorMode():
        tensor = torch.empty(1, device=f"cuda:{index}")
    launcher(1, tensor)
    launcher(2, None, y=tensor)
    assert seen == ([(1, 0), (2, 0)] if index == 0 else [(1, 1), (2, 3)])
    assert entered == ([] if index == 0 else [1, -1, 1, -1])


def test_leaves_tensors_of_the_host_and_none_at_all_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cuda, "current_device")

    @library.on_their_device
    def launcher(*tensors: torch.Tensor) -> None:
        seen.append(len(tensors))

    seen: list[int] = []
    launcher(torch.zeros(1))
    launcher()
    assert seen == [1, 0]


@pytest.mark.parametrize("name", LAUNCHES)
def test_every_launcher_does(name: str) -> None:
    [place] = [m.name for m in pkgutil.walk_packages(kernels.__path__, "pearl_rt.kernels.") if holds(m, name)]
    launcher = getattr(importlib.import_module(place), name)
    assert launcher.__wrapped__.__name__ == name


def holds(module: pkgutil.ModuleInfo, name: str) -> bool:
    return module.name.endswith(f".{name}") and not module.ispkg and ".reference." not in module.name


def test_the_interpreter_patches_the_language_once(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type == "cuda":
        pytest.skip("kernels are compiled here")
    case = random_case([40], [1], (2, 1, 16), 16, FP32, device)
    expected = case.run()[0].clone()
    monkeypatch.setattr("triton.runtime.interpreter._patch_lang_core", None)  # a call would fail
    assert torch.equal(case.run()[0], expected)


@pytest.fixture
def debug(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As with TRITON_DEBUG=1, in the interpreter: on a GPU an assertion ends the process's use of it."""
    if device.type == "cuda":
        pytest.skip("kernels are compiled here")
    with monkeypatch.context() as patch:
        patch.setattr(triton.knobs.runtime, "debug", True)
        interpreter.follow_debug()
        yield
    interpreter.follow_debug()


@pytest.mark.parametrize("max_q_len", [1, 65], ids=["decode", "prefill"])
@pytest.mark.parametrize("page", [-1, 2147480000])
def test_debug_finds_block_ids(max_q_len: int, page: int, debug: None, device: torch.device) -> None:
    case = random_case([40], [1], (2, 1, 16), 16, FP32, device, max_q_len=max_q_len)
    found = case.run()[0]
    assert not found.isnan().any()
    case.block_table[0, 1] = page
    with pytest.raises(triton.runtime.errors.InterpreterError, match="attention: block id out of range"):
        case.run()


def test_debug_finds_slots(debug: None, device: torch.device) -> None:
    case: Any = rope_case(3, (2, 1, 16), device)
    case.run()
    case.slot_mapping[0] = case.k_cache.shape[0] * case.k_cache.shape[1]
    with pytest.raises(triton.runtime.errors.InterpreterError, match="slot out of range"):
        case.run()
