"""The GPU bench without a GPU: goals judged, parts kept apart, no GPU said in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import equality, gpu, kernels, latency, sanitizer, throughput
from bench.harness import environment, goals
from bench.harness import processes as parts
from pearl_rt.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


# goals


def row_of(
    share: float = 0.9, us: float = 10.0, x: dict[str, float] | None = None, **tags: Any
) -> dict[str, Any]:
    return {
        "name": f"case {share}",
        "tags": tags,
        "status": "ok",
        "note": "",
        "share": share,
        "us": us,
        "x": x or {},
    }


def test_the_goals_are_the_issues() -> None:
    limits = {goal.name: (goal.figure, goal.limit, goal.at_least) for goal in goals.GOALS}
    assert len(limits) == len(goals.GOALS) == 10
    assert sorted(limits.values(), key=str) == sorted(
        [
            *[("share", limit, True) for limit in (0.85, 0.65, 0.65, 0.80, 0.88, 0.80)],
            ("us", 9.0, False),
            ("us", 350.0, False),
            ("x:vllm", 1.0, True),
            ("x:flashinfer", 1.0, True),
        ],
        key=str,
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"at_most": 1.0}, "as at_least or at_most, one of them"),
        ({"at_least": "much"}, "wants a number"),
        ({"figure": "speed"}, "'fast' is over figure 'speed'"),
        ({"wher": {}}, "it has name, where, figure, at_least, wher"),
    ],
)
def test_a_goal_that_cannot_be_judged_is_refused(change: dict[str, Any], reason: str) -> None:
    good = {"name": "fast", "where": {"op": "linear", "rows": {"upto": 8}}, "figure": "us", "at_least": 1.0}
    goal = goals.Goal.parse(good)
    assert goal.applies({"op": "linear", "rows": 8}) and not goal.applies({"op": "linear", "rows": 9})
    assert not goal.applies({"op": "linear"})
    with pytest.raises(ConfigError, match=reason):
        goals.Goal.parse(good | change)


def test_every_goal_is_measured_by_some_case_and_cases_have_names_of_their_own() -> None:
    specs = kernels.all_specs()
    names = [spec.name for spec in specs]
    assert len(set(names)) == len(names)
    assert all(spec.num_bytes > 0 and len(spec.name) <= 46 for spec in specs), max(names, key=len)
    for goal in goals.GOALS:
        assert any(goal.applies(spec.all_tags) for spec in specs), goal.name
    quick = kernels.chosen(specs, quick=True, only=None)
    assert 20 < len(quick) < 60
    assert {spec.op for spec in quick} == {spec.op for spec in specs}, "every operator is in the quick run"


def test_goal_cases_run_first_and_compiled_ones_last() -> None:
    order = kernels.chosen(kernels.all_specs(), quick=False, only=None)
    wanted = [any(goal.applies(spec.all_tags) for goal in goals.GOALS) for spec in order]
    compiled = [bool(spec.tags.get("compiles")) for spec in order]
    assert compiled == sorted(compiled)
    assert wanted[: compiled.index(True)] == sorted(wanted[: compiled.index(True)], reverse=True)


def test_the_worst_case_decides() -> None:
    goal = goals.GOALS[0]
    tags = {"op": "linear", "rows": 8, "weight_bytes": 100_000_000}
    rows = [row_of(0.95, **tags), row_of(0.80, **tags), row_of(0.10, **{**tags, "rows": 64})]
    found = goals.verdict(goal, rows)
    assert (found.met, found.found, found.case) == (False, 0.80, "case 0.8")
    assert goals.verdict(goal, rows[:1]).met is True
    text = goals.format_goals([found, goals.verdict(goal, rows[:1]), goals.verdict(goal, [])])
    missed, met, none = text.splitlines()
    assert ">= 85%" in missed and "80%" in missed and "MISSED" in missed
    assert "95%" in met and " met " in met
    assert "not measured" in none


def test_an_absent_peer_is_not_a_peer_that_was_beaten() -> None:
    vllm = next(goal for goal in goals.GOALS if goal.figure == "x:vllm")
    tags = {"op": "judge", "batch": 1, "gamma": 8, "vocab": 128256, "kind": "rejection"}
    absent = goals.verdict(vllm, [row_of(x={"flashinfer": 2.0}, **tags)])
    assert (absent.met, absent.note) == (None, "vllm is absent")
    assert goals.verdict(vllm, [row_of(x={"vllm": 0.9}, **tags)]).met is False
    assert goals.verdict(vllm, [row_of(x={"vllm": 1.1}, **tags)]).met is True


# parts


def python_part(name: str, code: str, **options: Any) -> parts.Part:
    return parts.Part(name, [sys.executable, "-S", "-c", code], options.pop("limit_s", 30.0), **options)


# A shell: on a busy machine Python itself may take a second to start.
HANGS = parts.Part("hangs", ["sh", "-c", "echo begun; exec sleep 60"], 1.0)


def test_one_failing_part_hides_no_other(tmp_path: Path) -> None:
    todo = [
        python_part("ends", "print('well')"),
        python_part("fails", "import sys; print('why'); sys.exit(3)"),
        HANGS,
        python_part("nothing", "import sys; sys.exit(5)", nothing_status=5),
        parts.Part("elsewhere", ["none"], 1.0, absent="no such tool"),
        parts.Part("unknown", ["/nowhere/at-all"], 1.0),
        python_part("figures", "print('table'); print('{\"us\": 2}'); print('100%|###|')"),
        python_part("environment", "import os; print(os.environ['MARK'])", environment={"MARK": "seen"}),
    ]
    lines: list[str] = []
    outcomes = parts.run_parts(
        todo, lambda part: tmp_path / f"{part.name}.txt", total_s=60.0, cwd=tmp_path, emit=lines.append
    )
    assert [o.status for o in outcomes] == [
        "ok",
        "failed",
        "timed out",
        "absent",
        "absent",
        "failed",
        "ok",
        "ok",
    ]
    assert [o.failed for o in outcomes] == [False, True, True, False, False, True, False, False]
    assert (tmp_path / "hangs.txt").read_text() == "begun\n"
    assert outcomes[6].figures() == {"us": 2} and outcomes[0].figures() is None
    assert outcomes[7].output == "seen\n"
    text = parts.summary(outcomes)
    assert "exit status 3" in text and "no such tool" in text and "stopped after 1 s" in text
    assert "    why" in "\n".join(lines)


def test_parts_end_when_the_time_for_all_is_spent(tmp_path: Path) -> None:
    todo = [python_part("long", "import time; time.sleep(60)"), python_part("late", "print('never')")]
    outcomes = parts.run_parts(
        todo, lambda part: tmp_path / part.name, total_s=0.5, cwd=tmp_path, emit=lambda text: None
    )
    assert [(o.status, o.returncode is None) for o in outcomes] == [("timed out", False), ("timed out", True)]


def test_the_sanitizers_take_small_tests_of_every_file() -> None:
    output = """
