"""What the pair is and how good: models/training.json from the runs themselves, and the README beside it.

Every figure comes from a curve or an evaluation; none is typed in.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pearl_rt.errors import RequestError

_CURVE_POINTS = 200


def thinned(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most 200 rows: each the last of its stretch, with the mean of every loss in it."""
    size = -(-len(curve) // _CURVE_POINTS) or 1
    rows = []
    for i in range(0, len(curve), size):
        stretch = curve[i : i + size]
        row = dict(stretch[-1])
        for name in sorted({n for r in stretch for n in r if n.startswith("loss")}):
            values = [r[name] for r in stretch if name in r]
            row[name] = round(sum(values) / len(values), 4)
        rows.append(row)
    return rows


def read_card(path: Path) -> dict[str, Any]:
    """The content of a training.json; empty if there is none yet."""
    return json.loads(path.read_text()) if path.exists() else {}


def write_card(path: Path, **entries: Any) -> dict[str, Any]:
    """Adds or replaces entries of a training.json and returns all of it."""
    card = read_card(path) | entries
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(card, indent=1) + "\n")
    return card


def plot_curves(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Loss against tokens, a panel per run, as PNG. Raises RequestError without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise RequestError("--plot needs matplotlib: pip install matplotlib, or leave --plot out") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(runs), figsize=(5 * len(runs), 3.4), squeeze=False)
    for axis, (title, curve) in zip(axes[0], runs.items(), strict=True):
        for name in sorted({n for row in curve for n in row if n.startswith("loss")}):
            points = [(row["tokens"] / 1e6, row[name]) for row in curve if name in row]
            axis.plot(*zip(*points, strict=True), label=name.replace("_", " "), linewidth=1)
        axis.set(title=title, xlabel="million tokens", ylabel="nats per token")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def acceptance_table(reports: dict[str, dict[str, Any]]) -> str:
    """Markdown: one row per place and stage; columns are ways to judge."""
    lines = [
        "| where | draft | greedy | rejection T=1 | T=0.8 | coupled T=1 | T=0.8 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    places = list(next(iter(reports.values())))
    for place in places:
        for stage, report in reports.items():
            a = report[place]
            figures = (
                a["greedy"],
                a["rejection"]["1.0"],
                a["rejection"]["0.8"],
                a["coupled"]["1.0"],
                a["coupled"]["0.8"],
            )
            columns = " | ".join(f"{x:.3f}" for x in figures)
            lines.append(f"| {place.replace('_', ' ')} | {stage} | {columns} |")
    return "\n".join(lines)


def loss_table(held_out: dict[str, Any]) -> str:
    """Markdown: one row per model, on files that no training stage read."""
    lines = ["| model | parameters | nats a token | bits a byte |", "| --- | --- | --- | --- |"]
    for name, loss in held_out.items():
        figures = f"{loss['nats_per_token']:.3f} | {loss['bits_per_byte']:.3f}"
        lines.append(f"| {name} | {loss['parameters']:,} | {figures} |")
    return "\n".join(lines)


def run_table(card: dict[str, Any]) -> str:
    """Markdown: one row per training run, in the order in which they were made."""
    lines = ["| run | stage | minutes | tokens | last loss |", "| --- | --- | --- | --- | --- |"]
    for name, run in card.items():
        if isinstance(run, dict) and "curve" in run:
            last = run["curve"][-1] if run["curve"] else {}
            losses = ", ".join(f"{v:.3f}" for k, v in last.items() if k.startswith("loss"))
            stage = run.get("settings", {}).get("stage", "")
            lines.append(f"| {name} | {stage} | {run['minutes']} | {run['tokens']:,} | {losses} |")
    return "\n".join(lines)


def readme(card: dict[str, Any]) -> str:
    """The README of a models directory, from its training.json."""
    parts = [
        "# The pair\n\nA target and a draft of the Llama architecture, trained with "
        "`python -m recipes.train` (the commands are in docs/training.md) "
        "on the source of Python's standard library, which is under "
        "the [PSF licence](https://docs.python.org/3/license.html) (models/heldout/LICENSE). "
        "Weights are bf16. "
        "`heldout/prompts.jsonl` holds prompts from files that no training stage read. "
        "This page is written from `training.json`.",
        "## Training\n\n" + run_table(card),
    ]
    if card.get("held_out"):
        loss = next(iter(card["held_out"].values()))
        size = f"{loss['tokens']:,} tokens, {loss['bytes'] / loss['tokens']:.2f} bytes each"
        parts.append(f"## On held-out files\n\n{size}.\n\n" + loss_table(card["held_out"]))
    if card.get("acceptance"):
        parts.append(
            "## How often the target accepts a drafted token\n\n" + acceptance_table(card["acceptance"])
        )
    return "\n\n".join(parts) + "\n"
