"""Bugs put in on purpose are caught, each by the check that is named beside it in mutants.py.

The checks are those of test_coupled.py and test_rejection.py, with fewer runs.
"""

from pathlib import Path

import mutants
import pytest


@pytest.fixture(scope="module")
def module() -> Path:
    return mutants.build()


@pytest.mark.parametrize("name", mutants.BUGS)
def test_the_bug_is_caught(module: Path, name: str) -> None:
    bug = mutants.BUGS[name]
    assert mutants.caught(module, name, bug.check, bug.arguments), f"{bug.check} did not notice: {name}"


@pytest.mark.parametrize(
    ("check", "arguments"),
    {bug.check: bug.arguments for bug in mutants.BUGS.values()}.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_without_a_bug_nothing_is(module: Path, check: str, arguments: dict) -> None:
    assert mutants.caught(module, "none of them", check, arguments) == ""
