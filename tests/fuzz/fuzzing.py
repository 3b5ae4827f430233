"""What all fuzzers share: their cases by number, and what must hold of each: in time, and no error but ours.

    make fuzz                                                       10^5 cases of each target
    pytest tests/fuzz --cases 5000 --fuzz-seed 7                    other ones
    pytest tests/fuzz -k TARGET --fuzz-seed S --first-case N --cases 1    one case, as a failure names it

A case depends on the target, the seed and its number alone. Before each, its number is written to
build/fuzz/TARGET: what ends the process can be found there.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest

from pearl_rt.errors import PearlError

LIMIT_S = 2.0  # of one case
LONGEST_MESSAGE = 3000
PROGRESS = Path(__file__).resolve().parents[2] / "build" / "fuzz"
Case = TypeVar("Case")


class Fuzzer:
    """Runs the cases of one target."""

    def __init__(self, name: str, seed: int, first: int, count: int | None) -> None:
        self.name, self._seed, self._first, self._count = name, seed, first, count
        self.limit_s = LIMIT_S
        self.is_alone = count is not None and count < 100  # so few cases need not have every outcome

    def run(self, short: int, draw: Callable[[Random], Case], check: Callable[[Case], str]) -> Counter[str]:
        """How often each outcome was found: what check() returns, or the type of our error that it raised.
        short: cases in an ordinary run. A failure names the case.
        """
        outcomes: Counter[str] = Counter()
        PROGRESS.mkdir(parents=True, exist_ok=True)
        with (PROGRESS / self.name).open("w") as progress:
            for number in range(self._first, self._first + (self._count or short)):
                progress.seek(0)
                progress.write(f"seed {self._seed}, case {number}\n")
                progress.flush()
                case = draw(Random(f"{self.name} {self._seed} {number}"))
                outcome, fault = self._one(case, check)
                if fault:
                    pytest.fail(
                        f"{self.name}: {fault}\nseed {self._seed}, case {number}: pytest tests/fuzz -k "
                        f"{self.name} --fuzz-seed {self._seed} --first-case {number} --cases 1\n"
                        f"{_shown(case)}"
                    )
                outcomes[outcome] += 1
        print(f"{self.name}: {dict(outcomes)}")
        return outcomes

    def _one(self, case: Case, check: Callable[[Case], str]) -> tuple[str, str]:
        """(outcome, what is wrong with it)."""
        began, used = time.perf_counter(), time.process_time()
        outcome, fault = self._outcome(case, check)
        passed, used = time.perf_counter() - began, time.process_time() - used
        for _ in range(2):  # another process may have had the machine
            if passed <= self.limit_s or used > self.limit_s:
                break
            began = time.perf_counter()
            self._outcome(case, check)
            passed = min(passed, time.perf_counter() - began)
        if not fault and max(used, passed) > self.limit_s:
            fault = f"it takes {passed:.1f} s, {used:.1f} of the processor: {self.limit_s:g} s is the most"
        return outcome, fault

    @staticmethod
    def _outcome(case: Case, check: Callable[[Case], str]) -> tuple[str, str]:
        try:
            return check(case), ""
        except PearlError as error:
            told = str(error)
            if not told or len(told) > LONGEST_MESSAGE or not told.isprintable():
                return (
                    "",
                    f"its message has {len(told)} characters, or some that cannot be shown: {told[:500]!r}",
                )
            return type(error).__name__, ""
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # panics of native libraries are no Exception
            return "", f"{type(error).__name__}: {str(error)[:2000]}"


def _shown(case: object) -> str:
    text = repr(case)
    return text if len(text) < 2000 else f"{text[:1500]} ... {text[-300:]} ({len(text)} characters)"
