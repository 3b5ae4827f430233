"""The fake CUDA driver, made anew for each test, and its first device."""

from __future__ import annotations

from collections.abc import Iterator

import fake_cuda
import pytest
from fake_cuda import FakeCuda, FakeDevice


@pytest.fixture
def fake() -> Iterator[FakeCuda]:
    yield from fake_cuda.world()


@pytest.fixture
def device(fake: FakeCuda) -> FakeDevice:
    return FakeDevice(fake)
