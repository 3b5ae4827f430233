"""The soak, for some seconds: every kind of request happens, and none goes wrong. `make soak`: 20 minutes."""

from pathlib import Path

import pytest
from soak import Soak, resident
from soak_clients import ClientsSoak


@pytest.mark.slow
def test_a_short_soak() -> None:
    soak = Soak(seed=3)
    lines: list[str] = []
    assert soak.run(3.0, lines.append), soak.wrong
    assert soak.counts.keys() == {"whole", "cancel", "reader", "nan"} and lines


@pytest.mark.slow
def test_a_short_soak_of_clients(tmp_path: Path) -> None:
    soak, lines = ClientsSoak(tmp_path, seed=3, num_clients=30, num_bodies=40), list[str]()
    assert soak.run(5.0, lines.append, resident), soak.wrong
    assert soak.counts.keys() == {"stream", "whole", "vanish", "vanish early", "half a body"} and lines
    assert "99.0%" in soak.tail()
