"""Rows of figures as a table of text. Knows no clocks and no engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# key in a row, heading, how it is written
COLUMNS = (
    ("strategy", "strategy", "s"),
    ("placement", "placement", "s"),
    ("gamma", "gamma", "d"),
    ("ttft_ms", "TTFT ms", ".2f"),
    ("tpot_p50_ms", "TPOT p50 ms", ".3f"),
    ("tpot_p95_ms", "p95", ".3f"),
    ("tokens_per_second", "tok/s", ".1f"),
    ("x_ar", "x ar", ".2f"),
    ("x_sd", "x sd", ".2f"),
    ("acceptance", "accept", ".3f"),
    ("tokens_per_round", "tok/round", ".2f"),
    ("mean_accepted_tokens", "MAT", ".2f"),
    ("draft_busy", "draft busy", ".0%"),
    ("target_busy", "target busy", ".0%"),
)
NO_VALUE = "-"


def cell(value: Any, form: str) -> str:
    return NO_VALUE if value is None else format(value, form)


def format_table(rows: Sequence[dict[str, Any]], columns: Sequence[tuple[str, str, str]] = COLUMNS) -> str:
    """A heading, a rule, and one line a row; text to the left, numbers to the right."""
    lines = [[heading for _, heading, _ in columns]]
    lines += [[cell(row[key], form) for key, _, form in columns] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    left = [form == "s" for _, _, form in columns]
    text = [
        " | ".join(
            word.ljust(w) if is_left else word.rjust(w)
            for word, w, is_left in zip(line, widths, left, strict=True)
        )
        for line in lines
    ]
    rule = "-+-".join("-" * w for w in widths)
    return "\n".join([text[0].rstrip(), rule, *(t.rstrip() for t in text[1:])])


def format_sweep(rates: dict[str, dict[int, float]]) -> str:
    """tok/s by gamma, one line a kind of program, the best in brackets."""
    lines = []
    for kind, by_gamma in rates.items():
        best = max(by_gamma, key=lambda g: by_gamma[g])
        words = [f"[{g}: {rate:.0f}]" if g == best else f"{g}: {rate:.0f}" for g, rate in by_gamma.items()]
        lines.append(f"  {kind:<12} {'  '.join(words)}")
    return "\n".join(lines)
