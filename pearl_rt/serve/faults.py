"""Exceptions as answers of HTTP: a status, and a body in OpenAI's shape."""

from collections.abc import Mapping

from starlette.responses import JSONResponse

from pearl_rt.errors import (
    EngineClosedError,
    PearlError,
    PromptTooLongError,
    QueueFullError,
    RequestError,
    ResourceError,
)
from pearl_rt.serve.fields import FieldError, clean

INTERNAL = "internal_error"


class HttpError(Exception):
    """A request that the server refuses itself, with its HTTP status, and headers that go with it."""

    def __init__(
        self, status: int, message: str, code: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers


def error_body(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> dict[str, object]:
    """{"error": ...} as OpenAI's clients read it. What a message repeats of a body may be no UTF-8."""
    message = clean(message, 2000)
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def described(error: Exception) -> tuple[int, dict[str, object]]:
    """(status, body) of anything that was raised while a request was answered."""
    if isinstance(error, HttpError):
        return error.status, error_body(error.status, error.message, code=error.code)
    if isinstance(error, QueueFullError):
        return 429, error_body(429, str(error), code="rate_limit_exceeded")
    if isinstance(error, EngineClosedError):
        return 503, error_body(503, "the server is stopping: try again later", code="unavailable")
    if isinstance(error, RequestError):
        param, code = (error.field, error.code) if isinstance(error, FieldError) else (None, "invalid_value")
        code = "context_length_exceeded" if isinstance(error, PromptTooLongError) else code
        return 400, error_body(400, str(error), param=param, code=code)
    if isinstance(error, ResourceError):
        return 503, error_body(503, str(error), code="unavailable")
    if isinstance(error, PearlError):
        return 500, error_body(500, str(error), code=INTERNAL)
    return 500, error_body(500, f"an unexpected {type(error).__name__}", code=INTERNAL)


def error_response(error: Exception) -> JSONResponse:
    """`described` as a response; where the queue is full, its header asks the client to wait a second."""
    status, body = described(error)
    headers = error.headers if isinstance(error, HttpError) else None
    return JSONResponse(body, status, {"retry-after": "1"} if status == 429 else headers)
