"""Tests over the published model of the main job, whose file pip fetches: they run with --published alone."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """No test of an ordinary run needs a network."""
    return None if config.getoption("--published") else True
