"""llama.cpp as its own server, built for this processor by `make peers`: its best plain setting, and its best
speculation by n-grams.

Each setting is a server of its own. They are tried on a few prompts, and the fastest of each row stays. Times
are the server's own, without HTTP.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.harness.measure import Program
from bench.harness.peers import Ids
from bench.outside.process import Answer, Outside, OutsideError

PLAIN, SPECULATIVE = "llama.cpp", "llama.cpp n-gram"
# Of the server, by row and name: the fastest of each row is kept. Its n-grams have 12 tokens and drafts 48
# unless it is told otherwise, which short answers hardly ever have.
SHORT = "-size-n 4 --spec-ngram-{0}-size-m 10"
SETTINGS = {
    PLAIN: {"fa": "-fa on", "no fa": "-fa off"},
    SPECULATIVE: {
        "simple": "--spec-type ngram-simple",
        "simple 4": f"--spec-type ngram-simple --spec-ngram-simple{SHORT.format('simple')}",
        "map-k 4": f"--spec-type ngram-map-k --spec-ngram-map-k{SHORT.format('map-k')}",
        "mod": "--spec-type ngram-mod",
        "cache": "--spec-type ngram-cache",
    },
}
START_S, ANSWER_S = 60.0, 300.0
LENGTH = 4096


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class LlamaServer:
    """One server on one file, with one slot."""

    def __init__(self, program: Path, model: Path, flags: Sequence[str], num_threads: int) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        command = [str(program), "-m", str(model), "--host", "127.0.0.1", "--port", str(port), "-np", "1"]
        command += ["-c", str(LENGTH), "-t", str(num_threads), "-tb", str(num_threads), *flags]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_S
        while not self.is_healthy():
            if self.process.poll() is not None:
                raise OutsideError(
                    f"{' '.join(command[:1] + list(flags))} ended with {self.process.returncode}"
                )
            if time.monotonic() > deadline:
                self.close()
                raise OutsideError(f"{program.name} does not answer after {START_S:.0f} s")
            time.sleep(0.1)

    def is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def post(self, body: dict[str, Any]) -> dict[str, Any]:
        """Raises OutsideError."""
        request = urllib.request.Request(
            f"{self.url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
                found = json.load(answer)
        except (OSError, ValueError) as error:
            raise OutsideError(f"llama-server does not answer: {error}") from None
        return dict(found)

    def complete(self, ids: Sequence[int], count: int) -> Answer:
        """Greedy, with nothing kept from the prompt before."""
        found = self.post(
            {
                "prompt": list(ids),
                "n_predict": count,
                "temperature": 0.0,
                "samplers": ["top_k"],
                "top_k": 1,
                "ignore_eos": True,
                "cache_prompt": False,
                "return_tokens": True,
            }
        )
        times = found["timings"]
        ttft = times["prompt_ms"] * 1e-3
        return Answer(list(found["tokens"]), ttft, ttft + times["predicted_ms"] * 1e-3)

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class LlamaCpp(Outside):
    """The servers of both rows."""

    def __init__(self, program: Path, model: Path, num_threads: int, prompts: Ids) -> None:
        """prompts: that settings are tried on. Raises OutsideError."""
        said = subprocess.run([str(program), "--version"], capture_output=True, text=True, timeout=30)
        lines = [line for line in (said.stderr + said.stdout).splitlines() if line.startswith("version")]
        super().__init__(lines[0].partition(":")[2].strip() if lines else "unknown")
        self.program, self.model, self.num_threads, self.prompts = program, model, num_threads, prompts
        self.servers: dict[str, LlamaServer] = {}
        self.chosen: dict[str, str] = {}  # row -> name of its setting

    def programs(self, gamma: int) -> list[Program]:
        """Both rows; servers are started and chosen by the first call."""
        if not self.servers:
            self.choose(PLAIN, ())
            self.choose(SPECULATIVE, SETTINGS[PLAIN][self.chosen[PLAIN]].split())
        return [Program(row, self.chosen[row]) for row in self.servers]

    def choose(self, row: str, common: Sequence[str]) -> None:
        """Keeps the fastest server of a row. A setting that this version does not know is passed over."""
        best = float("inf")
        failure = OutsideError(f"{row} has no setting")
        for name, flags in SETTINGS[row].items():
            try:
                server = LlamaServer(self.program, self.model, (*common, *flags.split()), self.num_threads)
            except OutsideError as error:
                failure = error
                continue
            before = self.servers.get(row)
            self.servers[row] = server
            spent = self.seconds(Program(row), self.prompts)
            if spent < best:
                best, self.chosen[row] = spent, name
                slower = before
            else:
                self.servers[row], slower = before or server, server
            if slower is not None:
                slower.close()
        if row not in self.servers:
            raise failure

    def answer(self, program: Program, ids: Sequence[int], count: int) -> Answer:
        return self.servers[program.strategy].complete(ids, count)

    def close(self) -> None:
        for server in self.servers.values():
            server.close()
        self.servers.clear()
