"""How long the suite runs: a short form in every run of the tests, the long one by `make exactness`."""

import pytest


@pytest.fixture
def exactness_runs(request: pytest.FixtureRequest) -> int:
    """Random cases of a test."""
    return 1000 if request.config.getoption("--long") else 80
