"""PTX as text: what is read of it, and what is refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from ptx.decode import OPCODES
from ptx.driver import ARCHITECTURES, PtxDriver, program_of
from ptx.faults import KernelFault
from ptx.opcodes import canonical
from ptx.statements import PtxError, read, split_operands
from ptx.unit.small import addresses, kernel, launch

MODULE = """
.extern .func __assertfail
(
  .param .b64 __assertfail_param_0, .param .b64 __assertfail_param_1, .param .b32 __assertfail_param_2,
  .param .b64 __assertfail_param_3, .param .b64 __assertfail_param_4
)
.noreturn;
.global .align 1 .b8 message[6] = {119, 114, 111, 110, 103};
.global .align 1 .b8 file[5] = {97, 46, 112, 121};
.global .align 1 .b8 function[2] = {102};
.global .align 4 .b8 table[8] = {1, 0, 0, 0, 2};
"""
ASSERTION = """
  setp.ne.u32 %p1, %r0, 5; @%p1 bra $done;
  { // callseq 0, 0
  .param .b64 param0; .param .b64 param1; .param .b32 param2; .param .b64 param3; .param .b64 param4;
  mov.b64 %q10, message; cvta.global.u64 %q11, %q10; st.param.b64 [param0], %q11;
  mov.b64 %q10, file; cvta.global.u64 %q11, %q10; st.param.b64 [param1], %q11;
  st.param.b32 [param2], 93; mov.b64 %q10, function; cvta.global.u64 %q11, %q10; st.param.b64 [param3], %q11;
  st.param.b64 [param4], 1;
  call.uni
  __assertfail,
  (param0, param1, param2, param3, param4
  );
  } // callseq 0
  trap;