tests/kernels/forward/test_linear.py::test_linear[T1-N63-K64-fp32]
tests/kernels/forward/test_linear.py::test_linear[T5-N32-K128-fp16]
tests/kernels/forward/test_linear.py::test_linear[T5-N128256-K128-fp16]
tests/kernels/forward/test_linear.py::test_bad_shapes_are_refused[x]
tests/kernels/forward/test_linear.py::test_linear[T64-N32-K128-fp16]
tests/kernels/verify/test_verify.py::test_law[V16]
tests/kernels/verify/test_verify.py::test_verify[B2-V111]

7 tests collected in 2.10s
"""
    ids = sanitizer.collected(output)
    assert len(ids) == 7
    taken = [
        "tests/kernels/forward/test_linear.py::test_linear[T1-N63-K64-fp32]",
        "tests/kernels/forward/test_linear.py::test_linear[T64-N32-K128-fp16]",
        "tests/kernels/verify/test_verify.py::test_verify[B2-V111]",
    ]
    assert all(sanitizer.selection(ids, tool) == taken for tool in sanitizer.FILES)
    noise = ["tests/kernels/sampling/test_noise.py::test_noise[V16]"]
    assert [bool(sanitizer.selection(noise, tool)) for tool in sanitizer.FILES] == [True, False, False]


def test_a_sanitizer_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (gpu, sanitizer):
        monkeypatch.setattr(module, "find_tool", lambda: None)
    parts = {part.name: part for part in gpu.parts_of("python3", Path("r/s"), "gpu", 2)}
    for tool in ("memcheck", "racecheck", "synccheck"):
        assert parts[tool].absent == f"compute-sanitizer is not installed: no {tool}"
        assert parts[tool].command[1:] == ["bench/sanitizer.py", tool]
        assert sanitizer.main([tool]) == sanitizer.NOTHING_TO_CHECK
        assert capsys.readouterr().out == f"compute-sanitizer is not installed: {tool} did not run\n"


def test_a_sanitizer_is_asked_for_its_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    test = "tests/kernels/forward/test_linear.py::test_linear[T1-N63-K64-fp32]"

    def run(command: list[str], **_: Any) -> Any:
        ran.append(command)
        return SimpleNamespace(stdout=test, stderr="", returncode=sanitizer.FOUND_STATUS)

    monkeypatch.setattr(sanitizer, "find_tool", lambda: "/x/compute-sanitizer")
    monkeypatch.setattr(sanitizer.subprocess, "run", run)
    assert sanitizer.main(["racecheck"]) == sanitizer.FOUND_STATUS
    assert ran[1][:3] == ["/x/compute-sanitizer", "--tool", "racecheck"] and ran[1][-1] == test


# without a GPU


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (gpu, kernels):
        monkeypatch.setattr(module, "why_no_gpu", lambda: "torch 2.11 finds no CUDA device")


def test_no_gpu_is_said_and_nothing_is_done(
    no_gpu: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "run_part", None)
    results = tmp_path / "results"
    assert gpu.main(["--results-dir", str(results)]) == 2
    assert kernels.main(["--quick"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and not results.exists()
    assert err.splitlines() == [
        "gpu: torch 2.11 finds no CUDA device: nothing was built, run or written",
        "kernels: torch 2.11 finds no CUDA device: nothing was measured",
    ]


def test_hardware_names_every_kernel() -> None:
    """A new kernel needs a row that says where it has run."""
    section = (ROOT / "docs" / "hardware.md").read_text().split("## GPU")[1]
    kernel_files = [p for p in sorted((ROOT / "kernels").glob("*.py")) if p.name != "report.py"]
    names = {p.stem for p in kernel_files if "def compile_cases(" in p.read_text()}
    assert not {name for name in names if f"`{name}`" not in section}


def test_a_machine_without_cuda_is_known() -> None:
    assert (environment.why_no_gpu() is None) == torch.cuda.is_available()


def test_results_carry_the_machine_and_are_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One text and one summary of all parts; a file of its own only for a part that has figures."""
    todo = [
        python_part("build", "print('built')"),
        python_part("kernels", "print('table'); print('{\"green\": true}')"),
        HANGS,
    ]
    monkeypatch.setattr(gpu, "why_no_gpu", lambda: None)
    machine = dict.fromkeys(("driver", "torch", "triton", "commit"), "1") | {"gpu": "NVIDIA H100 80GB HBM3"}
    monkeypatch.setattr(gpu, "gpu_environment", lambda: machine)
    monkeypatch.setattr(gpu, "parts_of", lambda python, stem, command, half: todo)
    assert gpu.main(["--results-dir", str(tmp_path)]) == 1
    names = sorted(path.name.split("-", 3)[3] for path in tmp_path.iterdir())  # behind the date
    stem = "nvidia-h100-80gb-hbm3"
    assert names == [f"{stem}-gpu.json", f"{stem}-gpu.txt", f"{stem}-kernels.json"]
    [kernels_file] = tmp_path.glob("*-kernels.json")
    written = json.loads(kernels_file.read_text())
    assert written["card"] == machine and written["figures"] == {"green": True}
    assert written["status"] == "ok" and written["returncode"] == 0
    [whole] = tmp_path.glob("*-gpu.json")
    found = json.loads(whole.read_text())
    assert [(part["part"], part["status"]) for part in found["parts"]] == [
        ("build", "ok"),
        ("kernels", "ok"),
        ("hangs", "timed out"),
    ]
    assert found["card"] == machine and not any("figures" in part for part in found["parts"])
    [log] = tmp_path.glob("*.txt")
    assert log.read_text() == '== build\nbuilt\n== kernels\ntable\n{"green": true}\n== hangs\nbegun\n'
    assert "stopped after 1 s" in capsys.readouterr().out


