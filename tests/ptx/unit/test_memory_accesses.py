"""Loads, stores, atomics and asynchronous copies: what they do, and what the checks say of wrong ones."""

from __future__ import annotations

import numpy as np
import pytest

from ptx.faults import KernelFault
from ptx.unit.small import PREFIX, addresses, integers, launch, same

THREAD = "mov.u32 %r0, %tid.x; mov.b32 %r1, global_smem; mad.lo.s32 %r2, %r0, {size}, %r1;"


@pytest.mark.parametrize("vector", [1, 2, 4])
@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("space", ["global", "shared"])
def test_loads_and_stores(space: str, bits: int, vector: int) -> None:
    """From one array to the other; by way of shared memory, in which lanes change places."""
    if bits * vector > 128:
        vector = 1  # 32 bytes are for later architectures
    dtype = f"u{bits // 8}"
    a = np.resize(integers(dtype), 64 * vector)
    out = np.zeros_like(a)
    size = a.itemsize * vector
    registers = ", ".join(f"{PREFIX[max(bits, 16)]}{10 + i}" for i in range(vector))
    kind = f"b{bits}" if vector == 1 else f"v{vector}.b{bits}"
    body = addresses([size, size]) + f"ld.global.{kind} {{{registers}}}, [%q0 + 0];"
    if space == "shared":
        body += f"""
          mov.u32 %r0, %tid.x; xor.b32 %r3, %r0, 5; mov.b32 %r1, global_smem;
          mad.lo.s32 %r2, %r0, {size}, %r1; mad.lo.s32 %r3, %r3, {size}, %r1;
          st.shared.{kind} [%r2], {{{registers}}}; ld.shared.{kind} {{{registers}}}, [%r3];"""
    body += f"st.global.{kind} [ %q1 + 0 ], {{{registers}}};"
    launch(body, a, out, grid=(2, 1, 1), shared=32 * size)
    order = np.arange(64) ^ (5 if space == "shared" else 0)
    same(out, a.reshape(64, vector)[order].reshape(-1))


def test_signed_bytes() -> None:
    a, out = integers("i1")[:64].copy(), np.zeros(64, "i2")
    launch(addresses([1, 2]) + "ld.global.s8 %h1, [%q0]; st.global.b16 [%q1], %h1;", a, out, grid=(2, 1, 1))
    same(out, a.astype("i2"))


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("kind", ["s32", "u32"])
def test_a_register_wider_than_what_is_read(kind: str, space: str) -> None:
    """The rest of it has the sign, or zeros."""
    a = integers("i4" if kind == "s32" else "u4")[:64].copy()
    assert (a >> 31).any() and not (a >> 31).all()
    body = addresses([4, 8])
    if space == "shared":
        body += THREAD.format(size=4) + "ld.global.b32 %r5, [%q0]; st.shared.b32 [%r2], %r5;"
    body += f"ld.{space}.{kind} %q5, [{'%r2' if space == 'shared' else '%q0'}]; st.global.b64 [%q1], %q5;"
    out = np.zeros(64, "i8")
    launch(body, a, out, grid=(2, 1, 1), shared=32 * 4)
    same(out, a.astype("i8"))


@pytest.mark.parametrize(
    ("name", "dtype", "step"),
    [
        ("add.u32", "u4", np.add),
        ("add.u64", "u8", np.add),
        ("or.b32", "u4", np.bitwise_or),
        ("and.b32", "u4", np.bitwise_and),
        ("min.s32", "i4", np.minimum),
        ("max.u64", "u8", np.maximum),
        ("exch.b32", "u4", lambda a, b: b),
    ],
)
def test_atomics_give_what_was_there(name: str, dtype: str, step: np.ufunc) -> None:
    a, total, old = integers(dtype)[:32], np.array([5], dtype), np.zeros(32, dtype)
    register = PREFIX[a.itemsize * 8]
    bits = a.itemsize * 8
    launch(
        addresses([a.itemsize, 0, a.itemsize])
        + f"ld.global.b{bits} {register}10, [%q0];"
        + f"atom.global.gpu.acq_rel.{name} {register}11, [%q1], {register}10;"
        + f"st.global.b{bits} [%q2], {register}11;",
        *(a, total, old),
    )
    steps = [np.array(5, dtype)]
    for value in a:
        steps.append(step(steps[-1], value).astype(dtype))
    same(old, np.array(steps[:-1], dtype))
    assert total[0] == steps[-1]


