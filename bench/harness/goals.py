"""What kernels and whole rounds are meant to reach on an H100, and whether a run reached it. Knows rows of
figures only.

A goal holds over every case that it applies to: the worst of them decides. A case that was wrong, failed or
was left out decides too: a goal is met only by cases that ran.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Tags = Mapping[str, Any]
MATMULS = ("linear", "gate_up_silu")
MB = 1_000_000


@dataclass(frozen=True)
class Goal:
    """`figure` of every case that applies is at least, or at most, `limit`."""

    name: str
    applies: Callable[[Tags], bool]  # by the tags of a case
    figure: str  # share (of the copy bandwidth), of_model, of_best, us or NAME_us, different, or x:PEER
    limit: float
    at_least: bool = True
    prediction: str = ""  # made before the first run; the arithmetic is in bench/LOG.md


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


def is_matmul(low: int, high: float) -> Callable[[Tags], bool]:
    """1 to 16 rows of a matmul whose weights are over `low` and up to `high` bytes."""
    return lambda t: t["op"] in MATMULS and t["rows"] <= 16 and low < t["weight_bytes"] <= high


def is_attention(context: int) -> Callable[[Tags], bool]:
    """8 query tokens at that context, at the shapes of 7B and 8B models."""
    shapes = ("Llama-2-7B", "Llama-3.1-8B")
    return lambda t: (
        t["op"] == "attention" and t["rows"] == 8 and t["context"] == context and t["shape"] in shapes
    )


def is_step(shape: str) -> Callable[[Tags], bool]:
    return lambda t: t["op"] == "step" and t["shape"] == shape and t["rows"] == 1


def is_verify(op: str) -> Callable[[Tags], bool]:
    """A window of 8 tokens of one sequence over a vocabulary of 128256, judged by rejection."""
    wanted = {"op": op, "batch": 1, "gamma": 8, "vocab": 128256, "kind": "rejection"}
    return lambda t: all(t.get(key) == value for key, value in wanted.items())


GOALS = (
    Goal("matmuls, 1 to 16 rows, weights over 64 MB", is_matmul(64 * MB, float("inf")), "share", 0.85),
    Goal("matmuls, 1 to 16 rows, weights of 16 to 64 MB", is_matmul(16 * MB, 64 * MB), "share", 0.65),
    Goal("attention, 8 query tokens at 4k, 7B and 8B", is_attention(4096), "share", 0.70),
    Goal("attention, 8 query tokens at 32k, 7B and 8B", is_attention(32768), "share", 0.80),
    Goal("verify, B 1, gamma 8, V 128256", is_verify("verify"), "us", 12.0, at_least=False),
    Goal("its judging (judge) against vLLM's", is_verify("judge"), "x:vllm", 1.0),
    Goal("its judging (judge) against FlashInfer's with softmax", is_verify("judge"), "x:flashinfer", 1.0),
    Goal("decode step of 8B", is_step("Llama-3.1-8B"), "share", 0.85),
    Goal("decode step of 1B", is_step("Llama-3.2-1B"), "share", 0.75),
    Goal("decode step of 135M", is_step("SmolLM-135M"), "us", 400.0, at_least=False),
)


def is_program(**wanted: Any) -> Callable[[Tags], bool]:
    """A whole program whose tags have these values."""
    return lambda t: t["op"] == "rounds" and all(t.get(key) == value for key, value in wanted.items())


# Of bench/latency.py on one H100. Gaps and step times are those of the timed form, two streams and events.
ROUND_GOALS = (
    Goal(
        "no lane works between rounds, median",
        is_program(timed=True),
        "between_us",
        10.0,
        at_least=False,
        prediction="ar 3 to 6, sd and pearl 5 to 9: met",
    ),
    Goal(
        "no lane works between rounds, 95 %: the host is not on the critical path",
        is_program(timed=True),
        "between_p95_us",
        10.0,
        at_least=False,
        prediction="ar 4 to 8, sd and pearl 6 to 12: may be missed",
    ),
    Goal(
        "host work a round",
        is_program(timed=True),
        "host_us",
        30.0,
        at_least=False,
        prediction="ar 8 to 14, sd and pearl 12 to 20: met",
    ),
    Goal(
        "8B ar against the copy bandwidth",
        is_program(target="8b", strategy="ar", timed=True),
        "share",
        0.85,
        prediction="82 to 88 %: open",
    ),
    Goal(
        "8B ar against Hugging Face, eager",
        is_program(target="8b", strategy="ar", timed=True),
        "x:hf ar",
        2.0,
        prediction="4 to 5: met",
    ),
    Goal(
        "8B ar against Hugging Face, static cache and torch.compile",
        is_program(target="8b", strategy="ar", timed=True),
        "x:hf compiled",
        1.0,
        prediction="1.2 to 1.4: met",
    ),
    Goal(
        "sd against its own model",
        is_program(strategy="sd", timed=True),
        "of_model",
        0.95,
        prediction="96 to 99 %: met; 7B+68M the worst",
    ),
    Goal(
        "pearl against its own model",
        is_program(strategy="pearl", timed=True),
        "of_model",
        0.95,
        prediction="96 to 99 %: met",
    ),
    Goal(
        "pearl against sd, 8B+135M at 0.9",
        is_program(strategy="pearl", pair="8b+135m", alpha=0.9, timed=True),
        "x:sd",
        1.0,
        prediction="0.65 to 0.90: missed, see shared memory there",
    ),
    Goal(
        "two rounds queued ahead, against the best of 1 to 4",
        lambda t: t["op"] == "rounds_ahead",
        "of_best",
        0.99,
        prediction="ar 99.8 to 100 %: met; sd and pearl of short answers 94 to 98 %, where 1 is best: missed",
    ),
)

# Of bench/equality.py: the same tokens, bit for bit, whatever launches them.
EQUALITY_GOALS = (
    Goal(
        "prompts whose tokens depend on form, program or batch",
        lambda t: t["op"] == "equality",
        "different",
        0.0,
        at_least=False,
        prediction="0: met",
    ),
)


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
