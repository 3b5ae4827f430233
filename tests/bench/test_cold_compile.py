"""The cost of compiling a tiny pair: rows, goals, and what the compiler is asked. Nothing is compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import cold_compile

ROOT = Path(__file__).resolve().parents[2]


def test_a_row_for_each_kernel_the_longest_first() -> None:
    rows = cold_compile.rows_of([("a", 1.0), ("b", 5.0), ("a", 2.0)])
    assert [(row["name"], row["variants"], row["cpu_s"]) for row in rows] == [
        ("all", 3, 8.0),
        ("b", 1, 5.0),
        ("a", 2, 3.0),
    ]
    assert sum(row["share"] for row in rows[1:]) == pytest.approx(1.0) and rows[0]["share"] == 1.0


def test_interpreted_kernels_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cold_compile, "interpreting", lambda: True)
    assert cold_compile.main([]) == 2
    assert "TRITON_INTERPRET is set: unset it" in capsys.readouterr().err


STUBBED = """
from bench import cold_compile
asked = []
def compiled(variants):
    asked.append([variant.name for variant in variants])
    return [(variant.name, 0.5) for variant in variants]
cold_compile.compiled = compiled
assert cold_compile.main([]) == 0
assert asked[0] == asked[1][:1]
"""


@pytest.mark.slow
def test_the_report() -> None:
    """Each variant is compiled once, a window later only what it adds, and half a second is over the goal."""
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", STUBBED], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    everything, *kernels = figures["rows"]
    assert everything["variants"] == sum(row["variants"] for row in kernels) > 30
    by_name = {row["name"]: row["variants"] for row in kernels}
    assert by_name["rejection_kernel"] == by_name["judge_scan_kernel"] == 1
    later = figures["windows_later"]
    assert later["2"] == later["8"] == [] and {name for name, _ in later["4"]} == {"merge_kernel"}
    assert [goal["met"] for goal in figures["goals"]] == [False, False]
