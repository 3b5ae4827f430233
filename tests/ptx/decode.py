"""From statements to what the executor runs: opcodes as numbers, registers as slots, labels as indices.

Knows how operands are written in PTX. What each opcode takes, the executor says (pearl_rt._ptx.opcodes).
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pearl_rt import _ptx

from .opcodes import canonical
from .statements import PtxError, Statement, Text

OPCODES: dict[str, tuple[int, str]] = _ptx.opcodes()
SPECIALS = ("%tid.x", "%laneid", "%ctaid.x", "%ctaid.y", "%ctaid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z")
SPECIALS += ("%ntid.x", "%warpid")
ZEROS = ("%tid.y", "%tid.z")
WIDTHS = {"h": 16, "w": 32, "q": 64}
TYPES = {"h": {"b16", "u16", "s16", "f16", "bf16"}, "w": {"b32", "u32", "s32", "f32"}}
TYPES |= {"q": {"b64", "u64", "s64", "f64"}, "p": {"pred"}}
TYPES["x"] = TYPES["h"] | TYPES["w"]
PARAM_BYTES = {"64": 8}  # of a type that ends so; else 4
ADDRESS = re.compile(r"^\[\s*([\w$%.]+)\s*(?:\+\s*(-?\w+)\s*)?\]$")
NEVER, ALWAYS = 0, 1  # predicates
MOST_BYTES_CHECKED_AS_ONE = 16


@dataclass
class Program:
    """A kernel, decoded."""

    name: str
    kernel: _ptx.Kernel
    params: list[str]  # types, in order
    statements: list[Statement]
    constants: dict[str, ctypes.Array[ctypes.c_char]]  # arrays of the module, which loads may read


def integer(text: str) -> int:
    """An integer as PTX writes it; floating point as its bits."""
    if text[:2] in ("0f", "0F", "0d", "0D"):
        return int(text[2:], 16)
    return int(text.rstrip("U"), 0)


class Decoder:
    """Slots and constants of one kernel as they are asked for."""

    def __init__(self, text: Text) -> None:
        self.text = text
        self.slots: dict[str, int] = {}
        self.predicates: dict[str, int] = {}
        self.num_slots = self.num_constant_slots = 0
        self.constants: dict[tuple[int, int], int] = {}  # (bytes, value) -> slot
        self.specials: dict[str, int] = {}
        self.arrays = {name: ctypes.create_string_buffer(data) for name, data in text.constants.items()}
        self.params = {
            name: (self._new_constant(PARAM_BYTES.get(kind[-2:], 4)), PARAM_BYTES.get(kind[-2:], 4))
            for kind, name in text.params
        }
        self.code: list[list[int]] = []
        self.operands: list[int] = []
        self.touched: list[int] = []
        self.granule = self.global_granule = MOST_BYTES_CHECKED_AS_ONE
        self.guards_registers = any(s.opcode.startswith("wgmma.mma_async") for s in text.statements)

    def program(self) -> Program:
        """All statements. Raises PtxError, which names the opcode and the line."""
        for statement in self.text.statements:
            try:
                self._add(statement)
            except PtxError as error:
                raise PtxError(
                    f"{self.text.name}, line {statement.line} of the PTX: {error}\n    {statement}"
                ) from None
        self._emit("trap", [], Statement(0, "", "", False, "trap", ()))  # nothing runs past the end
        kernel = _ptx.Kernel(
            code=np.array(self.code, np.int32).reshape(-1, 7),
            operands=self.operands,
            touched=self.touched,
            constants=[(slot, size, value) for (size, value), slot in self.constants.items()],
            params=[(slot, size, 0) for slot, size in self.params.values()],
            specials=[self.specials.get(name, -1) for name in SPECIALS],
            num_slots=self.num_slots,
            num_constant_slots=self.num_constant_slots,
            num_predicates=2 + len(self.predicates),
            num_threads=self.text.num_threads,
            granule=self.granule,
            global_granule=self.global_granule,
        )
        types = [kind for kind, _ in self.text.params]
        return Program(self.text.name, kernel, types, self.text.statements, self.arrays)

    # Operands.

    def _new_constant(self, size: int) -> int:
        self.num_constant_slots += size // 4
        return self.num_constant_slots - size // 4

    def _constant(self, value: int, letter: str) -> int:
        width = WIDTHS.get(letter, 32)
        key = (8 if width == 64 else 4, value & ((1 << width) - 1))
        if key not in self.constants:
            self.constants[key] = self._new_constant(key[0])
        return ~self.constants[key]

    def _new_slot(self, letter: str) -> int:
        size = 2 if letter == "q" else 1
        self.num_slots += size
        return self.num_slots - size

    def _register(self, letter: str, name: str, written: bool) -> int:
        if name == "_" and written:
            return self._new_slot(letter)
        kind = self.text.register_type(name)
        if kind not in TYPES[letter]:
            wanted = "a predicate" if letter == "p" else f"a value of {WIDTHS.get(letter, '16 or 32')} bits"
            raise PtxError(f"{name} is {kind or 'not declared'}, where {wanted} is needed")
        if letter == "p":
            return self.predicates.setdefault(name, 2 + len(self.predicates))
        if name not in self.slots:
            self.slots[name] = self._new_slot(letter)
        if self.guards_registers:
            self.touched.append(self.slots[name] * 2 + written)
        return self.slots[name]

    def _predicate(self, text: str, written: bool) -> int:
        if re.fullmatch(r"-?\d+", text) and not written:
            return ALWAYS if int(text) else NEVER
        return self._register("p", text, written)

    def _value(self, letter: str, text: str, written: bool) -> int:
        """One operand in its letter's form."""
        if letter == "p":
            return self._predicate(text, written)
        if letter == "i":
            return integer(text)
        if text in SPECIALS:
            if text not in self.specials:
                self.specials[text] = self._new_slot("w")
            return self.specials[text]
        if text in ZEROS:
            return self._constant(0, letter)
        if not written and re.match(r"^-?\d", text):
            return self._constant(integer(text), letter)
        if text == "global_smem":
            return self._constant(_ptx.SHARED_BASE, letter)
        if text in self.params:
            return ~self.params[text][0]
        if text in self.arrays:
            return self._constant(ctypes.addressof(self.arrays[text]), letter)
        return self._register(letter, text, written)

    def _address(self, text: str, is_shared: bool) -> list[int]:
        found = ADDRESS.match(text)
        if found is None:
            raise PtxError(f"{text} is not an address")
        return [self._value("w" if is_shared else "q", found[1], False), integer(found[2] or "0")]

    def _encode(self, letters: str, statement: Statement, is_shared: bool) -> list[int]:
        """All operands."""
        given = list(statement.operands)
        out: list[int] = []
        position, at = 0, 0
        while at < len(letters):
            letter, is_list = letters[at], letters[at + 1 : at + 2] == "+"
            at += 1 + is_list
            if position >= len(given):
                raise PtxError(f"{statement.opcode} has {len(given)} operands, expected more")
            text, position = given[position], position + 1
            if letter == "a":
                out += self._address(text, is_shared)
                is_shared = False  # of cp.async, whose second address is global
                continue
            small, written = letter.lower(), letter.isupper()
            if is_list:
                items = [item.strip() for item in text.strip("{} ").split(",")]
                out += [len(items), *(self._value(small, item, written) for item in items)]
            else:
                out.append(self._value(small, text, written))
        if position != len(given):
            raise PtxError(f"{statement.opcode} has {len(given)} operands, expected {position}")
        return out

    # Instructions.

    def _emit(self, name: str, operands: Iterable[int], statement: Statement, target: int = -1) -> None:
        guard = self._predicate(statement.guard, False) if statement.guard else -1
        first = len(self.operands)
        self.operands.extend(operands)
        self.code.append([OPCODES[name][0], guard, statement.negated, first, target, 0, 0])

    def _add(self, statement: Statement) -> None:
        first_touched = len(self.touched)
        name, operands = self._rewritten(statement.opcode, list(statement.operands))
        if name not in OPCODES:
            raise PtxError(f"opcode {statement.opcode} is not known to the executor")
        plain = Statement(
            *(statement.line, statement.source, statement.guard, statement.negated),
            *(statement.opcode, tuple(operands)),
        )
        target = -1
        if name == "bra":
            target, encoded = self._label(operands[0]), []
        else:
            is_shared = ".shared" in statement.opcode or "matrix" in name
            encoded = self._encode(OPCODES[name][1], plain, is_shared)
            self._note_granule(name, statement.opcode, encoded)
        self._emit(name, encoded, statement, target)
        if name.startswith("wgmma.mma_async"):  # its own sums may follow each other
            del self.touched[first_touched : first_touched + encoded[0]]
        self.code[-1][5:] = [first_touched, len(self.touched) - first_touched]

    def _label(self, name: str) -> int:
        if name not in self.text.labels:
            raise PtxError(f"{name} is no label of the kernel")
        return self.text.labels[name]

    def _note_granule(self, name: str, opcode: str, encoded: list[int]) -> None:
        """Races are looked for in pieces of memory as small as the smallest access."""
        if name == "cp.async":
            self.granule = min(self.granule, encoded[4])
        elif name.startswith(("ld.", "st.")):
            vector = re.search(r"\.v(\d)", opcode)
            size = int(opcode.rpartition(".")[2].lstrip("bufs")) // 8 * int(vector[1] if vector else 1)
            if ".shared" in opcode:
                self.granule = min(self.granule, size)
            else:
                self.global_granule = min(self.global_granule, size)

    def _rewritten(self, opcode: str, operands: list[str]) -> tuple[str, list[str]]:
        """What PTX writes in several ways, in the one that the executor has."""
        name = canonical(opcode)
        if name.startswith("ld.param"):
            return self._load_param(opcode, operands)
        if name in ("ld.global.b32", "ld.shared.b32") and self._is_wide(operands[0]):
            return name.replace("b32", "s32.b64" if opcode.endswith(".s32") else "u32.b64"), operands
        if name.startswith("st.param"):
            return name.replace("st.param", "mov"), [operands[0].strip("[] "), operands[1]]
        if name.startswith("mov.b") and operands[0].startswith("{"):
            return name.replace("mov", "split"), operands
        if name.startswith("mov.b") and operands[1].startswith("{"):
            return name.replace("mov", "join"), operands
        if name.startswith("setp") and "|" in operands[0]:
            return name, [*operands[0].split("|"), *operands[1:]]
        if name.startswith("shfl"):
            value, _, fits = operands[0].partition("|")
            return name, [value, fits or self._spare_predicate(), *operands[1:]]
        if name == "cp.async" and len(operands) == 3:
            return name, [*operands, operands[2]]
        if name == "call":
            return self._call(operands)
        if name == "bar" and [integer(o) for o in operands] not in ([0], [0, self.text.num_threads]):
            raise PtxError("a barrier of other than all threads, or with another number than 0, is not known")
        if name in ("bar", "bar.warp"):
            return name, []
        if name.startswith("wgmma.mma_async"):
            return self._wgmma(name, operands)
        return name, operands

    def _is_wide(self, registers: str) -> bool:
        """Whether a register, or the first of a list, has 64 bits."""
        return self.text.register_type(registers.strip("{} ").split(",")[0]) in TYPES["q"]

    def _spare_predicate(self) -> str:
        self.text.registers["%spare"] = "pred"
        return "%spare"

    def _load_param(self, opcode: str, operands: list[str]) -> tuple[str, list[str]]:
        """The value of a parameter is a constant of the launch."""
        param = operands[1].strip("[] ")
        if param not in self.params:
            raise PtxError(f"{operands[1]} is no parameter of the kernel")
        kind, is_long = self.text.register_type(operands[0]), self.params[param][1] == 8
        if kind in TYPES["q"] and not is_long:
            sign = "s" if ".s" in opcode else "u"
            return f"cvt.{sign}64.{sign}32", [operands[0], param]
        letter = "q" if is_long else "w" if kind in TYPES["w"] else "h"
        return f"mov.b{WIDTHS[letter]}", [operands[0], param]

    def _call(self, operands: list[str]) -> tuple[str, list[str]]:
        callee, arguments = operands[0], operands[-1].strip("() ").split(",")
        if callee != "__assertfail" or len(arguments) != 5:
            raise PtxError(f"a call of {callee} is not known to the executor")
        return "call.__assertfail", [argument.strip() for argument in arguments[:4]]

    def _wgmma(self, name: str, operands: list[str]) -> tuple[str, list[str]]:
        """The form of a says which transpositions are written."""
        in_registers = operands[1].startswith("{")
        sums, a, b, adds, *scales = operands
        if scales[:2] != ["1", "1"] or len(scales) != (3 if in_registers else 4):
            raise PtxError(f"{name} with other scales than 1 is not known to the executor")
        kind = name.rpartition(".")[2]
        transposed = ["0", scales[2]] if in_registers else scales[2:]
        shape = "registers" if in_registers else "shared"
        return f"wgmma.mma_async.f32.{kind}.{shape}", [sums, a, b, adds, *transposed]


def decode(text: Text) -> Program:
    """A kernel that can be launched. Raises PtxError."""
    return Decoder(text).program()
