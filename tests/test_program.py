"""Strategies as data: they parse, differ in one wait, and the check refuses those that race or deadlock."""

import pytest

from pearl_rt.errors import ConfigError
from pearl_rt.program import (
    BODIES,
    PLACEMENTS,
    STRATEGIES,
    LaneProgram,
    Op,
    Program,
    check,
    parse_ops,
    program,
)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_shipped_programs_pass_the_check(strategy: str, placement: str) -> None:
    check(program(strategy, placement), rounds=6)


def test_sd_and_pearl_differ_in_one_wait() -> None:
    def ops(strategy: str) -> list[str]:
        return [
            part.strip().replace("score window", "score") for part in BODIES[strategy]["target"].split(";")
        ]

    assert BODIES["sd"]["draft"] == BODIES["pearl"]["draft"]
    assert sorted(ops("sd")) == sorted(ops("pearl"))
    assert [o for o in ops("sd") if o != "wait d"] == [o for o in ops("pearl") if o != "wait d"]


def test_native_form() -> None:
    events, lanes = program("pearl", "split").native()
    assert events == 2
    assert lanes[0] == (
        [("prefill", -1), ("first", -1), ("record", 1)],
        [("score", -1), ("wait", 0), ("verify", -1), ("record", 1)],
    )
    assert lanes[1] == ([("prefill context", -1), ("wait", 1)], [("draft", -1), ("record", 0), ("wait", 1)])
    assert program("ar").native() == (
        0,
        [([("prefill", -1), ("first", -1)], [("score", -1), ("verify", -1)])],
    )


def without(base: Program, lane: int, event: str, part: str) -> Program:
    """The program with its waits for `event` taken from one list of one lane."""
    lanes = list(base.lanes)
    kept = tuple(op for op in getattr(lanes[lane], part) if op != Op("wait", event))
    assert len(kept) < len(getattr(lanes[lane], part))
    lists = {"prologue": lanes[lane].prologue, "body": lanes[lane].body, part: kept}
    lanes[lane] = LaneProgram(**lists)
    return Program(f"{base.name} without wait {event}", tuple(lanes))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("strategy", ["sd", "pearl"])
@pytest.mark.parametrize(
    ("lane", "event", "part"), [(0, "d", "body"), (1, "v", "body"), (1, "v", "prologue")]
)
def test_a_missing_wait_is_refused(strategy: str, placement: str, lane: int, event: str, part: str) -> None:
    with pytest.raises(ConfigError, match="races"):
        check(without(program(strategy, placement), lane, event, part))


def test_a_missing_record_is_refused() -> None:
    base = program("pearl", "split")
    silent = LaneProgram(base.lanes[1].prologue, parse_ops("draft; wait v"))
    with pytest.raises(ConfigError, match="deadlocks: in round 1 the target lane waits for 'd'"):
        check(Program("silent", (base.lanes[0], silent)))


@pytest.mark.parametrize("text", ["dance", "wait", "record ", "score all", "wait  "])
def test_unknown_ops_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not an op"):
        Op.parse(text)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="strategy is 'medusa'"):
        program("medusa")
    with pytest.raises(ConfigError, match="placement is 'moon'"):
        program("sd", "moon")
