"""One temperature's measurement, from the sweep of gamma to the printed table. Knows runners, not engines.

The order is the rule of the house: run everything, compare the tokens, and only then compare speeds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tqdm import tqdm

from bench.measure import (
    Difference,
    Measured,
    Program,
    Runner,
    Workload,
    common_prefix,
    first_difference,
    measure,
    rows_of,
    sweep,
)
from bench.table import format_sweep, format_table

GAMMAS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
SWEEP_PROMPTS, SWEEP_TOKENS = 2, 48
MIN_PROMPTS, MIN_TOKENS = 3, 32
PEER_REST = 0.3  # seconds: OpenMP threads spin on for a while, on the cores of whoever runs next


@dataclass
class Section:
    """All figures at one temperature."""

    temperature: float
    num_prompts: int
    num_tokens: int
    sweep: dict[str, dict[int, float]]
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


def speculative_kinds(*, split: bool, pearl_shared: bool) -> list[Program]:
    """The kinds of program whose gamma is swept."""
    kinds = [Program("sd", "shared")]
    if split:
        kinds += [Program("sd", "split"), Program("pearl", "split")]
    if pearl_shared or not split:
        kinds.append(Program("pearl", "shared"))
    return kinds


def num_runs(
    kinds: Sequence[Program],
    num_gammas: int,
    num_prompts: int,
    repeats: int,
    *,
    split: bool,
    sampled: bool,
    num_peers: int = 0,
) -> int:
    """Calls of progress that one section makes: the sweep, then all its programs over all prompts."""
    swept = len(kinds) * num_gammas * min(SWEEP_PROMPTS, num_prompts)
    num_programs = (2 if split else 1) + len(kinds) + 1 + (2 if sampled else num_peers)
    return swept + num_programs * num_prompts * repeats


def fit_workload(
    workload: Workload, seconds_per_token: float, budget: float, num_sections: int, num_gammas: int
) -> Workload:
    """Fewer prompts, then fewer tokens, if the whole run would take longer than the budget."""

    def cost(prompts: int, tokens: int) -> float:
        swept = 3 * num_gammas * SWEEP_PROMPTS * min(tokens, SWEEP_TOKENS)
        return num_sections * seconds_per_token * (swept + 8 * prompts * tokens)

    prompts, tokens = len(workload.prompts), workload.max_tokens
    while cost(prompts, tokens) > budget and (prompts > MIN_PROMPTS or tokens > MIN_TOKENS):
        if prompts > MIN_PROMPTS:
            prompts -= 1
        else:
            tokens = max(MIN_TOKENS, tokens * 3 // 4)
    return workload.part(prompts, tokens)


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
        if not program.strategy.startswith("hf"):
            return self.ours(program, workload, prompt)
        sample = self.peer(program, workload, prompt)
        time.sleep(PEER_REST)
        return sample


def run_section(
    runner: Runner,
    workload: Workload,
    *,
    gammas: tuple[int, ...],
    split: bool = True,
    pearl_shared: bool = False,
    repeats: int = 1,
    peer: Any = None,
    bar: tqdm[Any] | None = None,
) -> tuple[Section, list[Measured]]:
    """Sweep gamma, measure the best of each kind interleaved, compare tokens, and only then speeds."""

    def progress(what: str) -> None:
        if bar is not None:
            bar.set_postfix_str(f"T={workload.temperature:g} {what}", refresh=False)
            bar.update()

    kinds = speculative_kinds(split=split, pearl_shared=pearl_shared)
    best, rates = sweep(runner, kinds, gammas, workload.part(SWEEP_PROMPTS, SWEEP_TOKENS), progress)
    programs = [
        Program("ar", "shared"),
        *([Program("ar", "split")] if split else []),
        *best,
        Program("auto", "auto"),
    ]
    exact = len(programs)
    if workload.temperature > 0:
        lawful = [
            max((p for p in best if p.strategy == s), key=lambda p: rates["/".join(p.kind)][p.gamma])
            for s in ("sd", "pearl")
        ]
        programs += [Program(p.strategy, p.placement, p.gamma, "rejection") for p in lawful]
    elif peer is not None:
        tuned = next(p for p in best if p.strategy == "sd")
        programs += peer.programs(tuned.gamma)
    whole = Peered(runner, peer) if peer is not None else runner
    results = measure(whole, programs, workload, repeats=repeats, progress=progress)
    section = Section(workload.temperature, len(workload.prompts), workload.max_tokens, rates)
    section.difference = first_difference(results[:exact])
    section.rows = rows_of(results, equal=section.difference is None)
    section.peers = {
        "agreement": [peer_agreement(results[0], r) for r in results if r.program.strategy.startswith("hf")]
    }
    return section, results


def format_section(section: Section) -> str:
    """Heading, table, and what there is to say about it."""
    greedy = section.temperature == 0
    how = "greedy" if greedy else f"T = {section.temperature:g}, coupled"
    lines = [f"{how}: {section.num_prompts} prompts x {section.num_tokens} tokens, past any end of text"]
    rows = [dict(row) for row in section.rows]
    for row in rows:
        if row["judge"] == "rejection":
            row["strategy"] += " *"
    lines += [
        format_table(rows),
        "gamma swept on short runs, tok/s (best in brackets):",
        format_sweep(section.sweep),
    ]
    auto = next((row for row in rows if row["ran"]), None)
    if auto:
        lines.append(f"auto ran {', '.join(auto['ran'])}")
    if not greedy:
        lines.append(
            "* judged by rejection: the same law, other tokens; its speed-ups compare equal numbers of tokens"
        )
    for peer in section.peers.get("agreement", []):
        lines.append(
            f"{peer['program']} wrote our tokens in {peer['equal']} of {peer['prompts']} prompts; "
            f"common prefix {peer['mean_common_prefix']:.0f} tokens in the mean, "
            f"{peer['shortest_common_prefix']} at least"
        )
    if section.difference is None:
        lines.append("outputs equal: every row but those marked wrote the same tokens, prompt by prompt")
    else:
        lines.append(f"OUTPUTS DIFFER, so no speed-ups: {section.difference}")
    return "\n".join(lines)
