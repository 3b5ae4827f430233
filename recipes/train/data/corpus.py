"""Text to train on, and the files kept apart from it: Python's standard library, or any directory.

Which files are held out depends on their paths alone, so every run, machine and stage agrees. Knows nothing
of tokens.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pearl_rt.errors import RequestError

STDLIB = "stdlib"
_HELD_OUT_ONE_IN = 40
_MAX_BYTES = 400_000
_MIN_BYTES = 64
_MAX_LINE = 2000
_MIN_LETTERS = 0.55
_TEST_WEIGHT = 0.26
# Installed packages, tables, and files that are damaged on purpose.
_NOT_SOURCE = re.compile(
    r"(^|/)(site-packages|__pycache__|pydoc_data|lib-dynload|ensurepip/_bundled)(/|$)"
    r"|^encodings/(?!__init__|aliases|idna|punycode|utf_8|hex_codec)"
    r"|lib2to3/tests/data|^test/(bad|encoded_modules|cjkencodings)|_sysconfigdata|^config-"
)
_IS_TEST = re.compile(r"(^|/)(test|tests|idle_test)(/|$)|(^|/)test_")
_TEXT_SUFFIXES = {".c", ".cc", ".cpp", ".h", ".java", ".js", ".md", ".py", ".rs", ".rst", ".ts", ".txt"}


@dataclass(frozen=True)
class Document:
    """One file. `weight` is the chance that an epoch includes it."""

    name: str  # relative path, with forward slashes
    text: str
    weight: float = 1.0

    @property
    def num_bytes(self) -> int:
        return len(self.text.encode())


@dataclass(frozen=True)
class Corpus:
    """Documents for training, and held-out ones that no stage but evaluation reads."""

    train: list[Document]
    held_out: list[Document]


def is_held_out(name: str) -> bool:
    """One path in 40, by a hash of the path; test files never."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return not _IS_TEST.search(name) and int.from_bytes(digest, "big") % _HELD_OUT_ONE_IN == 0


def _looks_like_source(text: str) -> bool:
    letters = sum(c.isalpha() or c.isspace() or c == "_" for c in text)
    return letters >= _MIN_LETTERS * len(text) and max(map(len, text.split("\n"))) <= _MAX_LINE


def _documents(root: Path, suffixes: set[str], is_stdlib: bool) -> Iterator[Document]:
    seen: set[bytes] = set()
    for path in sorted(p for p in root.rglob("*") if p.suffix in suffixes and p.is_file()):
        name = path.relative_to(root).as_posix()
        if is_stdlib and _NOT_SOURCE.search(name):
            continue
        content = path.read_bytes()
        digest = hashlib.sha256(content).digest()
        if digest in seen or len(content) < _MIN_BYTES or (is_stdlib and len(content) > _MAX_BYTES):
            continue
        seen.add(digest)
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            continue
        if is_stdlib and not _looks_like_source(text):
            continue
        yield Document(name, text, _TEST_WEIGHT if is_stdlib and _IS_TEST.search(name) else 1.0)


def read_corpus(data: str) -> Corpus:
    """`data`: "stdlib" for the source of this interpreter's standard library, or a directory of text files.

    Duplicates and files that are not UTF-8 are left out. Raises RequestError if nothing is left to train on.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if data == STDLIB else Path(data)
    if not root.is_dir():
        raise RequestError(f"--data {data!r} is neither {STDLIB!r} nor a directory: give one of these")
    suffixes = {".py"} if data == STDLIB else _TEXT_SUFFIXES
    documents = list(_documents(root, suffixes, data == STDLIB))
    train = [d for d in documents if not is_held_out(d.name)]
    held_out = [d for d in documents if is_held_out(d.name)]
    if not held_out and len(train) > 1:
        held_out = [train.pop()]
    if not train or not held_out:
        raise RequestError(
            f"--data {data!r} holds {len(documents)} text files: give a directory with at least two files "
            f"that end in {' '.join(sorted(suffixes))}"
        )
    return Corpus(train, held_out)
