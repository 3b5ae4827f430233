"""Which GGUF files a path means: one, the only one of a directory, or all parts of one that was split.

Knows names of files, and nothing of what they hold.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from pearl_rt.checkpoint.gguf.header import MAGIC
from pearl_rt.errors import CheckpointError

SUFFIX = ".gguf"
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def gguf_files(path: str | os.PathLike[str]) -> list[Path] | None:
    """The files of the model that `path` means, in order; None if it means no GGUF model.

    A directory with config.json and safetensors is one in the Hugging Face layout, whatever else it holds.
    Raises CheckpointError for several models, and for a part that is missing.
    """
    place = Path(path)
    if place.is_dir():
        found = sorted(file for file in place.iterdir() if file.suffix == SUFFIX)
        is_hugging_face = (place / "config.json").exists() and any(place.glob("*.safetensors*"))
        if not found or is_hugging_face:
            return None
        models = {_first(file) for file in found}
        if len(models) > 1:
            names = ", ".join(sorted(file.name for file in models))
            raise CheckpointError(f"{place} holds {len(models)} GGUF models ({names}): give the path of one")
        place = models.pop()
    elif not _is_gguf(place):
        return None
    return _parts(place)


def _is_gguf(place: Path) -> bool:
    """By its name, or by its first bytes, as a store that names files by their hash has them."""
    if not place.is_file():
        return False
    if place.suffix == SUFFIX:
        return True
    try:
        with place.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _first(file: Path) -> Path:
    """The first part of what `file` is a part of."""
    part = _PART.fullmatch(file.name)
    return file if part is None else file.with_name(f"{part['stem']}-00001-of-{part['count']}{SUFFIX}")


def _parts(file: Path) -> list[Path]:
    part = _PART.fullmatch(file.name)
    if part is None:
        return [file]
    count = int(part["count"])
    parts = [file.with_name(f"{part['stem']}-{i + 1:05}-of-{part['count']}{SUFFIX}") for i in range(count)]
    _check_there(parts)
    return parts


def _check_there(parts: Sequence[Path]) -> None:
    missing = [file.name for file in parts if not file.exists()]
    if not parts or missing:
        what = ", ".join(missing[:3]) + (", .." if len(missing) > 3 else "")
        raise CheckpointError(
            f"of {len(parts)} parts {len(missing)} are missing ({what}): fetch them into one directory"
        )
