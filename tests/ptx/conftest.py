"""Tests that launch compiled kernels run in processes of their own: those that were started with --ptx."""

from pathlib import Path

import pytest

COMPILED = Path(__file__).parent / "compiled"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path == COMPILED and not config.getoption("--ptx") else None
