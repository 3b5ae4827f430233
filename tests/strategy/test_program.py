"""Strategies as data: they parse, differ in one wait, and the check refuses those that race or deadlock."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pearl_rt.errors import ConfigError
from pearl_rt.strategy.program import (
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


def without(base: Program, lane: int, op: Op, part: str) -> Program:
    """The program with that op taken from one list of one lane."""
    lanes = list(base.lanes)
    kept = tuple(other for other in getattr(lanes[lane], part) if other != op)
    assert len(kept) < len(getattr(lanes[lane], part))
    lists = {"prologue": lanes[lane].prologue, "body": lanes[lane].body, part: kept}
    lanes[lane] = LaneProgram(**lists)
    return replace(base, name=f"{base.name} without {op}", lanes=tuple(lanes))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("strategy", ["sd", "pearl"])
@pytest.mark.parametrize(
    ("lane", "event", "part"), [(0, "d", "body"), (1, "v", "body"), (1, "v", "prologue")]
)
def test_a_missing_wait_is_refused(strategy: str, placement: str, lane: int, event: str, part: str) -> None:
    with pytest.raises(ConfigError, match="races"):
        check(without(program(strategy, placement), lane, Op("wait", event), part))


@pytest.mark.parametrize("strategy", ["sd", "pearl"])
@pytest.mark.parametrize(
    ("lane", "kind", "part", "reader", "field"),
    [
        (0, "fetch window", "body", "target", "draft_token_ids"),
        (1, "fetch verdict", "body", "draft", "token_ids"),
        (1, "fetch verdict", "prologue", "draft", "token_ids"),
    ],
)
def test_a_missing_fetch_is_refused(
    strategy: str, lane: int, kind: str, part: str, reader: str, field: str
) -> None:
    with pytest.raises(ConfigError, match=f"stale: .* of the {reader} lane .* reads {field}"):
        check(without(program(strategy, "devices"), lane, Op(kind), part))


@pytest.mark.parametrize("strategy", ["sd", "pearl"])
def test_a_fetch_before_its_wait_is_refused(strategy: str) -> None:
    base = program(strategy, "devices")
    for lane, part in ((0, "body"), (1, "body"), (1, "prologue")):
        ops = list(getattr(base.lanes[lane], part))
        at = next(i for i, op in enumerate(ops) if op.kind.startswith("fetch"))
        ops[at - 1], ops[at] = ops[at], ops[at - 1]
        lanes = list(base.lanes)
        lists = {"prologue": lanes[lane].prologue, "body": lanes[lane].body, part: tuple(ops)}
        lanes[lane] = LaneProgram(**lists)
        with pytest.raises(ConfigError, match=r"races: .*fetch"):
            check(replace(base, lanes=tuple(lanes)))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_programs_with_an_op_moved_or_lost_are_told_from_sound_ones(data: st.DataObject) -> None:
    """An interpreter with a memory for each lane, and lanes that advance in a random order: what check() lets
    pass reads the newest window and verdict in every order."""
    base = program(data.draw(st.sampled_from(["sd", "pearl"])), "devices")
    lanes = [{"prologue": list(lane.prologue), "body": list(lane.body)} for lane in base.lanes]
    ops = lanes[data.draw(st.integers(0, 1))][data.draw(st.sampled_from(["prologue", "body"]))]
    taken = ops.pop(data.draw(st.integers(0, len(ops) - 1)))
    if data.draw(st.booleans()):
        ops.insert(data.draw(st.integers(0, len(ops))), taken)
    changed = tuple(LaneProgram(tuple(lists["prologue"]), tuple(lists["body"])) for lists in lanes)
    candidate = replace(base, lanes=changed)
    try:
        check(candidate)
    except ConfigError:
        return
    for seed in range(5):
        assert run_in_some_order(candidate, random.Random(seed)) == []


def run_in_some_order(candidate: Program, rng: random.Random, rounds: int = 4) -> list[str]:
    """Reads of something older than the newest of its kind, in one random order of execution."""
    todo = [list(lane.ops(rounds)) for lane in candidate.lanes]
    records = dict.fromkeys(candidate.events, 0)
    waits = [dict.fromkeys(candidate.events, 0) for _ in todo]
    verdicts, windows = [0, 0], [0, 0]  # in each lane's memory
    stale: list[str] = []
    while any(todo):
        able = [
            lane
            for lane, ops in enumerate(todo)
            if ops and (ops[0][1].kind != "wait" or records[ops[0][1].event] > waits[lane][ops[0][1].event])
        ]
        if not able:
            return ["deadlock"]
        lane = rng.choice(able)
        at, op = todo[lane].pop(0)
        if op.kind == "wait":
            waits[lane][op.event] += 1
        elif op.kind == "record":
            records[op.event] += 1
        elif op.kind == "fetch window":
            windows[lane] = windows[1 - lane]
        elif op.kind == "fetch verdict":
            verdicts[lane] = verdicts[1 - lane]
        elif op.kind == "draft":
            stale += [f"draft {at}"] * (verdicts[lane] != max(verdicts))
            windows[lane] += 1
        elif op.kind in ("score window", "verify"):
            stale += [f"{op.kind} {at}"] * (windows[lane] != max(windows))
            verdicts[lane] += op.kind == "verify"
        elif op.kind == "first":
            verdicts[lane] += 1
    return stale


def test_a_missing_record_is_refused() -> None:
    base = program("pearl", "split")
    silent = LaneProgram(base.lanes[1].prologue, parse_ops("draft; wait v"))
    with pytest.raises(ConfigError, match="deadlocks: in round 1 the target lane waits for 'd'"):
        check(Program("silent", (base.lanes[0], silent)))


def test_native_form_of_fetches() -> None:
    _, lanes = program("sd", "devices").native()
    assert lanes[0][1][:3] == [("wait", 0), ("fetch window", -1), ("score window", -1)]
    assert lanes[1][0] == [("prefill context", -1), ("wait", 1), ("fetch verdict", -1)]


@pytest.mark.parametrize("text", ["dance", "wait", "record ", "score all", "wait  "])
def test_unknown_ops_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not an op"):
        Op.parse(text)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="strategy 'medusa' is not supported: pass one of 'ar'"):
        program("medusa")
    with pytest.raises(ConfigError, match="placement 'moon' is not supported: pass one of"):
        program("sd", "moon")
