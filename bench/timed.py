"""A simulation: what overlap gives where draft and target share no bottleneck, and what a round costs beside.

    python -m bench.timed                                    a grid of speeds and agreements, ten minutes
    python bench/timed.py --ratios 5 --alphas 0.8            one point
    python bench/timed.py --plot docs/timed.png --json-out FILE

The steps of both models are waits of given times, and their tokens are scripted
(bench/rounds/timed_devices.py). Lanes, coordinator, programs, ring and chooser are the real ones. ar, sd,
pearl and auto write the same tokens; beside each stands what the planner expects of its step times. Windows
are tuned: the best of those that the planner ranks first. Prints the environment, a table, the goals, and the
same as JSON in its last line. Exit status 1 if tokens or rounds differ from what they must be. On a machine
with other load, run it at real-time priority (chrt -f 10): a lane that wakes late is taken for overhead. The
planner is compared by the median round, which the stalls of a loaded machine do not move; speeds are by the
clock on the wall, and the JSON has that comparison too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: our modules are bench.*, and none of them may shadow another's
    sys.path[0] = os.path.dirname(sys.path[0])

from tqdm import tqdm

from bench.harness.command import add_shared, exit_code, finish, require_positive
from bench.harness.environment import commit, host_environment
from bench.harness.goals import TIMED_GOALS, format_goals, verdict
from bench.harness.measure import Measured, Program, Workload, first_difference, measure, tokens_per_second
from bench.harness.table import format_table
from bench.rounds.timed_devices import (
    CHOICE,
    PLACEMENT,
    PROMPT,
    Steps,
    Text,
    TimedPair,
    counted_rounds,
    overhead_us,
)
from pearl_rt.cli.plan import ALPHA, STEP_MS
from pearl_rt.errors import ConfigError
from pearl_rt.strategy.planner import StepTimes, plan, plans
from pearl_rt.types.values import Number

TITLE = "simulated: two devices whose steps are waits of given times, tokens scripted; no model has run"
RATIOS = (1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)
ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
RATIO = Number(1e-3, 1e3, off="the target's step over the draft's")
# The windows of github.com/smart-lty/ParallelSpeculativeDecoding (commit 5a6f369) for the paper's pairs.
# PEARL's is the ratio of speeds, by its authors' rule; serial speculation's is twice that. No alpha is given.
PAPER = {
    3.0: "CodeLlama 7B/34B, DeepSeek 6.7B/33B",
    4.0: "DeepSeek 1.3B/33B",
    5.0: "CodeLlama 7B/70B, Llama-2 7B/70B",
}
PAPER_ALPHAS = (0.8, 0.9)
AR = Program("ar", PLACEMENT)
AUTO = Program("auto", PLACEMENT)
COLUMNS = (
    ("alpha", "alpha", ".2f"),
    ("ratio", "t_T/t_D", ".0f"),
    *(
        column
        for name in ("sd", "pearl")
        for column in (
            (f"{name}_gamma", f"{name} gamma", "d"),
            (f"{name}_rate", "tok/s", ".1f"),
            (f"{name}_of_model", "of plan", ".1%"),
            (f"{name}_x_ar", "x ar", ".2f"),
            (f"{name}_us", "us beside", ".0f"),
        )
    ),
    ("pearl_x_sd", "pearl x sd", ".2f"),
    ("auto", "auto ran", "s"),
    ("auto_x_sd", "x sd", ".2f"),
)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line. Raises ConfigError for a time, a ratio or a rate that cannot be."""
    parser = argparse.ArgumentParser(
        description="Simulated: ar, sd, pearl and auto on devices of given speed."
    )
    parser.add_argument("--target-ms", type=float, default=10.0, help="of a step of the target; default 10")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS, help="target's step over draft's")
    parser.add_argument("--alphas", type=float, nargs="+", default=ALPHAS, help="agreements")
    parser.add_argument("--no-paper", action="store_true", help="without the paper's own windows")
    parser.add_argument(
        "--windows", type=int, default=3, help="that are tried for sd and for pearl; default 3"
    )
    parser.add_argument("--rules", type=int, default=256, help="texts to take the most typical one of")
    add_shared(parser, "max-tokens", "repeats", "json-out", max_tokens=800, repeats=2)
    parser.add_argument("--plot", type=Path, help="write a PNG")
    options = parser.parse_args(argv)
    require_positive(parser, options, "windows", "rules", "max-tokens", "repeats")
    STEP_MS("--target-ms", options.target_ms, ConfigError)
    for name, rule in (("ratios", RATIO), ("alphas", ALPHA)):
        for value in getattr(options, name):
            rule(f"--{name}", value, ConfigError)
    return options


