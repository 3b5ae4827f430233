"""The soak, for some seconds: every kind of request happens, and none goes wrong. `make soak`: 20 minutes."""

import pytest
from soak import Soak


@pytest.mark.slow
def test_a_short_soak() -> None:
    soak = Soak(seed=3)
    lines: list[str] = []
    assert soak.run(3.0, lines.append), soak.wrong
    assert soak.counts.keys() == {"whole", "cancel", "reader", "nan"} and lines
