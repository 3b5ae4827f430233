"""The text of a kernel in PTX as statements: what is written, not what it means.

Knows the lines of the text and the comments in which Triton names lines of its source.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

GUARDED = re.compile(r"^@(!?)(%?[\w$]+)\s+(.*)$", re.S)
LABEL = re.compile(r"^(\$?[\w$]+):\s*")
LOCATION = re.compile(r"^\.loc\s.*//\s*(\S+:\d+):\d+")
REGISTERS = re.compile(r"^\.reg\s+\.(\w+)\s+(.*)$", re.S)
DIRECTIVES = (".pragma", ".maxntid", ".minnctapersm", ".maxnreg", ".noreturn")


class PtxError(Exception):
    """A kernel that the executor does not take, or a check of a run that failed."""


@dataclass(frozen=True)
class Statement:
    """One instruction."""

    line: int  # of the text, from 1
    source: str  # "file.py:12", or nothing
    guard: str  # the predicate that it runs under, or nothing
    negated: bool
    opcode: str
    operands: tuple[str, ...]

    def __str__(self) -> str:
        guard = f"@{'!' if self.negated else ''}{self.guard} " if self.guard else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)}".strip()


@dataclass
class Text:
    """One kernel."""

    name: str
    params: list[tuple[str, str]]  # (type, name)
    num_threads: int
    constants: dict[str, bytes]  # arrays of the module, by name
    registers: dict[str, str] = field(default_factory=dict)  # type, by name, or by the name before a number
    statements: list[Statement] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # index of the statement behind

    def register_type(self, name: str) -> str | None:
        """ "b32", "pred", .. or None."""
        return self.registers.get(name) or self.registers.get(name.rstrip("0123456789") + "<")


def split_operands(text: str) -> tuple[str, ...]:
    """At commas that stand in no bracket."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "{[(") - (char in "}])")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return tuple(part.strip() for part in parts if part.strip())


def module_constants(head: str) -> dict[str, bytes]:
    """The .global arrays of bytes."""
    found = re.findall(r"\.global\s+\.align\s+\d+\s+\.b8\s+(\S+)\[(\d+)\](?:\s*=\s*\{([^}]*)\})?;", head)
    return {
        name: bytes(int(value) for value in values.split(",") if value.strip()).ljust(int(size), b"\0")
        for name, size, values in found
    }


def pieces(line: str) -> Iterator[str]:
    """The statements of one line: cut behind each semicolon, and around braces that are scopes."""
    for part in re.split(r"(?<=;)", line):
        rest = part.strip()
        while rest[:1] in ("{", "}"):
            rest = rest[1:].strip()
        if rest:
            yield rest


def read(ptx: str) -> Text:
    """The kernel of a module that has one. Raises PtxError."""
    entry = re.search(r"\.entry\s+(\w+)\s*\((.*?)\)(.*?)\n\{", ptx, re.S)
    threads = re.search(r"\.reqntid\s+(\d+)", ptx)
    if entry is None or threads is None:
        raise PtxError("the PTX has no kernel with a number of threads (.entry, .reqntid)")
    params = re.findall(r"\.param\s+\.(\w+)[^,]*?(\w+)\s*(?:,|$)", entry[2])
    text = Text(entry[1], params, int(threads[1]), module_constants(ptx[: entry.start()]))
    first_line = ptx.count("\n", 0, entry.end()) + 1
    source, begun, begun_at, depth = "", "", 0, 1
    for number, raw in enumerate(ptx[entry.end() :].split("\n"), first_line):
        if location := LOCATION.match(raw.strip()):
            source = location[1]
        line = raw.split("//")[0].strip()
        depth += line.count("{") - line.count("}")
        if line == "}" and depth == 0:  # of the kernel, not of a scope inside
            break
        if not line or line.startswith((".loc", ".file", ".branchtargets")):
            continue
        for piece in pieces(line):
            rest = piece
            while not begun and (label := LABEL.match(rest)):
                text.labels[label[1]] = len(text.statements)
                rest = rest[label.end() :]
            if not rest:
                continue
            begun_at = begun_at if begun else number
            begun = f"{begun} {rest}" if begun else rest
            if begun.endswith(";"):
                add(text, begun[:-1].strip(), begun_at, source)
                begun = ""
    if begun:
        raise PtxError(f"{text.name}: line {begun_at} of the PTX does not end: {begun}")
    return text


def add(text: Text, statement: str, line: int, source: str) -> None:
    """One statement, without its semicolon."""
    if statement.startswith(DIRECTIVES) or not statement:
        return
    if declared := REGISTERS.match(statement):
        for name in split_operands(declared[2]):
            text.registers[name.split("<")[0] + "<" * ("<" in name)] = declared[1]
        return
    if statement.startswith(".param"):
        kind, name = statement.split()[-2:]
        text.registers[name] = kind.lstrip(".")
        return
    guarded = GUARDED.match(statement)
    negated, guard, rest = guarded.groups() if guarded else ("", "", statement)
    opcode, _, operands = " ".join(rest.split()).partition(" ")
    text.statements.append(Statement(line, source, guard, bool(negated), opcode, split_operands(operands)))
