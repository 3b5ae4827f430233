"""The table of drafters as a picture: each row's speed over plain decoding, by task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

HUES = ("#3b6ea5", "#7aa6c2", "#2f8f6b", "#8fbf9f", "#c98b2f", "#e0b874", "#8a6fb0", "#b9a5d0", "#888888")
PEERS, AUTOS = ("#d9d9d9", "#c4c4c4", "#afafaf"), ("#111111", "#3f3f3f", "#6a6a6a")


def best_of_each(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each name but `ar`, which is 1 everywhere: the window that was fastest over all."""
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["name"] != "none" and (row["name"] not in best or row["x_ar"] > best[row["name"]]["x_ar"]):
            best[row["name"]] = row
    return list(best.values())


def hues_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """`auto` is dark, a peer light grey, and the others have colours."""
    used: dict[tuple[str, ...], int] = {}
    found = []
    for row in rows:
        hues = PEERS if "agreement" in row else AUTOS if row["name"].startswith("auto") else HUES
        number = used.setdefault(hues, 0)
        used[hues] += 1
        found.append(hues[number % len(hues)])
    return found


def draw_bars(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """rows: of a section of bench/drafters.py, and of peers. Writes a PNG."""
    from matplotlib.figure import Figure

    shown = best_of_each(rows)
    tasks = ["all", *shown[0]["by_task"]]
    figure = Figure(figsize=(11, 5), dpi=110)
    axes = figure.subplots()
    width = 0.84 / len(shown)
    hues = hues_of(shown)
    for number, row in enumerate(shown):
        heights = [row["x_ar"], *(row["by_task"][task]["x_ar"] for task in tasks[1:])]
        lefts = [place + width * (number - len(shown) / 2 + 0.5) for place in range(len(tasks))]
        label = f"{row['name']}, gamma {row['gamma']}" if row["gamma"] else row["name"]
        axes.bar(lefts, heights, width, color=hues[number], label=label)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(tasks)), tasks, fontsize=8)
    axes.set_ylabel("times as fast as plain decoding", fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(fontsize=7, frameon=False, ncols=5, loc="lower center")
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.savefig(path, format="png")
