"""Runs a kernel of PTX text, one warp of it, by the few instructions that csrc/cuda/loop_kernels.h needs.

    kernel = Ptx(loop_ptx()).kernels["pearl_loop_turn"]
    calls = kernel.run([handle, words, told, reasons, num_slots, is_round], memory, num_threads=32)

`memory` is a dict from byte address to a value of 32 bits. Threads run one after the other up to each
instruction that all of them meet at (vote.sync), so that what one does alone is seen in text order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEADER = Path(__file__).resolve().parents[2] / "csrc" / "cuda" / "loop_kernels.h"
MASK = {"u32": 2**32 - 1, "s64": 2**64 - 1, "u64": 2**64 - 1, "b64": 2**64 - 1, "b32": 2**32 - 1}
COMPARE = {
    "ne": lambda a, b: a != b,
    "eq": lambda a, b: a == b,
    "ge": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
}


def loop_ptx() -> str:
    """The text that the driver is given."""
    found = re.search(r'R"ptx\((.*?)\)ptx"', HEADER.read_text(), re.S)
    assert found is not None
    return found[1]


@dataclass
class Thread:
    number: int
    at: int = 0
    registers: dict[str, Any] = field(default_factory=dict)
    is_done: bool = False


class Kernel:
    """One entry: its parameters' names, its instructions and where its labels are."""

    def __init__(self, parameters: list[str], body: str) -> None:
        self.parameters = parameters
        self.code: list[str] = []
        self.labels: dict[str, int] = {}
        for line in re.sub(r"//.*", "", body).replace("{", "").replace("}", "").splitlines():
            line = line.strip().rstrip(";")
            if line.endswith(":"):
                self.labels[line[:-1]] = len(self.code)
            elif line and not line.startswith((".reg", ".param")):
                self.code.append(line)

    def run(self, values: list[int], memory: dict[int, int], num_threads: int) -> list[tuple[int, int]]:
        """-> what cudaGraphSetConditional was called with, call by call."""
        given = dict(zip(self.parameters, values, strict=True))
        threads = [Thread(number) for number in range(num_threads)]
        calls: list[tuple[int, int]] = []
        while not all(thread.is_done for thread in threads):
            for thread in threads:
                while not thread.is_done and not self.code[thread.at].startswith("vote.sync"):
                    self.step(thread, given, memory, calls)
            waiting = [thread for thread in threads if not thread.is_done]
            if not waiting:
                break
            assert len(waiting) == num_threads == 32, "a vote of a whole warp that not all threads come to"
            to, voted, mask = self.operands(self.code[waiting[0].at])
            assert self.code[waiting[0].at].startswith("vote.sync.any.pred") and mask == "0xffffffff"
            answer = any(thread.registers[voted] for thread in waiting)
            for thread in waiting:
                thread.registers[to] = answer
                thread.at += 1
        return calls

    @staticmethod
    def operands(line: str) -> list[str]:
        return [operand.strip() for operand in line.split(None, 1)[1].split(",")] if " " in line else []

    def step(
        self, thread: Thread, given: dict[str, int], memory: dict[int, int], calls: list[tuple[int, int]]
    ) -> None:
        line, r = self.code[thread.at], thread.registers
        thread.at += 1
        if line.startswith("@"):
            guard, line = line[1:].split(None, 1)
            if not r[guard]:
                return
        op, operands = line.split()[0], self.operands(line)

        def value(name: str) -> int:
            if name == "%tid.x":
                return thread.number
            return int(r[name]) if name.startswith("%") else int(name)

        def place(text: str) -> int:
            base, _, offset = text.strip("[]").partition("+")
            return value(base) + int(offset or 0)

        kind = op.split(".")[-1]
        if op == "ret":
            thread.is_done = True
        elif op == "bra":
            thread.at = self.labels[operands[0]]
        elif op.startswith("ld.param."):
            r[operands[0]] = given[operands[1].strip("[]")] & MASK[kind]
        elif op in ("ld.global.u32", "ld.acquire.sys.global.u32"):
            r[operands[0]] = memory[place(operands[1])]
        elif op in ("st.global.u32", "st.release.sys.global.u32"):
            memory[place(operands[0])] = value(operands[1])
        elif op.startswith("st.param."):
            r[operands[0].strip("[]")] = value(operands[1]) & MASK[kind]
        elif op == "call.uni":
            handle, chosen = re.findall(r"\w+", line.split("(")[1])
            assert operands[0] == "cudaGraphSetConditional"
            calls.append((r[handle], r[chosen]))
        elif op.startswith("setp."):
            r[operands[0]] = COMPARE[op.split(".")[1]](value(operands[1]), value(operands[2]))
        elif op in ("or.pred", "and.pred"):
            one, two = r[operands[1]], r[operands[2]]
            r[operands[0]] = (one or two) if op == "or.pred" else (one and two)
        elif op == "selp.u32":
            r[operands[0]] = value(operands[1] if r[operands[3]] else operands[2])
        elif op == "mov.u32":
            r[operands[0]] = value(operands[1])
        elif op in ("add.u32", "add.s64"):
            r[operands[0]] = (value(operands[1]) + value(operands[2])) & MASK[kind]
        elif op == "mul.wide.u32":
            r[operands[0]] = value(operands[1]) * value(operands[2])
        else:
            raise AssertionError(f"an instruction that is not known here: {line}")


class Ptx:
    """The entries of a text, by name."""

    def __init__(self, text: str) -> None:
        self.kernels = {
            name: Kernel(re.findall(r"\.param\s+\.\w+\s+(\w+)", parameters), body)
            for name, parameters, body in re.findall(
                r"\.visible \.entry (\w+)\((.*?)\)\s*\{(.*?)\n\}", text, re.S
            )
        }
