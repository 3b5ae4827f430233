"""What queueing rounds ahead of their verdicts is worth on a GPU: speed, gaps and host time at each depth,
measured by turns.

Knows model pairs and traces; not how anything is launched. A depth of 1 lets the host launch a round once it
has read the verdict of the one before; more hide the host, and leave as many rounds behind the end of an
answer, which return early but have to be launched all the same. A call lasts until they are done: `tail`.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tqdm import tqdm

from bench.harness.measure import (
    Measured,
    Program,
    Progress,
    Sample,
    Workload,
    first_difference,
    measure,
    tokens_per_second,
)
from bench.harness.run import Run
from bench.harness.table import format_table
from bench.model_pairs.model_pair import ModelPair
from bench.rounds.round_times import RoundTimes, finite, median_of, round_times
from pearl_rt.strategy.engine_options import EngineOptions

DEPTHS = (1, 2, 3, 4)
DEFAULT: int = EngineOptions.rounds_ahead
PROMPTS, TOKENS, REPEATS = 2, 64, 3
TIMED_PROMPTS, TIMED_TOKENS = 1, 48
COLUMNS = (
    ("program", "rounds ahead", "s"),
    ("rounds_ahead", "queued", "d"),
    ("tokens_per_second", "tok/s", ".1f"),
    ("x_default", f"x {DEFAULT}", ".4f"),
    ("low", "quartiles", ".4f"),
    ("high", "", ".4f"),
    ("between_p50", "between us", ".1f"),
    ("between_p95", "p95", ".1f"),
    ("host_us", "host us", ".1f"),
    ("tail_ms", "tail ms", ".2f"),
)


@dataclass(frozen=True)
class Depth:
    """One program with so many rounds queued. Quartiles and medians are over pairs of runs of a prompt."""

    program: str
    rounds_ahead: int
    tokens_per_second: float
    x_default: float  # median of the default's seconds over this one's
    low: float
    high: float
    between_p50: float  # us from one round to the next, on the device's clock; NaN: none was timed
    between_p95: float
    host_us: float | None  # of a round
    tail_ms: float  # from the last token to the end of the call

    @property
    def is_within_noise(self) -> bool:
        """A quarter of the pairs or more say that the default is no slower."""
        return self.rounds_ahead == DEFAULT or self.low <= 1

    def to_dict(self) -> dict[str, Any]:
        """NaN is no JSON: None."""
        fields = asdict(self)
        return fields | {key: finite(fields[key]) for key in ("between_p50", "between_p95")}


def sweep(
    pair: ModelPair,
    programs: Sequence[Program],
    workload: Workload,
    *,
    depths: Sequence[int] = DEPTHS,
    repeats: int = REPEATS,
    progress: Progress = lambda _: None,
) -> tuple[list[Depth], str | None]:
    """Every program at every depth over the same prompts, by turns -> the figures, and where tokens differ.
    The pair has its own depth again at the end. The default is measured even if it is not asked for.
    """
    tried = [replace(p, rounds_ahead=depth) for p in programs for depth in sorted({*depths, DEFAULT})]
    host_us: dict[Program, list[float]] = {program: [] for program in tried}
    times: dict[Program, RoundTimes] = {}
    before = [lanes.rounds_ahead for lanes in pair.lanes()]

    def run(program: Program, workload: Workload, prompt: int) -> list[Sample]:
        pair.switch("rounds_ahead", program.rounds_ahead)
        samples = pair.run(program, workload, prompt)
        host_us[program] += pair.host_us.get(str(program), [])[-1:]
        return samples

    try:
        for program in tried:  # each once, uncounted: its graphs are there, and its rounds are timed
            pair.switch("rounds_ahead", program.rounds_ahead)
            times[program] = round_times(pair.timed_runs(program, workload.part(TIMED_PROMPTS, TIMED_TOKENS)))
        work = workload.part(PROMPTS, TOKENS)
        results = measure(run, tried, work, repeats=repeats, progress=progress, warm_tokens=0)
    finally:
        for lanes, depth in zip(pair.lanes(), before, strict=True):
            lanes.rounds_ahead = depth
    difference = first_difference(results)
    bases = {str(r.program): r for r in results if r.program.rounds_ahead == DEFAULT}
    found = [depth_of(r, bases[str(r.program)], times[r.program], host_us[r.program]) for r in results]
    return found, str(difference) if difference else None


def depth_of(result: Measured, base: Measured, times: RoundTimes, host_us: Sequence[float]) -> Depth:
    """The figures of one, against the same program at the default."""
    ratios = [b.seconds / s.seconds for b, s in zip(base.samples, result.samples, strict=True)]
    low, middle, high = (
        statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    )
    tails = [s.seconds - s.metrics.token_times[-1] for s in result.samples if s.metrics is not None]
    return Depth(
        str(result.program),
        result.program.rounds_ahead,
        tokens_per_second(result),
        middle,
        low,
        high,
        times.between_p50,
        times.between_p95,
        statistics.median(host_us) if host_us else None,
        median_of(tails) * 1e3,
    )


def best_depths(depths: Sequence[Depth]) -> list[Depth]:
    """The fastest of each program."""
    names = dict.fromkeys(depth.program for depth in depths)
    return [max((d for d in depths if d.program == name), key=lambda d: d.x_default) for name in names]


def choice_of(best: Depth) -> str:
    """Which depth is best for a program, as a line."""
    if best.rounds_ahead == DEFAULT:
        return f"{best.program}: the default, {DEFAULT}, is best"
    noise = "within" if best.is_within_noise else "NOT within"
    return (
        f"{best.program}: {best.rounds_ahead} is best, {best.x_default:.4f} times the default's speed "
        f"(quartiles {best.low:.4f} to {best.high:.4f}): the default, {DEFAULT}, is {noise} noise of it"
    )


def format_depths(depths: Sequence[Depth], difference: str | None) -> str:
    """The table, and a line a program that says which depth is best; nothing of that if tokens differ."""
    lines = [format_table([depth.to_dict() for depth in depths], COLUMNS)]
    if difference is not None:
        return "\n".join([*lines, f"TOKENS DIFFER with the rounds that are queued: {difference}"])
    return "\n".join([*lines, *map(choice_of, best_depths(depths))])


def depth_rows(depths: Sequence[Depth], difference: str | None, pair: str) -> list[dict[str, Any]]:
    """One row a program for goals.verdict."""
    return [
        {
            "name": f"{pair} {best.program}, best {best.rounds_ahead}",
            "tags": {"op": "rounds_ahead", "pair": pair},
            "status": "ok" if difference is None else "wrong",
            "note": difference or "",
            "of_best": 1 / best.x_default,
        }
        for best in best_depths(depths)
    ]


def best_programs(run: Run) -> list[Program]:
    """ar, and the fastest speculative row whose gamma was swept."""
    rows = [row for row in run.rows if row["judge"] == run.judge]
    form = rows[0]["placement"]
    swept = [r for r in rows if r["strategy"] in ("sd", "pearl") and r["placement"] == form]
    best = max(swept, key=lambda row: row["tokens_per_second"])
    return [Program(r["strategy"], form, r["gamma"] or 0, r["judge"]) for r in (rows[0], best)]


def try_depths(
    pair: ModelPair, run: Run, workload: Workload, depths: Sequence[int], bar: tqdm[Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What queueing rounds is worth to these programs -> figures and rows of a goal; prints the table."""

    def progress(what: str) -> None:
        bar.set_postfix_str(f"rounds ahead: {what}")

    found, difference = sweep(pair, best_programs(run), workload, depths=depths, progress=progress)
    tqdm.write(f"\nrounds queued ahead, by turns:\n{format_depths(found, difference)}", file=sys.stdout)
    fields = {
        "depths": [depth.to_dict() for depth in found],
        "difference": difference,
        "choices": {} if difference else {best.program: choice_of(best) for best in best_depths(found)},
    }
    return fields, depth_rows(found, difference, pair.name)
