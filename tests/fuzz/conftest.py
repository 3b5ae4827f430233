"""Fuzzers by the names of their tests, with the cases that the command line asks for."""

from __future__ import annotations

import pytest
from fuzzing import Fuzzer


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`fuzzer` is named by its test: test_NAME."""
    if "fuzzer" in metafunc.fixturenames:
        metafunc.parametrize("fuzzer", [metafunc.function.__name__.removeprefix("test_")], indirect=True)


@pytest.fixture
def fuzzer(request: pytest.FixtureRequest) -> Fuzzer:
    option = request.config.getoption
    return Fuzzer(request.param, option("--fuzz-seed"), option("--first-case"), option("--cases"))