$done:
"""


def test_a_scope_may_end_in_the_first_column() -> None:
    """As that of inline assembly does; the kernel goes on behind it."""
    text = read(
        kernel("{\n  .reg .u32 thread;\n  mov.u32 thread, %tid.x;\n}\n$behind: add.s32 %r1, %r2, 1;\n", 1)
    )
    assert [statement.opcode for statement in text.statements] == ["mov.u32", "add.s32", "ret"]
    assert text.labels == {"$behind": 1}


def test_statements_keep_their_lines_and_sources() -> None:
    body = (
        "  // a comment; with a semicolon\n"
        "  .loc 1 12 4                          // filters.py:12:4\n"
        "  @!%p3 add.s32 \t%r1, %r2, -5; $a: $b: mov.b32 {%h1, %h2}, %r1;\n"
        "  ld.global.b32\n    %r7,\n    [ %q1 + 16 ];\n"
    )
    text = read(kernel(body, 2, threads=64))
    assert (text.name, text.num_threads, text.params[1]) == ("small", 64, ("u64", "small_param_1"))
    first, second, third, last = text.statements
    assert (first.guard, first.negated, first.opcode) == ("%p3", True, "add.s32")
    assert first.operands == ("%r1", "%r2", "-5") and first.source == "filters.py:12"
    assert second.operands == ("{%h1, %h2}", "%r1") and second.line == first.line
    assert third.operands == ("%r7", "[ %q1 + 16 ]") and third.line == first.line + 1
    assert text.labels == {"$a": 1, "$b": 1} and str(first) == "@!%p3 add.s32 %r1, %r2, -5"
    assert last.opcode == "ret" and text.register_type("%r7") == "b32" and text.register_type("%x1") is None


def test_operands_are_cut_outside_of_brackets() -> None:
    assert split_operands("{a, b}, [c + 4], (d, e), f") == ("{a, b}", "[c + 4]", "(d, e)", "f")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("ld.global.L1::evict_last.v4.f32", "ld.global.b32"),
        ("ld.acquire.gpu.global.u64", "ld.global.b64"),
        ("st.relaxed.sys.global.v2.b16", "st.global.b16"),
        ("atom.global.sys.release.exch.b32", "atom.global.exch.b32"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "mma.m16n8k16.row.col.f32.f16.f16.f32"),
        ("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", "ldmatrix.x4.trans"),
        ("cp.async.cg.shared.global.L2::128B", "cp.async"),
        ("fence.proxy.async.shared::cta", "fence.proxy.async"),
        ("add.rz.f32", "add.rz.f32"),  # another rounding is another opcode
        ("cvt.rn.f16.f32", "cvt.rn.f16.f32"),
    ],
)
def test_names_lose_what_makes_no_difference(written: str, name: str) -> None:
    assert canonical(written) == name


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("add.rz.f32 %r1, %r2, %r3;", r"line \d+ of the PTX: opcode add.rz.f32 is not known to the executor"),
        ("tcgen05.ld.b32 %r1, [%r2];", "opcode tcgen05.ld.b32 is not known"),
        (
            "wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {%r1}, %q1, %q2, 1, 1, 1, 0, 0;",
            "is not known",
        ),
        ("bar.sync 1;", "a barrier of other than all threads, or with another number than 0"),
        ("bar.sync 0, 16;", "a barrier of other than all threads"),
        ("call.uni printf, (%q1);", "a call of printf is not known"),
        ("add.s32 %r1, %q2, %r3;", "%q2 is b64, where a value of 32 bits is needed"),
        ("add.s32 %r1, %x2, %r3;", "%x2 is not declared, where a value of 32 bits"),
        ("setp.eq.s32 %r1, %r2, %r3;", "%r1 is b32, where a predicate is needed"),
        ("add.s32 %r1, %r2;", "add.s32 has 2 operands, expected more"),
        ("add.s32 %r1, %r2, %r3, %r4;", "add.s32 has 4 operands, expected 3"),
        ("ld.global.b32 %r1, %q1;", "%q1 is not an address"),
        ("ld.param.b64 %q1, [other];", r"\[other\] is no parameter of the kernel"),
        ("bra $nowhere;", r"\$nowhere is no label"),
        ("add.s32 %r1, %r2, %r3", "does not end"),
    ],
)
def test_what_is_not_known_is_refused_when_it_is_read(body: str, message: str) -> None:
    with pytest.raises(PtxError, match=message) as caught:
        program_of(kernel(body).replace("  ret;\n", "" if "not end" in message else "  ret;\n"))
    assert not isinstance(caught.value, KernelFault) and "small" in str(caught.value)


def test_text_that_is_no_kernel() -> None:
    with pytest.raises(PtxError, match="the PTX has no kernel with a number of threads"):
        program_of(".version 8.7\n")


def test_an_assertion_tells_its_message_and_place() -> None:
    with pytest.raises(KernelFault, match=r"lane 5: device assertion failed: wrong \(a.py:93, f\)"):
        launch("mov.u32 %r0, %tid.x;" + ASSERTION, module=MODULE)
    launch("mov.u32 %r0, %tid.x; add.u32 %r0, %r0, 6;" + ASSERTION, module=MODULE)


def test_arrays_of_the_module_can_be_read() -> None:
    out = np.zeros(32, "u4")
    body = "and.b32 %r5, %r0, 1; mov.b64 %q5, table; mad.wide.u32 %q5, %r5, 4, %q5; ld.global.b32 %r6, [%q5];"
    launch(addresses([4]) + body + "st.global.b32 [%q0], %r6;", out, module=MODULE)
    assert (out == np.arange(32) % 2 + 1).all()


def test_a_kernel_that_waits_for_the_one_before_it_finds_it_ended() -> None:
    """Programmatic dependent launch: kernels run one after the other here, whatever they allow."""
    out = np.zeros(32, "u4")
    step = "griddepcontrol.launch_dependents; griddepcontrol.wait; ld.global.b32 %r5, [%q0];"
    for count in (1, 2):
        launch(addresses([4]) + step + "add.u32 %r5, %r5, 1; st.global.b32 [%q0], %r5;", out)
        assert (out == count).all()
    with pytest.raises(PtxError, match=r"opcode griddepcontrol\.start is not known to the executor"):
        program_of(kernel("griddepcontrol.start;"))


def test_every_opcode_has_a_letter_for_each_operand() -> None:
    assert len(OPCODES) > 400
    assert all(set(letters) <= set("hwqxpaiHWQXP+") for _, letters in OPCODES.values())


def test_an_architecture_that_is_not_known() -> None:
    with pytest.raises(PtxError, match="architecture sm_75 is not known: choose sm_80 or sm_90"):
        PtxDriver("sm_75")
    assert [PtxDriver(name).get_device_capability() for name in ARCHITECTURES] == [(8, 0), (9, 0)]
