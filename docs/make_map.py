"""Writes docs/map.md: one row per source file, each the first sentence of the file itself.

    python docs/make_map.py            writes the page
    python docs/make_map.py --check    exit status 1 if the page is not what would be written

The sentence is that of a Python file's docstring, or of the comment at the head of a C++ header, else of its
source. The docstring of a folder's __init__.py heads the folder. A file without one is an error.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from itertools import groupby, takewhile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "map.md"
ROOMS = ("pearl_rt", "kernels", "csrc", "recipes", "bench", "examples")
SUFFIXES = (".h", ".cpp", ".py")  # which of them speaks for its name, if there are several
HEAD = """# The map

One sentence per source file: its own first one. `make map` writes this page, and a test holds it against the
files.
"""


def sources() -> list[Path]:
    """The source files as git has or would take them: room by room, a folder's own files first."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *ROOMS]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    found = {Path(name) for name in names if name.endswith(SUFFIXES) and (ROOT / name).is_file()}
    return sorted(found, key=lambda path: (ROOMS.index(path.parts[0]), path.parent, path))


def head(path: Path) -> str:
    """What a file says of itself first: the docstring, or the comment that it begins with."""
    text = (ROOT / path).read_text()
    if path.suffix == ".py":
        return ast.get_docstring(ast.parse(text)) or ""
    comment = takewhile(lambda line: line.startswith("//"), text.splitlines())
    return "\n".join(line.removeprefix("//").strip() for line in comment)


def first_sentence(text: str) -> str:
    """Up to the first full stop that a space or the end follows; without the stop."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"\.(?:\s|$)", paragraph)[0]


def sentence(paths: list[Path]) -> str:
    """The sentence of files that share a name: of the header if there is one."""
    for path in sorted(paths, key=lambda path: SUFFIXES.index(path.suffix)):
        if said := first_sentence(head(path)):
            return said.replace("|", "\\|")
    raise SystemExit(f"{paths[0]} begins with no sentence: say first what it is")


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for folder, paths in groupby(sources(), key=lambda path: path.parent):
        files = list(paths)
        rows = [list(group) for _, group in groupby(files, key=lambda path: path.with_suffix(""))]
        package = folder / "__init__.py"
        parts.append(f"\n## {folder}\n")
        if package in files and head(package):
            parts.append(f"\n{first_sentence(head(package))}.\n")
        parts.append("\n| file | what it is |\n|---|---|\n")
        parts += [
            f"| `{row[0].with_suffix('').name}` | {sentence(row)} |\n" for row in rows if row != [package]
        ]
    return "".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/map.md from the first sentence of each file.")
    parser.add_argument("--check", action="store_true", help="compare only")
    if not parser.parse_args().check:
        PAGE.write_text(page())
    elif not PAGE.exists() or PAGE.read_text() != page():
        print("docs/map.md is not what the files say: run `make map`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
