"""The name under which the executor has an opcode: PTX's own, less what makes no difference to one program.

Nothing is dropped that changes a result: an opcode with another rounding, type or shape is unknown, and
decode.py says so. Orders and scopes of memory are dropped, as one program runs at a time; so are hints to
caches.
"""

from __future__ import annotations

import re

CACHES = {"ca", "cg", "cs", "cv", "lu", "wb", "wt", "nc"}
ORDERS = {"weak", "volatile", "relaxed", "acquire", "release", "acq_rel"}
SCOPES = {"cta", "cluster", "gpu", "sys"}
VECTORS = {"v2", "v4", "v8"}
BITS = {"u8": "b8", "u16": "b16", "s16": "b16", "f16": "b16", "bf16": "b16"}
BITS |= {"u32": "b32", "s32": "b32", "f32": "b32", "u64": "b64", "s64": "b64", "f64": "b64"}
ROUNDED = {"add", "sub", "mul", "fma", "mad", "div", "sqrt", "rcp"}  # to nearest, ties to even
CONTROL = {"bra", "call", "ret", "shfl", "redux", "vote", "mma", "wgmma"}


def _memory(base: str, parts: list[str]) -> str:
    kept = [part.removesuffix("::cta") for part in parts if not part.startswith(("L1::", "L2::"))]
    kept = [part for part in kept if part not in CACHES | ORDERS | SCOPES | VECTORS]
    if base in ("ld", "st"):
        kept = [BITS.get(part, part) for part in kept]
    return ".".join([base, *kept])


def _matrix(base: str, parts: list[str]) -> str:
    needed = {"sync", "aligned", "m8n8", "b16"}
    kept = [part for part in parts if part not in needed and part not in ("shared", "shared::cta")]
    return ".".join([base, *sorted(kept, reverse=True)]) if needed <= set(parts) else ".".join([base, *parts])


def canonical(opcode: str) -> str:
    """The executor's name of it, which it may not have."""
    base, *parts = opcode.split(".")
    if base in ("ld", "st", "atom"):
        return _memory(base, parts)
    if base in ("ldmatrix", "stmatrix"):
        return _matrix(base, parts)
    if base in ROUNDED:
        return ".".join([base, *(part for part in parts if part != "rn")])
    if base in CONTROL:
        kept = [part for part in parts if part not in ("uni", "sync", "aligned")]
        return re.sub(r"\.m64n\d+k16\.", ".", ".".join([base, *kept]))
    if base in ("bar", "barrier"):
        return {"sync": "bar", "sync.aligned": "bar", "warp.sync": "bar.warp"}.get(".".join(parts), opcode)
    if base == "fence":
        if parts[0] == "proxy":
            return re.sub(r"\.shared::cta$", "", opcode)
        return "fence" if set(parts) <= ORDERS | SCOPES | {"sc"} else opcode
    if base == "membar":
        return "membar"
    if re.fullmatch(r"cp\.async\.c[ag]\.shared(::cta)?\.global(\.L2::\w+)*", opcode):
        return "cp.async"
    return opcode
