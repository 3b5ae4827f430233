"""OpenVINO GenAI on the same GGUF file, in the Python of `make peers`: plain, and with its prompt lookup.

Each row is a process of its own (bench/outside/open_vino_worker.py), spoken to in lines of JSON.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.harness.measure import Program
from bench.outside.process import Answer, Outside, OutsideError

PLAIN, LOOKUP = "openvino", "openvino lookup"
WORKER = Path(__file__).with_name("open_vino_worker.py")


class Worker:
    """One process with one pipeline."""

    def __init__(self, python: Path, worker: Path, model: Path, num_threads: int, *, looks_up: bool) -> None:
        """Raises OutsideError if the library or the file does not load."""
        command = [
            str(python),
            "-I",
            str(worker),
            str(model),
            str(num_threads),
            "lookup" if looks_up else "plain",
        ]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.version = str(self.read()["version"])

    def read(self) -> dict[str, Any]:
        """The next line. Raises OutsideError."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise OutsideError(f"its process ended with {self.process.wait()}")
        found = dict(json.loads(line))
        if "error" in found:
            raise OutsideError(str(found["error"]))
        return found

    def ask(self, ids: Sequence[int], count: int, gamma: int) -> Answer:
        assert self.process.stdin is not None
        asked = json.dumps({"ids": list(ids), "count": count, "gamma": gamma})
        with contextlib.suppress(OSError):  # its output says why
            print(asked, file=self.process.stdin, flush=True)
        found = self.read()
        return Answer(list(found["ids"]), float(found["ttft"]), float(found["seconds"]))

    def close(self) -> None:
        """Ends the process: it ends by itself where its input does."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class OpenVino(Outside):
    """The processes of both rows."""

    def __init__(self, python: Path, model: Path, num_threads: int, *, worker: Path = WORKER) -> None:
        """Raises OutsideError."""
        self.workers = {PLAIN: Worker(python, worker, model, num_threads, looks_up=False)}
        super().__init__(self.workers[PLAIN].version)
        try:
            self.workers[LOOKUP] = Worker(python, worker, model, num_threads, looks_up=True)
        except OutsideError:
            self.close()
            raise

    def programs(self, gamma: int) -> list[Program]:
        return [Program(PLAIN, "own"), Program(LOOKUP, "own", gamma or 5)]

    def answer(self, program: Program, ids: Sequence[int], count: int) -> Answer:
        return self.workers[program.strategy].ask(ids, count, program.gamma)

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()
        self.workers.clear()
