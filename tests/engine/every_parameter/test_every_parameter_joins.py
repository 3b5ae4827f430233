"""Requests with every sampling parameter that join a run, beside plain ones: each has its answer alone.

A captured run is made for what its first request asks for. One that asks for more waits for the next run.
"""

from __future__ import annotations

import time

import pytest
from definition import answers
from parameter_rows import EVERYTHING, PLAIN, PROMPT, ROWS, Row
from same_answer import PAIRS, call_options, check, check_row
from ways_to_run import WAYS, Way, in_every_way

from pearl_rt import Engine, SamplingParams

SLOTS = 4
TIMEOUT_S = 120.0
BEGINS = {"plain": PLAIN, "everything": EVERYTHING}
SUBMITTED = [row for row in ROWS if row.name != "n"]
[ONE_BATCH] = [row for row in ROWS if row.name == "n"]  # generate() gives its answers in one batch


def wait_until_running(engine: Engine, count: int) -> None:
    end = time.monotonic() + TIMEOUT_S
    while engine.stats()["queue"]["running"] < count:
        assert time.monotonic() < end, engine.stats()["queue"]
        time.sleep(0.001)


def check_joins(way: Way, first: SamplingParams, rows: list[Row], strategy: str, judge: str) -> None:
    """Rows, submitted at once behind a first request, every third one with a plain request behind it."""
    asked = [(PROMPT, first)]
    for place, row in enumerate(rows):
        asked.append((row.prompt, row.params))
        if place % 3 == 2:
            asked.append((PROMPT, PLAIN))
    joins_at_once = first is EVERYTHING
    with way.engine(max_num_seqs=SLOTS) as engine:
        with way.held():
            handles = [
                engine.submit(list(prompt), params, **call_options(strategy, judge))
                for prompt, params in asked
            ]
            if way.holds:
                wait_until_running(engine, SLOTS if joins_at_once else 1)
        for handle, (prompt, params) in zip(handles, asked, strict=True):
            [wanted] = answers(prompt, params, strategy, judge)
            try:
                check(handle.result(TIMEOUT_S), wanted)
            except AssertionError as error:
                error.add_note(f"of {params}, by {strategy} and {judge}")
                raise
        check_row(engine, ONE_BATCH, strategy, judge)
        if way.is_captured and joins_at_once:
            steps = engine.stats()["capture"]["steps"]
            assert any("'join'" in step and "processed=True logprobs=True" in step for step in steps)
    way.check()


@pytest.mark.parametrize("begins", BEGINS)
@in_every_way
def test_requests_that_join(way: Way, begins: str) -> None:
    """A third of the rows, by one strategy and judge: others in the next way."""
    place = list(WAYS).index(way.name) + 3 * list(BEGINS).index(begins)
    check_joins(way, BEGINS[begins], SUBMITTED[place % 3 :: 3], *PAIRS[place % len(PAIRS)])


@pytest.mark.slow
@pytest.mark.parametrize("begins", BEGINS)
@in_every_way
def test_all_requests_that_join(way: Way, begins: str) -> None:
    place = list(WAYS).index(way.name) + 3 * list(BEGINS).index(begins)
    check_joins(way, BEGINS[begins], SUBMITTED, *PAIRS[(place + 1) % len(PAIRS)])