def length(alpha: float, most: int) -> int:
    """Tokens of a text: the more, the rarer a rejection is, so that each has a like number of them."""
    return min(most, round(80 / max(1 - alpha, 1e-9)) + 1)


def windows(times: StepTimes, alpha: float, strategy: str, count: int) -> list[int]:
    """The planner's best ones."""
    return [p.gamma for p in plans({PLACEMENT: times}, alpha, strategies=(strategy,))[:count]]


@dataclass
class Point:
    """All programs on one pair of devices at one agreement."""

    alpha: float
    ratio: float
    steps: Steps
    results: list[Measured]
    paper: str = ""  # the pairs that it stands for; "" for windows of our own
    rows: list[dict[str, Any]] = field(default_factory=list)

    def fill(self, ar: float) -> None:
        """A row for each program. ar: its tokens a second."""
        for result in self.results:
            m = result.metrics[-1]
            rate = statistics.median(metrics.tokens_per_second for metrics in result.metrics)
            beside = statistics.median(overhead_us(metrics, self.steps) for metrics in result.metrics)
            steady = m.tokens_per_round / (self.steps.round_ms(m.strategy, m.gamma) * 1e-3 + beside * 1e-6)
            expected = plan(m.strategy, m.gamma, PLACEMENT, self.steps.times, self.alpha).tokens_per_second
            self.rows.append(
                {
                    "alpha": self.alpha,
                    "ratio": self.ratio,
                    "paper": self.paper,
                    "strategy": result.program.strategy,
                    "ran": f"{m.strategy} {m.gamma}",
                    "gamma": m.gamma,
                    "tokens_per_second": rate,
                    "predicted": expected,
                    "of_model": steady / expected,
                    "of_model_wall": rate / expected,
                    "x_ar": rate / ar,
                    "rounds": m.rounds,
                    "acceptance": m.acceptance_rate if m.judged else None,
                    "overhead_us": beside,
                    "draft_busy": m.draft_busy,
                    "target_busy": m.target_busy,
                }
            )
        sd = max(row["tokens_per_second"] for row in self.rows if row["strategy"] == "sd")
        for row in self.rows:
            row["x_sd"] = row["tokens_per_second"] / sd

    def line(self) -> dict[str, Any]:
        """Of the table: the first row of each strategy."""
        line: dict[str, Any] = dict.fromkeys((key for key, _, _ in COLUMNS), None)
        line |= {"alpha": self.alpha, "ratio": self.ratio, "auto": "-"}
        for row in reversed(self.rows):
            name = row["strategy"]
            line |= {f"{name}_gamma": row["gamma"], f"{name}_rate": row["tokens_per_second"]}
            line |= {f"{name}_of_model": row["of_model"], f"{name}_us": row["overhead_us"]}
            line |= {f"{name}_x_ar": row["x_ar"], f"{name}_x_sd": row["x_sd"]}
            line |= {"auto": row["ran"]} if name == "auto" else {}
        return line

    def goal_rows(self) -> list[dict[str, Any]]:
        """As goals read them; auto's are those of what it ran."""
        return [
            {
                "tags": {"op": "timed", **{key: row[key] for key in ("strategy", "ratio", "alpha")}},
                "name": f"{row['strategy']} ({row['ran']}) at {self.ratio:g}, alpha {self.alpha:g}",
                "status": "ok",
                "note": "",
                "of_model": row["of_model"],
                "overhead_us": row["overhead_us"],
                "x": {"sd": row["x_sd"]},
            }
            for row in self.rows
            if not self.paper
        ]


