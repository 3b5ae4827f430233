"""An object of JSON as Python has it: of a file, of the body of a request, or Engine.stats()."""

from typing import Any

Json = dict[str, Any]
