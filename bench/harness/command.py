"""How a benchmark ends: its figures as JSON, and 0, 1 where outputs differ, 2 for what cannot be run, 130
after Ctrl-C.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pearl_rt.errors import PearlError


def finish(figures: dict[str, Any], json_out: Path | None) -> dict[str, Any]:
    """Prints the figures as the last line, and writes them where --json-out says."""
    print(json.dumps(figures))
    if json_out:
        json_out.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def exit_code(name: str, run: Callable[[], dict[str, Any]]) -> int:
    """Of a benchmark of that name, whose figures say whether outputs were equal."""
    try:
        return 0 if run()["outputs_equal"] else 1
    except PearlError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
