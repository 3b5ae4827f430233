"""Chat templates rendered in a process of their own, with bounds on time, memory and text.

A template is a program of the checkpoint's author: in the server's process one that loops would keep a
thread, and one that grows would take the memory. main() is the child's. Knows templates and pipes; not what
is asked.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, NoReturn

from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.errors import RequestError, ResourceError
from pearl_rt.types.json import Json

CPU_SECONDS = 2  # of one prompt
MEMORY = 512 * 2**20  # bytes, beyond what the child has when it starts
MAX_CHARACTERS = 16 * 2**20
_START = "import sys; sys.path[:] = {path!r}; from pearl_rt.serve.rendering import main; main()"


class Renderer:
    """A template's child, started at once and again where it has ended. One prompt at a time."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = {"source": template.source, "special_tokens": template.special_tokens}
        self._lock = threading.Lock()
        self._child = self._started()

    def render(self, messages: Sequence[Json], options: Json) -> str:
        """As ChatTemplate.render(messages, **options); blocks. RequestError too for what takes too long, or
        too much.
        """
        with self._lock:
            if self._child.poll() is not None:
                self._child = self._started()
            assert self._child.stdin is not None and self._child.stdout is not None
            try:
                _send(self._child.stdin, {"messages": list(messages), "options": options})
                answer = _received(self._child.stdout)
            except OSError:
                answer = None
            if answer is None:
                self._child.kill()
                self._child.wait()
                raise RequestError(
                    f"the chat template takes over {CPU_SECONDS} s or {MEMORY >> 20} MiB for these messages: "
                    "send less, or serve another template with --chat-template"
                )
        if "text" not in answer:
            raise RequestError(str(answer["error"]))
        return str(answer["text"])

    def _started(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", _START.format(path=sys.path)]
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise ResourceError(f"no process for the chat template can be started: {error}") from None
        weakref.finalize(self, _end, child, os.getpid())
        assert child.stdin is not None
        with suppress(OSError):
            _send(child.stdin, self._template)
        return child


def _end(child: "subprocess.Popen[bytes]", parent: int) -> None:
    if os.getpid() != parent:  # of a fork: it is not its own
        return
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        with suppress(OSError):
            pipe.close()


def _send(pipe: IO[bytes], content: Json) -> None:
    data = json.dumps(content).encode()
    pipe.write(len(data).to_bytes(8, "little") + data)
    pipe.flush()


def _received(pipe: IO[bytes]) -> Json | None:
    """The next message; None at the end of the pipe."""
    size = pipe.read(8)
    if len(size) < 8:
        return None
    data = pipe.read(int.from_bytes(size, "little"))
    try:
        found: Json = json.loads(data)
    except ValueError:  # it ended in the middle
        return None
    return found


def main() -> None:
    """The child: a template, then prompts until its stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server
    signal.signal(signal.SIGPROF, _too_long)
    wanted, told = sys.stdin.buffer, sys.stdout.buffer
    given = _received(wanted)
    if given is None:
        return
    template = ChatTemplate(str(given["source"]), given["special_tokens"])
    with open("/proc/self/statm") as sizes:
        most = int(sizes.read().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    while (asked := _received(wanted)) is not None:
        _send(told, _answer(template, asked))


def _answer(template: ChatTemplate, asked: Json) -> Json:
    # A second bound, for what is one call of C: it ends the process.
    used = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime) + CPU_SECONDS + 2
    used += int(resource.getrusage(resource.RUSAGE_SELF).ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (used, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        text = template.render(asked["messages"], **asked["options"])
    except RequestError as error:
        return {"error": str(error)}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if len(text) > MAX_CHARACTERS:
        return {"error": f"the chat template wrote {len(text)} characters: send less"}
    return {"text": text}


def _too_long(*_: object) -> NoReturn:
    raise TimeoutError(f"it takes over {CPU_SECONDS} s")
