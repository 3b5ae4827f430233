"""One temperature's measurement on a device: the table, the rounds on its clock, each program against its own
model, and peers.

Knows subjects, runners and traces; not how anything is launched. The order is the rule of the house: run
everything, compare the tokens, and only then compare speeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tqdm import tqdm

from bench.harness.device_peers import EngineRunner
from bench.harness.measure import WARM_TOKENS, Measured, Program, Workload, measure, pooled, row_of, speed_up
from bench.harness.run import Menu, Section, device_menu, format_section, peer_agreement, run_section
from bench.model_pairs.device_model_pair import DeviceSubject, by_program, metrics_of
from bench.model_pairs.planted import Planting, describe
from bench.rounds.expected import Share, format_shares, share_of
from bench.rounds.round_times import (
    RoundTimes,
    Together,
    compare,
    format_times,
    format_together,
    round_times,
)
from bench.rounds.teacher_forced import Forced, compare_forced, format_forced
from pearl_rt.metrics import RequestMetrics

TIMED_PROMPTS, TIMED_TOKENS = 2, 96
FORCED_PROMPTS = 2


@dataclass
class DeviceSection(Section):
    """All figures at one temperature, and one agreement if the pair is planted."""

    # set once everything has run
    planted: dict[str, Any] | None = None
    times: dict[str, RoundTimes] = field(default_factory=dict)
    together: Together | None = None
    shares: list[Share] = field(default_factory=list)
    host_us: dict[str, float] = field(default_factory=dict)
    forced: Forced | None = None
    against: dict[str, dict[str, float]] = field(default_factory=dict)  # program -> peer -> times as fast
    absent: dict[str, str] = field(default_factory=dict)  # peer -> why
    runs: dict[str, list[RequestMetrics]] = field(default_factory=dict)  # timed, for traces; not in the JSON

    def to_dict(self) -> dict[str, Any]:
        runs, self.runs = self.runs, {}
        found = super().to_dict()
        self.runs = runs
        del found["runs"]
        return found | {
            "times": {name: times.to_dict() for name, times in self.times.items()},
            "together": self.together.to_dict() if self.together else None,
            "shares": [share.to_dict() for share in self.shares],
            "forced": self.forced.to_dict() if self.forced else None,
        }


@dataclass
class Peers:
    """Who else runs the same prompts. The target's own rows are kept: an agreement does not change them."""

    hugging_face: Any = None  # DeviceHuggingFace
    engines: list[EngineRunner] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    num_prompts: int = 2
    kept: dict[Program, Measured] = field(default_factory=dict)

    def measure(self, gamma: int, workload: Workload) -> list[Measured]:
        """Every peer's rows over the first prompts."""
        short = workload.part(self.num_prompts, workload.max_tokens)
        results = []
        runners = ([self.hugging_face] if self.hugging_face is not None else []) + self.engines
        for runner in runners:
            for program in runner.programs(gamma):
                if program not in self.kept:
                    try:
                        [found] = measure(runner, [program], short, warm_tokens=0)
                    except Exception as error:  # a peer's fault is no fault of this run
                        self.absent[str(program)] = f"failed: {(str(error).splitlines() or [repr(error)])[0]}"
                        continue
                    if program.strategy == "hf assisted":
                        results.append(found)
                        continue
                    self.kept[program] = found
                results.append(self.kept[program])
        return results


def best_of(results: Sequence[Measured], strategy: str, form: str) -> Measured:
    """The program of a strategy in a form, judged as the first one is."""
    wanted = (strategy, form, results[0].program.judge)
    return next(r for r in results if (r.program.strategy, r.program.placement, r.program.judge) == wanted)


def timed_rounds(
    subject: DeviceSubject, found: Measured, workload: Workload, runs: dict[str, list[RequestMetrics]]
) -> RoundTimes:
    """From a timed run, or from the runs of the table where every run is timed."""
    told = [metrics for metrics in metrics_of(found.samples) if metrics.trace]
    name = str(found.program)
    if name not in runs:
        runs[name] = told or subject.timed_runs(found.program, workload.part(TIMED_PROMPTS, TIMED_TOKENS))
    return round_times(runs[name])


def add_rounds(
    section: DeviceSection, subject: DeviceSubject, results: Sequence[Measured], workload: Workload
) -> None:
    """Steps, gaps, D||T, and each program against its own model."""
    form = subject.forms[0]
    ar, sd, pearl = (best_of(results, strategy, form) for strategy in ("ar", "sd", "pearl"))
    for found in (ar, sd, pearl):
        section.times[str(found.program)] = timed_rounds(subject, found, workload, section.runs)
    gamma = pearl.program.gamma

    def alone(program: Program) -> RoundTimes:
        """Of a serial program that the table may not have."""
        name = str(program)
        if name not in section.times:
            short = workload.part(TIMED_PROMPTS, TIMED_TOKENS)
            section.runs[name] = subject.timed_runs(program, short)
            section.times[name] = round_times(section.runs[name])
        return section.times[name]

    window = alone(replace(sd.program, gamma=gamma))
    # pearl scores gamma rows, whatever is pending; so does sd with a window of one less.
    scored = alone(replace(sd.program, gamma=gamma - 1)) if gamma > 1 else alone(ar.program)
    section.together = compare(gamma, window, scored, section.times[str(pearl.program)])
    for other in subject.forms:
        for strategy, timed in (("ar", ar), ("sd", sd), ("pearl", pearl)):
            found = best_of(results, strategy, other)
            share = share_of(
                str(found.program),
                strategy,
                found.program.gamma,
                pooled(found, "accepted", "judged") or 0.0,
                section.times[str(timed.program)],
                metrics_of(found.samples),
            )
            if share is not None:
                section.shares.append(share)


