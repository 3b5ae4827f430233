"""The arithmetic of the prediction, and what it says of a goal. Nothing is compiled here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import expected
from bench.expected import BETTER, WORSE, Chip, Expected, Launch
from bench.harness.goals import GOALS, Goal

ROOT = Path(__file__).resolve().parents[2]
CHIP = Chip(
    copy=1e12,
    multiprocessors=10,
    clock=1e9,
    launch=(1e-6, 2e-6),
    dependent_launch=(0.25e-6, 1e-6),
    cycles=(2.0, 4.0),
    streamed=(1.0, 0.5),
)
LAUNCH = Launch("some_kernel", programs=10, threads=128, registers=128, shared=0, instructions=500)


def case(launches: int = 3, num_bytes: int = 4_000_000, rows: int = 1) -> Expected:
    return Expected(f"case {rows}", {"op": "step", "rows": rows}, num_bytes, (LAUNCH,) * launches, CHIP)


def goal(figure: str, limit: float, at_least: bool = True) -> Goal:
    return Goal("some goal", {"op": "step"}, figure, limit, at_least)


@pytest.mark.parametrize(
    ("change", "programs"),
    [
        ({}, 4),  # 65536 registers
        ({"registers": 40}, 12),
        ({"registers": 16, "threads": 1024}, 2),  # 2048 threads
        ({"registers": 16, "shared": 57856}, 3),  # 228 KiB, of which a program takes 57.5
        ({"registers": 255, "threads": 1024, "shared": 227 * 1024}, 1),
    ],
    ids=["registers", "fewer-registers", "threads", "shared", "never-none"],
)
def test_programs_that_fit_a_multiprocessor(change: dict[str, int], programs: int) -> None:
    assert replace(LAUNCH, **change).resident(CHIP) == programs


@pytest.mark.parametrize(
    ("programs", "times"), [(1, 1.0), (40, 1.0), (41, 1.25), (120, 1.5)], ids=lambda value: str(value)
)
def test_waves_expose_the_instructions_that_no_neighbour_hides(programs: int, times: float) -> None:
    """Ten multiprocessors hold four programs each."""
    launch = replace(LAUNCH, programs=programs)
    assert launch.exposed(CHIP) == times
    assert launch.path(CHIP, BETTER) == pytest.approx(500 * 2e-9 * times)
    assert launch.path(CHIP, WORSE) == pytest.approx(500 * 4e-9 * times)


def test_a_step_is_bytes_and_launches_and_instructions() -> None:
    one = case()
    assert one.parts(BETTER) == pytest.approx({"bytes": 4e-6, "launches": 3e-6, "instructions": 3e-6})
    assert one.parts(WORSE) == pytest.approx({"bytes": 8e-6, "launches": 6e-6, "instructions": 6e-6})
    assert one.seconds(BETTER) == pytest.approx(10e-6)
    assert (one.share(BETTER), one.share(WORSE)) == pytest.approx((0.4, 0.2))
    row = one.to_dict()
    assert row["launches"] == 3 and row["instructions"] == 1500 and row["kernels"] == {"some_kernel": 3}
    assert (row["us_better"], row["us_worse"]) == pytest.approx((10, 20))
    assert (row["pdl_better"], row["pdl_worse"]) == pytest.approx((10 - 3 * 0.75, 20 - 3 * 1))


@pytest.mark.parametrize(
    ("wanted", "word"),
    [
        (goal("share", 0.2), "met"),
        (goal("share", 0.3), "open"),
        (goal("share", 0.41), "missed"),
        (goal("us", 20.1, at_least=False), "met"),
        (goal("us", 15.0, at_least=False), "open"),
        (goal("us", 9.9, at_least=False), "missed"),
        (goal("x:vllm", 1.0), "not predicted"),
        (Goal("other", {"op": "verify"}, "us", 1.0), "not predicted"),
    ],
    ids=lambda value: (
        f"{value.figure}-{value.limit:g}-{value.where['op']}" if isinstance(value, Goal) else ""
    ),
)
def test_what_is_expected_of_a_goal(wanted: Goal, word: str) -> None:
    found = expected.outlook(wanted, [case()])
    assert found.word == word and word in str(found)
    if found.better is not None:
        assert "3 launches" in found.why and "bytes 4.0 to 8.0 us" in found.why


def test_the_worst_case_decides() -> None:
    found = expected.outlook(goal("share", 0.4), [case(), case(launches=6, rows=2)])
    assert found.word == "missed" and found.why.startswith("case 2")
    assert found.to_dict()["better"] == pytest.approx(4 / 16)


@pytest.mark.parametrize(
    ("grid", "count"), [((3, 4, 2), 24), ([5], 5), (7, 7), (lambda named: (named["N"], 2), 12)]
)
def test_programs_of_a_grid(grid: Any, count: int) -> None:
    assert expected.num_programs(grid, {"N": 6}) == count


def test_every_goal_with_a_time_has_cases() -> None:
    specs = expected.specs_of(GOALS)
    for one in GOALS:
        applying = [spec.name for spec in specs if one.applies(spec.all_tags)]
        assert bool(applying) or one.figure not in expected.FIGURES, one.name


# Launches verify twice, where kernels are compiled; a stand-in compiles.
RECORDED = """
import json
from bench import expected
from bench.harness.goals import GOALS
from pearl_rt.kernels.tools.compile import Compiled
asked = []
def compile_case(found, arch):
    asked.append(f"{found.kernel.__name__} sm_{arch}")
    return Compiled(64, 1024, 0, 16, 16, 1000 + len(asked))
expected.compile_case = compile_case
[verify] = [spec for spec in expected.specs_of(GOALS) if spec.op == "verify"]
compiler = expected.Compiler(expected.Chip())
launches = [compiler.expected(verify).launches for _ in range(2)][1]
print(json.dumps([asked, [[launch.instructions, launch.programs, launch.threads] for launch in launches]]))
"""


@pytest.mark.slow
def test_launches_of_a_case_are_recorded_without_memory() -> None:
    """Verify is two launches over many programs; each kernel is compiled once."""
    env = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", RECORDED], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    asked, launches = json.loads(run.stdout.splitlines()[-1])
    assert asked == ["judge_scan_kernel sm_90", "rejection_kernel sm_90"]
    assert [launch[0] for launch in launches] == [1001, 1002]
    assert launches[0][1] > 1 and launches[0][2] >= 128


def test_interpreted_kernels_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Tests of this folder run in the interpreter."""
    assert expected.main([]) == 2
    assert "TRITON_INTERPRET is set: unset it" in capsys.readouterr().err
