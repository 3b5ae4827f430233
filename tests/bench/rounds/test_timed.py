"""The simulation of timed devices: its texts, its rounds against the rule, its report. No test asserts that
anything was fast: a step lasts at least as long as it is given.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import timed
from bench.harness.measure import Measured, Program, Sample, Workload
from bench.rounds import timed_devices as devices
from bench.rounds.expected import expected_rounds
from pearl_rt import _testing
from pearl_rt.reference.judge import ReferenceJudge
from pearl_rt.reference.round import Limits, decode
from pearl_rt.strategy.planner import StepTimes, seconds
from pearl_rt.types.metrics import RequestMetrics

SHORT = ["--target-ms", "1", "--ratios", "2", "--alphas", "0.8", "--max-tokens", "24"]
SHORT += ["--windows", "2", "--rules", "3", "--repeats", "1"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step times as given, without running them."""
    monkeypatch.setattr(
        devices.TimedLanes, "measure", lambda lanes: StepTimes.constant(0.001, 0.0005), raising=True
    )


def one_hot(token: int) -> np.ndarray:
    return np.eye(4, dtype=np.float32)[token] * 9


@pytest.mark.parametrize("strategy", ("ar", "sd", "pearl"))
@pytest.mark.parametrize("gamma", (1, 2, 3, 7))
def test_rounds_are_counted_as_the_rule_has_them(strategy: str, gamma: int) -> None:
    agrees = [bool(b) for b in np.random.default_rng(gamma).random(60) < 0.75]

    def draft(prefix: Any) -> np.ndarray:
        place = len(prefix) - 3  # behind a prompt of two and the first token
        return one_hot(1 if place >= len(agrees) or agrees[place] else 2)

    rounds = decode(
        lambda _: one_hot(1),
        draft,
        [0, 3],
        strategy,
        0 if strategy == "ar" else gamma,
        Limits(2 + 1 + len(agrees), set()),
        ReferenceJudge("coupled", 0.0, 0),
    )
    assert devices.counted_rounds(strategy, agrees, gamma) == len(rounds) - 1


def test_agreements_follow_the_rate() -> None:
    assert all(devices.agreements(5, 1.0, 100))
    assert sum(devices.agreements(5, 0.0, 100)) <= 8  # one in 64 by chance
    assert 0.6 < np.mean(devices.agreements(5, 0.75, 400)) < 0.9


def test_the_most_typical_text_is_taken() -> None:
    """Of three, by rounds over the expected ones of the programs that will run."""
    text = devices.Text.typical(0.7, 80, [("sd", 3), ("pearl", 4)], range(3))
    by_rule = {}
    for rule in range(3):
        agrees = devices.agreements(rule, 0.7, 80)
        shares = [
            devices.counted_rounds(s, agrees, g) / expected_rounds(s, 0.7, g, 79)
            for s, g in (("sd", 3), ("pearl", 4))
        ]
        by_rule[rule] = max(abs(share - 1) for share in shares)
    assert text.rule == min(by_rule, key=lambda rule: by_rule[rule])
    assert text.deviation == pytest.approx(by_rule[text.rule])


def test_a_step_lasts_as_long_as_it_is_given() -> None:
    executor = _testing.ScriptedExecutor(step_us=3000.0)
    begin = time.monotonic_ns()
    executor.forward(0, [1, 2], 0, 1)
    executor.forward(0, [3], 2, 1)
    assert time.monotonic_ns() - begin >= 6_000_000


@pytest.mark.parametrize("step_us", (-1.0, float("nan"), float("inf"), 2e6))
def test_a_step_that_cannot_be_is_refused(step_us: float) -> None:
    with pytest.raises(ValueError, match=r"step_us is .*; it must be 0 to 1000000"):
        _testing.ScriptedExecutor(step_us=step_us)


def test_constant_times_are_the_planners_tables() -> None:
    times = StepTimes.constant(0.02, 0.004)
    assert [seconds(times.target, n) for n in (1, 5, 17)] == pytest.approx([0.02] * 3)
    assert times.window is not None and times.beside_window is not None
    assert [seconds(times.window, n) for n in (1, 5, 16)] == pytest.approx([0.004, 0.02, 0.064])
    assert times.beside_window == times.window and times.beside_target == times.target
    assert StepTimes.constant(0.02, 0.004, overlaps=False).beside_window is None


