"""A machine that others use too: a forward pass ends without the threads that lost their cores, and has the
same bits whenever they lose them.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from test_executor import CPUS, SHAPES, Model, same_bits

from pearl_rt import _testing

pytestmark = pytest.mark.skipif(len(CPUS) < 2, reason="one CPU has no helper")
LIMIT_S = 120.0
FORMS = {"bf16": ("bfloat16", 0), "fp32": ("float32", 0), "int8": ("bfloat16", 8), "int4": ("bfloat16", 4)}
ROWS = (1, 3, 17, 150)  # own norms and codes; own codes; phases for them; two steps


@contextmanager
def helpers_stalled() -> Iterator[None]:
    """The helpers of every core set stand still."""
    assert _testing.stall_threads("pearl-core") >= 1
    try:
        yield
    finally:
        _testing.resume_threads()


def forwards(executor: object, ids: list[int]) -> list[np.ndarray]:
    """Logits of passes over so many rows, each from the start."""
    return [executor.forward(0, ids[:rows], 0, rows) for rows in ROWS]  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["gqa", "ragged-sizes", "mqa-wide-group"])
def test_a_step_ends_without_its_helpers(name: str, form: str) -> None:
    """They stand still for the whole of it. With shares that are fixed it would wait for them."""
    model = Model(SHAPES[name])
    dtype, bits = FORMS[form]
    executor = model.executor(model.weights(dtype, bits=bits), CPUS[:2])
    ids = model.token_ids(max(ROWS))
    expected = forwards(executor, ids)
    found: list[list[np.ndarray]] = []
    thread = threading.Thread(target=lambda: found.append(forwards(executor, ids)))
    with helpers_stalled():
        thread.start()
        thread.join(LIMIT_S)
        has_ended = not thread.is_alive()
    thread.join()
    assert has_ended
    for with_helpers, without in zip(expected, found[0], strict=True):
        assert same_bits(with_helpers, without)
    for before, after in zip(expected, forwards(executor, ids), strict=True):
        assert same_bits(before, after)


@pytest.mark.parametrize("form", FORMS)
def test_bits_do_not_depend_on_when_a_core_is_lost(form: str) -> None:
    """At random moments of steps, which may be in the middle of an item, for a random time."""
    model = Model(SHAPES["head-96-three-layers"])
    dtype, bits = FORMS[form]
    executor = model.executor(model.weights(dtype, bits=bits), CPUS[:2])
    ids = model.token_ids(max(ROWS))
    expected = forwards(executor, ids)
    chance = random.Random(form)
    is_over = threading.Event()

    def disturb() -> None:
        while not is_over.is_set():
            with helpers_stalled():
                time.sleep(chance.uniform(0, 0.003))
            time.sleep(chance.uniform(0, 0.003))

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        found = [forwards(executor, ids) for _ in range(20)]
    finally:
        is_over.set()
        thread.join()
    for each in found:
        for before, after in zip(expected, each, strict=True):
            assert same_bits(before, after)
