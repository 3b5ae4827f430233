"""One training run on disk: a checkpoint to go on from, the loss curve, and the clock of the schedule.

Killed at any moment and started again with the same command, a run goes on from its last checkpoint; rows of
the curve that came after it are dropped, so that the curve is that of the weights.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from pearl_rt.errors import CheckpointError, RequestError

_SECONDS_BETWEEN_CHECKPOINTS = 120.0


class Run:
    """`settings` identifies the run: going on with other ones is refused. Lives under `directory`."""

    def __init__(self, directory: Path, settings: dict[str, Any], minutes: float) -> None:
        if not minutes > 0:
            raise RequestError(f"--minutes {minutes}: give a positive number")
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.settings = settings
        self.budget = 60.0 * minutes
        self.seconds = 0.0  # trained for, all attempts together
        self.step = 0
        self.tokens = 0
        self.interrupted = False
        self._last_tick = time.monotonic()
        self._saved_at = 0.0
        self._checkpoint = directory / "checkpoint.pt"
        self._curve = directory / "curve.jsonl"

    @property
    def progress(self) -> float:
        return min(1.0, self.seconds / self.budget)

    @property
    def is_over(self) -> bool:
        return self.interrupted or self.seconds >= self.budget

    def resume(self, model: torch.nn.Module, optimizers: Any) -> bool:
        """Loads the last checkpoint, if there is one, into model and optimisers. True if there was."""
        if not self._checkpoint.exists():
            self._curve.unlink(missing_ok=True)
            return False
        try:
            state = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(
                f"{self._checkpoint} is damaged ({error}): delete it to start anew"
            ) from error
        for name, value in self.settings.items():
            before = state["settings"].get(name)
            if before != value:
                raise RequestError(
                    f"{self.directory} holds a run with {name} {before!r}, now {value!r}: "
                    "go on with the same settings, or give another directory"
                )
        model.load_state_dict(state["model"])
        optimizers.load_state_dict(state["optimizers"])
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self._saved_at = self.seconds
        kept = [row for row in self.curve() if row["step"] <= self.step]
        self._curve.write_text("".join(json.dumps(row) + "\n" for row in kept))
        return True

    def save(self, model: torch.nn.Module, optimizers: Any) -> None:
        """Writes the checkpoint; the previous one stays until the new one is complete."""
        partial = self._checkpoint.with_suffix(".partial")
        state = {
            "model": model.state_dict(),
            "optimizers": optimizers.state_dict(),
            "settings": self.settings,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }
        torch.save(state, partial)
        partial.replace(self._checkpoint)
        self._saved_at = self.seconds

    def save_if_due(self, model: torch.nn.Module, optimizers: Any) -> bool:
        due = self.seconds - self._saved_at >= _SECONDS_BETWEEN_CHECKPOINTS
        if due:
            self.save(model, optimizers)
        return due

    def tick(self, tokens: int, **row: float) -> None:
        """Ends a step: counts it and its seconds, and appends `row` to the curve."""
        now = time.monotonic()
        self.seconds += now - self._last_tick
        self._last_tick = now
        self.step += 1
        self.tokens += tokens
        rounded = {name: round(value, 5) for name, value in row.items()}
        entry = {"step": self.step, "tokens": self.tokens, "seconds": round(self.seconds, 1), **rounded}
        with self._curve.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def curve(self) -> list[dict[str, Any]]:
        """The rows so far; a last row that a crash cut short is left out."""
        rows = []
        for line in self._curve.read_text().splitlines() if self._curve.exists() else []:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    @contextmanager
    def until_interrupted(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the loop after the current step, so that it is saved; a second one kills."""
        self._last_tick = time.monotonic()

        def interrupt(number: int, frame: FrameType | None) -> None:
            self.interrupted = True
            signal.signal(number, signal.SIG_DFL)

        before = {s: signal.signal(s, interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
