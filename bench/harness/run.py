"""One temperature's measurement, from the sweep of gamma to the printed table. Knows runners, not engines.

The order is the rule of the house: run everything, compare the tokens, and only then compare speeds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
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
    sweep,
)
from bench.harness.table import format_sweep, format_table

GAMMAS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
SWEEP_PROMPTS, SWEEP_TOKENS = 2, 48
MIN_PROMPTS, MIN_TOKENS = 3, 32
PEER_REST = 0.3  # seconds: OpenMP threads spin on for a while, on the cores of whoever runs next


@dataclass(frozen=True)
class Menu:
    """Which programs a section measures."""

    plain: tuple[Program, ...]  # ar, which has no window
    swept: tuple[Program, ...]  # kinds whose gamma is swept
    auto: Program
    follow: tuple[str, ...] = ()  # placements where the swept kinds run too, with the gamma that was found
    has_both: bool = True  # at temperature > 0 the best sd and pearl run judged by rejection too

    @property
    def num_programs(self) -> int:
        return len(self.plain) + len(self.swept) * (1 + len(self.follow)) + 1

    def programs(self, best: Sequence[Program]) -> list[Program]:
        """All of them, once the best gamma of each swept kind is known."""
        follow = [replace(p, placement=place) for place in self.follow for p in best]
        return [*self.plain, *best, *follow, self.auto]

    def judged(self, judge: str) -> Menu:
        """The same, all judged by "coupled" or by "rejection", and by nothing else."""

        def by(program: Program) -> Program:
            return replace(program, judge=judge)

        plain, swept = tuple(map(by, self.plain)), tuple(map(by, self.swept))
        return Menu(plain, swept, by(self.auto), self.follow, has_both=False)

    @property
    def judge(self) -> str:
        return self.auto.judge


def cpu_menu(*, split: bool = True, pearl_shared: bool = False) -> Menu:
    """split: there are two cores or more."""
    plain = [Program("ar", "shared"), *([Program("ar", "split")] if split else [])]
    swept = [Program("sd", "shared")]
    if split:
        swept += [Program("sd", "split"), Program("pearl", "split")]
    if pearl_shared or not split:
        swept.append(Program("pearl", "shared"))
    return Menu(tuple(plain), tuple(swept), Program("auto", "auto"))


def device_menu(forms: Sequence[str]) -> Menu:
    """Forms of launching take the place of placements; gamma is swept in the first."""
    first, *others = forms
    plain = tuple(Program("ar", form) for form in forms)
    return Menu(plain, (Program("sd", first), Program("pearl", first)), Program("auto", first), tuple(others))


def menus(menu: Menu, temperatures: Sequence[float], judge: str) -> dict[float, Menu]:
    """What is measured at each temperature. judge: of all rows where tokens are sampled, or "both"."""
    if judge == "both":
        return dict.fromkeys(temperatures, menu)
    return {at: menu.judged(judge) if at > 0 else menu for at in temperatures}


@dataclass
class Section:
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

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "difference": str(self.difference) if self.difference else None,
            "outputs_equal": self.difference is None,
        }


def num_runs(
    menu: Menu,
    gammas: Sequence[int],
    workload: Workload,
    repeats: int,
    *,
    sampled: bool,
    num_peers: int = 0,
) -> int:
    """Calls of progress that one section makes: the sweep, then all its programs over all batches."""
    swept = len(short_part(workload).firsts()) if len(gammas) > 1 else 0
    num_programs = menu.num_programs + (2 * menu.has_both if sampled else num_peers)
    whole = num_programs * len(workload.firsts()) * repeats
    return len(menu.swept) * len(gammas) * swept + whole


def fit_workload(
    workload: Workload, seconds_per_token: float, budget: float, num_sections: int, num_gammas: int
) -> Workload:
    """Fewer prompts, then fewer tokens, if the whole run would take longer than the budget; in batches, fewer
    of these: as if a batch took no longer than one prompt.
    """
    least = max(MIN_PROMPTS, workload.batch)

    def cost(prompts: int, tokens: int) -> float:
        part = workload.part(prompts, tokens)
        swept = 3 * num_gammas * len(short_part(part).firsts()) * min(tokens, SWEEP_TOKENS)
        return num_sections * seconds_per_token * (swept + 8 * len(part.firsts()) * tokens)

    prompts, tokens = len(workload.prompts), workload.max_tokens
    while cost(prompts, tokens) > budget and (prompts > least or tokens > MIN_TOKENS):
        if prompts > least:
            prompts = max(prompts - workload.batch, least)
        else:
            tokens = max(MIN_TOKENS, tokens * 3 // 4)
    return workload.part(prompts, tokens)


def short_part(workload: Workload) -> Workload:
    """What gamma is swept on."""
    return workload.part(max(SWEEP_PROMPTS, workload.batch), SWEEP_TOKENS)


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


class Peered:
    """A runner that hands a peer's programs to the peer, and lets its threads fall asleep after each."""

    def __init__(self, ours: Runner, peer: Any) -> None:
        self.ours, self.peer = ours, peer

    def __call__(self, program: Program, workload: Workload, prompt: int) -> Any:
        if program.strategy in OWN:
            return self.ours(program, workload, prompt)
        sample = self.peer(program, workload, prompt)
        time.sleep(PEER_REST)
        return sample


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


