"""Every sampling parameter on the kernels themselves, in Triton's interpreter: the definition's answer.

In test_every_parameter.py definitions stand for kernels. A file of its own: they must not stand for these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from parameter_rows import ROWS
from same_answer import PAIRS, check_row
from ways_to_run import running

from pearl_rt import Engine

NUM_TOKENS = 3
# But for an answer as long as the engine allows, and for what no kernel sees.
SHORT = [
    replace(row, beside={**row.beside, "max_tokens": max(NUM_TOKENS, row.params.min_tokens)})
    for row in ROWS
    if row.params.max_tokens is not None and not row.params.stop and row.name != "n"
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled in this process"),
]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with running("interpret shared", defined=False) as way, way.engine() as made:
        yield made


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every third row, or with --long all: a request takes a second or more."""
    places = range(0, len(SHORT), 1 if metafunc.config.getoption("--long") else 3)
    metafunc.parametrize("place", places, ids=[str(SHORT[place]) for place in places])


def test_a_request_on_the_kernels(engine: Engine, place: int) -> None:
    """A few tokens, by one strategy and judge: another one for the next row."""
    check_row(engine, SHORT[place], *PAIRS[place % len(PAIRS)])
