"""The command line of a benchmark: the options that several of them have, and how one ends.

It ends with its figures as JSON, and with status 0, 1 where outputs differ, 2 for what cannot be run, or 130
after Ctrl-C.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pearl_rt.checkpoint.shapes import WEIGHT_BITS
from pearl_rt.errors import PearlError

SHARED: dict[str, dict[str, Any]] = {
    "target": {"type": Path, "help": "checkpoint directory or GGUF file; alone it drafts by lookup"},
    "draft": {"type": Path, "help": "checkpoint directory or GGUF file, or lookup or none"},
    "pair": {"help": "planted:TARGET+DRAFT@ALPHA, as planted:88m+8m@0.8, instead of checkpoints"},
    "dtype": {"default": "auto", "choices": ("auto", "bfloat16", "float32")},
    "weights": {"default": "auto", "choices": tuple(WEIGHT_BITS), "help": "of the target's matrices"},
    "draft-weights": {"default": "auto", "choices": tuple(WEIGHT_BITS), "help": "of the draft's"},
    "prompts": {"type": Path, "help": "text, or JSONL of HumanEval, GSM8K, MGSM, MT-bench or Spec-Bench"},
    "num-prompts": {"type": int},
    "max-tokens": {"type": int},
    "repeats": {"type": int, "default": 1},
    "seed": {"type": int, "default": 0},
    "isa": {"help": "force an instruction set"},
    "threads": {"type": int, "help": "cores to use"},
    "json-out": {"type": Path, "help": "write the JSON of the last line, indented"},
}
MODELS = ("target", "draft", "pair", "dtype", "weights", "draft-weights")


def add_shared(parser: Any, *names: str, **defaults: Any) -> None:
    """Adds these options of SHARED to a parser or a group of one. defaults: by the attribute's name."""
    for name in names:
        own = {"default": defaults[key]} if (key := name.replace("-", "_")) in defaults else {}
        parser.add_argument(f"--{name}", **SHARED[name] | own)


def require_positive(parser: argparse.ArgumentParser, options: argparse.Namespace, *names: str) -> None:
    """Ends the program with status 2 if one of these numbers is below 1."""
    for name in names:
        number = getattr(options, name.replace("-", "_"))
        if number is not None and number < 1:
            parser.error(f"--{name} {number} would measure nothing: pass 1 or more")


def described(error: BaseException) -> str:
    """An error's type and the first line of its text, cut."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"


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