def test_overhead_is_what_rounds_take_beside_their_steps() -> None:
    """The median: 10.05, 10.2 and 11 ms from verdict to verdict, of which 10 are steps."""
    times = (0.0, 0.01005, 0.01005, 0.02025, 0.03125)
    steps = devices.Steps(10.0, 2.5)
    made = {
        strategy: RequestMetrics(strategy, gamma, "split", 4, 0, times, 3, 0, 0, 0)
        for strategy, gamma in (("ar", 0), ("pearl", 4), ("sd", 4))
    }
    found = {name: devices.overhead_us(metrics, steps) for name, metrics in made.items()}
    assert found == pytest.approx({"ar": 200.0, "pearl": 200.0, "sd": 200.0 - 10_000})


def test_a_row_compares_the_median_round_with_the_planner() -> None:
    """Four rounds of 10 ms and one of 60: the clock on the wall says half of what the median round does."""
    times = (0.0, 0.01, 0.02, 0.03, 0.04, 0.1)
    found = RequestMetrics("ar", 0, "split", 4, 0, times, 5, 0, 0, 0)
    sd = RequestMetrics("sd", 1, "split", 4, 0, times, 5, 0, 5, 5)
    results = [
        Measured(Program(m.strategy, "split", m.gamma), [Sample(0, [1] * 6, 0.1, 0.0, 0.02, m)])
        for m in (found, sd)
    ]
    point = timed.Point(0.0, 5.0, devices.Steps(10.0, 2.0), results)
    point.fill(50.0)
    row = point.rows[0]
    assert (row["of_model"], row["of_model_wall"]) == pytest.approx((1.0, 0.5))
    assert (row["x_ar"], row["x_sd"], row["overhead_us"]) == pytest.approx((1.0, 1.0, 0.0), abs=1e-6)


def test_programs_write_the_same_tokens_in_the_rounds_of_the_rule() -> None:
    text = devices.Text.typical(0.8, 40, [("sd", 3)], range(2))
    pair = devices.TimedPair(devices.Steps(0.2, 0.1), text)
    work = Workload([devices.PROMPT], 40)
    written = []
    for strategy, gamma in (("ar", 0), ("sd", 3), ("pearl", 2)):
        [sample] = pair(Program(strategy, devices.PLACEMENT, gamma), work, 0)
        assert sample.metrics is not None
        assert sample.metrics.rounds == devices.counted_rounds(strategy, text.agrees, gamma)
        written.append(sample.token_ids)
    assert len(written[0]) == 40 and written[0] == written[1] == written[2]


@pytest.mark.usefixtures("quick")
def test_the_report_says_that_it_is_a_simulation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "timed.png"
    assert timed.main([*SHORT, "--plot", str(picture)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == timed.TITLE and "simulated" in printed[0]
    figures = json.loads(printed[-1])
    assert next(iter(figures)) == "machine" and figures["simulated"] and figures["outputs_equal"]
    rows = [row for row in figures["rows"] if not row["paper"]]
    assert [row["strategy"] for row in rows] == ["sd", "pearl", "auto"]
    assert max(row["x_sd"] for row in rows if row["strategy"] == "sd") == 1
    for row in rows:
        assert row["of_model_wall"] == pytest.approx(row["tokens_per_second"] / row["predicted"])
    assert {row["ratio"] for row in figures["rows"] if row["paper"]} == {3.0, 4.0, 5.0}
    assert any("1.3B/33B" in line and "x sd gamma 8" in line for line in printed)
    assert len(figures["goals"]) == len(timed.TIMED_GOALS) and picture.stat().st_size > 10_000


@pytest.mark.usefixtures("quick")
def test_wrong_rounds_print_no_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(timed, "counted_rounds", lambda strategy, agrees, gamma: 7)
    assert timed.main([*SHORT, "--no-paper"]) == 1
    printed = capsys.readouterr().out
    assert "OUTPUTS DIFFER" in printed and "the rule says 7" in printed and "pearl gamma |" not in printed


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--target-ms", "0"], "--target-ms 0 is out of range: pass a number above 0"),
        (["--target-ms", "nan"], "--target-ms nan"),
        (["--ratios", "2", "-1"], "--ratios -1 is out of range"),
        (["--alphas", "1.5"], "--alphas 1.5 is out of range: pass 0 to 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_figures_that_cannot_be(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert timed.main(arguments) == 2
    assert named in capsys.readouterr().err
