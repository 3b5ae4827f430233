"""Every sampling parameter, in every way to run, by every strategy and judge: the definition's answer.

The rows are parameter_rows.ROWS, the columns ways_to_run.WAYS. The definition is pearl_rt/reference in
numpy, so that an error that all engines share shows too. Verdicts are compared, so that a parameter that
reaches only one of target and draft shows where tokens do not tell.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from definition import answers
from parameter_rows import EVERYTHING, GREEDY, LIMIT, PROMPT, ROWS, Row
from same_answer import PAIRS, call_options, check, check_row
from ways_to_run import DRAFT_DEVICES, SLOW_WAYS, WAYS, Way, in_every_way

from pearl_rt import Engine, RequestError, SamplingParams
from pearl_rt.strategy.engine_options import FORMS, EngineOptions
from pearl_rt.strategy.program import PLACEMENTS, STRATEGIES
from pearl_rt.types.request import FILTERS, PROCESSORS
from pearl_rt.types.values import rule_of

# Rows that change logits; of a stop string there are no verdicts.
OF_LOGITS = tuple(row for row in ROWS if row.name in (*PROCESSORS, *FILTERS) and not row.params.stop)
# Of the prompt, on the CPU; of a tokenizer's flags; of a tokenizer's texts, on the CPU (tests/grammar); of
# drafts, not of the answer (tests/engine/drafters).
ELSEWHERE = {"prompt_logprobs", "skip_special_tokens", "structured_outputs", "draft_stop", "private"}
SAME_TOKENS = ("logprobs", "include_stop_str_in_output")  # what else they change is compared


def test_no_parameter_is_forgotten() -> None:
    """Each field of SamplingParams has a row, and EVERYTHING asks for all that a run is made for."""
    assert {row.name for row in ROWS} | ELSEWHERE == {each.name for each in fields(SamplingParams)}
    off, own = SamplingParams(), (*PROCESSORS, *FILTERS, "temperature", "logprobs")
    assert not [name for name in own if getattr(EVERYTHING, name) == getattr(off, name)]


def test_no_way_to_run_is_forgotten() -> None:
    """Each name that an engine takes for device, form, placement or the draft's device is in a column."""
    columns = WAYS.values()

    def named(option: str) -> set[str]:
        return {each[option] for each in columns if each.get(option) is not None}

    assert named("device") | {"auto", "cuda:N"} == set(rule_of(EngineOptions, "device").names)
    assert named("form") == set(FORMS)
    assert named("placement") | {"devices"} == set(PLACEMENTS)
    assert {name.replace("1", "N") for name in DRAFT_DEVICES if name} == set(
        rule_of(EngineOptions, "draft_device").names
    )


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_row_shows(row: Row) -> None:
    """By every strategy and judge the definition's answer is another one without the parameter."""
    for strategy, judge in PAIRS:
        own, without = (answers(row.prompt, params, strategy, judge) for params in (row.params, row.without))
        if row.name in SAME_TOKENS:
            assert own != without, (strategy, judge)
        else:
            told, others = ([answer.token_ids for answer in each] for each in (own, without))
            assert told != others, (strategy, judge)
        assert not row.is_greedy or own[0].token_ids == GREEDY


@pytest.mark.parametrize("blind", ["target", "draft"])
@pytest.mark.parametrize("row", OF_LOGITS, ids=str)
def test_a_row_shows_if_one_model_does_not_get_it(row: Row, blind: str) -> None:
    """In tokens or verdicts, by each strategy that drafts and each judge."""
    for strategy, judge in PAIRS:
        if strategy in STRATEGIES[1:]:
            own = answers(row.prompt, row.params, strategy, judge)
            assert own != answers(row.prompt, row.params, strategy, judge, blind), (strategy, judge)


def rotated() -> list[Any]:
    """Every row in every way, by one strategy and judge: another one in the next row, and in the next way."""
    found = []
    for column, name in enumerate(WAYS):
        for place, row in enumerate(ROWS):
            strategy, judge = PAIRS[(place + column) % len(PAIRS)]
            own = {
                "id": f"{name}-{row}-{strategy}-{judge}",
                "marks": [pytest.mark.slow] * (name in SLOW_WAYS),
            }
            found.append(pytest.param(name, row, strategy, judge, **own))
    return found


@pytest.mark.parametrize(("way", "row", "strategy", "judge"), rotated(), indirect=["way"], scope="module")
def test_a_request(way: Way, engine: Engine, row: Row, strategy: str, judge: str) -> None:
    check_row(engine, row, strategy, judge)
    way.check()


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "judge"), PAIRS)
@in_every_way
def test_all_requests(way: Way, engine: Engine, strategy: str, judge: str) -> None:
    for row in ROWS:
        check_row(engine, row, strategy, judge)
    way.check()


@in_every_way
def test_windows_that_end_early(way: Way, engine: Engine) -> None:
    """On the CPU; refused by name elsewhere, but for the rule that ends none."""
    whole, early = (
        SamplingParams(temperature=0.5, max_tokens=LIMIT, draft_stop=stop)
        for stop in ("none", "confidence:0.5")
    )
    [wanted] = answers(PROMPT, whole, "sd", "coupled")
    options = call_options("sd", "coupled")
    check(engine.generate(list(PROMPT), whole, **options)[0], wanted)
    if way.options["device"] == "cpu":
        [output] = engine.generate(list(PROMPT), early, **options)
        check(output, wanted, verdicts=False)
        assert wanted.verdicts is not None and output.metrics.judged < wanted.verdicts[2]
    else:
        with pytest.raises(RequestError, match=r"draft_stop 'confidence:0\.5' runs on the CPU only"):
            engine.generate(list(PROMPT), early, **options)
    way.check()


@in_every_way
def test_whatever_program_is_chosen(way: Way) -> None:
    """strategy="auto", with its own window: the tokens of the target alone."""
    with way.engine(strategy="auto", judge="coupled", max_num_seqs=1) as engine:
        for row in ROWS[list(WAYS).index(way.name) % 3 :: 3]:
            outputs = engine.generate(list(row.prompt), row.params)
            for output, wanted in zip(outputs, answers(row.prompt, row.params, "ar", "coupled"), strict=True):
                check(output, wanted, verdicts=False)
    way.check()
