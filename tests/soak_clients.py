"""Two hundred clients of one server that stream and vanish: no wrong token, no leak; how long tokens take.

Each asks for bodies of one list again and again: chats and completions with shared prefixes, schemas, tools.
What a body gets alone, from a server that runs one request at a time by the target alone, is asked for once,
beforehand.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
from serving import Served, serving
from tiny_pairs import Pair

from pearl_rt import Engine
from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.serve.app import Settings

sys.path.append(str(Path(__file__).resolve().parent / "grammar"))
from random_schemas import schema

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
    "[assistant]"
)
LENGTH = 1024
END = 256
MOST_GROWTH = 24 << 20  # bytes, from the first tenth of the time to the end
LOOK: Any = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"at": {"enum": ["sea", "sky"]}, "deep": {"type": "boolean"}},
            "required": ["at", "deep"],
            "additionalProperties": False,
        },
    },
}
WAIT: Any = {"type": "function", "function": {"name": "wait"}}
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
Body = tuple[str, dict[str, Any]]


def bodies(count: int, seed: int) -> list[Body]:
    """What clients ask for: (path, body)."""
    rng = random.Random(seed)
    systems = ["".join(rng.choice("abcdefgh ") for _ in range(n)) for n in (40, 200, 350)]
    found: list[Body] = []
    for number in range(count):
        body: dict[str, Any] = {
            "temperature": rng.choice([0, 0.8, 1.2]),
            "seed": rng.randrange(2**32),
            "max_tokens": rng.choice([1, 8, 30, 60]),
            "logprobs": rng.choice([None, True]),
            "top_p": rng.choice([1.0, 0.9]),
            "repetition_penalty": rng.choice([1.0, 1.2]),
        }
        strategy = rng.choice([None, None, "ar", "sd", "pearl"])
        body["speculative"] = {} if strategy is None else {"strategy": strategy}
        said = "".join(rng.choice("abcdé ") for _ in range(rng.choice([1, 5, 60])))
        kind = rng.choice(["chat", "chat", "schema", "tools", "completion"])
        if kind == "completion":
            body |= {"prompt": rng.choice(systems) + said, "logprobs": rng.choice([None, 0]), "stop": ["zq"]}
            found.append((COMPLETIONS, body))
            continue
        body["messages"] = [
            {"role": "system", "content": rng.choice(systems)},
            {"role": "user", "content": said},
        ]
        if kind == "schema":
            form = {"name": "n", "schema": schema(number % 20, 2)}
            body |= {"response_format": {"type": "json_schema", "json_schema": form}, "max_tokens": 200}
        if kind == "tools":
            choice = rng.choice(["required", {"type": "function", "function": {"name": "look"}}, "auto"])
            body |= {
                "tools": [LOOK, WAIT],
                "tool_choice": choice,
                "parallel_tool_calls": False,
                "max_tokens": 80,
            }
        found.append((CHATS, body))
    return found


def told(choice: dict[str, Any]) -> dict[str, Any]:
    """An answer without what differs each time: text, tokens if they are told, calls, and why it ended."""
    message = choice.get("message") or {"content": choice.get("text")}
    calls = [(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls") or ()]
    return {
        "text": message["content"] or "",
        "tokens": tokens_of(choice.get("logprobs")),
        "calls": calls,
        "reason": choice["finish_reason"],
    }


def tokens_of(logprobs: dict[str, Any] | None) -> list[Any]:
    """The bytes of each token, of a chat; its text, of a completion."""
    if not logprobs:
        return []
    return [t["bytes"] for t in logprobs["content"]] if "content" in logprobs else list(logprobs["tokens"])


class Streamed:
    """An answer as it grows."""

    def __init__(self) -> None:
        self.text, self.reason = "", None
        self.tokens: list[Any] = []
        self.calls: list[tuple[str, str]] = []

    def add(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta") or {"content": choice.get("text")}
        self.text += delta.get("content") or ""
        for call in delta.get("tool_calls") or ():
            function = call["function"]
            if "name" in function:
                self.calls.append((function["name"], ""))
            self.calls[-1] = (self.calls[-1][0], self.calls[-1][1] + function["arguments"])
        self.tokens += tokens_of(choice.get("logprobs"))
        self.reason = choice["finish_reason"] or self.reason

    def told(self) -> dict[str, Any]:
        return {"text": self.text, "tokens": self.tokens, "calls": self.calls, "reason": self.reason}

    def begins(self, whole: dict[str, Any]) -> bool:
        """Whether it is the beginning of that answer."""
        calls = all(
            name == w[0] and w[1].startswith(a)
            for (name, a), w in zip(self.calls, whole["calls"], strict=False)
        )
        return (
            calls
            and whole["text"].startswith(self.text)
            and whole["tokens"][: len(self.tokens)] == self.tokens
        )


class ClientsSoak:
    """The servers, what was found, and the first thing that was wrong."""

    def __init__(self, folder: Path, seed: int, *, num_clients: int = 200, num_bodies: int = 200) -> None:
        pair = Pair.make("half-right", max_position_embeddings=LENGTH, eos_token_ids=(END,))
        self._target, self._draft = pair.save(folder)
        self.seed, self._num_clients = seed, num_clients
        self._bodies = bodies(num_bodies, seed)
        self._expected: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()
        self.gaps: Counter[int] = Counter()  # of two events of a stream, in tenths of a millisecond
        self.wrong: str | None = None
        self._stops = False

    def run(self, seconds: float, report: Callable[[str], object], resident: Callable[[], int]) -> bool:
        """Whether all was well. seconds: of the clients alone."""
        settings, common = (
            Settings("m", ChatTemplate(TEMPLATE)),
            {"max_model_len": LENGTH, "judge": "coupled"},
        )
        plain: Any = {"strategy": "ar", "max_num_seqs": 1, "prefix_caching": False, **common}
        with (
            Engine.from_pretrained(self._target, "none", device="cpu", **plain) as engine,
            serving(engine, settings) as alone,
        ):
            for number, (path, body) in enumerate(self._bodies):
                self._expected.append(self._alone(alone, path, body))
                report(f"{number + 1} of {len(self._bodies)} bodies alone")
        with (
            Engine.from_pretrained(
                self._target, self._draft, device="cpu", max_waiting=1024, **common
            ) as engine,
            serving(engine, settings) as served,
        ):
            served.call("POST", CHATS, {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2})
            before = (threading.active_count(), len(os.listdir("/proc/self/fd")))
            asyncio.run(self._all(served.port, seconds, report, resident))
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and engine.stats()["queue"] != {"running": 0, "waiting": 0}:
                time.sleep(0.05)
            queue, blocks = engine.stats()["queue"], engine.stats()["kv_blocks"]
            after = (threading.active_count(), len(os.listdir("/proc/self/fd")))
        if queue != {"running": 0, "waiting": 0} or blocks["free"] != blocks["total"]:
            self._fail(f"requests are left behind: {queue}, blocks {blocks}")
        if after[0] > before[0] + 45 or after[1] > before[1] + 20:  # threads of a pool stay: 40 at most
            self._fail(f"(threads, open files) were {before}, and are {after}")
        return self.wrong is None

    def tail(self) -> str:
        """Time between events of streams: quantiles, in milliseconds."""
        total, parts = self.gaps.total(), []
        for share in (0.5, 0.9, 0.99, 0.999, 1.0):
            left = share * total
            for tenth in sorted(self.gaps):
                left -= self.gaps[tenth]
                if left <= 0:
                    parts.append(f"{share:.1%} {tenth / 10:.1f}")
                    break
        return f"ms between events of a stream ({total}): " + ", ".join(parts)

    def _alone(self, served: Served, path: str, body: dict[str, Any]) -> dict[str, Any]:
        status, _, whole = served.call("POST", path, {**body, "speculative": {}})
        assert status == 200, whole
        answer = told(whole["choices"][0])
        if "response_format" in body and answer["reason"] == "stop":
            jsonschema.validate(json.loads(answer["text"]), body["response_format"]["json_schema"]["schema"])
        return answer

    async def _all(
        self, port: int, seconds: float, report: Callable[[str], object], resident: Callable[[], int]
    ) -> None:
        begin, start_bytes = time.monotonic(), 0
        clients = [asyncio.create_task(self._client(port, number)) for number in range(self._num_clients)]
        while (passed := time.monotonic() - begin) < seconds and self.wrong is None:
            await asyncio.sleep(min(1.0, seconds / 20))
            if not start_bytes and passed > seconds / 10:
                start_bytes = resident()
            report(f"{passed:.0f} s, {resident() >> 20} MiB, {dict(self.counts)}")
        grown = resident() - start_bytes
        self._stops = True
        for done in await asyncio.gather(*clients, return_exceptions=True):
            if isinstance(done, BaseException):
                self._fail(f"a client: {type(done).__name__}: {done}")
        if seconds >= 120 and grown > MOST_GROWTH:  # before that, what is kept is still being filled
            self._fail(f"memory has grown by {grown >> 20} MiB")

    async def _client(self, port: int, number: int) -> None:
        rng = random.Random(f"{self.seed} {number}")
        while not self._stops and self.wrong is None:
            place = rng.randrange(len(self._bodies))
            manner = rng.choice(
                ["stream", "stream", "stream", "whole", "vanish", "vanish early", "half a body"]
            )
            path, body = self._bodies[place]
            await self._one(port, path, body, manner, self._expected[place], rng)
            self.counts[manner] += 1
            await asyncio.sleep(rng.random() * 0.05)

    async def _one(
        self,
        port: int,
        path: str,
        body: dict[str, Any],
        manner: str,
        expected: dict[str, Any],
        rng: random.Random,
    ) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            is_streamed = manner != "whole"
            data = json.dumps(body | {"stream": is_streamed}).encode()
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
            sent = data[: len(data) // 2] if manner == "half a body" else data
            writer.write(head.encode() + sent)
            await writer.drain()
            if manner in ("half a body", "vanish early"):
                await asyncio.sleep(rng.random() * 0.02)
                return
            if is_streamed:
                most = rng.randrange(1, 12) if manner == "vanish" else None
                await self._read(reader, expected, most, (path, body))
            else:
                answer = await reader.read()
                content = json.loads(answer.partition(b"\r\n\r\n")[2])
                if "choices" not in content or told(content["choices"][0]) != expected:
                    self._fail(f"{path} {body}: {content}, alone {expected}")
        finally:
            if manner.startswith("vanish") and rng.random() < 0.5:  # with a reset
                own: socket.socket = writer.get_extra_info("socket")
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _read(
        self, reader: asyncio.StreamReader, expected: dict[str, Any], most: int | None, asked: Body
    ) -> None:
        """A stream to its end, or so many events of it."""
        answer, events, last = Streamed(), 0, 0.0
        while line := await reader.readline():
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                if answer.told() != expected:
                    self._fail(f"{asked}: {answer.told()}, alone {expected}")
                return
            event = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                self._fail(f"{asked}: {event}")
                return
            now = time.monotonic()
            if events > 1:  # the first one opens the stream, the second has waited for its turn
                self.gaps[int((now - last) * 10_000)] += 1
            events, last = events + 1, now
            answer.add(event["choices"][0])
            if most is not None and events >= most:
                if not answer.begins(expected):
                    self._fail(f"{asked}: begins {answer.told()}, alone {expected}")
                return
        self._fail(f"{asked}: the stream ended early: {answer.told()}")

    def _fail(self, what: str) -> None:
        self.wrong = self.wrong or what