class Grid:
    """Every point, one agreement after the other, each on a text of its own."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.times: dict[float, StepTimes] = {}  # ratio -> as the chooser measures them
        self.points: list[Point] = []
        self.texts: list[Text] = []
        self.fault = ""  # the first difference from what must be

    def steps(self, ratio: float) -> Steps:
        return Steps(self.options.target_ms, self.options.target_ms / ratio)

    def tuned(self, ratio: float, alpha: float, count: int) -> dict[str, list[int]]:
        """The best windows, as the planner ranks them."""
        times = self.steps(ratio).times
        return {name: windows(times, alpha, name, count) for name in ("sd", "pearl")}

    def run(self, alpha: float, bar: tqdm[Any]) -> None:
        """All ratios at one agreement."""
        options = self.options
        papers = PAPER if alpha in PAPER_ALPHAS and not options.no_paper else {}
        programs = {
            (name, gamma)
            for ratio in options.ratios
            for name, gammas in self.tuned(
                ratio, alpha, options.windows + 2
            ).items()  # auto may choose a further one
            for gamma in gammas
        } | {(name, round(ratio * n)) for ratio in papers for name, n in (("sd", 2), ("pearl", 1))}
        bar.set_postfix_str(f"a text of alpha {alpha:g}")
        text = Text.typical(alpha, length(alpha, options.max_tokens), programs, range(options.rules))
        self.texts.append(text)
        work = Workload([PROMPT], text.max_tokens)
        [ar] = measure(TimedPair(self.steps(1.0), text), [AR], work, repeats=1)
        points = []
        for ratio in options.ratios:
            points.append(Point(alpha, ratio, self.steps(ratio), self.raced(ratio, text, work, bar)))
        for ratio, pairs in papers.items():
            pair = TimedPair(self.steps(ratio), text)
            fixed = [Program("sd", PLACEMENT, round(2 * ratio)), Program("pearl", PLACEMENT, round(ratio))]
            found = measure(pair, fixed, work, repeats=options.repeats)
            best = self.best_of(pair, "sd", windows(self.steps(ratio).times, alpha, "sd", 1), work)
            points.append(Point(alpha, ratio, self.steps(ratio), [*found, best], pairs))
            bar.update()
        self.check(text, [ar, *(result for point in points for result in point.results)])
        for point in points:
            point.fill(statistics.median(metrics.tokens_per_second for metrics in ar.metrics))
        self.points += points

    def best_of(self, pair: TimedPair, strategy: str, gammas: Sequence[int], work: Workload) -> Measured:
        """The fastest of these windows, each run once."""
        return max(
            measure(pair, [Program(strategy, PLACEMENT, gamma) for gamma in gammas], work),
            key=tokens_per_second,
        )

    def raced(self, ratio: float, text: Text, work: Workload, bar: tqdm[Any]) -> list[Measured]:
        """The tuned sd, the tuned pearl and auto, by turns."""
        pair = TimedPair(self.steps(ratio), text)
        if ratio not in self.times:
            bar.set_postfix_str(f"step times at {ratio:g}")
            self.times[ratio] = pair.lanes.measure()
        pair.chooser.times[PLACEMENT] = self.times[ratio]
        bar.set_postfix_str(f"{ratio:g} at {text.alpha:g}")
        tuned = self.tuned(ratio, text.alpha, self.options.windows)
        best = [self.best_of(pair, name, gammas, work).program for name, gammas in tuned.items()]
        found = measure(pair, [*best, AUTO], work, repeats=self.options.repeats, warm_tokens=0)
        bar.update()
        return found

    def check(self, text: Text, results: Sequence[Measured]) -> None:
        """Equal tokens, and the rounds that the rule gives: keeps the first fault."""
        difference = first_difference(results)
        for m in (metrics for result in results for metrics in result.metrics):
            wanted = counted_rounds(m.strategy, text.agrees, m.gamma)
            if m.rounds != wanted and not self.fault:
                self.fault = f"{m.strategy} gamma {m.gamma} took {m.rounds} rounds, the rule says {wanted}"
        self.fault = self.fault or (str(difference) if difference else "")


def paper_lines(points: Sequence[Point]) -> list[str]:
    """What the paper's windows give here: PEARL over serial speculation as it was run there, and tuned."""
    lines = []
    for point in points:
        sd, pearl, tuned = point.rows
        over = [pearl["tokens_per_second"] / row["tokens_per_second"] for row in (sd, tuned)]
        lines.append(
            f"  t_T/t_D {point.ratio:g}, alpha {point.alpha:g}: pearl gamma {pearl['gamma']} is "
            f"{pearl['x_ar']:.2f} x ar, {over[0]:.2f} x sd gamma {sd['gamma']}, {over[1]:.2f} x sd gamma "
            f"{tuned['gamma']} (tuned)   [{point.paper}]"
        )
    return lines


