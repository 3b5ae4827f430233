"""The table of drafters: figures by task, and no figure over other tokens than those of `ar`."""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tqdm import tqdm

from bench import drafters
from bench.harness import measure as m
from bench.harness.bars import best_of_each, draw_bars
from bench.harness.peers import Peer, PeerGroup
from bench.model_pairs.model_pair import open_pair
from bench.rounds import draft_rows
from pearl_rt.types.metrics import RequestMetrics, TraceRow

ROOT = Path(__file__).resolve().parents[3]
TASKS = ["maths", "code", "maths"]
OPTIONS = SimpleNamespace(
    gammas=None,
    draft="draft",
    exit="exit",
    parallel="parallel",
    diffusion="diffusion",
    eagle3="head",
    candidates=[2],
    skip_layers=[1],
    stops=["adaedl"],
)


def metrics_of(row: m.Program, tokens_of_rounds: list[int], token_s: float) -> RequestMetrics:
    """A first token at 1 s, then rounds of so many tokens; 2 ms of drafts and 3 + 1 ms of target a round."""
    count = 1 + sum(tokens_of_rounds)
    trace = []
    for number in range(1, len(tokens_of_rounds) + 1):
        t = number * 10_000_000
        trace += [
            TraceRow("draft", "draft", number, t, t + 2_000_000),
            TraceRow("draft", "wait", number, t + 2_000_000, t + 9_000_000),
            TraceRow("target", "score", number, t + 2_000_000, t + 5_000_000),
            TraceRow("target", "verify", number, t + 5_000_000, t + 6_000_000),
        ]
    times = tuple(1.0 + i * token_s for i in range(count))
    shape = row.strategy, row.gamma, row.placement, 4, 0, times, len(tokens_of_rounds)
    return RequestMetrics(*shape, 3, 4, 1, judged_at=(3, 1), accepted_at=(2, 1), trace=tuple(trace))


class FakeEngines(drafters.Engines):
    """With a window of 7 maths is twice as fast as by `ar`, and code as fast; `liar` writes other tokens."""

    def __init__(self, liar: str = "") -> None:
        pairs = {draft_rows.LOOKUP: SimpleNamespace(tasks=TASKS)}
        minutes = dict.fromkeys((draft_rows.PARALLEL, draft_rows.chosen(draft_rows.PARALLEL)), 1234.4)
        super().__init__(pairs, minutes)  # type: ignore[arg-type]
        self.liar = liar

    def run(self, program: m.Program, workload: m.Workload, prompt: int) -> list[m.Sample]:
        assert isinstance(program, draft_rows.Row)
        is_fast = program.gamma == 7 and TASKS[prompt] == "maths"
        metrics = metrics_of(program, [4] * 2 if is_fast else [1] * 8, 0.01 / (2 if is_fast else 1))
        ids = [prompt * 100 + i for i in range(9)]
        if program.name == self.liar and prompt == 1:
            ids[3] = -1
        return [m.Sample(prompt, ids, metrics.token_times[-1], metrics.ttft, metrics.tpot, metrics)]

    def extra_bytes(self, row: draft_rows.Row) -> int:
        return 0 if row.strategy == "ar" else 2_500_000


def run(engines: FakeEngines, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, object], str]:
    work = m.Workload([[1]] * 3, 9)
    with tqdm(disable=True) as bar:
        found = drafters.section(OPTIONS, engines, work, bar)  # type: ignore[arg-type]
    return found, capsys.readouterr().out