def test_compare_and_swap() -> None:
    cell, old = np.array([0], "u4"), np.zeros(32, "u4")
    launch(
        addresses([0, 4])
        + "add.u32 %r5, %r0, 1; atom.global.cas.b32 %r6, [%q0], %r0, %r5; st.global.b32 [%q1], %r6;",
        *(cell, old),
    )
    assert cell[0] == 32 and (old == np.arange(32)).all()


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        (
            "ld.global.b32 %r5, [%q0+128];",
            r"lane 0: 4 bytes at 0x\w+ are in none of its tensors: the nearest is a0 ",
        ),
        ("ld.global.b32 %r5, [%q0+4];", r"lane 31: .*a0 \(128 bytes at 0x\w+\): 0 bytes behind its end"),
        ("st.global.b32 [%q0+-4], %r0;", "lane 0: .*: 4 bytes before it"),
        ("ld.global.v2.b32 {%r5, %r6}, [%q0+124];", "lane 0: .*: across its end"),
        ("ld.global.b32 %r5, [%q0+2];", r"the address 0x\w+ is not a multiple of the 4 bytes of the access"),
        ("mov.b64 %q5, 0; ld.global.b32 %r5, [%q5];", "4 bytes at 0x0 are in none"),
        ("atom.global.add.u32 %r5, [%q0+128], 1;", "lane 0: 4 bytes at"),
        ("cp.async.ca.shared.global [%r2], [%q0+4], 4;", "lane 31: 4 bytes at .* 0 bytes behind its end"),
    ],
    ids=["far", "one-behind", "before", "across", "misaligned", "null", "atomic", "copy"],
)
def test_global_memory_that_was_not_given(instruction: str, message: str) -> None:
    a = np.zeros(32, "u4")
    body = addresses([4]) + THREAD.format(size=4) + "setp.ge.u32 %p1, %r0, 0;\n@%p1 " + instruction
    if instruction.startswith("mov"):
        body = body.replace("@%p1 mov", "mov")
    with pytest.raises(KernelFault, match=message) as caught:
        launch(body, a, shared=128)
    assert "small, program (0, 0, 0), warp 0" in str(caught.value)
    assert "line " in str(caught.value) and instruction.rpartition(";")[0].split()[-3] in str(caught.value)


def test_a_guard_keeps_an_access_in_its_tensor() -> None:
    a = np.zeros(20, "u4")
    launch(addresses([4]) + "setp.lt.u32 %p1, %r0, 20; @%p1 st.global.b32 [%q0], %r0;", a)
    same(a, np.arange(20, dtype="u4"))


def test_shared_memory_begins_as_poison() -> None:
    """In every program: nothing is left of the one before."""
    out = np.zeros(64, "u4")
    body = addresses([4]) + THREAD.format(size=4).replace("%r0, %tid.x", "%r9, %tid.x").replace(
        "%r0,", "%r9,"
    )
    launch(
        body + "ld.shared.b32 %r5, [%r2]; st.global.b32 [%q0], %r5; st.shared.b32 [%r2], 1;",
        out,
        grid=(2, 1, 1),
        shared=128,
    )
    assert (out == 0xFFFFFFFF).all()


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        (
            "ld.shared.b32 %r5, [%r2+4];",
            "lane 31: 4 bytes at 128 in shared memory are outside of its 128 bytes",
        ),
        ("st.shared.b32 [%r2+-4], %r0;", "lane 0: 4 bytes at -4 in shared memory are outside"),
        ("mov.b32 %r2, 0; ld.shared.b32 %r5, [%r2];", "outside of its 128 bytes"),
        ("ld.shared.b32 %r5, [%r2+2];", "is not a multiple of the 4 bytes"),
        ("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r5}, [%r2];", "is not a multiple of the 16 bytes"),
    ],
    ids=["behind", "before", "null", "misaligned", "matrix"],
)
def test_shared_memory_that_was_not_given(instruction: str, message: str) -> None:
    with pytest.raises(KernelFault, match=message):
        launch(THREAD.format(size=4) + instruction, shared=128)


