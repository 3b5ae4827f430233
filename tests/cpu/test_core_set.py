"""Core sets: which CPUs they refuse, and the memory bandwidth that they measure."""

from __future__ import annotations

import os

import pytest

from pearl_rt import _C

CPUS = sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("cpus", "message"),
    [
        ([], "at least one CPU"),
        ([CPUS[0], CPUS[0]], "named twice"),
        ([100_000], "not one that this process may use"),
    ],
    ids=["none", "twice", "absent"],
)
def test_bad_core_sets_are_refused(cpus: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _C.CoreSet(cpus)


def test_bandwidth_is_of_this_world() -> None:
    rate = _C.measure_bandwidth(_C.CoreSet(CPUS[:2]), 8 << 20, 0.01)
    assert 1e8 < rate < 1e13
    with pytest.raises(ValueError, match="bytes is 1000"):
        _C.measure_bandwidth(_C.CoreSet(CPUS[:1]), 1000, 0.01)