def test_figures_are_of_each_task_and_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    found, text = run(FakeEngines(), capsys)
    rows = {(row["name"], row["gamma"]): row for row in found["rows"]}  # type: ignore[attr-defined]
    assert set(rows) == {
        ("none", None),
        *((draft_rows.LOOKUP, gamma) for gamma in (3, 7, 15)),
        (draft_rows.EARLIER, 15),
        *((draft_rows.MODEL, gamma) for gamma in (2, 4, 8)),
        *((kind, gamma) for kind in (draft_rows.SELF, draft_rows.EXIT) for gamma in (2, 4)),
        *(
            (kind, gamma)
            for kind, gammas in ((draft_rows.PARALLEL, (3, 6, 12)), (draft_rows.DIFFUSION, (4, 8, 12)))
            for gamma in gammas
        ),
        *((draft_rows.EAGLE3, gamma) for gamma in (2, 4)),
        *((draft_rows.chained(kind), 8 if kind == "model" else 4) for kind in ("model", "self", "exit")),
        *((draft_rows.chained(kind), 12) for kind in ("parallel", "diffusion")),
        ("model, adaedl", 15),
        *(("model, 2 candidates", gamma) for gamma in (2, 4, 8)),
        ("auto, lookup", None),
        *((f"auto, {kind}", None) for kind in ("model", "exit", "parallel", "diffusion", "eagle3")),
    }
    plain, fast = rows["none", None], rows[draft_rows.LOOKUP, 7]
    assert plain["x_ar"] == 1 and plain["draft_ms"] is None and plain["extra_mb"] == 0
    assert plain["verify_ms"] == pytest.approx(4) and plain["by_lookup"] is None
    assert [fast["by_task"][task]["x_ar"] for task in ("maths", "code")] == [
        pytest.approx(2),
        pytest.approx(1),
    ]
    assert "2.00, 4.00" in text and "1.00, 1.00" in text
    assert fast["x_ar"] == pytest.approx(24 / 16), "24 tokens of 10 ms over 16 of 5 ms and 8 of 10"
    assert fast["by_task"]["maths"]["tokens_per_round"] == pytest.approx(4)
    assert fast["tokens_per_round"] == pytest.approx(24 / 12)
    assert (fast["draft_ms"], fast["extra_mb"]) == (pytest.approx(2), 2.5)
    assert fast["accepted_at"] == "0.67 1.00" and "0.67 1.00" in text and "maths" in text
    assert "tokens of ar" in text and found["difference"] is None


def test_the_minutes_of_a_draft_are_in_each_of_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the memory; of a row of another draft, or of none, there are none."""
    found, text = run(FakeEngines(), capsys)
    has = {"parallel", "auto, parallel"}
    for row in found["rows"]:  # type: ignore[attr-defined]
        assert row["minutes"] == (1234.4 if row["name"] in has else None), row["name"]
    lines = [[cell.strip() for cell in line.split(" | ")] for line in text.splitlines() if " | " in line]
    place = lines[0].index("minutes trained")
    assert lines[0][place - 1] == "MB" and len(lines) == 1 + len(found["rows"])  # type: ignore[arg-type]
    assert {(line[0], line[place]) for line in lines[1:]} == {
        (line[0], "1234" if line[0] in has else "-") for line in lines[1:]
    }


def test_peers_have_rows_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is half as fast as `ar` and writes other tokens: no figure of ours is lost."""

    class Slow(Peer):
        def programs(self, gamma: int) -> list[m.Program]:
            return [m.Program("slow ngram", "shared", 5)]

        def write(self, program: m.Program, prompts: object, count: int, length: int) -> list[list[int]]:
            return [[7] * count]

        def __call__(self, program: m.Program, workload: m.Workload, prompt: int) -> list[m.Sample]:
            return [m.Sample(prompt, [prompt * 100] + [7] * 8, 1.0, 1.0, 0.02, None)]

    engines = FakeEngines()
    engines.peers = PeerGroup({"slow": Slow("1")}, {"openvino": "not here"})
    found, text = run(engines, capsys)
    [peer] = found["peers"]  # type: ignore[misc]
    assert peer["x_ar"] == pytest.approx(0.5) and set(peer["by_task"]) == {"maths", "code"}
    assert peer["agreement"]["equal"] == 0 and "slow ngram" in text and "openvino: not here" in text
    rows = found["rows"] + found["peers"]  # type: ignore[operator]
    best = {row["name"]: row["gamma"] for row in best_of_each(rows)}
    assert len(best) == len({row["name"] for row in rows}) - 1 and best[draft_rows.LOOKUP] == 7
    pytest.importorskip("matplotlib")
    draw_bars(tmp_path / "bars.png", rows)
    assert (tmp_path / "bars.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("liar", [draft_rows.MODEL, "auto, lookup"])
def test_no_figures_over_other_tokens(liar: str, capsys: pytest.CaptureFixture[str]) -> None:
    found, text = run(FakeEngines(liar), capsys)
    assert found["rows"] == [] and "prompt 1, token 3" in str(found["difference"])
    assert "OUTPUTS DIFFER" in text and "x ar" not in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--draft", "a"],
        ["--target", "a", "--candidates", "2"],
        ["--target", "a", "--stops", "adaedl"],
        ["--max-tokens", "0"],
        ["--target", "a", "--num-prompts", "0"],
    ],
)
def test_bad_options_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        drafters.parse_arguments(arguments)


