"""Commands run one after the other, each in a process of its own with a time limit: one that fails hides no
other.

Knows nothing of GPUs or of what the commands do.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GRACE_S = 5.0  # from the request to end to the end
OK, FAILED, TIMED_OUT, ABSENT = "ok", "failed", "timed out", "absent"


@dataclass(frozen=True)
class Part:
    """One command and what it may take."""

    name: str
    command: Sequence[str]
    limit_s: float
    absent: str | None = None  # why it cannot run here; then it doesn't
    nothing_status: int | None = None  # the exit status that says there was nothing to do
    environment: Mapping[str, str] = field(default_factory=dict)
    shown: int = 12  # last lines of output that are shown, and three times as many if it did not succeed


@dataclass(frozen=True)
class Outcome:
    """What became of a part."""

    part: Part
    status: str
    seconds: float = 0.0
    returncode: int | None = None
    output: str = ""
    note: str = ""

    @property
    def failed(self) -> bool:
        return self.status in (FAILED, TIMED_OUT)

    def figures(self) -> Any:
        """The last line of the output that is JSON (progress bars may follow it), or None."""
        for line in reversed(self.output.splitlines()):
            if line.startswith("{"):
                with contextlib.suppress(json.JSONDecodeError):
                    return json.loads(line)
        return None

    def to_dict(self) -> dict[str, Any]:
        return {
            "part": self.part.name,
            "command": [Path(name).name if i == 0 else name for i, name in enumerate(self.part.command)],
            "status": self.status,
            "note": self.note,
            "seconds": round(self.seconds, 2),
            "returncode": self.returncode,
            "figures": self.figures(),
        }


def run_part(part: Part, log: Path, limit_s: float, *, cwd: Path) -> Outcome:
    """Runs a part for at most limit_s seconds; its output goes to the end of the file `log` as it comes."""
    if part.absent is not None:
        return Outcome(part, ABSENT, note=part.absent)
    if limit_s <= 0:
        return Outcome(part, TIMED_OUT, note="no time was left for it")
    begin = time.perf_counter()
    timed_out = False
    with log.open("ab") as file:
        start = file.tell()
        try:
            process = subprocess.Popen(
                list(part.command),
                cwd=cwd,
                env={**os.environ, **part.environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that its own children end with it
            )
        except OSError as error:
            return Outcome(part, FAILED, note=f"{part.command[0]} does not start: {error}")
        try:
            process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            if process.poll() is None:
                end_group(process)
    seconds = time.perf_counter() - begin
    output = log.read_bytes()[start:].decode(errors="replace")
    status, note = OK, ""
    if timed_out:
        status, note = TIMED_OUT, f"stopped after {limit_s:.0f} s"
    elif process.returncode == part.nothing_status:
        status, note = ABSENT, "nothing to run"
    elif process.returncode:
        status, note = FAILED, f"exit status {process.returncode}"
    return Outcome(part, status, seconds, process.returncode, output, note)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it started: asks, waits a moment, then kills."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=GRACE_S)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def shown_lines(outcome: Outcome) -> str:
    """The end of a part's output, without the line of JSON."""
    lines = [line for line in outcome.output.rstrip().splitlines() if not line.startswith("{")]
    count = outcome.part.shown * (3 if outcome.failed else 1)
    return "\n".join(f"    {line}" for line in lines[-count:])


def run_parts(
    parts: Sequence[Part],
    log_of: Callable[[Part], Path],
    *,
    total_s: float,
    cwd: Path,
    emit: Callable[[str], None],
    keep: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """All parts in order, in total_s seconds: a part has its own limit or what is left, if that is less."""
    deadline = time.perf_counter() + total_s
    outcomes = []
    for part in parts:
        emit(f"== {part.name}")
        outcome = run_part(part, log_of(part), min(part.limit_s, deadline - time.perf_counter()), cwd=cwd)
        outcomes.append(outcome)
        keep(outcome)
        emit("\n".join(filter(None, (shown_lines(outcome), summary_line(outcome)))))
    return outcomes


def summary_line(outcome: Outcome) -> str:
    note = f"  ({outcome.note})" if outcome.note else ""
    return f"{outcome.part.name:<16} {outcome.status:<10} {outcome.seconds:>7.1f} s{note}"


def summary(outcomes: Sequence[Outcome]) -> str:
    """A line a part."""
    return "\n".join(["part             status      seconds", *map(summary_line, outcomes)])
