"""The fields of a JSON body, each checked as it is read: what is wrong names the field.

Knows JSON types; not what any field means.
"""

from typing import Any

from pearl_rt.errors import RequestError


class FieldError(RequestError):
    """One field of a body is wrong, or unknown."""

    def __init__(self, field: str | None, message: str) -> None:
        super().__init__(message)
        self.field = field


class Fields:
    """A body. What null stands for is that the field is not there."""

    def __init__(self, body: Any) -> None:
        if not isinstance(body, dict):
            raise FieldError(None, f"the body must be a JSON object, got {_kind(body)}")
        self._body = {name: value for name, value in body.items() if value is not None}
        self._read: set[str] = set()

    def any(self, name: str, default: Any = None) -> Any:
        """Any value."""
        self._read.add(name)
        return self._body.get(name, default)

    def boolean(self, name: str, default: bool = False) -> bool:
        """true or false."""
        return bool(self._typed(name, default, bool, "true or false"))

    def text(self, name: str, default: str | None = None) -> str | None:
        """A string."""
        found = self._typed(name, default, str, "a string")
        return None if found is None else str(found)

    def integer(self, name: str, default: int | None = None) -> int | None:
        """An integer; not a boolean, and no float."""
        found = self._typed(name, default, int, "an integer")
        return None if found is None else int(found)

    def object(self, name: str) -> "Fields":
        """An object; empty if it is not there."""
        return Fields(self._typed(name, {}, dict, "an object"))

    def unsupported(self, name: str, neutral: Any, why: str) -> None:
        """Refuses a field unless it has the value that changes nothing."""
        found = self.any(name)
        if found not in (None, neutral):
            raise FieldError(name, f"{name} {found!r} is not supported: {why}")

    def end(self, ignored: frozenset[str] = frozenset()) -> None:
        """Refuses fields that nobody has read."""
        unknown = sorted(self._body.keys() - self._read - ignored)
        if unknown:
            raise FieldError(unknown[0], f"{unknown[0]} is not a field that this server knows: leave it out")

    def _typed(self, name: str, default: Any, kind: type, expected: str) -> Any:
        found = self.any(name, default)
        is_boolean = isinstance(found, bool) and kind is not bool
        if found is not default and (is_boolean or not isinstance(found, kind)):
            raise FieldError(name, f"{name} must be {expected}, got {_kind(found)}")
        return found


def _kind(value: Any) -> str:
    """A value as JSON calls it, short."""
    kinds = {dict: "an object", list: "an array", str: "a string", type(None): "null"}
    return kinds.get(type(value), repr(value))
