"""Tests that drive a browser run where one was named: with --browser, as `make test-page` does."""

from pathlib import Path

import pytest

BROWSER = Path(__file__).parent / "browser"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path == BROWSER and not config.getoption("--browser") else None
