"""What a check of the executor found, in words: which program, which line, which tensor.

The kinds of fault are those of tests/ptx/native.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from pearl_rt import _ptx

from .decode import Program
from .statements import PtxError


class KernelFault(PtxError, RuntimeError):
    """A check failed while a kernel ran."""


@dataclass(frozen=True)
class Extent:
    """Memory that a launch was given."""

    name: str  # of the argument
    first: int
    end: int


def warps(mask: int) -> str:
    """ "warp 3", "warps 0, 2": of a mask."""
    found = [str(warp) for warp in range(32) if mask >> warp & 1]
    return f"warp{'s' * (len(found) != 1)} {', '.join(found)}"


def lanes(mask: int) -> str:
    found = [str(lane) for lane in range(32) if mask >> lane & 1]
    return f"lane{'s' * (len(found) != 1)} {', '.join(found)}"


def nearest(address: int, size: int, extents: list[Extent]) -> str:
    """Where an address lies beside the tensors of a launch."""
    if not extents:
        return "the launch was given no tensor"

    def distance(extent: Extent) -> int:
        return max(extent.first - address, address + size - extent.end, 0)

    extent = min(extents, key=distance)
    nbytes = extent.end - extent.first
    if address < extent.first:
        where = f"{extent.first - address} bytes before it"
    else:
        where = f"{address - extent.end} bytes behind its end" if address >= extent.end else "across its end"
    return f"the nearest is {extent.name} ({nbytes} bytes at {extent.first:#x}): {where}"


def place_of(fault: _ptx.Fault, extents: list[Extent]) -> str:
    """The bytes of a fault: shared addresses are small numbers, those of the host are not."""
    if fault.address < 1 << 20 or fault.address > 1 << 63:
        return f"{fault.size} bytes at {fault.address - _ptx.SHARED_BASE} in shared memory"
    inside = next((e for e in extents if e.first <= fault.address < e.end), None)
    where = f"{fault.address - inside.first} of {inside.name}" if inside else f"{fault.address:#x}"
    return f"{fault.size} bytes at {where}"


def text_at(address: int) -> str:
    """A string of the module, which the program keeps alive."""
    return ctypes.string_at(address).decode()


def found(fault: _ptx.Fault, program: Program, extents: list[Extent]) -> str:
    """The check's own words."""
    others, values = warps(fault.others), fault.values
    place = place_of(fault, extents)
    match fault.kind:
        case "bounds":
            return (
                f"{fault.size} bytes at {fault.address:#x} are in none of its tensors: "
                f"{nearest(fault.address, fault.size, extents)}"
            )
        case "misaligned":
            return f"the address {fault.address:#x} is not a multiple of the {fault.size} bytes of the access"
        case "shared_bounds":
            return f"{place} are outside of its {values[0]} bytes"
        case "race_read":
            return f"{place} are read, and {others} stored there without a barrier between"
        case "race_write":
            return f"{place} are stored, and {others} stored other values there without a barrier between"
        case "race_overwrite":
            return f"{place} are stored, and {others} read there without a barrier between"
        case "unwaited_read":
            return f"{place} are read, and a cp.async of {others} that writes there was not waited for"
        case "unwaited_write":
            return f"{place} are stored, and a cp.async of {others} that writes there was not waited for"
        case "overwritten":
            return f"{place} were stored by {others} while a wgmma read there: it was not waited for"
        case "unfenced":
            return (
                f"a wgmma reads {place}, which {others} stored with no fence.proxy.async between: it may "
                "read what was there before"
            )
        case "register_in_flight":
            return "a register of a wgmma is used before wgmma.wait_group"
        case "copy_too_long":
            return f"cp.async takes {fault.size} bytes from {fault.address:#x}, more than its target has"
        case "descriptor":
            return (
                f"a descriptor or scale of wgmma, {fault.address:#x}, is unknown or not the warp's only one"
            )
        case "barrier_not_reached":
            return f"the warp waits at a barrier, and {others} ended without one"
        case "barriers_differ":
            line = program.statements[values[0]].line
            return f"the warp waits at this barrier, and {others} at another one, line {line} of the PTX"
        case "barrier_by_a_part":
            return f"only {lanes(values[0])} of the warp reach the barrier"
        case "part_of_a_warp":
            return f"only {lanes(values[0])} of the warp run an instruction that all run together"
        case "members_absent":
            return f"the member mask names {lanes(values[0])}, and {lanes(values[1])} run the instruction"
        case "lane_absent":
            return "a shuffle reads from a lane that does not run it"
        case "assertion":
            message, file, line, function = values
            return (
                f"device assertion failed: {text_at(message)} ({text_at(file)}:{line}, {text_at(function)})"
            )
        case "trap":
            return "the program stopped itself (trap)"
        case "read_unawaited":
            return f"{place} are read before griddepcontrol.wait, and a kernel ahead may still store them"
        case "stored_unawaited":
            return f"{place} are stored before griddepcontrol.wait, and a kernel ahead may still use them"
        case "ended_unawaited":
            return (
                "lanes end without griddepcontrol.wait: the kernel would count as ended, and all ahead of it "
                "with it, while one of these still runs"
            )
        case "too_long":
            return "the program ran too many instructions: it does not end"
    raise AssertionError(f"a fault of unknown kind {fault.kind}")


def error_of(fault: _ptx.Fault, program: Program, extents: list[Extent]) -> KernelFault:
    """The exception for a launch that stopped."""
    place = f"{program.name}, program {tuple(fault.program)}"
    if fault.warp >= 0:
        place += f", warp {fault.warp}"
    if fault.lane >= 0:
        place += f", lane {fault.lane}"
    text = f"{place}: {found(fault, program, extents)}"
    if 0 <= fault.pc < len(program.statements):
        statement = program.statements[fault.pc]
        source = f" ({statement.source})" if statement.source else ""
        text += f"\n    line {statement.line} of the PTX{source}: {statement}"
    return KernelFault(text)
