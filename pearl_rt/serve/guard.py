"""What stands before every endpoint: the key, the Host header, and bounds on a body.

An ASGI middleware. Knows nothing of what is asked.
"""

import asyncio
import hmac
import json
import math
import re
from collections.abc import Iterable
from typing import NoReturn

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pearl_rt.errors import EngineClosedError
from pearl_rt.serve.faults import HttpError, error_response
from pearl_rt.serve.fields import clean
from pearl_rt.serve.page.files import PAGE_FILES

OPEN_PATHS = frozenset({"/health", *PAGE_FILES})  # the page asks for the key itself
BODY_SECONDS = 30.0  # in which a body must have come
LONG = 2**16  # bytes of a body that is parsed in a thread: the others go on
MAX_DEPTH = 128  # of arrays and objects in a body: twice what a schema may have


class Guard:
    """Refuses requests without the key, or from a page that talks to this machine under another name.

    api_key  None: no client needs one
    hosts    names that a request may address; None: any. Without a key, a page in a browser could otherwise
             reach a server on loopback through a domain of its own.
    """

    def __init__(self, app: ASGIApp, *, api_key: str | None, hosts: Iterable[str] | None) -> None:
        self._app = app
        self._api_key = None if api_key is None else api_key.strip().encode()
        self._hosts = None if hosts is None else frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            body = _Body(Headers(scope=scope), receive, send)
            receive, send = body.receive, body.send
            try:
                path = scope["path"].removeprefix(scope.get("root_path", ""))
                self._check(path, Headers(scope=scope))
            except HttpError as error:
                await error_response(error)(scope, receive, send)
                return
            try:
                await self._app(scope, receive, send)
            except asyncio.CancelledError:
                if not body.is_answered:
                    await error_response(EngineClosedError())(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> None:
        if self._hosts is not None and _host_name(headers.get("host", "")) not in self._hosts:
            host = clean(headers.get("host", ""))
            raise HttpError(403, f"host {host!r} is not this server: address it as localhost", "wrong_host")
        if self._api_key is None or path in OPEN_PATHS:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        key = given.strip().encode("latin-1")  # as it was sent: headers are read as Latin-1
        if scheme.lower() != "bearer" or not hmac.compare_digest(key, self._api_key):
            raise HttpError(
                401, "the API key is missing or wrong: send Authorization: Bearer KEY", "invalid_api_key"
            )


class _Body:
    """The body of one request, and whether an answer came first: its connection is then closed behind it, for
    the rest of a body that will never be read.
    """

    def __init__(self, headers: Headers, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._is_read = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        self.is_answered = False

    async def receive(self) -> Message:
        """ASGI."""
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            self._is_read = True
        return message

    async def send(self, message: Message) -> None:
        """ASGI."""
        if message["type"] == "http.response.start":
            self.is_answered = True
            if not self._is_read:
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await self._send(message)


async def json_body(request: Request, max_bytes: int) -> object:
    """The JSON in a body. Raises HttpError for what is too large, too slow, of another type, or no JSON."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HttpError(415, "the body must be JSON: send Content-Type: application/json", "wrong_type")
    too_large = HttpError(413, f"the body is larger than {max_bytes} bytes: send less", "body_too_large")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > max_bytes:
                    raise too_large
    except ClientDisconnect:
        raise HttpError(400, "the client left before its body had come", "body_incomplete") from None
    except TimeoutError:
        raise HttpError(408, f"the body did not come within {BODY_SECONDS:g} s", "body_too_slow") from None
    if len(body) > LONG:
        return await run_in_threadpool(_parsed, bytes(body))
    return _parsed(bytes(body))


def _parsed(body: bytes) -> object:
    try:
        content: object = json.loads(body, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise HttpError(400, f"the body is not valid JSON: {clean(str(error))}", "invalid_json") from None
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _is_deep(content):
        message = f"the body has arrays and objects of more than {MAX_DEPTH} levels: send fewer"
        raise HttpError(400, message, "body_too_deep")
    return content


def _is_deep(content: object) -> bool:
    """Whether it has more levels than any reader is to follow."""
    level = [content]
    for _ in range(MAX_DEPTH + 1):
        inside = [each for each in level if isinstance(each, (dict, list))]
        if not inside:
            return False
        level = [item for each in inside for item in (each.values() if isinstance(each, dict) else each)]
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no value of JSON")


def _finite(text: str) -> float:
    """Infinity has no name in JSON: an answer could not repeat it."""
    if math.isinf(number := float(text)):
        raise ValueError(f"{text} is larger than a number may be")
    return number


def _host_name(host: str) -> str:
    """Without the port; IPv6 addresses are in brackets. What is no name and port is itself."""
    found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:@/]+)(:\d{0,5})?", host.lower())
    return found[1] if found else host
