"""What every launcher does first: it runs on its tensors' device."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pearl_rt import kernels
from pearl_rt.kernels.base import library
from pearl_rt.kernels.tools.cases import LAUNCHES

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_one_import_registers_every_operator() -> None:
    """In a process that imports nothing else of pearl_rt."""
    files = sorted((ROOT / "kernels").rglob("*.py"))
    calls = [re.findall(r"^@operator\ndef (\w+)\(", path.read_text(), re.MULTILINE) for path in files]
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
