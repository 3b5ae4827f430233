"""What lanes and warps do together: shuffles, votes, branches that part them, barriers."""

from __future__ import annotations

import numpy as np
import pytest

from ptx.faults import KernelFault
from ptx.unit.small import addresses, apply, integers, launch, same

LANE = np.arange(32)


@pytest.mark.parametrize("by", [0, 1, 2, 5, 16, 31])
def test_shuffles(by: int) -> None:
    a = integers("u4")[:320]
    rows = a.reshape(-1, 32)

    def expected(source: np.ndarray) -> np.ndarray:
        inside = (source >= 0) & (source < 32)
        return rows[:, np.where(inside, source, LANE)].reshape(-1)

    same(apply(f"shfl.sync.bfly.b32 {{d}}, {{a}}, {by}, 31, -1", "u4", a), expected(LANE ^ by))
    same(apply(f"shfl.sync.up.b32 {{d}}, {{a}}, {by}, 0, -1", "u4", a), expected(LANE - by))
    same(apply(f"shfl.sync.down.b32 {{d}}, {{a}}, {by}, 31, -1", "u4", a), expected(LANE + by))
    same(apply(f"shfl.sync.idx.b32 {{d}}, {{a}}, {by}, 31, -1", "u4", a), expected(0 * LANE + by))
    fits = apply(f"shfl.sync.up.b32 %r40|{{d}}, {{a}}, {by}, 0, -1", "?", a)
    same(fits, np.tile(by <= LANE, 10))


def test_shuffles_within_segments() -> None:
    """Clamp and mask as CUDA makes them for a width of 8: the segments are those of eight lanes."""
    a = integers("u4")[:32]
    segments = (24 << 8) | 7
    source = (LANE & 24) | 3
    same(apply(f"shfl.sync.idx.b32 {{d}}, {{a}}, 3, {segments}, -1", "u4", a), a[source])
    down = np.where((LANE & 7) + 2 < 8, LANE + 2, LANE)
    same(apply(f"shfl.sync.down.b32 {{d}}, {{a}}, 2, {segments}, -1", "u4", a), a[down])


@pytest.mark.parametrize("kind", ["s32", "u32"])
def test_reductions(kind: str) -> None:
    dtype = {"s32": "i4", "u32": "u4"}[kind]
    a = integers(dtype)[:320]
    rows = a.reshape(-1, 32)
    for name, f in (("add", np.add), ("min", np.minimum), ("max", np.maximum)):
        found = apply(f"redux.sync.{name}.{kind} {{d}}, {{a}}, -1", dtype, a)
        same(found, np.repeat(f.reduce(rows, 1, dtype=dtype), 32))
    bits = a.view("u4")
    for name, f in (("and", np.bitwise_and), ("or", np.bitwise_or), ("xor", np.bitwise_xor)):
        found = apply(f"redux.sync.{name}.b32 {{d}}, {{a}}, -1", "u4", bits)
        same(found, np.repeat(f.reduce(bits.reshape(-1, 32), 1), 32))


def test_votes() -> None:
    a = np.random.default_rng(1).integers(0, 2, 320).astype(bool)
    a[:32], a[32:64] = True, False
    rows = a.reshape(-1, 32)
    ballots = (rows.astype("u8") << LANE.astype("u8")).sum(1).astype("u4")
    same(apply("vote.sync.ballot.b32 {d}, {a}, -1", "u4", a), np.repeat(ballots, 32))
    same(apply("vote.sync.any.pred {d}, {a}, -1", "?", a), np.repeat(rows.any(1), 32))
    same(apply("vote.sync.all.pred {d}, {a}, -1", "?", a), np.repeat(rows.all(1), 32))


def test_lanes_part_and_meet() -> None:
    """Loops of another length in each lane, and branches inside: then all lanes shuffle together."""
    a = np.random.default_rng(1).integers(0, 40, 320).astype("u4")
    found = apply(
        """mov.u32 {d}, 0; mov.u32 %r50, 0;
        $loop: setp.ge.u32 %p1, %r50, {a}; @%p1 bra $end;
        and.b32 %r51, %r50, 1; setp.eq.b32 %p2, %r51, 0; @%p2 bra $even;
        add.u32 {d}, {d}, 100; bra.uni $next;
        $even: add.u32 {d}, {d}, 1;
        $next: add.u32 %r50, %r50, 1; bra.uni $loop;
        $end: shfl.sync.bfly.b32 {d}, {d}, 1, 31, -1""",
        "u4",
        a,
    )
    own = a // 2 * 100 + (a + 1) // 2
    same(found, own.reshape(-1, 2)[:, ::-1].reshape(-1))


