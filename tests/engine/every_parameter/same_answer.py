"""Whether an engine's answer is the definition's: tokens, text, ends, verdicts, log-probabilities."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from definition import GAMMA, Answer, answers
from parameter_rows import Row

from pearl_rt import Engine, RequestOutput
from pearl_rt.strategy.program import JUDGES, STRATEGIES

PAIRS = tuple(product(STRATEGIES, JUDGES))
NEAR = 2e-5  # of log-probabilities: the executor rounds otherwise


def check(output: RequestOutput, wanted: Answer, *, verdicts: bool = True) -> None:
    """Raises if it is not."""
    found = (output.token_ids, output.text, output.finish_reason, output.stop_reason)
    assert found == (wanted.token_ids, wanted.text, wanted.finish_reason, wanted.stop_reason)
    metrics = output.metrics
    if verdicts and wanted.verdicts is not None:
        judged = (metrics.rounds, metrics.accepted, metrics.judged, metrics.rejections)
        assert judged == wanted.verdicts
    assert (output.logprobs is None) == (wanted.logprobs is None)
    for told, expected in zip(output.logprobs or (), wanted.logprobs or (), strict=True):
        assert [(i, entry.rank) for i, entry in told.items()] == [(i, e.rank) for i, e in expected.items()]
        values = [entry.logprob for entry in expected.values()]
        assert [entry.logprob for entry in told.values()] == pytest.approx(values, abs=NEAR)


def call_options(strategy: str, judge: str) -> dict[str, Any]:
    """Of generate() and submit()."""
    return {"strategy": strategy, "gamma": None if strategy == "ar" else GAMMA, "judge": judge}


def check_row(engine: Engine, row: Row, strategy: str, judge: str) -> None:
    """Asks generate() for a row. Raises, with the row, if an answer is another one."""
    outputs = engine.generate(list(row.prompt), row.params, **call_options(strategy, judge))
    try:
        for output, wanted in zip(outputs, answers(row.prompt, row.params, strategy, judge), strict=True):
            check(output, wanted)
    except AssertionError as error:
        error.add_note(f"row {row}, by {strategy} and {judge}")
        raise