HALVES = [(command, half) for command, halves in gpu.PLAN.items() for half in range(1, len(halves) + 1)]


@pytest.mark.parametrize(("command", "half"), HALVES)
def test_a_half_ends_within_eight_minutes_and_writes_few_files(command: str, half: int) -> None:
    """Cold: the build is in each. Every part has a limit, and what it writes is counted."""
    parts = gpu.parts_of("python3", Path("results/today-h200"), command, half)
    assert [part.name for part in parts][:2] == ["build", "imports"] and len(parts) > 3
    assert sum(part.limit_s for part in parts) <= 480 and all(part.limit_s > 0 for part in parts)
    assert gpu.HALF_S + gpu.GRACE_S < 480
    measured = [part for part in parts if part.shown > 12]  # their last line is figures
    pictures = [part for part in measured if "--device" in part.command and "latency" in part.command[1]]
    assert gpu.num_files(command, half) == 2 + len(measured) + len(pictures) <= 8


def test_all_halves_together_are_all_parts() -> None:
    for command, halves in gpu.PLAN.items():
        names = [name for half in range(len(halves)) for name in gpu.names_of(command, half + 1)[2:]]
        assert len({*names}) == len(names) and gpu.names_of(command) == ["build", "imports", *names]
        assert [part.name for part in gpu.parts_of("python3", Path("r/s"), command)][2:] == names
    assert "kernel-tests" in gpu.names_of("gpu", 1), "what is right before what is fast"
    assert gpu.ONLY_TOTAL_S < 10 * 60


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--half", "3"), "--half 3 does not exist: pass 1 to 2"),
        (("--long", "--half", "4"), "pass 1 to 3"),
        (("--half", "0"), "--half 0 does not exist"),
        (("--only", "latency", "memchek"), "--only memchek is no part of this: pass some of build imports"),
    ],
)
def test_a_half_or_part_that_is_none_is_refused(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        gpu.main(list(words))
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_half_begins_without_make_and_git(tmp_path: Path) -> None:
    """From another folder, with nothing on the PATH: it comes as far as the question for a GPU."""
    env = {"PATH": "", "COMMIT": "abc1234", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "bench" / "gpu.py"), "--half", "1", "--results-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "nothing was built, run or written" in done.stderr, done.stderr


def test_the_commit_is_told_where_there_is_no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("COMMIT", "abc1234")
    assert environment.commit() == "abc1234"


def test_the_command_lines_of_the_main_job_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is one that latency.py takes, on the GPU; the draft on another one only where there are two."""
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    for count in (1, 2):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        found = [part for command in gpu.PLAN for part in gpu.parts_of("python3", Path("r/s"), command)]
        told = {p.name: p for p in found if "bench/latency.py" in p.command}
        assert told.keys() == {"latency", "two-gpus", "latency-8b-1b", "latency-7b-68m", "latency-8b-135m"}
        for part in told.values():
            options = latency.parse_arguments(list(part.command[2:]))
            assert options.device == "cuda" and options.pair.startswith("planted:")
            assert max(options.gammas) < 16, "17 rows are a second tile"
            assert options.budget < part.limit_s
        assert told["two-gpus"].absent == ("there is one GPU" if count == 1 else None)
        assert latency.parse_arguments(list(told["latency-8b-1b"].command[2:])).alphas == [0.6, 0.8, 0.9]
        for name, parser in (("equality", equality), ("throughput", throughput)):
            for part in (part for part in found if part.name == name):
                options = parser.parse_arguments(list(part.command[2:]))
                assert options.device == "cuda" and 1 in options.batches
                assert getattr(options, "budget", 0) < part.limit_s, "what it leaves out, it names itself"


def test_the_cases_can_be_listed_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels.main(["--list", "--only", "^linear Llama-3.1-8B lm_head"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all("MB" in line for line in lines)


@pytest.mark.slow
def test_a_command_runs_as_a_script_from_anywhere_and_as_a_module(tmp_path: Path) -> None:
    words = ["--list", "--only", "^step SmolLM-135M T1 ctx256"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script, module = (
        subprocess.run([sys.executable, *how, *words], cwd=where, env=env, capture_output=True, text=True)
        for how, where in (([str(ROOT / "bench" / "kernels.py")], tmp_path), (["-m", "bench.kernels"], ROOT))
    )
    assert script.returncode == 0, script.stderr
    assert script.stdout == module.stdout and "step SmolLM-135M" in script.stdout
