"""Matrices of warps, and of four warps: layouts against numpy, and what guards asynchronous products."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ptx.faults import KernelFault
from ptx.unit.small import addresses, launch, same

KINDS = {"bf16": torch.bfloat16, "f16": torch.float16}
LANE = np.arange(32)


def halves(kind: str, *shape: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(bits, values) of random entries."""
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(KINDS[kind])
    return made.view(torch.int16).numpy().view("u2"), made.float().numpy()


def braces(first: int, count: int) -> str:
    return "{" + ", ".join(f"%r{first + i}" for i in range(count)) + "}"


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_and_stmatrix(count: int, transposed: bool) -> None:
    matrices = np.arange(count * 64, dtype="u2").reshape(count, 8, 8)
    fragments, back = np.zeros((32, count), "u4"), np.zeros_like(matrices)
    trans = ".trans" if transposed else ""
    move = f"setp.lt.u32 %p1, %r0, {8 * count}; @%p1 ld.global.v4.b32 {braces(10, 4)}, [%q0];"
    body = addresses([16, 4 * count, 16]) + "mov.b32 %r1, global_smem; mad.lo.s32 %r2, %r0, 16, %r1;" + move
    body += f"@%p1 st.shared.v4.b32 [%r2], {braces(10, 4)};"
    body += f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {braces(20, count)}, [%r2];"
    body += "".join(f"st.global.b32 [%q1+{4 * i}], %r{20 + i};" for i in range(count))
    body += f"stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r2+{128 * count}], {braces(20, count)};"
    body += f"@%p1 ld.shared.v4.b32 {braces(10, 4)}, [%r2+{128 * count}];"
    body += f"@%p1 st.global.v4.b32 [%q2], {braces(10, 4)};"
    # Lanes behind the last row have addresses too, which are not read.
    launch(body, matrices, fragments, back, shared=1024)
    turned = matrices.transpose(0, 2, 1) if transposed else matrices
    pairs = turned.reshape(count, 32, 2).astype("u4")
    same(fragments.reshape(-1), (pairs[..., 0] | pairs[..., 1] << 16).T.reshape(-1).copy())
    assert (back == matrices).all()


@pytest.mark.parametrize("kind", KINDS)
def test_mma(kind: str) -> None:
    a_bits, a = halves(kind, 16, 16, seed=1)
    b_bits, b = halves(kind, 16, 8, seed=2)
    c = np.random.default_rng(3).standard_normal((16, 8)).astype("f4")
    row, column = LANE // 4, 2 * (LANE % 4)

    def pair(bits: np.ndarray, first: Any, second: Any) -> np.ndarray:
        return bits[first].astype("u4") | bits[second].astype("u4") << 16

    left = [pair(a_bits, (row + r, column + k), (row + r, column + k + 1)) for k in (0, 8) for r in (0, 8)]
    right = [pair(b_bits, (column + k, row), (column + k + 1, row)) for k in (0, 8)]
    sums = [c[row + r, column + i].view("u4") for r in (0, 8) for i in (0, 1)]
    inputs = np.stack([*left, *right, *sums], 1).copy()
    out = np.zeros((32, 4), "f4")
    body = addresses([40, 16]) + "".join(f"ld.global.b32 %r{10 + i}, [%q0+{4 * i}];" for i in range(10))
    body += f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 {braces(30, 4)}, {braces(10, 4)}, "
    body += f"{braces(14, 2)}, {braces(16, 4)}; st.global.v4.b32 [%q1], {braces(30, 4)};"
    launch(body, inputs, out)
    total = c.copy()
    for k in range(16):
        total += a[:, k : k + 1] * b[k : k + 1]
    same(
        out.reshape(-1), np.stack([total[row + r, column + i] for r in (0, 8) for i in (0, 1)], 1).reshape(-1)
    )


# Four warps copy both operands to shared memory, 16 bytes a thread and turn, and multiply.
COPY = """mov.u32 %r0, %tid.x; mov.b32 %r1, global_smem; mad.lo.s32 %r2, %r0, 16, %r1;
ld.param.b64 %q0, [small_param_0]; ld.param.b64 %q1, [small_param_1]; mad.wide.u32 %q2, %r0, 16, %q0;"""
FENCE, BARRIER, COMMIT = "fence.proxy.async.shared::cta;", "bar.sync 0;", "wgmma.commit_group.sync.aligned;"
WAIT = "wgmma.wait_group.sync.aligned 0;"


def swizzled(matrix: np.ndarray) -> np.ndarray:
    """[rows, 64] of 16 bits as rows of 128 bytes, whose pieces of 16 change places with the row."""
    pieces = matrix.reshape(len(matrix), 8, 8)
    row, piece = np.indices(pieces.shape[:2])
    return pieces[row, piece ^ row % 8]


def descriptor(start: int, leading: int = 16) -> int:
    """Of rows of 128 bytes, swizzled; eight of them are 1024 bytes. start: in shared memory."""
    return (1024 + start) >> 4 | leading >> 4 << 16 | 1024 >> 4 << 32 | 1 << 62


