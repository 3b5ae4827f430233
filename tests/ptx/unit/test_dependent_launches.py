"""Kernels that may begin before those ahead of them have ended: what each may do before it waits."""

from __future__ import annotations

import numpy as np
import pytest

from ptx.driver import Step
from ptx.faults import KernelFault
from ptx.unit.small import addresses, launch

COPY = "ld.global.b32 %r5, [%q0]; {between} st.global.b32 [%q1], %r5;"
WAIT = "griddepcontrol.wait;"


def arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.arange(32, dtype="u4"), np.zeros(32, "u4"), np.zeros(32, "u4")


def run(body: str, *given: np.ndarray, step: Step, dependent: bool = True) -> None:
    launch(addresses([4] * len(given)) + body, *given, step=step, dependent=dependent)


def first_kernel(weights: np.ndarray, made: np.ndarray) -> Step:
    """A step whose one kernel has stored into `made`."""
    step = Step()
    run(WAIT + COPY.format(between=""), weights, made, step=step)
    assert step.has_stored(made.ctypes.data, made.ctypes.data + made.nbytes)
    assert not step.has_stored(weights.ctypes.data, weights.ctypes.data + weights.nbytes)
    return step


def test_behind_the_wait_everything_is_allowed() -> None:
    weights, made, out = arrays()
    step = first_kernel(weights, made)
    run("griddepcontrol.launch_dependents;" + WAIT + COPY.format(between=""), made, out, step=step)
    assert (out == weights).all()


def test_what_no_kernel_ahead_stores_may_be_read_before_the_wait() -> None:
    weights, made, out = arrays()
    step = first_kernel(weights, made)
    run(COPY.format(between=WAIT), weights, out, step=step)
    assert (out == weights).all()


def test_what_a_kernel_ahead_stores_may_not() -> None:
    weights, made, out = arrays()
    step = first_kernel(weights, made)
    said = r"4 bytes at 0 of a0 are read before griddepcontrol\.wait, and a kernel ahead may still store them"
    with pytest.raises(KernelFault, match=said):
        run(COPY.format(between=WAIT), made, out, step=step)
    copy = "mov.b32 %r1, global_smem; mad.lo.s32 %r2, %r0, 4, %r1; cp.async.ca.shared.global [%r2], [%q0], 4;"
    with pytest.raises(KernelFault, match="of a0 are read before"):
        launch(addresses([4]) + copy + WAIT, made, shared=128, step=step, dependent=True)


@pytest.mark.parametrize("store", ["st.global.b32 [%q1], 7;", "atom.global.add.u32 %r5, [%q1], 1;"])
def test_nothing_may_be_stored_before_the_wait(store: str) -> None:
    """A kernel ahead may still read it."""
    weights, made, _ = arrays()
    said = r"4 bytes at 0 of a1 are stored before griddepcontrol\.wait, and a kernel ahead may still use them"
    with pytest.raises(KernelFault, match=said):
        run(store.replace("7", "%r0") + WAIT, weights, made, step=Step())


@pytest.mark.parametrize("lanes", ["", "setp.eq.u32 %p1, %r0, 3; @%p1 ret;"], ids=["all", "one"])
def test_every_lane_waits_before_it_ends(lanes: str) -> None:
    """Else the kernel could end before the one ahead, and the next one would not wait for that."""
    weights, made, _ = arrays()
    body = lanes + (WAIT + COPY.format(between="") if lanes else "")
    with pytest.raises(KernelFault, match=r"lanes end without griddepcontrol\.wait"):
        run(body, weights, made, step=Step())


def test_a_wait_of_some_lanes_is_theirs_alone() -> None:
    weights, made, _ = arrays()
    body = (
        "setp.lt.u32 %p1, %r0, 16; @%p1 griddepcontrol.wait; st.global.b32 [%q1], %r0; griddepcontrol.wait;"
    )
    with pytest.raises(KernelFault, match="64 of a1 are stored before"):
        run(body, weights, made, step=Step())


def test_a_kernel_that_is_launched_without_waits_for_nothing() -> None:
    weights, made, out = arrays()
    step = first_kernel(weights, made)
    run(COPY.format(between=""), made, out, step=step, dependent=False)
    assert (out == weights).all() and step.has_stored(out.ctypes.data, out.ctypes.data + 4)