def test_lanes_end_one_by_one() -> None:
    out = np.zeros(32, "u4")
    launch(
        addresses([4])
        + """mov.u32 %r5, 0;
        $more: setp.eq.u32 %p1, %r5, %r0; @%p1 st.global.b32 [%q0], %r5; @%p1 ret;
        add.u32 %r5, %r5, 1; bra $more;""",
        out,
    )
    same(out, LANE.astype("u4"))


@pytest.mark.parametrize("seed", range(4))
def test_barriers_order_warps(seed: int) -> None:
    """Each warp passes a value on through shared memory, one barrier a step."""
    out = np.zeros(128, "u4")
    launch(
        """mov.u32 %r0, %tid.x; mov.b32 %r1, global_smem; mad.lo.s32 %r2, %r0, 4, %r1;
        add.u32 %r3, %r0, 32; and.b32 %r3, %r3, 127; mad.lo.s32 %r3, %r3, 4, %r1; mov.u32 %r4, %r0;
        mov.u32 %r5, 0;
        $step: st.shared.b32 [%r2], %r4; bar.sync 0; ld.shared.b32 %r4, [%r3]; bar.sync 0;
        add.u32 %r5, %r5, 1; setp.lt.u32 %p1, %r5, 3; @%p1 bra $step;
        ld.param.b64 %q0, [small_param_0]; mad.wide.u32 %q0, %r0, 4, %q0; st.global.b32 [%q0], %r4;""",
        out,
        threads=128,
        shared=512,
        seed=seed,
    )
    same(out, ((np.arange(128) + 96) % 128).astype("u4"))


WARP = "mov.u32 %r0, %tid.x; shr.u32 %r1, %r0, 5; and.b32 %r2, %r0, 31;"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "setp.lt.u32 %p1, %r2, 9; @!%p1 ret; bar.sync 0;",
            r"only lanes 0, .*, 8 of the warp reach the barrier",
        ),
        ("setp.lt.u32 %p1, %r2, 9; @%p1 bra $a; ret; $a: bar.sync 0;", "only lanes 0, .* reach the barrier"),
        (
            "setp.eq.u32 %p1, %r1, 2; @%p1 ret; bar.sync 0;",
            "waits at a barrier, and warp 2 ended without one",
        ),
        (
            "setp.eq.u32 %p1, %r1, 2; @%p1 bra $a; bar.sync 0; ret; $a: bar.sync 0;",
            "at this barrier, and warp 2 at another one, line",
        ),
        (
            "setp.lt.u32 %p1, %r2, 9; @%p1 shfl.sync.bfly.b32 %r5, %r0, 1, 31, -1;",
            "the member mask names lanes 0, .*, 31, and lanes 0, .*, 8 run the instruction",
        ),
        (
            "setp.lt.u32 %p1, %r2, 9; @%p1 shfl.sync.bfly.b32 %r5, %r0, 16, 31, 511;",
            "a shuffle reads from a lane that does not run it",
        ),
        ("setp.lt.u32 %p1, %r2, 9; @%p1 cp.async.commit_group;", "run an instruction that all run together"),
        ("setp.eq.u32 %p1, %r0, 70; @%p1 trap;", r"warp 2, lane 6: the program stopped itself \(trap\)"),
    ],
    ids=[
        "part-ends",
        "part-branches",
        "warp-ends",
        "two-barriers",
        "members",
        "source",
        "part-waits",
        "trap",
    ],
)
def test_what_must_be_done_together(body: str, message: str) -> None:
    with pytest.raises(KernelFault, match=message):
        launch(WARP + body, threads=128)


def test_a_program_that_does_not_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptx.driver.MOST_INSTRUCTIONS", 10_000)
    with pytest.raises(KernelFault, match="the program ran too many instructions"):
        launch("$a: bra $a;")