def draw(path: Path, points: Sequence[Point], target_ms: float) -> None:
    """A PNG: dots are found, lines are the planner's. Left pearl over tuned sd, right all over ar."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    alphas = sorted({point.alpha for point in points})
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), dpi=150)
    figure.patch.set_facecolor("white")
    figure.suptitle("Simulated devices: steps are waits of given times, tokens are scripted", fontsize=11)
    fine = [10 ** (i / 40) for i in range(53)]  # ratios 1 to 20

    def best(ratio: float, alpha: float, strategy: str) -> float:
        times = {PLACEMENT: Steps(target_ms, target_ms / ratio).times}
        return plans(times, alpha, strategies=(strategy,))[0].tokens_per_second

    def dots(panel: Any, alpha: float, strategy: str, key: str, color: Any) -> None:
        rows = [row for p in points if p.alpha == alpha for row in p.rows if row["strategy"] == strategy]
        panel.plot([r["ratio"] for r in rows], [r[key] for r in rows], "o", color=color, markersize=4)

    for number, alpha in enumerate(alphas):
        color = pyplot.get_cmap("viridis")(number / len(alphas))
        over = [best(ratio, alpha, "pearl") / best(ratio, alpha, "sd") for ratio in fine]
        left.plot(fine, over, color=color, linewidth=1, label=f"agreement {alpha:g}")
        dots(left, alpha, "pearl", "x_sd", color)
    left.axhline(1, color="#8a8a8a", linewidth=0.8)
    left.set_title("PEARL over tuned serial speculation", loc="left", fontsize=10)
    shown = min(alphas, key=lambda alpha: abs(alpha - 0.8))
    for strategy, color in (("sd", "#e08a1e"), ("pearl", "#2a78b8")):
        rates = [best(ratio, shown, strategy) * target_ms * 1e-3 for ratio in fine]
        right.plot(fine, rates, color=color, linewidth=1, label=strategy)
        dots(right, shown, strategy, "x_ar", color)
    auto = [row for p in points if p.alpha == shown for row in p.rows if row["strategy"] == "auto"]
    where = [row["ratio"] for row in auto], [row["x_ar"] for row in auto]
    right.plot(*where, "s", color="#222222", markersize=8, fillstyle="none", label="auto")
    right.set_title(f"Over plain decoding, agreement {shown:g}", loc="left", fontsize=10)
    for panel in (left, right):
        panel.set_xscale("log")
        panel.set_xticks(RATIOS, [f"{ratio:g}" for ratio in RATIOS])
        panel.minorticks_off()
        panel.set_xlabel("simulated step of the target / of the draft", fontsize=9)
        panel.set_ylabel("times as many tokens a second (simulated)", fontsize=9)
        panel.legend(fontsize=8, frameon=False, loc="lower left" if panel is left else "upper left")
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    figure.text(0.5, 0.01, "dots: found; lines: the planner's expectation", ha="center", fontsize=8)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, format="png")
    pyplot.close(figure)


def measured(argv: list[str] | None) -> dict[str, Any]:
    """The whole: prints the report, returns the figures."""
    options = parse_arguments(argv)
    machine = host_environment(dtype="none") | {"commit": commit(), "cores": len(os.sched_getaffinity(0))}
    machine |= {"scheduler": "real time" if os.sched_getscheduler(0) else "normal"}
    machine["load_before"] = round(os.getloadavg()[0], 2)
    print(TITLE)
    print(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}; {machine['date']}; commit "
        f"{machine['commit']}; load {machine['load_before']}, {machine['scheduler']} priority"
    )
    grid = Grid(options)
    papers = 0 if options.no_paper else len(PAPER) * len(set(options.alphas) & set(PAPER_ALPHAS))
    total = len(options.ratios) * len(options.alphas) + papers
    with tqdm(total=total, unit="point", file=sys.stderr, dynamic_ncols=True) as bar:
        for alpha in options.alphas:
            grid.run(alpha, bar)
    machine["load_after"] = round(os.getloadavg()[0], 2)
    own = [point for point in grid.points if not point.paper]
    papers_found = [point for point in grid.points if point.paper]
    if grid.fault:
        print(f"OUTPUTS DIFFER, so no table: {grid.fault}")
    else:
        print(f"target's step {options.target_ms:g} ms; of plan: by the median round, over the planner's")
        print(format_table([point.line() for point in own], COLUMNS))
        print("us beside: microseconds of a round, median, beside its steps. All wrote the same tokens.")
        if papers_found:
            print("the paper's pairs at the windows of its repository:", *paper_lines(papers_found), sep="\n")
    verdicts = [verdict(goal, [row for p in own for row in p.goal_rows()]) for goal in TIMED_GOALS]
    print(f"\ngoals of the simulation:\n{format_goals(verdicts)}")
    if options.plot and not grid.fault:
        draw(options.plot, own, options.target_ms)
    return finish(
        {
            "machine": machine,
            "simulated": True,
            "title": TITLE,
            "target_ms": options.target_ms,
            "texts": [{k: v for k, v in vars(text).items() if k != "agrees"} for text in grid.texts],
            "rows": [row for point in grid.points for row in point.rows],
            "programs": [*CHOICE.strategies, "auto"],
            "goals": [v.to_dict() for v in verdicts],
            "outputs_equal": not grid.fault,
            "fault": grid.fault,
        },
        options.json_out,
    )


def main(argv: list[str] | None = None) -> int:
    return exit_code("timed", lambda: measured(argv))


if __name__ == "__main__":
    sys.exit(main())
