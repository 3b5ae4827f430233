"""What bench/rounds/neighbours.py says of a busy neighbour, from rates that are given; and that its processes
end.
"""

from __future__ import annotations

import os

import pytest

from bench.rounds import neighbours as bench


@pytest.mark.parametrize(
    ("cores", "count", "left"), [(2, 1, 1.5), (2, 2, 1.0), (2, 3, 0.8), (16, 1, 15.5), (1, 1, 0.5)]
)
def test_cores_that_are_left(cores: int, count: int, left: float) -> None:
    assert bench.cores_left(cores, count) == pytest.approx(left)


def test_shares_are_of_one_core_and_of_what_is_left() -> None:
    """Two cores give 160 steps a second and one gives 100: so one and a half would give 130."""
    cost = bench.NeighbourCost("target", 2, 1, alone=160.0, one_alone=100.0, beside=104.0)
    assert cost.of_one == pytest.approx(1.04)
    assert cost.of_left == pytest.approx(104 / 130)
    text = bench.format_neighbours([cost])
    assert "1.04 of one core alone (100.0)" in text
    assert "0.80 of what 1.50 cores would give; alone 160.0" in text
    crowded = bench.NeighbourCost("target", 2, 3, alone=160.0, one_alone=100.0, beside=40.0)
    assert crowded.of_left == pytest.approx(0.5)


def test_neighbours_end_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    popen = bench.subprocess.Popen

    def noted(*arguments: object, **options: object) -> object:
        process = popen(*arguments, **options)  # type: ignore[call-overload]
        started.append(process.pid)
        return process

    monkeypatch.setattr(bench.subprocess, "Popen", noted)
    monkeypatch.setattr(bench, "SETTLE_SECONDS", 0.0)
    with pytest.raises(RuntimeError, match="the block failed"), bench.neighbours(2):
        assert len(started) == 2
        for pid in started:
            os.kill(pid, 0)
        raise RuntimeError("the block failed")
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with bench.neighbours(0):
        assert len(started) == 2
