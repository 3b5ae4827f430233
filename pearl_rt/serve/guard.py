"""What stands before every endpoint: the key, the Host header, and bounds on a body.

An ASGI middleware. Knows nothing of what is asked.
"""

import asyncio
import hmac
import json
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from pearl_rt.serve.faults import HttpError, error_response

OPEN_PATHS = frozenset({"/health"})
BODY_SECONDS = 30.0  # in which a body must have come


class Guard:
    """Refuses requests without the key, or from a page that talks to this machine under another name.

    api_key  None: no client needs one
    hosts    names that a request may address; None: any. Without a key, a page in a browser could otherwise
             reach a server on loopback through a domain of its own.
    """

    def __init__(self, app: ASGIApp, *, api_key: str | None, hosts: Iterable[str] | None) -> None:
        self._app = app
        self._api_key = None if api_key is None else api_key.encode()
        self._hosts = None if hosts is None else frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            try:
                self._check(scope["path"], Headers(scope=scope))
            except HttpError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> None:
        if self._hosts is not None and _host_name(headers.get("host", "")) not in self._hosts:
            raise HttpError(403, f"host {headers.get('host')!r} is not this server: address it as localhost")
        if self._api_key is None or path in OPEN_PATHS:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._api_key):
            raise HttpError(
                401, "the API key is missing or wrong: send Authorization: Bearer KEY", "invalid_api_key"
            )


async def json_body(request: Request, max_bytes: int) -> object:
    """The JSON in a body. Raises HttpError for what is too large, too slow, of another type, or no JSON."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HttpError(415, "the body must be JSON: send Content-Type: application/json")
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
    except TimeoutError:
        raise HttpError(408, f"the body did not come within {BODY_SECONDS:g} s") from None
    try:
        content: object = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise HttpError(400, f"the body is not valid JSON: {error}") from None
    return content


def _host_name(host: str) -> str:
    """Without the port; IPv6 addresses are in brackets."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()
