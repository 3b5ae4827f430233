"""Processes that answer as llama.cpp's server and as the worker of OpenVINO do: token i of an answer is the
last id of the prompt plus i + 1. Run as a program: `fake_peers.py server|worker ...`.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

SERVER = '#!/bin/sh\nexec {python} {file} server "$@"\n'


def text_of(ids: list[int], count: int) -> list[int]:
    return [ids[-1] + i + 1 for i in range(count)]


def write_server(path: Path) -> Path:
    """A program that is called as llama-server is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SERVER.format(python=sys.executable, file=__file__))
    path.chmod(0o755)
    return path


def serve(flags: list[str]) -> None:
    """Short n-grams are the fastest speculation, ngram-mod is not known; without flash attention a token
    takes twice as long. Writes one token less for a prompt that begins with 13.
    """
    if "--version" in flags:
        print("version: 4242 (abcdef)", file=sys.stderr)
        return
    if "ngram-mod" in flags:
        sys.exit(1)
    options = dict(zip(flags[::2], flags[1::2], strict=True))
    speed = 1.0 if "--spec-type" not in options else 2.0 if "--spec-ngram-simple-size-n" in options else 0.5
    token_ms = (10.0 if options["-fa"] == "on" else 20.0) / speed

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.say({"status": "ok"})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert asked["ignore_eos"] and not asked["cache_prompt"] and asked["temperature"] == 0
            count = asked["n_predict"] - (asked["prompt"][0] == 13)
            times = {"prompt_ms": 5.0, "predicted_ms": token_ms * count}
            self.say({"tokens": text_of(asked["prompt"], count), "timings": times})

        def say(self, body: object) -> None:
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    HTTPServer((options["--host"], int(options["--port"])), Handler).serve_forever()


def work(model: str) -> None:
    """A model of the name absent.gguf does not load; a prompt that begins with 13 is an error, 14 an end."""
    print(json.dumps({"error": "no such file"} if "absent" in model else {"version": "2026"}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["ids"][0] == 14:
            sys.exit(3)
        ids = text_of(asked["ids"], asked["count"])
        found = {"ids": ids, "ttft": 0.25, "seconds": 0.25 + 0.5 * (len(ids) - 1) / (1 + asked["gamma"])}
        print(json.dumps({"error": "thirteen"} if asked["ids"][0] == 13 else found), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "server":
        serve(sys.argv[2:])
    else:
        work(sys.argv[1])
