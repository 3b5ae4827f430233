"""The fields of a JSON body, each checked as it is read: what is wrong names the field.

Knows JSON types; not what any field means.
"""

from typing import Any, TypeVar

from pearl_rt.errors import RequestError, shown

Kind = TypeVar("Kind")
UNSUPPORTED = "unsupported_parameter"


class FieldError(RequestError):
    """One field of a body is wrong, or unknown. code: for programs."""

    def __init__(self, field: str | None, message: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.field, self.code = field, code


class Fields:
    """A body. What null stands for is that the field is not there."""

    def __init__(self, body: object) -> None:
        if not isinstance(body, dict):
            raise FieldError(None, f"the body must be a JSON object, got {_kind(body)}")
        self._body = {name: value for name, value in body.items() if value is not None}
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Whether the client gave a value; nothing is read."""
        return name in self._body

    def any(self, name: str, default: object = None) -> Any:
        """Any value: its receiver checks it."""
        self._read.add(name)
        return self._body.get(name, default)

    def boolean(self, name: str, default: bool = False) -> bool:
        """true or false."""
        found = self._typed(name, bool, "true or false")
        return default if found is None else found

    def text(self, name: str) -> str | None:
        """A string."""
        return self._typed(name, str, "a string")

    def integer(self, name: str, default: int | None = None) -> int | None:
        """An integer; not a boolean, and no float."""
        found = self._typed(name, int, "an integer")
        return default if found is None else found

    def inside(self, name: str) -> "Fields":
        """An object; empty if it is not there."""
        return Fields(self._typed(name, dict, "an object") or {})

    def unsupported(self, name: str, neutral: object, why: str) -> None:
        """Refuses a field unless it has the value that changes nothing."""
        found = self.any(name)
        if found not in (None, neutral):
            raise FieldError(name, f"{name} {_kind(found)} is not supported: {why}", UNSUPPORTED)

    def end(self, ignored: frozenset[str] = frozenset()) -> None:
        """Refuses fields that were not read."""
        unknown = sorted(self._body.keys() - self._read - ignored)
        if unknown:
            name = clean(unknown[0])
            raise FieldError(
                name, f"{name} is not a field that this server knows: leave it out", "unknown_parameter"
            )

    def _typed(self, name: str, kind: type[Kind], expected: str) -> Kind | None:
        found: object = self.any(name)
        if found is None:
            return None
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            raise FieldError(name, f"{name} must be {expected}, got {_kind(found)}")
        return found


def clean(text: str, most: int = 100) -> str:
    """A client's text, as an answer can repeat it: half a surrogate pair is no UTF-8."""
    return text[:most].encode(errors="replace").decode()


def _kind(value: object) -> str:
    """A value as JSON calls it, short."""
    kinds = {dict: "an object", list: "an array", str: "a string", type(None): "null"}
    return kinds.get(type(value)) or shown(value)
