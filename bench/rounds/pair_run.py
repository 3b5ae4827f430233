"""All programs of a model pair at one temperature: the table, and on a device the rounds on its clock, each
program against its own model, and peers.

Knows model pairs, runners and traces; not how anything is launched. The order is the rule of the house: run
everything, compare the tokens, and only then compare speeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median_high
from typing import Any

from tqdm import tqdm

from bench.harness.measure import WARM_TOKENS, Measured, Program, Workload, pooled, row_of, speed_up
from bench.harness.menu import Menu
from bench.harness.peers import Peers
from bench.harness.run import Run, peer_agreement, run_programs
from bench.model_pairs.model_pair import ModelPair
from bench.rounds.device_figures import DeviceFigures
from bench.rounds.expected import share_of
from bench.rounds.round_times import RoundTimes, compare, round_times
from bench.rounds.teacher_forced import compare_forced
from pearl_rt.types.metrics import RequestMetrics

TIMED_PROMPTS, TIMED_TOKENS = 2, 96
FORCED_PROMPTS = 2


def best_of(results: Sequence[Measured], strategy: str, form: str) -> Measured:
    """The program of a strategy in a form, judged as the first one is."""
    wanted = (strategy, form, results[0].program.judge)
    return next(r for r in results if (r.program.strategy, r.program.placement, r.program.judge) == wanted)


def add_rounds(
    found: DeviceFigures, pair: ModelPair, results: Sequence[Measured], workload: Workload
) -> None:
    """Steps, gaps, D||T, and each program against its own model."""
    short = workload.part(TIMED_PROMPTS, TIMED_TOKENS)

    def timed(program: Program, ran: Sequence[RequestMetrics] = ()) -> RoundTimes:
        """From a timed run, or from the runs of the table where every run is timed."""
        name = str(program)
        if name not in found.times:
            found.runs[name] = [metrics for metrics in ran if metrics.trace] or pair.timed_runs(
                program, short
            )
            found.times[name] = round_times(found.runs[name])
        return found.times[name]

    ar, sd, pearl = (best_of(results, strategy, pair.forms[0]) for strategy in ("ar", "sd", "pearl"))
    steps = {result.program.strategy: timed(result.program, result.metrics) for result in (ar, sd, pearl)}
    gamma = pearl.program.gamma
    window = timed(replace(sd.program, gamma=gamma))
    # pearl scores gamma rows, whatever is pending; so does sd with a window of one less.
    scored = timed(replace(sd.program, gamma=gamma - 1)) if gamma > 1 else steps["ar"]
    found.together = compare(gamma, window, scored, steps["pearl"])
    for form in pair.forms:
        for strategy, times in steps.items():
            result = best_of(results, strategy, form)
            alpha = pooled(result, "accepted", "judged") or 0.0
            share = share_of(
                str(result.program), strategy, result.program.gamma, alpha, times, result.metrics
            )
            if share is not None:
                found.shares.append(share)


def add_peers(run: Run, peers: Peers, results: Sequence[Measured], workload: Workload, gamma: int) -> None:
    """Their rows; whether they are the same model; and only then how much faster we are."""
    assert run.device is not None
    found, device = peers.measure(gamma, workload), run.device
    device.absent = dict(peers.absent)
    run.rows += [row_of(result, None, None) for result in found]
    run.peers = {"agreement": [peer_agreement(results[0], result) for result in found]}
    if peers.hugging_face is not None:
        texts = [(s.prompt, workload.prompts[s.prompt], s.token_ids) for s in results[0].samples]
        device.forced = compare_forced(peers.hugging_face.target, texts[:FORCED_PROMPTS])
    if run.difference is not None or (device.forced is not None and not device.forced.holds):
        return
    for ours in results:
        for theirs in found:
            prompts = set(theirs.seconds_by_prompt())
            common = Measured(ours.program, [s for s in ours.samples if s.prompt in prompts])
            window = f" gamma {theirs.program.gamma}" if theirs.program.gamma else ""
            against = device.against.setdefault(str(ours.program), {})
            against[f"{theirs.program.strategy}{window}"] = speed_up(common, theirs)


def run_pair(
    pair: ModelPair,
    workload: Workload,
    *,
    gammas: tuple[int, ...],
    menu: Menu,
    repeats: int = 1,
    peers: Peers | None = None,
    bar: tqdm[Any] | None = None,
) -> tuple[Run, list[Measured]]:
    """Everything at one temperature. Peers are greedy: they run at temperature 0 only, on a CPU among our
    programs, on a device behind them.
    """
    pair.host_us.clear()
    run, results = run_programs(
        pair.run,
        workload,
        gammas=gammas,
        menu=menu,
        repeats=repeats,
        peer=peers.group if peers is not None else None,
        bar=bar,
        warm_tokens=0 if pair.device == "interpret" else WARM_TOKENS,
    )
    if pair.on_device:
        run.device = DeviceFigures(pair.planting.to_dict() if pair.planting else None)
        add_rounds(run.device, pair, results, workload)
        run.device.host_us = {name: median_high(values) for name, values in pair.host_us.items() if values}
        if peers is not None and workload.temperature == 0:
            add_peers(run, peers, results, workload, best_of(results, "sd", pair.forms[0]).program.gamma)
    return run, results


def goal_rows(run: Run, pair: Sequence[str], ceiling: float | None) -> list[dict[str, Any]]:
    """One row a program for goals.verdict. ceiling: tok/s of ar at the copy bandwidth."""
    assert run.device is not None
    device = run.device
    shares = {share.program: share for share in device.shares}
    alpha = device.planted["asked"] if device.planted else None
    rows = []
    for name, times in device.times.items():
        share = shares.get(name)
        if share is None:  # a serial program that was run for its steps alone
            continue
        row = next(r for r in run.rows if share_name(r, run.judge) == name)
        x = dict(device.against.get(name, {}))
        if row["x_sd"] is not None:
            x["sd"] = row["x_sd"]
        tags = {"op": "rounds", "strategy": share.strategy, "target": pair[0], "pair": "+".join(pair)}
        rows.append(
            {
                "name": f"{'+'.join(pair)}@{alpha} T={run.temperature:g} {name}",
                "tags": tags | {"alpha": alpha, "temperature": run.temperature, "timed": True},
                "status": "ok" if run.difference is None else "wrong",
                "note": str(run.difference or ""),
                "share": share.found / ceiling if ceiling and share.strategy == "ar" else None,
                "of_model": share.share,
                "between_us": times.to_dict()["between_p50"],
                "between_p95_us": times.to_dict()["between_p95"],
                "host_us": device.host_us.get(name),
                "x": x,
            }
        )
    return rows


def share_name(row: dict[str, Any], judge: str) -> str:
    """The program of a row of the table, as shares are called; a row that is judged otherwise has none."""
    if row["judge"] != judge:
        return ""
    return str(Program(row["strategy"], row["placement"], row["gamma"] or 0))