def product(kind: str, n: int, in_registers: bool, transposed: bool, parts: dict[str, str]) -> None:
    """A [64, 64] times B [64, n], in four steps of k, as the definition."""
    a_bits, a = halves(kind, 64, 64, seed=1)
    b_bits, b = halves(kind, 64, n, seed=2)  # [k, n]
    if transposed:
        b_shared = np.concatenate([swizzled(b_bits[:, at : at + 64]) for at in range(0, n, 64)])
    else:
        b_shared = swizzled(np.ascontiguousarray(b_bits.T))
    data = np.concatenate([swizzled(a_bits).reshape(-1), b_shared.reshape(-1)]).view("u4").copy()
    warp, lane = np.arange(128) // 32, np.arange(128) % 32
    row, column = 16 * warp + lane // 4, 2 * (lane % 4)
    fragments = np.zeros((128, 16), "u4")
    for step in range(4):
        for i in range(4):
            at = row + 8 * (i % 2), 16 * step + column + 8 * (i // 2)
            fragments[:, 4 * step + i] = a_bits[at].astype("u4") | a_bits[at[0], at[1] + 1].astype("u4") << 16
    out = np.zeros((128, n // 2), "f4")
    turns = data.nbytes // 2048
    body = COPY + "ld.param.b64 %q3, [small_param_2]; mad.wide.u32 %q3, %r0, 64, %q3;"
    for turn in range(turns):
        at = 2048 * turn
        body += f"ld.global.v4.b32 {braces(10, 4)}, [%q2+{at}]; st.shared.v4.b32 [%r2+{at}], {braces(10, 4)};"
    body += "".join(f"ld.global.b32 %r{20 + i}, [%q3+{4 * i}];" for i in range(16))
    body += parts["fence"] + parts["barrier"] + "wgmma.fence.sync.aligned;"
    for step in range(4):
        b_start = 8192 + (step * 2048 if transposed else step * 32)
        body += f"mov.b64 %q10, {descriptor(step * 32)}; mov.b64 %q11, {descriptor(b_start, 8192)};"
        left = braces(20 + 4 * step, 4) if in_registers else "%q10"
        scales = f"1, 1, {int(transposed)}" if in_registers else f"1, 1, 0, {int(transposed)}"
        body += (
            f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{kind}.{kind} {braces(100, n // 2)}, {left}, %q11, "
        )
        body += f"{int(step > 0)}, {scales};"
    body += COMMIT + parts["wait"] + f"mad.wide.u32 %q1, %r0, {2 * n}, %q1;" + parts["after"]
    body += "".join(f"st.global.b32 [%q1+{4 * i}], %r{100 + i};" for i in range(n // 2))
    launch(body, data, out, fragments, threads=128, shared=data.nbytes)
    total = np.zeros((64, n), "f4")
    for k in range(64):
        total += a[:, k : k + 1] * b[k : k + 1]
    for i in range(n // 2):
        at = row + 8 * (i % 4 // 2), 8 * (i // 4) + column + i % 2
        same(out[:, i].copy(), total[at])


RIGHT = {"fence": FENCE, "barrier": BARRIER, "wait": WAIT, "after": ""}


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("in_registers", [False, True], ids=["shared", "registers"])
@pytest.mark.parametrize("n", [64, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_wgmma(kind: str, n: int, in_registers: bool, transposed: bool) -> None:
    product(kind, n, in_registers, transposed, RIGHT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fence": ""}, "a wgmma reads .* stored with no fence.proxy.async between"),
        ({"fence": "", "barrier": BARRIER + FENCE}, None),
        ({"barrier": ""}, "are read, and warps? .* stored there without a barrier|are stored, .* read there"),
        ({"wait": ""}, "a register of a wgmma is used before wgmma.wait_group"),
        ({"wait": "wgmma.wait_group.sync.aligned 1;"}, "a register of a wgmma is used before"),
        ({"wait": BARRIER + "st.shared.b32 [%r2+8192], 1;" + BARRIER + WAIT}, "while a wgmma read there"),
        ({"after": "mov.b64 %q12, 0; mov.b32 %r100, %r100;"}, None),
        ({"wait": "add.s32 %r20, %r20, 1;" + WAIT}, "a register of a wgmma is used before"),
    ],
    ids=[
        "no-fence",
        "fence-behind",
        "no-barrier",
        "no-wait",
        "wait-for-older",
        "overwritten",
        "plain",
        "left",
    ],
)
def test_what_guards_a_wgmma(changes: dict[str, str], message: str | None) -> None:
    if message is None:
        product("bf16", 64, True, False, RIGHT | changes)
        return
    with pytest.raises(KernelFault, match=message):
        product("bf16", 64, True, False, RIGHT | changes)


def test_a_descriptor_that_is_not_known() -> None:
    body = "mov.b64 %q1, 1024; wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 "
    with pytest.raises(KernelFault, match="a descriptor or scale of wgmma, 0x400, is unknown"):
        launch(body + f"{braces(10, 4)}, %q1, %q1, 1, 1, 1, 0, 0;", threads=128, shared=4096)
