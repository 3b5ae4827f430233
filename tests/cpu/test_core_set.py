"""Core sets: which CPUs they refuse, how their workers share out items, and the memory bandwidth that they
measure.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from pearl_rt import _C, _testing

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


@pytest.mark.parametrize("is_pinned", [False, True], ids=["free", "pinned"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_item_is_run_once_and_phases_in_order(size: int, is_pinned: bool) -> None:
    core_set = _C.CoreSet(CPUS[:size], is_pinned)
    counts = [1, 2, 63, 1000, 0, 5, 0, 0, 7]
    for _ in range(20):
        runs = _testing.run_items(core_set, counts)
        assert [sorted(item for item, _ in phase) for phase in runs] == [list(range(n)) for n in counts]
        assert {worker for phase in runs for _, worker in phase} <= set(range(size))
    assert _testing.run_items(core_set, []) == []
    assert _testing.run_items(core_set, [0]) == [[]]


@pytest.mark.skipif(len(CPUS) < 2, reason="one CPU has no helper")
def test_who_is_done_takes_what_another_has_not_begun() -> None:
    """Its own range from the front, then the other's from the end: that one holds up its own item only."""
    core_set = _C.CoreSet(CPUS[:2])
    for _ in range(3):
        runs = _testing.run_items(core_set, [10, 3], is_held=True)
        for phase, own, others in zip(runs, ([0, 1, 2, 3, 4], [0]), ([9, 8, 7, 6], [2]), strict=True):
            assert [item for item, worker in phase if worker == 0] == own + others
            assert Counter(worker for _, worker in phase)[1] == 1


@pytest.mark.skipif(len(CPUS) < 2, reason="one CPU has no helper")
def test_a_run_ends_without_its_helpers() -> None:
    core_set = _C.CoreSet(CPUS[:2])
    _testing.run_items(core_set, [4] * 10)
    assert _testing.stall_threads("pearl-core") >= 1
    try:
        runs = [_testing.run_items(core_set, [16, 1, 5]) for _ in range(3)]
    finally:
        _testing.resume_threads()
    assert all(worker == 0 for run in runs for phase in run for _, worker in phase)
    assert [len(phase) for phase in _testing.run_items(core_set, [16, 1, 5])] == [16, 1, 5]


def test_bandwidth_is_of_this_world() -> None:
    rate = _C.measure_bandwidth(_C.CoreSet(CPUS[:2]), 8 << 20, 0.01)
    assert 1e8 < rate < 1e13
    with pytest.raises(ValueError, match="bytes is 1000"):
        _C.measure_bandwidth(_C.CoreSet(CPUS[:1]), 1000, 0.01)
