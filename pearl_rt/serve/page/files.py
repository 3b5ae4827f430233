"""The files of the page, and the headers that keep a browser from loading anything else with them.

Knows files beside it; nothing of engines. What the page shows it asks the endpoints for.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PAGE_FILES = {  # by path: the file, and its type
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


def page_routes() -> list[Route]:
    """GET of each file. They are read once."""
    return [Route(path, _file(name, media_type)) for path, (name, media_type) in PAGE_FILES.items()]


def _file(name: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    content = (Path(__file__).parent / name).read_bytes()

    async def answer(_: Request) -> Response:
        return Response(content, media_type=media_type, headers=HEADERS)

    return answer
