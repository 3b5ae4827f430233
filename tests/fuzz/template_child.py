"""The child of the fuzzer of chat templates: compiles one, and renders it with the bounds that a server sets.

One message in, one out, as in pearl_rt/serve/rendering.py, whose bounds are for a process of its own.
"""

from __future__ import annotations

import resource
import signal
import sys
import time
import traceback

from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.errors import CheckpointError
from pearl_rt.serve import rendering
from pearl_rt.types.json import Json


def outcome(asked: Json) -> Json:
    began = time.process_time()
    try:
        template = ChatTemplate(asked["source"], {"bos_token": "<s>", "eos_token": "</s>"})
    except CheckpointError as error:
        return {"kind": "CheckpointError", "told": str(error), "compiled_s": time.process_time() - began}
    compiled = time.process_time() - began
    answer = rendering._answer(template, asked)
    kind = "text" if "text" in answer else "RequestError"
    return {"kind": kind, "told": str(answer.get("error", ""))[:5000], "compiled_s": compiled}


def main() -> None:
    signal.signal(signal.SIGPROF, rendering._too_long)
    wanted, told = sys.stdin.buffer, sys.stdout.buffer
    with open("/proc/self/statm") as sizes:
        most = int(sizes.read().split()[0]) * resource.getpagesize() + rendering.MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    while (asked := rendering._received(wanted)) is not None:
        try:
            answer = outcome(asked)
        except BaseException:
            answer = {"kind": "fault", "told": traceback.format_exc()[-2000:], "compiled_s": 0.0}
        rendering._send(told, answer)


if __name__ == "__main__":
    main()