def test_a_lookup_reads_no_answer_that_another_program_wrote() -> None:
    """The same prompt again takes as many rounds; with a pool of earlier answers it takes fewer."""
    options = drafters.parse_arguments(["--target", str(ROOT / "models/target"), "--num-prompts", "1"])
    rounds = {}
    for pool in (0, 65536):
        pooled = {} if pool == 0 else {"lookup_pool": pool}
        pair = open_pair(argparse.Namespace(**vars(options) | pooled))
        with pair.engine:
            work = m.Workload(pair.prompts, 24)
            runs = [pair.run(m.Program("sd", "shared", 8), work, 0)[0] for _ in range(2)]
        rounds[pool] = [run.metrics.rounds for run in runs if run.metrics]
        assert runs[0].token_ids == runs[1].token_ids
    first, again = rounds[0]
    assert first == again == rounds[65536][0] > rounds[65536][1]


@pytest.mark.slow
def test_the_pair_from_command_line_to_json(capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped pair, a few tokens: every row runs, and writes the tokens of `ar`."""
    models = f"--target {ROOT / 'models/target'} --draft {ROOT / 'models/draft'}"
    more = "--skip-layers 3 --stops marginal"
    command = f"{models} --num-prompts 2 --max-tokens 12 --gammas 4 --temperature 0.8 {more}"
    assert drafters.main(command.split()) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["outputs_equal"] and [s["temperature"] for s in figures["sections"]] == [0.8]
    for section in figures["sections"]:
        rows = {row["name"]: row for row in section["rows"]}
        early = {"model, marginal"}
        autos = {"auto, lookup", "auto, model"}
        chains = {"lookup, then model", "lookup, then self"}
        assert set(rows) == {"none", "lookup", draft_rows.EARLIER, "model", "self"} | early | autos | chains
        assert rows["lookup"]["by_lookup"] == 1 and rows["model"]["by_lookup"] == 0
        assert rows["lookup, then model"]["by_lookup"] is not None
        assert rows["lookup, then model"]["extra_mb"] >= rows["model"]["extra_mb"]
        assert rows["self"]["extra_mb"] < 0.1  # the index of a lookup
        assert rows["none"]["extra_mb"] == 0 and 3 < rows["model"]["extra_mb"] < 20
        assert 0 < rows["lookup"]["extra_mb"] < rows["model"]["extra_mb"]
        assert rows["model"]["draft_ms"] > rows["lookup"]["draft_ms"] > 0
        assert all(row["verify_ms"] > 0 for row in rows.values())
        has_minutes = {"model", "model, marginal", "lookup, then model", "auto, model"}
        assert {name: row["minutes"] for name, row in rows.items()} == {
            name: 28 if name in has_minutes else None for name in rows
        }


def test_earlier_answers_are_looked_up_where_an_engine_does_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An engine of its own for each such row: no other one has written the same answers."""
    pools = {}

    def opened(options: Any) -> Any:
        pools[getattr(options, "draft", None), options.lookup_pool, len(pools)] = True
        return SimpleNamespace(engine=nullcontext(), checkpoints=None)

    monkeypatch.setattr(drafters, "open_pair", opened)
    asked = SimpleNamespace(**vars(OPTIONS) | {"lookup_pool": 0, "candidates": [], "stops": []})
    with ExitStack() as stack:
        engines = drafters.open_engines(asked, stack)  # type: ignore[arg-type]
    rows = draft_rows.rows_of(asked)  # type: ignore[arg-type]
    assert {row.kind_of_draft for row in rows} <= set(engines.pairs), "each row has an engine"
    chosen = [row.kind_of_draft for row in rows if row.strategy == "auto"]
    assert len(set(chosen)) == len(chosen) == 6
    by_kind = dict(zip(engines.pairs, [pool for _, pool, _ in pools], strict=True))
    default = drafters.EngineOptions().lookup_pool
    assert {kind for kind, pool in by_kind.items() if pool == default} == {draft_rows.EARLIER, *chosen}
