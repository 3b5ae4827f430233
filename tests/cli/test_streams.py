"""Commands whose stdin, stdout or stderr is closed, full, of few letters, or read by none."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_pairs import Pair

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    target, draft = Pair.make("half-right").save(tmp_path_factory.mktemp("pair"))
    return ["--target", str(target), "--draft", str(draft), "--max-model-len", "512"]


def run(command: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A shell's command, whose "$@" is `python -m pearl_rt` with these arguments."""
    words = ["sh", "-c", command, "sh", sys.executable, "-m", "pearl_rt", *arguments]
    told = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL, env=told, timeout=120)


@pytest.mark.parametrize(
    ("command", "is_asked", "code", "said"),
    [
        ('exec "$@" <&-', False, 2, "stdin is closed: there is nothing to read from it"),
        ('exec "$@" >&-', True, 2, "stdout is closed: there is nowhere to write to"),
        ('exec "$@" >/dev/full', True, 2, "stdout cannot be written: No space left on device"),
        ('exec "$@" 2>&-', True, 0, ""),
        ('exec "$@" 2>/dev/full', True, 0, ""),
    ],
)
def test_streams_that_are_closed_or_full(
    pair: list[str], command: str, is_asked: bool, code: int, said: str
) -> None:
    asked = ["--prompt", "a"] if is_asked else []
    done = run(command, "generate", *pair, *asked, "--max-tokens", "4", "--ignore-eos")
    assert done.returncode == code, done.stderr
    assert done.stderr.decode() == (f"pearl_rt: {said}\n" if said else "")
    assert (code == 0) == (len(done.stdout) > 1) and b"tokens, length" not in done.stdout


def test_a_chat_without_stdin(pair: list[str], tmp_path: Path) -> None:
    template = tmp_path / "a.jinja"
    template.write_text("{{ messages[0].content }}")
    done = run('exec "$@" <&-', "chat", *pair, "--chat-template", str(template))
    assert done.returncode == 2 and b"pearl_rt: stdin is closed" in done.stderr
    assert b"Traceback" not in done.stderr


def test_characters_without_a_letter_are_escaped(pair: list[str]) -> None:
    arguments = ["generate", *pair, "--prompt", "a", "--max-tokens", "60", "--ignore-eos"]
    plain, escaped = (run('exec "$@"', *arguments, PYTHONIOENCODING=name) for name in ("utf-8", "ascii"))
    assert plain.returncode == escaped.returncode == 0, escaped.stderr
    text = plain.stdout.decode()
    assert not text.isascii(), "the tiny model says bytes of all kinds"
    assert escaped.stdout == text.encode("ascii", errors="backslashreplace")


def test_a_log_that_is_not_read_holds_no_request_up(pair: list[str]) -> None:
    """A line for each client that speaks no HTTP, in a pipe of a page."""
    command = [sys.executable, "-m", "pearl_rt", "serve", *pair, "--port", "0"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}, bufsize=0
    )
    assert process.stderr is not None
    try:
        fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        found = None
        while found is None:
            line = process.stderr.readline()
            assert line, process.wait()
            found = re.search(rb"a page to try it: http://127.0.0.1:(\d+)/", line)
        address = "127.0.0.1", int(found[1])
        for _ in range(300):
            with socket.create_connection(address, timeout=20) as client:
                client.sendall(b"nothing of the kind\r\n\r\n")
                assert client.recv(100).startswith(b"HTTP/1.1 400")
        with socket.create_connection(address, timeout=20) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert b"Invalid HTTP request" in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
