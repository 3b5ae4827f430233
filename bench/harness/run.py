"""All programs at one temperature, from the sweep of gamma to the printed table. Knows runners, not engines.

The order is the rule of the house: run everything, compare the tokens, and only then compare speeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tqdm import tqdm

from bench.harness.measure import (
    OWN,
    WARM_TOKENS,
    Difference,
    Measured,
    Program,
    Progress,
    Runner,
    Workload,
    common_prefix,
    first_difference,
    measure,
    rows_of,
    speed_up,
    sweep,
)
from bench.harness.menu import Menu, cpu_menu, short_part
from bench.harness.peers import Peered
from bench.harness.table import format_sweep, format_table
from bench.rounds.device_figures import DeviceFigures


@dataclass
class Run:
    """All figures at one temperature."""

    temperature: float
    num_prompts: int
    num_tokens: int
    sweep: dict[str, dict[int, float]]
    batch: int = 1
    judge: str = "coupled"  # of all rows but those that are marked
    # set once everything has run
    rows: list[dict[str, Any]] = field(default_factory=list)
    difference: Difference | None = None
    peers: dict[str, Any] = field(default_factory=dict)
    device: DeviceFigures | None = None  # where kernels run

    def to_dict(self) -> dict[str, Any]:
        own = dict(vars(self))
        device = own.pop("device")
        return own | {
            "difference": str(self.difference) if self.difference else None,
            "outputs_equal": self.difference is None,
            **(device.to_dict() if device else {}),
        }


def peer_agreement(ours: Measured, theirs: Measured) -> dict[str, Any]:
    """How far a peer's tokens are ours: equal prompts, and the shortest and mean common prefix."""
    own = {s.prompt: s.token_ids for s in ours.samples}
    prefixes = [(common_prefix(own[s.prompt], s.token_ids), len(own[s.prompt])) for s in theirs.samples]
    return {
        "program": str(theirs.program),
        "prompts": len(prefixes),
        "equal": sum(n == full for n, full in prefixes),
        "shortest_common_prefix": min(n for n, _ in prefixes),
        "mean_common_prefix": sum(n for n, _ in prefixes) / len(prefixes),
    }


def agreement_text(agreement: dict[str, Any]) -> str:
    """What peer_agreement() found, as a sentence."""
    return (
        f"{agreement['program']} wrote our tokens in {agreement['equal']} of {agreement['prompts']} prompts; "
        f"common prefix {agreement['mean_common_prefix']:.0f} tokens in the mean, "
        f"{agreement['shortest_common_prefix']} at least"
    )


def chosen_programs(
    runner: Runner,
    menu: Menu,
    gammas: Sequence[int],
    workload: Workload,
    progress: Progress,
    warm_tokens: int,
) -> tuple[list[Program], dict[str, dict[int, float]]]:
    """The swept kinds with their best gamma, and tok/s of all that were tried: none if there is no choice."""
    if len(gammas) == 1:
        return [replace(kind, gamma=gammas[0]) for kind in menu.swept], {}
    return sweep(runner, menu.swept, gammas, short_part(workload), progress, warm_tokens)


def run_programs(
    runner: Runner,
    workload: Workload,
    *,
    gammas: tuple[int, ...],
    menu: Menu | None = None,
    repeats: int = 1,
    peer: Any = None,
    bar: tqdm[Any] | None = None,
    warm_tokens: int = WARM_TOKENS,
) -> tuple[Run, list[Measured]]:
    """Sweep gamma, measure the best of each kind interleaved, compare tokens, and only then speeds.

    menu: None for that of two cores or more.
    """

    def progress(what: str) -> None:
        if bar is not None:
            bar.set_postfix_str(f"T={workload.temperature:g} {what}", refresh=False)
            bar.update()

    menu = menu or cpu_menu()
    best, rates = chosen_programs(runner, menu, gammas, workload, progress, warm_tokens)
    programs = menu.programs(best)
    exact = len(programs)
    if workload.temperature > 0 and menu.has_both:

        def rate(program: Program) -> float:
            return rates.get("/".join(program.kind), {}).get(program.gamma, 0.0)

        lawful = [max((p for p in best if p.strategy == s), key=rate) for s in ("sd", "pearl")]
        programs += [replace(program, judge="rejection") for program in lawful]
    elif workload.temperature == 0 and peer is not None:
        tuned = next(p for p in best if p.strategy == "sd")
        programs += peer.programs(tuned.gamma)
    whole = Peered(runner, peer) if peer is not None else runner
    results = measure(whole, programs, workload, repeats=repeats, progress=progress, warm_tokens=warm_tokens)
    counts = len(workload.prompts), workload.max_tokens
    run = Run(workload.temperature, *counts, rates, workload.batch, menu.judge)
    run.difference = first_difference(results[:exact])
    run.rows = rows_of(results, equal=run.difference is None)
    others = [r for r in results if r.program.strategy not in OWN]
    run.peers = {"agreement": [peer_agreement(results[0], r) for r in others]}
    run.peers["absent"] = dict(getattr(peer, "absent", {}))
    auto = next((r for r in results if r.program.strategy == "auto"), None)
    if auto is not None and run.difference is None:
        run.peers["auto_over"] = {str(r.program): speed_up(auto, r) for r in others}
    return run, results


def format_run(run: Run) -> str:
    """Heading, table, and what there is to say about it."""
    how = "greedy" if run.temperature == 0 else f"T = {run.temperature:g}, {run.judge}"
    batches = f", {run.batch} at once" if run.batch > 1 else ""
    lines = [f"{how}: {run.num_prompts} prompts x {run.num_tokens} tokens{batches}, past any end of text"]
    rows = [dict(row) for row in run.rows]
    marked = [row for row in rows if row["judge"] != run.judge and row["judge"] == "rejection"]
    for row in marked:
        row["strategy"] += " *"
    lines.append(format_table(rows))
    if run.sweep:
        lines += ["gamma swept on short runs, tok/s (best in brackets):", format_sweep(run.sweep)]
    auto = next((row for row in rows if row["ran"]), None)
    if auto:
        lines.append(f"auto ran {', '.join(auto['ran'])}")
    if marked:
        lines.append(
            "* judged by rejection: the same law, other tokens; its speed-ups compare equal numbers of tokens"
        )
    for peer in run.peers.get("agreement", []):
        lines.append(agreement_text(peer))
    over = run.peers.get("auto_over", {})
    lines += [f"auto is {factor:.2f} times as fast as {name}" for name, factor in over.items()]
    lines += [f"{name}: {why}" for name, why in run.peers.get("absent", {}).items()]
    if run.difference is not None:
        lines.append(f"OUTPUTS DIFFER, so no speed-ups: {run.difference}")
    elif run.judge == "rejection":
        lines.append(
            "outputs equal where rejection owes that: rows of one strategy and gamma; its speed-ups compare "
            "equal numbers of tokens"
        )
    else:
        lines.append("outputs equal: every row but those marked wrote the same tokens, prompt by prompt")
    if run.device is not None:
        lines.append(str(run.device))
    return "\n".join(lines)
