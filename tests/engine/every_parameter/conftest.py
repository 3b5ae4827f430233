"""One way to run at a time, and an engine in it, for all tests of a file that follow each other there."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import fake_cuda
import pytest
import torch
from ways_to_run import Way, running

from pearl_rt import Engine


@pytest.fixture(scope="module")
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    """Of the name that a test is given."""
    if torch.cuda.is_available():
        pytest.skip("kernels are compiled in this process")
    if not fake_cuda.has_compiler():
        pytest.skip("the fake driver needs a compiler")
    with running(request.param) as made:
        yield made
        gc.collect()


@pytest.fixture(scope="module")
def engine(way: Way) -> Iterator[Engine]:
    """For requests that run alone, one after the other."""
    with way.engine(max_num_seqs=1) as made:
        yield made