def run_section(
    runner: Runner,
    workload: Workload,
    *,
    gammas: tuple[int, ...],
    menu: Menu | None = None,
    repeats: int = 1,
    peer: Any = None,
    bar: tqdm[Any] | None = None,
    warm_tokens: int = WARM_TOKENS,
) -> tuple[Section, list[Measured]]:
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
        lawful = [
            max(
                (p for p in best if p.strategy == s),
                key=lambda p: rates.get("/".join(p.kind), {}).get(p.gamma, 0.0),
            )
            for s in ("sd", "pearl")
        ]
        programs += [replace(program, judge="rejection") for program in lawful]
    elif workload.temperature == 0 and peer is not None:
        tuned = next(p for p in best if p.strategy == "sd")
        programs += peer.programs(tuned.gamma)
    whole = Peered(runner, peer) if peer is not None else runner
    results = measure(whole, programs, workload, repeats=repeats, progress=progress, warm_tokens=warm_tokens)
    counts = len(workload.prompts), workload.max_tokens
    section = Section(workload.temperature, *counts, rates, workload.batch, menu.judge)
    section.difference = first_difference(results[:exact])
    section.rows = rows_of(results, equal=section.difference is None)
    section.peers = {
        "agreement": [peer_agreement(results[0], r) for r in results if r.program.strategy not in OWN]
    }
    return section, results


def format_section(section: Section) -> str:
    """Heading, table, and what there is to say about it."""
    greedy = section.temperature == 0
    how = "greedy" if greedy else f"T = {section.temperature:g}, {section.judge}"
    batches = f", {section.batch} at once" if section.batch > 1 else ""
    lines = [
        f"{how}: {section.num_prompts} prompts x {section.num_tokens} tokens{batches}, past any end of text"
    ]
    rows = [dict(row) for row in section.rows]
    for row in rows:
        if row["judge"] != section.judge and row["judge"] == "rejection":
            row["strategy"] += " *"
    lines.append(format_table(rows))
    if section.sweep:
        lines += ["gamma swept on short runs, tok/s (best in brackets):", format_sweep(section.sweep)]
    auto = next((row for row in rows if row["ran"]), None)
    if auto:
        lines.append(f"auto ran {', '.join(auto['ran'])}")
    if any(row["strategy"].endswith(" *") for row in rows):
        lines.append(
            "* judged by rejection: the same law, other tokens; its speed-ups compare equal numbers of tokens"
        )
    for peer in section.peers.get("agreement", []):
        lines.append(
            f"{peer['program']} wrote our tokens in {peer['equal']} of {peer['prompts']} prompts; "
            f"common prefix {peer['mean_common_prefix']:.0f} tokens in the mean, "
            f"{peer['shortest_common_prefix']} at least"
        )
    if section.difference is None and section.judge == "rejection":
        lines.append(
            "outputs equal where rejection owes that: rows of one strategy and gamma; its speed-ups compare "
            "equal numbers of tokens"
        )
    elif section.difference is None:
        lines.append("outputs equal: every row but those marked wrote the same tokens, prompt by prompt")
    else:
        lines.append(f"OUTPUTS DIFFER, so no speed-ups: {section.difference}")
    return "\n".join(lines)
