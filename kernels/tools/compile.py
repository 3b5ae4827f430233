"""Compiles kernels ahead of time, for chips that are not here, and reads what the compiler made of them.

Knows no kernel. Needs neither a GPU nor CUDA: Triton's wheel carries the assembler and the disassembler.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Shared memory that one program may have, by compute capability.
SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
LOAD_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}  # 4 if none of these
OPCODE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*(?:\.\w+)*)")


@dataclass(frozen=True)
class CompileCase:
    """One configuration of one kernel. A path is an argument's index, then one inside it if it is a tuple."""

    name: str  # operator, shape and kernel: "linear 4096x14336 bf16 linear"
    kernel: Any  # the @triton.jit function
    signature: dict[str, Any]  # of all arguments: "*bf16", "i32", "fp32", "constexpr", or a tuple of these
    constants: dict[tuple[int, ...], Any]  # by path
    num_warps: int = 4
    num_stages: int = 3
    divisible_by_16: tuple[tuple[int, ...], ...] = ()  # paths of integers and addresses that are
    options: dict[str, Any] = field(default_factory=dict)  # further compile options: enable_fp_fusion
    load_bytes: int = 0  # how wide weights or KV must be read; 0: no matter

    @property
    def key(self) -> str:
        """Equal for cases that are one to the compiler."""
        parts = (self.signature, self.constants, self.options)
        flat = [[(name, str(value)) for name, value in part.items()] for part in parts]
        name = f"{self.kernel.__module__}.{self.kernel.__name__}"
        return repr((name, flat, self.num_warps, self.num_stages, self.divisible_by_16, self.load_bytes))


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a case."""

    registers: int  # per thread
    shared: int  # bytes per program
    spills: int  # instructions that read or write local memory
    widest_load: int  # bytes, of the loads from global memory
    narrowest_copy: int  # bytes, of the asynchronous copies from global to shared memory; 0: there are none
    instructions: int  # of the listing; those that only fill its end are left out


def dependent(case: CompileCase) -> CompileCase:
    """The case with programmatic dependent launch, if its kernel has it."""
    if "PDL" not in case.signature:
        return case
    constants = case.constants | {(list(case.signature).index("PDL"),): True}
    return replace(case, constants=constants, options=case.options | {"launch_pdl": True})


def build(case: CompileCase, arch: int) -> Any:
    """Triton's own result, for compute capability arch / 10; what its cache holds is not compiled again."""
    attributes = {path: [["tt.divisibility", 16]] for path in case.divisible_by_16}
    return triton.compile(
        ASTSource(case.kernel, case.signature, case.constants, attributes),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": case.num_warps, "num_stages": case.num_stages, **case.options},
    )


def compile_case(case: CompileCase, arch: int) -> Compiled:
    """Builds a case, and reads what it takes."""
    compiled = build(case, arch)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        tool = triton.knobs.nvidia.cuobjdump.path
        run = subprocess.run([tool, "-res-usage", "-sass", cubin], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{case.name}: {tool} ended with {run.returncode}: {run.stderr.strip()}")
    return read_listing(run.stdout, compiled.metadata.shared)


def read_listing(listing: str, shared: int) -> Compiled:
    """From cuobjdump's listing of one kernel, and the shared memory that it asks for at launch."""
    usage = re.search(r"\bREG:(\d+) STACK:(\d+)", listing)
    opcodes = [opcode.split(".") for opcode in OPCODE.findall(listing)]
    if usage is None or not opcodes:
        raise RuntimeError(f"no kernel in cuobjdump's listing: {listing[:200]!r}")
    loads, copies = (
        [
            next((LOAD_BYTES[p] for p in opcode[1:] if p in LOAD_BYTES), 4)
            for opcode in opcodes
            if opcode[0] == kind
        ]
        for kind in ("LDG", "LDGSTS")
    )
    return Compiled(
        registers=int(usage[1]),
        shared=shared,
        spills=sum(opcode[0] in ("LDL", "STL") for opcode in opcodes) + (int(usage[2]) > 0),
        widest_load=max(loads + copies, default=0),
        narrowest_copy=min(copies, default=0),
        instructions=sum(opcode[0] != "NOP" for opcode in opcodes),
    )


def problems(case: CompileCase, arch: int, compiled: Compiled) -> list[str]:
    """Why this may not ship; empty if it may."""
    found = []
    if compiled.spills:
        found.append(f"registers are spilled: {compiled.spills} accesses to local memory, expected none")
    if compiled.shared > SHARED_LIMITS[arch]:
        found.append(f"{compiled.shared} bytes of shared memory, sm_{arch} has {SHARED_LIMITS[arch]}")
    width = compiled.narrowest_copy or compiled.widest_load
    if width < case.load_bytes:
        found.append(f"weights or KV are read by {width} bytes, expected {case.load_bytes}")
    return [f"{case.name}, sm_{arch}: {problem}" for problem in found]
