"""Calls all that _C and _testing bind with random arguments, right and wrong: each call returns or raises.

    python tests/fakes/native_calls.py SEED NUM_CALLS LOG

What there is to call is found by looking: functions, constructors, methods and properties, and the names of
their arguments in the signatures that pybind11 writes. LOG holds the call that goes on: if the process ends,
that one did it.
"""

from __future__ import annotations

import faulthandler
import random
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from native_arguments import World

from pearl_rt import _C, _testing
from pearl_rt.errors import PearlError

# What a call may raise; an executor that was asked for what it cannot do says IndexError or RuntimeError.
EXPECTED = (PearlError, ValueError, TypeError, MemoryError, BufferError, IndexError, RuntimeError)

# Of _testing: they check nothing but what the matmul writes; or they hold threads until told otherwise.
ON_TRUST = ("grouped_linear", "unpacked", "run_items", "stall_threads", "resume_threads")


@dataclass
class Bound:
    """One thing to call. path: "judge", "BlockPool", "BlockPool.reserve", "CudaIssuer.form"."""

    path: str
    call: Callable[..., Any]
    names: list[str]  # of its arguments, the receiver left out
    receiver: str = ""  # its class
    can_be_called: bool = True  # False: a class without a constructor


def argument_names(doc: str) -> list[str]:
    """`f(self: C, a: list[int], *, b: int = 1) -> int` -> ["self", "a", "b"]."""
    depth, names, part = 0, [], ""
    for letter in doc.splitlines()[0].partition("(")[2]:
        if depth == 0 and letter in ",)":
            if found := re.match(r"\s*(\w+):", part):
                names.append(found[1])
            part = ""
            if letter == ")":
                break
        else:
            depth += (letter in "([{") - (letter in ")]}")
            part += letter
    return names


def everything() -> list[Bound]:
    """All that _C and _testing bind."""
    found = []
    for name, value in [*vars(_C).items(), *vars(_testing).items()]:
        if name.startswith("_") or name in ON_TRUST:
            continue
        if not isinstance(value, type):
            found.append(Bound(name, value, argument_names(value.__doc__ or "")))
            continue
        if "self" not in argument_names(value.__init__.__doc__ or ""):
            found.append(Bound(name, value, [], can_be_called=False))
        for key, member in vars(value).items():
            path = f"{name}.{key}"
            if isinstance(member, property):
                found.append(Bound(path, member.fget, [], name))
                if member.fset:
                    found.append(Bound(path + "=", member.fset, [key], name))
            elif key == "__init__" and (names := argument_names(member.__doc__ or "")):
                found.append(Bound(name, value, names[1:]))
            elif isinstance(member, staticmethod):
                call = getattr(value, key)
                found.append(Bound(path, call, argument_names(call.__doc__ or "")))
            elif callable(member) and (key == "__len__" or not key.startswith("_")):
                names = argument_names(member.__doc__ or "")
                found.append(Bound(path, getattr(value, key), names[1:], name))
    return found


def text_of(bound: Bound, receiver: Any, values: dict[str, Any]) -> str:
    given = ", ".join(f"{name}={value!r:.300}" for name, value in values.items())
    return f"{bound.path} of {receiver!r:.100}, called with ({given})"


def main(seed: int, num_calls: int, log_path: str) -> None:
    """Makes so many calls, and fails if one of what there is never returned."""
    faulthandler.enable()
    warnings.simplefilter("ignore")  # numpy's, of casts
    world, bounds = World(random.Random(seed)), everything()
    weights = [min(1 + len(bound.names), 4) for bound in bounds]
    returned = dict.fromkeys((b.path for b in bounds if b.can_be_called), 0)
    with open(log_path, "w") as log:
        for index in range(num_calls):
            bound = bounds[index] if index < len(bounds) else world.rng.choices(bounds, weights)[0]
            values = world.arguments(bound.path, bound.names)
            receiver = world.receiver(bound.receiver) if bound.receiver else None
            log.seek(0)
            log.truncate()
            log.write(f"call {index}: {text_of(bound, receiver, values)!a}\n")
            log.flush()
            given = (receiver,) if bound.receiver else ()
            try:
                if bound.path.endswith("="):
                    result = bound.call(*given, *values.values())
                else:
                    result = bound.call(*given, **values)
            except EXPECTED:
                continue
            returned[bound.path] += 1
            world.keep(result)
    for coordinator in world.pool["Coordinator"]:
        coordinator.stop()
    print(f"{num_calls} calls, of which {sum(returned.values())} returned")
    if never := [path for path, count in returned.items() if count == 0]:
        sys.exit(f"no call returned of {', '.join(never)}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
