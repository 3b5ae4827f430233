"""Writes pearl_rt/_C.pyi, the types of the native module, from what the module says of itself.

    python docs/make_stubs.py            writes the file
    python docs/make_stubs.py --check    exit status 1 if the file is not what would be written

The module must be built. pybind11-stubgen reads its docstrings; types of arguments become those that callers
pass, and ruff formats the file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULE = "pearl_rt._C"
STUB = ROOT / "pearl_rt" / "_C.pyi"
HEAD = "# Written by `make stubs`.\n"
# The module takes whatever has __int__ or __float__. Callers pass numbers.
PLAIN = {
    "typing.SupportsInt | typing.SupportsIndex": "int",
    "typing.SupportsFloat | typing.SupportsIndex": "float",
    "typing.Any": "object",
    "*args)": "*args: object)",
}


def run(*command: str | Path, text: str | None = None) -> str:
    """What a module of this Python writes to stdout, with this checkout on its path."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", *map(str, command)]
    return subprocess.run(
        argv, cwd=ROOT, env=env, input=text, check=True, capture_output=True, text=True
    ).stdout


def stub() -> str:
    """The whole file."""
    with tempfile.TemporaryDirectory() as folder:
        run("pybind11_stubgen", MODULE, "--exit-code", "--output-dir", folder)
        text = Path(folder, *MODULE.split(".")).with_suffix(".pyi").read_text()
    for typed, plain in PLAIN.items():
        text = text.replace(typed, plain)
    return run("ruff", "format", "--stdin-filename", STUB.name, "-", text=HEAD + text)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write pearl_rt/_C.pyi from the built module.")
    parser.add_argument("--check", action="store_true", help="compare only")
    if not parser.parse_args().check:
        STUB.write_text(stub())
    elif STUB.read_text() != stub():
        print("pearl_rt/_C.pyi is not what the module says: run `make stubs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
