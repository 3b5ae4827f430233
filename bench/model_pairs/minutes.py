"""For how many minutes a draft was trained, as a training.json says: the file in its folder, where all runs
are its own, or the one beside its folder, where its runs have its name, or its name in `of`.

The file is what `python -m recipes.train` writes with --card: {"draft": {"minutes": 6.0, ..}, ..}.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pearl_rt.errors import CheckpointError

FILE = "training.json"


def trained_minutes(draft: Path) -> float | None:
    """Of all runs of the draft in a folder together; None where no file names any. Raises CheckpointError for
    a file that cannot be read, and for minutes that are no number above 0.
    """
    folder = draft.resolve()
    for file in (folder / FILE, folder.parent / FILE):
        if file.is_file():
            runs = read_runs(file)
            if file.parent != folder:
                runs = {name: run for name, run in runs.items() if folder.name in (name, run.get("of"))}
            found = [minutes_of(file, name, run["minutes"]) for name, run in runs.items() if "minutes" in run]
            if found:
                return sum(found)
    return None


def read_runs(file: Path) -> dict[str, dict[str, Any]]:
    """The entries of a file by name. Raises CheckpointError."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}): write it with `python -m recipes.train .. --card`, "
            "or delete it"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(run, dict) for run in found.values()):
        raise CheckpointError(
            f'{file} has another form than {{"draft": {{"minutes": 6.0}}}}: write it with '
            "`python -m recipes.train .. --card`, or delete it"
        )
    return found


def minutes_of(file: Path, name: str, value: Any) -> float:
    """The minutes of an entry. Raises CheckpointError for what is no number above 0."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise CheckpointError(
            f"{file}: minutes of {name!r} are {value!r}: give a number above 0, or leave them out"
        )
    return float(value)
