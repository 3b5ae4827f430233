"""The instrument itself: interleaving, the gate on equal outputs, tables, timelines.

No engine runs in most of this file: a fake runner writes scripted tokens in scripted times.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_fakes import TINY_SHAPES

from bench.harness import measure as m
from bench.harness import menu, peers, run
from bench.harness.table import format_sweep, format_table
from bench.model_pairs import planted as pairs
from bench.model_pairs.shapes import SHAPES
from bench.rounds import timeline
from pearl_rt.types.metrics import RequestMetrics, TraceRow

# the instrument


def metrics_of(
    program: m.Program, token_times: tuple[float, ...], trace: tuple[TraceRow, ...] = ()
) -> RequestMetrics:
    drafted = program.gamma > 0
    return RequestMetrics(
        strategy=program.strategy,
        gamma=program.gamma,
        placement=program.placement,
        num_prompt_tokens=4,
        start_ns=1_000_000,
        token_times=token_times,
        rounds=len(token_times) - 1,
        accepted=6 if drafted else 0,
        judged=8 if drafted else 0,
        rejections=2 if drafted else 0,
        trace=trace,
    )


class FakeRunner:
    """Writes the same tokens for every program but `liar`, in the seconds a token that `speed` says."""

    def __init__(self, speed: dict[str, float], liar: str = "") -> None:
        self.speed, self.liar = speed, liar
        self.calls: list[tuple[str, int, int]] = []

    def __call__(self, program: m.Program, workload: m.Workload, prompt: int) -> list[m.Sample]:
        self.calls.append((str(program), prompt, workload.max_tokens))
        return [self.sample(program, workload, number) for number in workload.together(prompt)]

    def sample(self, program: m.Program, workload: m.Workload, prompt: int) -> m.Sample:
        per_token = self.speed["/".join(program.kind)] * (1 + abs(program.gamma - 4) * 0.1)
        ids = [prompt * 1000 + i for i in range(workload.max_tokens)]
        if program.judge == "rejection" or (program.strategy == self.liar and prompt == 1):
            ids[5] = -7
        times = tuple(0.5 + i * per_token for i in range(len(ids)))
        return m.Sample(prompt, ids, times[-1], times[0], per_token, metrics_of(program, times))


SPEED = {
    "ar/shared": 0.010,
    "ar/split": 0.020,
    "sd/shared": 0.006,
    "sd/split": 0.008,
    "pearl/split": 0.005,
    "auto/auto": 0.005,
}
WORK = m.Workload([[1, 2, 3]] * 4, max_tokens=40)


def test_runs_are_interleaved() -> None:
    runner = FakeRunner(SPEED)
    programs = [m.Program("ar"), m.Program("sd", "shared", 4), m.Program("pearl", "split", 4)]
    m.measure(runner, programs, WORK, repeats=2)
    counted = runner.calls[3:]  # one short warm-up each
    assert all(call[2] == 8 for call in runner.calls[:3])
    for i in range(0, len(counted), 3):
        assert len({name for name, _, _ in counted[i : i + 3]}) == 3, (
            "each prompt goes through all programs in turn"
        )
        assert len({prompt for _, prompt, _ in counted[i : i + 3]}) == 1
    assert len({counted[i][0] for i in range(0, 9, 3)}) == 3, "a different program begins each time"


def test_sweep_finds_the_best_gamma() -> None:
    best, rates = m.sweep(FakeRunner(SPEED), menu.cpu_menu().swept, (1, 4, 8), WORK)
    assert [str(p) for p in best] == ["sd/shared gamma 4", "sd/split gamma 4", "pearl/split gamma 4"]
    assert set(rates["sd/split"]) == {1, 4, 8}


def test_section_compares_with_the_best_serial_speculation() -> None:
    found, _ = run.run_programs(FakeRunner(SPEED), WORK, gammas=(1, 4))
    rows = {(r["strategy"], r["placement"]): r for r in found.rows}
    assert found.difference is None
    assert rows["pearl", "split"]["x_sd"] == pytest.approx((0.5 + 39 * 0.006) / (0.5 + 39 * 0.005)), (
        "against sd/shared, which is faster than sd/split"
    )
    assert rows["sd", "shared"]["x_sd"] == pytest.approx(1)
    assert rows["ar", "shared"]["x_ar"] == pytest.approx(1)
    assert rows["pearl", "split"]["acceptance"] == pytest.approx(0.75)
    assert "outputs equal" in run.format_run(found)


def test_no_speed_ups_over_different_tokens() -> None:
    found, _ = run.run_programs(FakeRunner(SPEED, liar="pearl"), WORK, gammas=(4,))
    assert (found.difference.prompt, found.difference.position) == (1, 5)
    assert all(r["x_ar"] is None and r["x_sd"] is None for r in found.rows)
    text = run.format_run(found)
    assert "OUTPUTS DIFFER" in text and "wrote 1005" in text and "wrote -7" in text
    assert found.to_dict()["outputs_equal"] is False


def test_rejection_rows_are_marked_and_not_compared() -> None:
    hot = m.Workload(WORK.prompts, 40, temperature=0.8)
    found, _ = run.run_programs(FakeRunner(SPEED), hot, gammas=(4,))
    judged = [(r["strategy"], r["judge"]) for r in found.rows]
    assert judged[-2:] == [("sd", "rejection"), ("pearl", "rejection")]
    assert found.difference is None
    text = run.format_run(found)
    assert "pearl *" in text and "the same law, other tokens" in text


def test_rejection_alone_owes_tokens_to_its_own_window_only() -> None:
    hot = m.Workload(WORK.prompts, 40, temperature=0.8)
    by_temperature = menu.menus(menu.cpu_menu(), (0.0, 0.8), "rejection")
    assert by_temperature[0.0].judge == "coupled"
    found, _ = run.run_programs(FakeRunner(SPEED), hot, gammas=(4,), menu=by_temperature[0.8])
    assert {row["judge"] for row in found.rows} == {"rejection"} and found.difference is None
    assert found.rows[-1]["x_sd"] is not None and " *" not in run.format_run(found)

    class Placed(FakeRunner):
        """sd writes other tokens on split cores than on shared ones, pearl other ones than sd."""

        def sample(self, program: m.Program, workload: m.Workload, prompt: int) -> m.Sample:
            made = super().sample(program, workload, prompt)
            made.token_ids[7] = {"sd/split": -1, "pearl/split": -2}.get("/".join(program.kind), 0)
            return made

    found, _ = run.run_programs(Placed(SPEED), hot, gammas=(4,), menu=by_temperature[0.8])
    assert found.difference is not None and {p.strategy for p in found.difference.programs} == {"sd"}


def test_batches_share_a_call() -> None:
    runner = FakeRunner(SPEED)
    work = m.Workload([[1]] * 5, 40, batch=2)
    told: list[str] = []
    [found] = m.measure(runner, [m.Program("ar")], work, progress=told.append)
    assert [call[1] for call in runner.calls] == [0, 0, 2, 4] and len(told) == 3
    assert [sample.prompt for sample in found.samples] == [0, 1, 2, 3, 4]
    fitted = menu.fit_workload(m.Workload([[1]] * 8, 128, batch=4), 10.0, 100.0, 2, 4)
    assert len(fitted.prompts) == 4


def test_batches_of_any_size_may_have_the_same_noise_and_are_told_apart() -> None:
    work = m.Workload([[1]] * 5, 40, seed=7, batch=2)
    assert [work.seed_of(prompt) for prompt in work.firsts()] == [7, 9, 11]
    assert {replace(work, batch=n, one_seed=True).seed_of(n) for n in (1, 4)} == {7}
    found = [
        m.Measured(m.Program("sd", "shared", 3, batch=n), [m.Sample(0, [1, n], 1, 1, 1, None)])
        for n in (1, 4)
    ]
    text = str(m.first_difference(found))
    assert "sd/shared gamma 3 in batches of 1 wrote 1, sd/shared gamma 3 in batches of 4 wrote 4" in text


def test_a_shorter_output_is_a_difference() -> None:
    def sample(ids: list[int]) -> m.Sample:
        return m.Sample(0, ids, 1, 1, 1, None)

    whole = m.Measured(m.Program("ar"), [sample([1, 2, 3])])
    short = m.Measured(m.Program("sd"), [sample([1, 2])])
    difference = m.first_difference([whole, short])
    assert difference is not None and difference.token_ids == (3, None)


def test_the_programs_of_a_lookup_are_compared_on_all_cores() -> None:
    speed = {"ar/shared": 0.010, "sd/shared": 0.005, "pearl/shared": 0.008, "auto/auto": 0.005}
    found, _ = run.run_programs(FakeRunner(speed), WORK, gammas=(4, 8), menu=menu.lookup_menu())
    rows = {row["strategy"]: row for row in found.rows}
    assert list(rows) == ["ar", "sd", "pearl", "auto"] and found.difference is None
    assert {row["placement"] for row in found.rows} == {"shared", "auto"}
    assert rows["sd"]["gamma"] == 4 and rows["pearl"]["x_sd"] < 1


class FakePeer(FakeRunner):
    def programs(self, gamma: int) -> list[m.Program]:
        return [m.Program("hf ar"), m.Program("hf assisted", "shared", gamma)]


def test_peers_are_rows_and_their_tokens_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "REST", 0)
    peer = FakePeer({"hf ar/shared": 0.02, "hf assisted/shared": 0.015}, liar="hf ar")
    found, _ = run.run_programs(FakeRunner(SPEED), WORK, gammas=(4,), peer=peer)
    assert found.difference is None, "a peer's tokens don't close the gate"
    text = run.format_run(found)
    assert "hf ar/shared wrote our tokens in 3 of 4 prompts" in text
    assert next(r for r in found.rows if r["strategy"] == "hf ar")["acceptance"] is None
    over = found.peers["auto_over"]
    assert over["hf ar/shared"] == pytest.approx((0.5 + 39 * 0.028) / (0.5 + 39 * 0.007))
    assert "auto is 2.06 times as fast as hf ar/shared" in text


def test_progress_is_told_of_every_run() -> None:
    told: list[int] = []

    class Bar:
        def set_postfix_str(self, *_: Any, **__: Any) -> None: ...
        def update(self) -> None:
            told.append(1)

    hot = m.Workload(WORK.prompts, 40, temperature=0.8)
    for work in (WORK, hot):
        told.clear()
        run.run_programs(FakeRunner(SPEED), work, gammas=(2, 4), bar=Bar())  # type: ignore[arg-type]
        assert len(told) == menu.num_runs(menu.cpu_menu(), (2, 4), work, 1)


def test_prefill_counts_where_prompts_are_long() -> None:
    work = m.Workload([[1]] * 48, 64)
    counts = {"num_kinds": 2, "num_programs": 4}
    short = menu.fit_workload(work, 0.005, 100.0, 2, 3, **counts)
    long = menu.fit_workload(work, 0.005, 100.0, 2, 3, seconds_per_prompt=0.5, **counts)
    spent = 2 * (0.005 * (12 * 48 + 4 * 12 * 64) + 0.5 * (12 + 4 * 12))
    assert (len(short.prompts), len(long.prompts)) == (36, 12) and 96 < spent < 100


@pytest.mark.parametrize(("seconds", "expected"), [(0.001, (8, 128)), (0.02, (3, 128)), (10.0, (3, 32))])
def test_slow_pairs_get_less_work(seconds: float, expected: tuple[int, int]) -> None:
    fitted = menu.fit_workload(m.Workload([[1]] * 8, 128), seconds, 100.0, 2, 4)
    assert len(fitted.prompts) == expected[0]
    assert (fitted.max_tokens == expected[1]) or expected == (3, 128)


def test_tables_line_up() -> None:
    found, _ = run.run_programs(FakeRunner(SPEED), WORK, gammas=(4,))
    lines = format_table(found.rows).splitlines()
    bars = [[i for i, c in enumerate(line) if c in "|+"] for line in lines]
    assert all(b == bars[0] for b in bars)
    assert format_sweep({"sd/shared": {1: 10.0, 4: 20.0}}).endswith("1: 10  [4: 20]")


# timelines


def overlapping_run(program: m.Program, overlap: bool) -> RequestMetrics:
    """Twelve rounds of 10 ms: draft 4 ms, score 5 ms after it or beside it."""
    rows, times = [], [0.0]
    for i in range(1, 13):
        t = 1_000_000 + i * 10_000_000
        score = t if overlap else t + 4_000_000
        rows += [
            TraceRow("draft", "draft", i, t, t + 4_000_000),
            TraceRow("draft", "wait", i, t + 4_000_000, t + 10_000_000),
            TraceRow("target", "score", i, score, score + 5_000_000),
            TraceRow("target", "verify", i, score + 5_000_000, score + 5_500_000),
        ]
        times += [(score + 5_500_000 - 1_000_000) * 1e-9] * 3
    return metrics_of(program, tuple(times), tuple(rows))


def test_overlap_is_read_from_the_trace() -> None:
    sd, pearl = (overlapping_run(m.Program("sd", "split", 4), o) for o in (False, True))
    assert timeline.busy_together(sd.trace) == 0
    assert timeline.busy_together(pearl.trace) == pytest.approx(12 * 0.004)
    window = timeline.cut_window(pearl, 50.0)
    assert window.num_tokens == 15 and window.both_busy == pytest.approx(0.4)


def test_chrome_trace_has_a_track_a_lane(tmp_path: Path) -> None:
    traced = overlapping_run(m.Program("pearl", "split", 4), True)
    timeline.write_chrome_trace(tmp_path / "t.json", {"pearl": traced})
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert {e["args"]["name"] for e in events if e["ph"] == "M"} == {"pearl", "draft", "target"}
    assert {e["name"] for e in events if e["ph"] == "X"} == {"draft", "wait", "score", "verify"}
    assert min(e["ts"] for e in events if e["ph"] == "X") == pytest.approx(10_000)


def test_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = {name: overlapping_run(m.Program(name, "split", 4), name == "pearl") for name in ("sd", "pearl")}
    timeline.draw(tmp_path / "lanes.png", runs)
    assert (tmp_path / "lanes.png").read_bytes().startswith(b"\x89PNG")


# the whole


@pytest.mark.slow
def test_a_planted_pair_from_command_line_to_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real engine over tiny shapes: equal outputs at both temperatures, every file written."""
    from bench import latency

    monkeypatch.setitem(SHAPES, "88m", TINY_SHAPES["target"])
    monkeypatch.setitem(SHAPES, "8m", TINY_SHAPES["draft"])
    monkeypatch.setattr(pairs, "NUM_BISECTIONS", 3)
    command = "--pair planted:88m+8m@0.7 --num-prompts 2 --max-tokens 24 --gammas 2 4 --temperature 0 0.8"
    files = [f"--{name}={tmp_path / name}" for name in ("json-out", "trace", "plot")]
    assert latency.main([*command.split(), *files]) == 0
    printed = capsys.readouterr().out.splitlines()
    figures = json.loads(printed[-1])
    assert figures == json.loads((tmp_path / "json-out").read_text())
    assert figures["outputs_equal"] is True
    assert [s["temperature"] for s in figures["sections"]] == [0.0, 0.8]
    rows = figures["sections"][0]["rows"]
    assert {(r["strategy"], r["placement"]) for r in rows} >= {
        ("ar", "shared"),
        ("sd", "shared"),
        ("auto", "auto"),
    }
    assert all(r["tokens_per_second"] > 0 and r["x_ar"] > 0 for r in rows)
    assert (tmp_path / "plot").exists() and (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--pair", "planted:88m+8m@2"], "0.05 to 0.98"),
        (["--target", "nowhere", "--draft", "nowhere"], "nowhere"),
    ],
    ids=["alpha", "no-model"],
)
def test_bad_input_is_one_line(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    from bench import latency

    assert latency.main(arguments) == 2
    error = capsys.readouterr().err
    assert reason in error and "Traceback" not in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-tokens", "0"],
        ["--num-prompts", "0"],
        ["--draft", "a"],
        ["--pair", "x", "--draft", "y"],
        ["--device", "interpret", "--peers", "openvino"],
    ],
)
def test_bad_options_are_refused(arguments: list[str]) -> None:
    from bench import latency

    with pytest.raises(SystemExit):
        latency.main(arguments)
