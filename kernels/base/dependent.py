"""Programmatic dependent launch: a kernel begins while the one ahead of it on its stream still runs.

    kernel[grid](.., **dependent("linear", pdl))      its launch: a constant of the kernel, and an option
    await_previous(PDL)                               the first thing that its programs do

A GPU starts the programs of such a kernel once each program of the kernel ahead has allowed it, or has ended.
So what is late at a launch, and what a program does before its first load, stand beside the kernel ahead.

Why no bit can change. Every program of every kernel waits first, on every way through it, before it reads or
writes memory: griddepcontrol.wait returns when the kernel ahead has ended and its stores are seen. That
kernel's programs have waited too, so it ended after the one ahead of it: by induction all earlier kernels of
the stream have ended. Reads (RAW), stores over what an earlier kernel reads (WAR) and over what it stores
(WAW) keep the order that they have without. A program that returned before it waited would break this: its
kernel could end before the one ahead. Whatever is no kernel of ours (a copy, a fill, a product of torch,
an event) is launched without, and waits for the end of all that is ahead of it.
Weights alone could be read before the wait, as no kernel writes them. None is: the loads of a loop are asked
for together, behind it. Programs allow the next kernel as soon as they have waited. Earlier would be right
too; then the programs of several kernels would wait on a chip, and hold the shared memory of the other lane.

Needs compute capability 9.0. Interpreted kernels run one after another: there it does nothing.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .checks import interpreting

MIN_ARCH = 90  # compute capability * 10
INTERPRETED = tl.constexpr(interpreting())


@triton.jit
def await_previous(PDL: tl.constexpr):
    """Waits for the kernel ahead, then allows the next one."""
    if PDL and not INTERPRETED:
        gdc_wait()
        gdc_launch_dependents()


def dependent(op: str, pdl: bool) -> dict[str, Any]:
    """Of a launch whose kernel awaits the previous one. Raises ValueError on a GPU that has no such launches.

    Cases that are compiled ahead of time have a target of their own: without a driver nothing is refused.
    """
    if not pdl:
        return {"PDL": False}
    if not interpreting():
        try:
            arch = triton.runtime.driver.active.get_current_target().arch
        except RuntimeError:  # there is no driver
            arch = MIN_ARCH
        if arch < MIN_ARCH:
            raise ValueError(
                f"{op}: pdl (programmatic dependent launch) needs compute capability 9.0, and this GPU has "
                f"{arch / 10}: pass pdl=False"
            )
    return {"PDL": True, "launch_pdl": True}