COPY = "cp.async.cg.shared.global [%r2], [%q0], 0x10, %r9; cp.async.commit_group;"
COPIED = addresses([16, 16]) + "mov.u32 %r0, %tid.x; mov.b32 %r1, global_smem; mad.lo.s32 %r2, %r0, 16, %r1;"
OUT = "ld.shared.v4.b32 {%r10, %r11, %r12, %r13}, [%r2]; st.global.v4.b32 [%q1], {%r10, %r11, %r12, %r13};"


@pytest.mark.parametrize("given", [16, 8, 4, 0])
def test_copies_arrive_with_zeros_behind_them(given: int) -> None:
    a, out = integers("u4")[:128].copy(), np.zeros(128, "u4")
    launch(COPIED + f"mov.u32 %r9, {given};" + COPY + "cp.async.wait_group 0;" + OUT, a, out, shared=512)
    expected = a.reshape(32, 4).copy()
    expected[:, given // 4 :] = 0
    same(out, expected.reshape(-1))


def test_a_copy_of_nothing_reads_nowhere() -> None:
    a, out = np.zeros(4, "u4"), np.ones(128, "u4")
    launch(COPIED + "mov.u32 %r9, 0;" + COPY + "cp.async.wait_all;" + OUT, a, out, shared=512)
    assert not out.any()


@pytest.mark.parametrize(
    "wait",
    ["", "cp.async.wait_group 1;", "cp.async.commit_group; cp.async.wait_group 1; cp.async.commit_group;"],
)
def test_a_copy_that_was_not_waited_for(wait: str) -> None:
    """The first two are found; in the third the group of the copy has been waited for."""
    a, out = integers("u4")[:128].copy(), np.zeros(128, "u4")
    body = COPIED + "mov.u32 %r9, 16;" + COPY + wait + OUT
    if wait.count("commit"):
        launch(body, a, out, shared=512)
        return same(out, a)
    with pytest.raises(KernelFault, match=r"are read, and a cp\.async of warp 0 .* was not waited for"):
        launch(body, a, out, shared=512)
    return None


def test_a_store_where_a_copy_is_under_way() -> None:
    a, out = np.zeros(128, "u4"), np.zeros(128, "u4")
    with pytest.raises(KernelFault, match=r"are stored, and a cp\.async of warp 0"):
        launch(COPIED + "mov.u32 %r9, 16;" + COPY + "st.shared.b32 [%r2], 1;", a, out, shared=512)


def test_a_copy_longer_than_its_target() -> None:
    a, out = np.zeros(128, "u4"), np.zeros(128, "u4")
    with pytest.raises(KernelFault, match=r"cp\.async takes 32 bytes from .*, more than its target has"):
        launch(COPIED + "mov.u32 %r9, 32;" + COPY, a, out, shared=512)


# Two warps; %r3 is what the other warp's lane has in shared memory.
WARPS = """mov.u32 %r0, %tid.x; mov.b32 %r1, global_smem; mad.lo.s32 %r2, %r0, 4, %r1;
xor.b32 %r3, %r0, 32; mad.lo.s32 %r3, %r3, 4, %r1; shr.u32 %r4, %r0, 5; setp.eq.u32 %p1, %r4, 0;"""
RACES = {
    "read": (
        "st.shared.b32 [%r2], %r0; {} ld.shared.b32 %r5, [%r3];",
        "(are read, and warp . stored|stored, .*read)",
    ),
    "overwrite": (
        "ld.shared.b32 %r5, [%r2]; {} st.shared.b32 [%r3], %r0;",
        "(warp . read there|are read, and)",
    ),
    "write": ("st.shared.b32 [%r2], %r0; {} st.shared.b32 [%r3], %r0;", "warp . stored other values there"),
    "copy": (
        "ld.shared.b32 %r5, [%r2]; {} ld.param.b64 %q0, [small_param_0];"
        "cp.async.ca.shared.global [%r3], [%q0], 4;",
        "(warp . read there without|was not waited)",
    ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("race", RACES)
def test_races_of_warps(race: str, seed: int) -> None:
    """Found whatever the order; and a barrier ends them."""
    body, message = RACES[race]
    a = np.zeros(4, "u4")
    launch(WARPS + body.format("bar.sync 0;"), a, threads=64, shared=256, seed=seed)
    with pytest.raises(KernelFault, match=f"{message}.* without a barrier|not waited"):
        launch(WARPS + body.format(""), a, threads=64, shared=256, seed=seed)


GLOBAL = WARPS + "ld.param.b64 %q0, [small_param_0]; mad.wide.u32 %q1, %r0, 4, %q0; xor.b32 %r3, %r0, 32;"
GLOBAL += "mad.wide.u32 %q2, %r3, 4, %q0;"
GLOBAL_RACES = {
    "read": "st.global.b32 [%q1], %r0; {} ld.global.b32 %r5, [%q2];",
    "overwrite": "ld.global.b32 %r5, [%q0]; {} @%p1 st.global.b32 [%q0], 7;",
    "write": "st.global.b32 [%q1], %r0; {} st.global.b32 [%q2], %r0;",
}


@pytest.mark.parametrize("race", GLOBAL_RACES)
def test_races_of_warps_in_a_small_tensor(race: str) -> None:
    a = np.zeros(64, "u4")
    launch(GLOBAL + GLOBAL_RACES[race].format("bar.sync 0;"), a, threads=64, global_races=True)
    a[:] = 0
    with pytest.raises(KernelFault, match=r"4 bytes at \d+ of a0 are .* without a barrier between"):
        launch(GLOBAL + GLOBAL_RACES[race].format(""), a, threads=64, global_races=True)


def test_programs_may_share_a_tensor_and_atomics_are_no_race() -> None:
    a = np.zeros(64, "u4")
    launch(GLOBAL + "atom.global.add.u32 %r5, [%q0+8], 1;", a, threads=64, grid=(3, 1, 1), global_races=True)
    launch(
        GLOBAL + "mov.u32 %r5, %ctaid.x; st.global.b32 [%q1], %r5;",
        a,
        threads=64,
        grid=(3, 1, 1),
        global_races=True,
    )


@pytest.mark.parametrize("seed", range(3))
def test_equal_values_may_be_stored_by_several_warps(seed: int) -> None:
    out = np.zeros(64, "u4")
    lane = "and.b32 %r5, %r0, 31; mad.lo.s32 %r6, %r5, 4, %r1;"
    finish = "ld.param.b64 %q0, [small_param_0]; mad.wide.u32 %q0, %r0, 4, %q0; st.global.b32 [%q0], %r7;"
    body = WARPS + lane + "st.shared.b32 [%r6], %r5; ld.shared.b32 %r7, [%r6];" + finish
    launch(body, out, threads=64, shared=256, seed=seed)
    same(out, (np.arange(64) % 32).astype("u4"))


def test_bytes_beside_each_other_are_no_race() -> None:
    """Two warps store every other byte."""
    body = "and.b32 %r5, %r0, 31; shl.b32 %r5, %r5, 1; add.u32 %r5, %r5, %r4; add.u32 %r5, %r5, %r1;"
    launch(WARPS + body + "cvt.u16.u32 %h1, %r0; st.shared.b8 [%r5], %h1;", threads=64, shared=64)
