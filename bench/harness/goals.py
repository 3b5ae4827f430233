"""The goals of bench/goals.toml, and whether a run reached them. Knows rows of figures only.

A goal holds over every case that it applies to: the worst of them decides. A case that was wrong, failed or
was left out decides too: a goal is met only by cases that ran.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pearl_rt.errors import ConfigError

Tags = Mapping[str, Any]
GOALS_FILE = Path(__file__).resolve().parents[1] / "goals.toml"
FIGURES = re.compile(r"share|of_model|of_best|different|us|\w+_us|cpu_s|x:.+")
KEYS = {"name", "where", "figure", "at_least", "at_most", "prediction"}


@dataclass(frozen=True)
class Goal:
    """`figure` of every case that applies is at least, or at most, `limit`."""

    name: str
    where: Tags  # a tag -> its value, a list of values, or {over, upto}
    figure: str
    limit: float
    at_least: bool = True
    prediction: str = ""

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> Goal:
        """Of one table of the file. Raises ConfigError, which names the goal."""
        name, figure = table.get("name"), table.get("figure")
        limits = [key for key in ("at_least", "at_most") if key in table]
        if not name or not isinstance(table.get("where"), dict) or table.keys() - KEYS:
            raise ConfigError(f"goal {name!r} wants {', '.join(sorted(KEYS))}; it has {', '.join(table)}")
        if len(limits) != 1 or not isinstance(table[limits[0]], float):
            raise ConfigError(f"goal {name!r} wants a number as at_least or at_most, one of them")
        if not isinstance(figure, str) or not FIGURES.fullmatch(figure):
            raise ConfigError(f"goal {name!r} is over figure {figure!r}, which no case has")
        prediction = table.get("prediction", "")
        return cls(name, table["where"], figure, table[limits[0]], limits[0] == "at_least", prediction)

    def applies(self, tags: Tags) -> bool:
        """Whether a case of these tags is held to it."""
        return all(key in tags and matches(wanted, tags[key]) for key, wanted in self.where.items())


def matches(wanted: Any, value: Any) -> bool:
    if isinstance(wanted, dict):
        return bool(wanted.get("over", float("-inf")) < value <= wanted.get("upto", float("inf")))
    return value in wanted if isinstance(wanted, list) else value == wanted


def read_goals(path: Path = GOALS_FILE) -> dict[str, tuple[Goal, ...]]:
    """By section of the file."""
    sections = tomllib.loads(path.read_text())
    return {name: tuple(map(Goal.parse, tables)) for name, tables in sections.items()}


_READ = read_goals()
GOALS, ROUND_GOALS, EQUALITY_GOALS = _READ["kernels"], _READ["rounds"], _READ["equality"]
TIMED_GOALS, COMPILE_GOALS = _READ["timed"], _READ["compile"]


@dataclass(frozen=True)
class Verdict:
    """What became of a goal. `found` and `case`: the worst measured; met None: nothing was measured."""

    goal: Goal
    met: bool | None
    found: float | None = None
    case: str | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        goal = self.goal
        return {
            "goal": goal.name,
            "figure": goal.figure,
            "limit": goal.limit,
            "at_least": goal.at_least,
            "prediction": goal.prediction,
            "found": self.found,
            "case": self.case,
            "met": self.met,
            "note": self.note,
        }


def figure_of(row: Mapping[str, Any], figure: str) -> float | None:
    """That figure of a row of the table, or None if it has none."""
    if figure.startswith("x:"):
        value = row["x"].get(figure.removeprefix("x:"))
    else:
        value = row[figure]
    return None if value is None else float(value)


def verdict(goal: Goal, rows: Sequence[Mapping[str, Any]], left_out: Sequence[Tags] = ()) -> Verdict:
    """rows: what ran, with tags, name, status, figures; left_out: tags of what there was no time for."""
    applying = [row for row in rows if goal.applies(row["tags"])]
    broken = [row for row in applying if row["status"] != "ok"]
    measured = [(figure_of(row, goal.figure), str(row["name"])) for row in applying if row["status"] == "ok"]
    figures = [(value, name) for value, name in measured if value is not None]
    if broken:
        return Verdict(
            goal, False, None, str(broken[0]["name"]), f"{broken[0]['status']}: {broken[0]['note']}"
        )
    if not figures:
        note = f"{goal.figure.removeprefix('x:')} is absent" if measured else "no such case ran"
        return Verdict(goal, None, note=note)
    found, case = min(figures) if goal.at_least else max(figures)
    met = found >= goal.limit if goal.at_least else found <= goal.limit
    missing = sum(goal.applies(tags) for tags in left_out)
    note = f"the worst of {len(figures)}"
    if missing:
        return Verdict(goal, None if met else False, found, case, f"{note}, {missing} left out")
    return Verdict(goal, met, found, case, note)


def written(figure: str, value: float | None) -> str:
    """A figure as text, in the goal's own unit."""
    if value is None:
        return "-"
    if figure == "of_best":
        return f"{value:.1%}"
    if figure == "different":
        return f"{value:.0f}"
    if figure in ("share", "of_model"):
        return f"{value:.0%}"
    if figure.endswith("_s"):
        return f"{value:.2f} s"
    return f"{value:.1f} us" if figure.endswith("us") else f"{value:.2f}x"


def format_goals(verdicts: Sequence[Verdict]) -> str:
    """One line a goal: met or missed, wanted and found."""
    words = {True: "met", False: "MISSED", None: "not measured"}
    width = max(len(v.goal.name) for v in verdicts)
    lines = []
    for v in verdicts:
        sign = ">=" if v.goal.at_least else "<="
        wanted = f"{sign} {written(v.goal.figure, v.goal.limit)}"
        where = f"{v.case}; {v.note}" if v.case else v.note
        where += f"; predicted {v.goal.prediction}" if v.goal.prediction else ""
        found = written(v.goal.figure, v.found)
        lines.append(f"{v.goal.name.ljust(width)}  {wanted:>11}  {found:>9}  {words[v.met]:<12}  ({where})")
    return "\n".join(lines)