def add_peers(
    section: DeviceSection, peers: Peers, results: Sequence[Measured], workload: Workload, gamma: int
) -> None:
    """Their rows; whether they are the same model; and only then how much faster we are."""
    found = peers.measure(gamma, workload)
    section.absent = dict(peers.absent)
    section.rows += [row_of(result, None, None) for result in found]
    section.peers = {"agreement": [peer_agreement(results[0], result) for result in found]}
    if peers.hugging_face is not None:
        texts = [(s.prompt, workload.prompts[s.prompt], s.token_ids) for s in results[0].samples]
        section.forced = compare_forced(peers.hugging_face.target, texts[:FORCED_PROMPTS])
    if section.difference is not None or (section.forced is not None and not section.forced.holds):
        return
    for ours in results:
        for theirs in found:
            prompts = set(theirs.seconds_by_prompt())
            common = Measured(ours.program, [s for s in ours.samples if s.prompt in prompts])
            name = theirs.program.strategy + (
                f" gamma {theirs.program.gamma}" if theirs.program.gamma else ""
            )
            section.against.setdefault(str(ours.program), {})[name] = speed_up(common, theirs)


def run_device_section(
    subject: DeviceSubject,
    workload: Workload,
    *,
    gammas: tuple[int, ...],
    repeats: int,
    planting: Planting | None,
    peers: Peers | None,
    bar: tqdm[Any] | None = None,
    warm_tokens: int = WARM_TOKENS,
    menu: Menu | None = None,
) -> DeviceSection:
    """Everything at one temperature. Peers are greedy: they run at temperature 0 only."""
    subject.host_us.clear()
    plain, results = run_section(
        subject.run,
        workload,
        gammas=gammas,
        menu=menu or device_menu(subject.forms),
        repeats=repeats,
        bar=bar,
        warm_tokens=warm_tokens,
    )
    section = DeviceSection(**vars(plain), planted=describe(planting) if planting else None)
    add_rounds(section, subject, results, workload)
    section.host_us = by_program(subject.host_us)
    if peers is not None and workload.temperature == 0:
        add_peers(section, peers, results, workload, best_of(results, "sd", subject.forms[0]).program.gamma)
    return section


def format_device_section(section: DeviceSection) -> str:
    """The table as on the CPU, and what only a device's clock can tell."""
    lines = [format_section(section), "", "rounds on the device's clock:", format_times(section.times)]
    if section.together is not None:
        lines.append(format_together(section.together))
    if section.host_us:
        told = ", ".join(f"{name} {value:.1f}" for name, value in section.host_us.items())
        lines.append(f"host time a round, us: {told}")
    else:
        lines.append("host time a round: these lanes don't count it")
    lines += ["against the model of its own steps:", format_shares(section.shares)]
    if section.forced is not None:
        lines.append(format_forced("Hugging Face", section.forced))
    for program, peers in section.against.items():
        told = ", ".join(f"{ratio:.3g}x {peer}" for peer, ratio in peers.items())
        lines.append(f"{program}: {told}")
    lines += [f"{peer}: {why}" for peer, why in section.absent.items()]
    return "\n".join(lines)


def goal_rows(section: DeviceSection, pair: Sequence[str], ceiling: float | None) -> list[dict[str, Any]]:
    """One row a program for goals.verdict. ceiling: tok/s of ar at the copy bandwidth."""
    shares = {share.program: share for share in section.shares}
    alpha = section.planted["asked"] if section.planted else None
    rows = []
    for name, times in section.times.items():
        share = shares.get(name)
        if share is None:  # a serial program that was run for its steps alone
            continue
        row = next(r for r in section.rows if share_name(r, section.judge) == name)
        x = dict(section.against.get(name, {}))
        if row["x_sd"] is not None:
            x["sd"] = row["x_sd"]
        tags = {"op": "rounds", "strategy": share.strategy, "target": pair[0], "pair": "+".join(pair)}
        rows.append(
            {
                "name": f"{'+'.join(pair)}@{alpha} T={section.temperature:g} {name}",
                "tags": tags | {"alpha": alpha, "temperature": section.temperature, "timed": True},
                "status": "ok" if section.difference is None else "wrong",
                "note": str(section.difference or ""),
                "share": share.found / ceiling if ceiling and share.strategy == "ar" else None,
                "of_model": share.share,
                "between_us": times.to_dict()["between_p50"],
                "between_p95_us": times.to_dict()["between_p95"],
                "host_us": section.host_us.get(name),
                "x": x,
            }
        )
    return rows


def share_name(row: dict[str, Any], judge: str) -> str:
    """The program of a row of the table, as shares are called; a row that is judged otherwise has none."""
    if row["judge"] != judge:
        return ""
    return str(Program(row["strategy"], row["placement"], row["gamma"] or 0))
