"""Bugs put in on purpose are caught, each by the check that is named beside it in bugs.py.

The checks are those of test_coupled.py and test_rejection.py, with fewer runs.
"""

import bugs
import mutants
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
NONE = "none of them"
CHECKS = {bug.check: bug.arguments for bug in reversed(bugs.BUGS.values())}  # as the first bug of each has it


@pytest.fixture(scope="module")
def said() -> dict[tuple[str, str], str]:
    """(bug, check) -> what the check said, of all of them at once."""
    cases = [(name, bug.check, bug.arguments) for name, bug in bugs.BUGS.items()]
    cases += [(NONE, check, arguments) for check, arguments in CHECKS.items()]
    found = mutants.said_of(cases)
    return {(bug, check): text for (bug, check, _), text in zip(cases, found, strict=True)}


@pytest.mark.parametrize("name", bugs.BUGS)
def test_the_bug_is_caught(said: dict[tuple[str, str], str], name: str) -> None:
    check = bugs.BUGS[name].check
    assert said[name, check], f"{check} did not notice: {name}"


@pytest.mark.parametrize("check", CHECKS)
def test_without_a_bug_nothing_is(said: dict[tuple[str, str], str], check: str) -> None:
    assert said[NONE, check] == ""
