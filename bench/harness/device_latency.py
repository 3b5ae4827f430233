"""The main job on a device: the same table and JSON as on the CPU, with the device's own clock behind it.

Knows subjects and sections; latency.py parses the command line. In the interpreter it runs the whole path and
says nothing of speed.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from bench.harness.device_peers import engine_peers
from bench.harness.device_run import (
    DeviceSection,
    Peers,
    format_device_section,
    goal_rows,
    run_device_section,
)
from bench.harness.environment import format_models, host_card
from bench.harness.goals import ROUND_GOALS, format_goals, verdict
from bench.harness.gpu_environment import copy_bandwidth, format_card, gpu_card
from bench.harness.measure import WARM_TOKENS, Program, Workload
from bench.harness.run import device_menu, fit_workload, menus, num_runs
from bench.model_pairs.device_model_pair import EAGER, DeviceSubject
from bench.rounds.rounds_ahead import DEPTHS, choices, depth_rows, format_depths, sweep
from bench.rounds.timeline import SKIPPED_ROUNDS, draw, write_chrome_trace
from pearl_rt.errors import PearlError
from pearl_rt.metrics import RequestMetrics

TOLD = ("device", "form", "rounds_ahead", "capture", "dtype", "isa", "max_model_len")  # of an engine's stats


def device_card(subject: DeviceSubject) -> tuple[dict[str, Any], float | None]:
    """The machine and its copy bandwidth in bytes per second; None in the interpreter."""
    if not subject.is_gpu:
        return host_card(dtype="float32") | {"device": "interpret"}, None
    from bench.kernel_cases.timer import GraphTimer

    return gpu_card(), copy_bandwidth(GraphTimer())


def print_card(subject: DeviceSubject, machine: dict[str, Any], bandwidth: float | None) -> None:
    """The machine, both models, the ceiling of ar."""
    if bandwidth is None:
        print(
            f"{machine['cpu']}, Triton's interpreter; {machine['date']}: its times say nothing of any device"
        )
    else:
        print(format_card(machine, bandwidth))
    print(format_models(subject.figures, bandwidth), flush=True)


def seconds_per_token(subject: DeviceSubject) -> float:
    """One decode step of ar, from a short run that also warms the engine."""
    workload = Workload(subject.prompts[:1], 12)
    [sample] = subject.run(Program("ar", subject.forms[0]), workload, 0)
    return max(sample.tpot, 1e-6)


def leave_out_forms(subject: DeviceSubject, num_tokens: int = 8) -> dict[str, str]:
    """Tries each form but the first once: those that this machine refuses have no rows -> why not."""
    first, *others = subject.forms
    refused: dict[str, str] = {}
    for form in others:
        try:
            subject.run(Program("ar", form), Workload(subject.prompts[:1], num_tokens), 0)
        except PearlError as error:
            refused[form] = str(error)
    subject.forms = (first, *(form for form in others if form not in refused))
    return refused


def timed_pictures(section: DeviceSection, form: str) -> dict[str, RequestMetrics]:
    """The first timed run of sd, and of pearl below it."""
    found = {}
    for strategy in ("sd", "pearl"):
        name = next(n for n in section.times if n.startswith(f"{strategy}/{form}"))
        found[f"{name}, {form}"] = section.runs[name][0]
    return found


def draw_pictures(options: argparse.Namespace, section: DeviceSection, form: str) -> None:
    """The files of --trace and --plot; a picture needs rounds behind the first ones."""
    runs = timed_pictures(section, form)
    if options.trace:
        write_chrome_trace(options.trace, runs)
    if options.plot:
        if min(metrics.rounds for metrics in runs.values()) > SKIPPED_ROUNDS:
            draw(options.plot, runs)
        else:
            print("no picture: its runs have too few rounds", file=sys.stderr)


def make_peers(options: argparse.Namespace, subject: DeviceSubject) -> Peers | None:
    """Those that --peers asks for."""
    if not options.peers:
        return None
    peers = Peers(num_prompts=options.peer_prompts)
    try:
        peers.hugging_face = subject.hugging_face(compiled=options.peers == "all")
    except ModuleNotFoundError as error:
        peers.absent["hf"] = f"{error.name} is not installed"
    if options.peers == "all":
        target = subject.checkpoints[0] if subject.checkpoints else None
        peers.engines, absent = engine_peers(target)
        peers.absent |= absent
    return peers


def best_programs(section: DeviceSection) -> list[Program]:
    """ar, and the fastest speculative row whose gamma was swept."""
    rows = [row for row in section.rows if row["judge"] == section.judge]
    form = rows[0]["placement"]
    swept = [r for r in rows if r["strategy"] in ("sd", "pearl") and r["placement"] == form]
    best = max(swept, key=lambda row: row["tokens_per_second"])
    return [Program(r["strategy"], form, r["gamma"] or 0, r["judge"]) for r in (rows[0], best)]


def try_rounds_ahead(
    options: argparse.Namespace,
    subject: DeviceSubject,
    section: DeviceSection,
    workload: Workload,
    bar: tqdm[Any],
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """What queueing rounds is worth to these programs -> figures and rows of a goal; prints the table."""
    depths = DEPTHS if options.rounds_ahead is None else tuple(options.rounds_ahead)
    if not depths or subject.forms[0] == EAGER:
        return None, []
    found, difference = sweep(subject, best_programs(section), workload, depths=depths, bar=bar)
    tqdm.write(f"\nrounds queued ahead, by turns:\n{format_depths(found, difference)}", file=sys.stdout)
    told = {
        "depths": [depth.to_dict() for depth in found],
        "difference": difference,
        "choices": {} if difference else {c.best.program: str(c) for c in choices(found)},
    }
    return told, depth_rows(found, difference, subject.pair)


def run_on_device(options: argparse.Namespace, subject: DeviceSubject) -> dict[str, Any]:
    """Everything after the models are there: prints the report, returns the figures."""
    machine, bandwidth = device_card(subject)
    print_card(subject, machine, bandwidth)
    refused = leave_out_forms(subject)
    for form, why in refused.items():
        print(f"form {form} is left out: {why}", flush=True)
    ceiling = bandwidth / subject.figures[0].bytes_per_step if bandwidth else None
    alphas: list[float | None] = list(options.alphas) if subject.plan else [None]
    gammas = tuple(options.gammas)
    workload = Workload(subject.prompts, options.max_tokens, seed=options.seed)
    if subject.is_gpu:
        num_sections = len(options.temperature) * len(alphas)
        pace = seconds_per_token(subject)
        workload = fit_workload(workload, pace, options.budget, num_sections, len(gammas))
    peers = make_peers(options, subject)
    if peers is not None and peers.hugging_face is not None:
        machine["transformers"] = peers.hugging_face.version
    warm_tokens = WARM_TOKENS if subject.is_gpu else 0
    by_temperature = menus(device_menu(subject.forms), options.temperature, options.judge)
    sections: list[DeviceSection] = []
    rows: list[dict[str, Any]] = []
    ahead: dict[str, Any] | None = None
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=0, unit="run", file=sys.stderr, dynamic_ncols=True))
        bar.total = sum(
            num_runs(by_temperature[temperature], gammas, workload, options.repeats, sampled=temperature > 0)
            for _ in alphas
            for temperature in options.temperature
        )
        for alpha in alphas:
            planting = None
            if alpha is not None:
                planting = subject.plant(alpha, lambda what: bar.set_postfix_str(f"planting: {what}"))
            tqdm.write("\n" + "\n".join(subject.notes), file=sys.stdout)
            for temperature in options.temperature:
                section = run_device_section(
                    subject,
                    workload.at(temperature),
                    gammas=gammas,
                    repeats=options.repeats,
                    planting=planting,
                    peers=peers,
                    bar=bar,
                    warm_tokens=warm_tokens,
                    menu=by_temperature[temperature],
                )
                if not sections and (options.trace or options.plot):
                    draw_pictures(options, section, subject.forms[0])
                section.runs.clear()
                sections.append(section)
                rows += goal_rows(section, subject.names, ceiling)
                tqdm.write(f"\n{format_device_section(section)}", file=sys.stdout)
                if ahead is None:
                    ahead, more = try_rounds_ahead(options, subject, section, workload.at(temperature), bar)
                    rows += more
    verdicts = [verdict(goal, rows) for goal in ROUND_GOALS] if subject.is_gpu else []
    if verdicts:
        print(f"\ngoals, stated for one H100:\n{format_goals(verdicts)}")
    figures = {
        "machine": machine,
        "bandwidth_gb_per_second": {"copy": bandwidth / 1e9} if bandwidth else None,
        "ceiling_tokens_per_second": ceiling,
        "models": [asdict(m) for m in subject.figures],
        "notes": subject.notes,
        "planted": sections[-1].planted,
        "engine": {key: value for key, value in subject.engine.stats().items() if key in TOLD},
        "sections": [section.to_dict() for section in sections],
        "forms_left_out": refused,
        "rounds_ahead": ahead,
        "goals": [v.to_dict() for v in verdicts],
        "outputs_equal": all(section.difference is None for section in sections)
        and (ahead is None or ahead["difference"] is None),
    }
    print(json.dumps(figures))
    if options.json_out:
        options.json_out.write_text(json.dumps(figures, indent=1) + "\n")
    return figures
