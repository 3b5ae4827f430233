"""What the lanes did, as a Chrome/Perfetto trace and as a picture. Knows trace rows only; runs nothing.

A row is (lane, op, round, begin_ns, end_ns); op "wait" is a lane that waits for the other one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.rounds.round_times import SKIPPED_ROUNDS, covered
from pearl_rt.types.metrics import RequestMetrics, TraceRow

LANES = ("draft", "target")  # top to bottom
COLORS = {"draft": "#2a78b8", "score": "#e08a1e", "verify": "#7a3e00", "wait": "#ececec"}
INK, FAINT = "#222222", "#8a8a8a"


def color_of(op: str) -> str:
    """ "score window" is a score."""
    return COLORS.get(op.split()[0], "#999999")


def chrome_events(runs: Mapping[str, RequestMetrics]) -> list[dict[str, Any]]:
    """Trace events: one process a run, one track a lane, times in microseconds from the run's start."""
    events: list[dict[str, Any]] = []
    for pid, (name, metrics) in enumerate(runs.items(), 1):
        events.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}})
        lanes = sorted({row.lane for row in metrics.trace})
        for tid, lane in enumerate(lanes, 1):
            events.append({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": lane}})
        for row in metrics.trace:
            events.append(
                {
                    "ph": "X",
                    "name": row.op,
                    "cat": row.lane,
                    "pid": pid,
                    "tid": lanes.index(row.lane) + 1,
                    "ts": (row.begin_ns - metrics.start_ns) / 1e3,
                    "dur": (row.end_ns - row.begin_ns) / 1e3,
                    "args": {"round": row.round},
                }
            )
    return events


def write_chrome_trace(path: Path, runs: Mapping[str, RequestMetrics]) -> None:
    """A file for ui.perfetto.dev or chrome://tracing."""
    path.write_text(json.dumps({"traceEvents": chrome_events(runs), "displayTimeUnit": "ms"}))


def busy_together(rows: Sequence[TraceRow]) -> float:
    """Seconds in which both lanes worked at once."""
    steps = [[(r.begin_ns, r.end_ns) for r in rows if r.lane == lane and r.op != "wait"] for lane in LANES]
    return (sum(map(covered, steps)) - covered(itertools.chain(*steps))) * 1e-9


@dataclass(frozen=True)
class Window:
    """A stretch of one run: its rows, clipped, in ms from its beginning, and the tokens that came in it."""

    bars: list[tuple[str, str, float, float]]  # lane, op, begin, end
    arrivals: list[tuple[float, int]]  # when, how many tokens
    both_busy: float  # share of the stretch

    @property
    def num_tokens(self) -> int:
        return sum(n for _, n in self.arrivals)


def cut_window(metrics: RequestMetrics, milliseconds: float) -> Window:
    """The stretch of that length which begins with round SKIPPED_ROUNDS + 1."""
    begin = min(row.begin_ns for row in metrics.trace if row.round > SKIPPED_ROUNDS)
    end = begin + round(milliseconds * 1e6)
    rows = [
        TraceRow(r.lane, r.op, r.round, max(r.begin_ns, begin), min(r.end_ns, end))
        for r in metrics.trace
        if r.end_ns > begin and r.begin_ns < end
    ]
    counts: dict[float, int] = {}
    for at in metrics.token_times:
        when = (metrics.start_ns + at * 1e9 - begin) / 1e6
        if 0 <= when <= milliseconds:
            counts[round(when, 4)] = counts.get(round(when, 4), 0) + 1
    return Window(
        [(r.lane, r.op, (r.begin_ns - begin) / 1e6, (r.end_ns - begin) / 1e6) for r in rows],
        sorted(counts.items()),
        busy_together(rows) * 1e3 / milliseconds,
    )


def rounds_length(metrics: RequestMetrics, num_rounds: int) -> float:
    """Milliseconds that num_rounds rounds take, from round SKIPPED_ROUNDS + 1 on."""
    rows = [r for r in metrics.trace if SKIPPED_ROUNDS < r.round <= SKIPPED_ROUNDS + num_rounds]
    return (max(r.end_ns for r in rows) - min(r.begin_ns for r in rows)) / 1e6


def draw(path: Path, runs: Mapping[str, RequestMetrics], *, num_rounds: int = 10) -> None:
    """A PNG: the lanes of each run, the first on top, over the time of num_rounds rounds of the last one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    span = rounds_length(list(runs.values())[-1], num_rounds)
    figure, panels = pyplot.subplots(len(runs), 1, figsize=(11, 1.75 * len(runs) + 0.8), sharex=True, dpi=150)
    figure.patch.set_facecolor("white")
    for panel, (name, metrics) in zip(panels, runs.items(), strict=True):
        window = cut_window(metrics, span)
        for lane, op, begin, end in window.bars:
            y = len(LANES) - 1 - LANES.index(lane)
            if op == "verify":
                begin = min(begin, end - 0.0015 * span)  # microseconds long: drawn so that it can be seen
            bar = Rectangle((begin, y - 0.36), end - begin, 0.72, facecolor=color_of(op), linewidth=0)
            panel.add_patch(bar).set_zorder(3 if op == "verify" else 2)
            if op == "wait" and end - begin > 0.045 * span:
                panel.text((begin + end) / 2, y, "waits", ha="center", va="center", fontsize=8, color=FAINT)
        for when, count in window.arrivals:
            panel.text(when, -0.46, f"+{count}", ha="center", va="top", fontsize=8, color=INK)
        overlap = f"both lanes at work {window.both_busy:.0%} of it"
        title = f"{name}:  {window.num_tokens} tokens in {span:.3g} ms,  {overlap}"
        panel.set_title(title, loc="left", fontsize=10.5, color=INK)
        panel.set_yticks(range(len(LANES)), reversed(LANES), fontsize=10, color=INK)
        panel.set_ylim(-0.85, len(LANES) - 0.55)
        panel.tick_params(axis="y", length=0)
        last = panel is panels[-1]
        panel.tick_params(axis="x", length=3 if last else 0, colors=INK)
        for side in ("top", "right", "left") if last else ("top", "right", "left", "bottom"):
            panel.spines[side].set_visible(False)
    panels[-1].set_xlim(0, span)
    panels[-1].set_xlabel("milliseconds", fontsize=9, color=INK)
    handles = [Rectangle((0, 0), 1, 1, facecolor=COLORS[op]) for op in COLORS]
    names = ["draft a window", "score a window", "verify (+n tokens)", "wait for the other lane"]
    figure.legend(handles, names, loc="lower center", ncols=4, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.055, 1, 1))
    figure.savefig(path, format="png")
    pyplot.close(figure)
