"""Ahead-of-time compilation: every shipped configuration fits its chips, and the checks see what doesn't."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from subprocess import CompletedProcess
from typing import Any

import pytest

from pearl_rt.kernels.tools.cases import LAUNCHES
from pearl_rt.kernels.tools.compile import SHARED_LIMITS, CompileCase, Compiled, problems, read_listing

Python = Callable[..., CompletedProcess[str]]
pytestmark = pytest.mark.slow
FITS = Compiled(registers=90, shared=98304, spills=0, widest_load=16, narrowest_copy=16, instructions=900)
LISTING = """
 Function some_kernel:
  REG:90 STACK:{stack} SHARED:1024 LOCAL:0 CONSTANT[0]:584 TEXTURE:0 SURFACE:0 SAMPLER:0
        /*07b0*/                   LDGSTS.E.BYPASS.LTC128B.128 [R39+0xc000], desc[UR10][R26.64], P2 ;
        /*07c0*/              @!P4 LDGSTS.E.{copy} [R39+0xc400], desc[UR10][R26.64], P2 ;
        /*2e70*/               @P0 LDG.E.U16 R12, desc[UR10][R4.64] ;
        /*2e80*/                   {spill} R12, [R4.64] ;
        /*2e90*/               @P0 LDG.E.64.CONSTANT R12, desc[UR10][R4.64] ;
        /*2ea0*/                   NOP ;
"""


def lines_of(run: CompletedProcess[str]) -> list[dict[str, Any]]:
    """The report's lines, each of which must fit its chip."""
    assert run.returncode == 0, f"{run.stdout[-6000:]}\n{run.stderr[-4000:]}"
    report = json.loads(run.stdout.splitlines()[-1])
    assert report["failures"] == []
    lines: list[dict[str, Any]] = report["compiled"]
    for line in lines:
        assert line["spills"] == 0, line
        assert line["shared"] <= SHARED_LIMITS[line["arch"]], line
    weights = [line for line in lines if line["kernel"] in ("linear_kernel", "gate_up_silu_kernel")]
    assert weights
    of_codes = [line for line in weights if " bits" in line["names"][0]]
    assert {line["narrowest_copy"] for line in weights if line not in of_codes} == {16}
    assert {line["narrowest_copy"] for line in of_codes} <= {4, 8}, "scales are copied ahead, as codes are"
    assert {line["widest_load"] for line in of_codes} == {16}
    return lines


@pytest.mark.timeout(3600)  # minutes of compiling at low priority, beside any other load
def test_every_shipped_configuration_fits_a_chip(kernel_report: CompletedProcess[str]) -> None:
    """Configurations take the chips in turns: each chip has a third of them."""
    lines = lines_of(kernel_report)
    assert {line["operator"] for line in lines} == set(LAUNCHES)
    assert {line["arch"] for line in lines} == set(SHARED_LIMITS)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_shipped_configuration_fits_every_chip(kernel_report: CompletedProcess[str]) -> None:
    assert {(line["operator"], line["arch"]) for line in lines_of(kernel_report)} == {
        (operator, arch) for operator in LAUNCHES for arch in SHARED_LIMITS
    }


def a_case(load_bytes: int = 16) -> CompileCase:
    def some_kernel() -> None: ...

    return CompileCase("some case", some_kernel, {}, {}, load_bytes=load_bytes)


@pytest.mark.parametrize(
    ("arch", "found", "expected"),
    [
        (80, FITS, []),
        (
            90,
            replace(FITS, spills=2),
            ["some case, sm_90: registers are spilled: 2 accesses to local memory"],
        ),
        (
            80,
            replace(FITS, shared=166913),
            ["some case, sm_80: 166913 bytes of shared memory, sm_80 has 166912"],
        ),
        (90, replace(FITS, shared=166913), []),
        (100, replace(FITS, shared=232449), ["some case, sm_100: 232449 bytes of shared memory"]),
        (80, replace(FITS, narrowest_copy=4), ["some case, sm_80: weights or KV are read by 4 bytes"]),
        (
            80,
            replace(FITS, narrowest_copy=0, widest_load=8),
            ["some case, sm_80: weights or KV are read by 8"],
        ),
        (80, replace(FITS, narrowest_copy=0), []),
    ],
    ids=["fits", "spills", "shared-80", "shared-90", "shared-100", "narrow-copy", "narrow-load", "wide-load"],
)
def test_what_may_not_ship(arch: int, found: Compiled, expected: list[str]) -> None:
    said = problems(a_case(), arch, found)
    assert len(said) == len(expected)
    assert all(s.startswith(e) for s, e in zip(said, expected, strict=True)), said


def test_a_kernel_that_streams_nothing_may_load_as_it_likes() -> None:
    assert problems(a_case(load_bytes=0), 80, replace(FITS, narrowest_copy=4)) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({}, Compiled(90, 5, 0, 16, 16, 5)),
        ({"copy": "BYPASS.64"}, Compiled(90, 5, 0, 16, 8, 5)),
        ({"copy": "LTC128B"}, Compiled(90, 5, 0, 16, 4, 5)),
        ({"stack": "8"}, Compiled(90, 5, 1, 16, 16, 5)),
        ({"spill": "STL.64"}, Compiled(90, 5, 1, 16, 16, 5)),
    ],
    ids=["plain", "copy-of-8", "copy-of-4", "stack", "store"],
)
def test_reads_a_listing(words: dict[str, str], expected: Compiled) -> None:
    listing = LISTING.format(**{"stack": "0", "copy": "BYPASS.128", "spill": "STG.E"} | words)
    assert read_listing(listing, shared=5) == expected


def test_an_empty_listing_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no kernel in cuobjdump's listing"):
        read_listing("cuobjdump: nothing here", shared=0)


# Changes a shipped case so that it must fail, and prints what is said of it.
CHANGED = """
from dataclasses import replace
from pearl_rt.kernels.tools.cases import cases_of
from pearl_rt.kernels.tools.cases import LAUNCHES
from pearl_rt.kernels.tools.compile import compile_case, problems
case = {case}
print(*problems(case, 90, compile_case(case, 90)), sep="\\n")
"""


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (
            "replace(cases_of('rms_norm')[-1], num_warps=1, options={'maxnreg': 24})",
            "registers are spilled",
        ),
        ("replace(cases_of('linear')[0], num_stages=30)", "bytes of shared memory, sm_90 has 232448"),
        ("replace(cases_of('linear')[0], divisible_by_16=())", "weights or KV are read by"),
    ],
    ids=["spills", "shared", "narrow"],
)
def test_sees_what_does_not_fit(case: str, said: str, compiled_python: Python) -> None:
    run = compiled_python(CHANGED.format(case=case))
    assert said in run.stdout, run.stdout


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("r.main(['--pdl'])", "--pdl: sm_80 has no dependent launches: pass --arch 90"),
        (
            "r.main(['sample', 'rms_norm', '--pdl', '--arch', '90'])",
            "--pdl: rms_norm has no dependent launch",
        ),
        ("r.main(['nothing'])", "no kernels in nothing: choose from rms_norm, linear"),
        ("os.environ['TRITON_INTERPRET'] = '1'; r.main([])", "TRITON_INTERPRET is set: unset it"),
    ],
    ids=["pdl", "pdl-of-another", "unknown", "interpreted"],
)
def test_refuses(program: str, said: str, compiled_python: Python) -> None:
    run = compiled_python(f"import os; import pearl_rt.kernels.tools.report as r; {program}")
    assert run.returncode != 0
    assert said in run.stdout


def test_one_bad_case_does_not_hide_the_others(compiled_python: Python) -> None:
    program = """
import pearl_rt.kernels.tools.report as report
from dataclasses import replace
good = report.cases_of("rms_norm")[:1]
broken, twin = replace(good[0], name="broken", num_warps=3), replace(good[0], name="twin")
report.cases_of = lambda operator: [*good, broken, twin]
raise SystemExit(report.main(["rms_norm", "--arch", "80"]))
"""
    run = compiled_python(program)
    assert run.returncode == 1, run.stdout
    report = json.loads(run.stdout.splitlines()[-1])
    assert [line["names"][1:] for line in report["compiled"]] == [["twin"]]
    assert len(report["failures"]) == 1
    assert report["failures"][0].startswith("broken, sm_80: AssertionError: num_warps must be a power of 2")


# Prints, for each kernel that is given addresses, whether it asserts without and with debug.
ASSERTIONS = """
from dataclasses import replace
from pearl_rt.kernels.tools.cases import cases_of
from pearl_rt.kernels.tools.cases import LAUNCHES
from pearl_rt.kernels.tools.compile import build
for operator in ("attention", "attention_prefill", "qkv_rope_store"):
    case = cases_of(operator)[0]
    cases = case, replace(case, options=case.options | {"debug": True})
    print(*("__assertfail" in build(c, 90).asm["ptx"] for c in cases))
"""


def test_debug_compiles_the_checks_of_addresses(compiled_python: Python) -> None:
    run = compiled_python(ASSERTIONS)
    assert run.stdout.split() == ["False", "True"] * 3, run.stdout


# Prints, without and with dependent launches, what Triton's launcher reads, and the first access or wait.
DEPENDENT = """
import re
from pearl_rt.kernels.tools.cases import cases_of
from pearl_rt.kernels.tools.cases import LAUNCHES
from pearl_rt.kernels.tools.compile import build, dependent
first = re.compile(r"griddepcontrol[.]wait|(?:ld|st|atom)[.]global|cp[.]async")
for operator in LAUNCHES:
    kernels = {case.kernel.__name__: case for case in cases_of(operator)}
    for name, case in kernels.items():
        if dependent(case) is case:
            print(operator, "has none")
            continue
        for one in (case, dependent(case)):
            built = build(one, 90)
            print(name, built.metadata.launch_pdl, first.search(built.asm["ptx"])[0])
"""


@pytest.mark.slow
def test_a_dependent_kernel_waits_before_its_first_access(compiled_python: Python) -> None:
    """One of each kernel. rms_norm and rollback are in no captured step, and have no such launch."""
    lines = compiled_python(DEPENDENT).stdout.splitlines()
    assert {line for line in lines if line.endswith("has none")} == {"rms_norm has none", "rollback has none"}
    forms = [line.partition(" ") for line in lines if not line.endswith("has none")]
    assert {"prefill_kernel", "gate_up_silu_kernel", "apply_kernel", "publish_kernel"} <= {
        n for n, _, _ in forms
    }
    for (plain_name, _, plain), (name, _, waits) in zip(forms[::2], forms[1::2], strict=True):
        assert name == plain_name and waits == "True griddepcontrol.wait", lines
        assert re.fullmatch(r"False (?:ld[.]global|cp[.]async|st[.]global|atom[.]global)", plain), lines


@pytest.mark.slow
def test_the_report_of_dependent_kernels(compiled_python: Python) -> None:
    arguments = ["penalties", "embedding", "--pdl", "--arch", "90"]
    run = compiled_python(f"import pearl_rt.kernels.tools.report as r; r.main({arguments})")
    report = json.loads(run.stdout.splitlines()[-1])
    assert {line["operator"] for line in report["compiled"]} == {"penalties", "embedding"}
    assert report["failures"] == [], run.stdout


# Prints the kernels that no launch of cases.py reaches.
UNREACHED = """
import pkgutil
from importlib import import_module
from triton.runtime.jit import JITFunction
from pearl_rt import kernels
from pearl_rt.kernels.tools.cases import LAUNCHES, cases_of
modules = [import_module(m.name) for m in pkgutil.walk_packages(kernels.__path__, "pearl_rt.kernels.")]
jitted = {f for m in modules for f in vars(m).values() if isinstance(f, JITFunction)}
every = {f for f in jitted if f.__name__.endswith("_kernel")}
cases = [case for operator in LAUNCHES for case in cases_of(operator)]
print(len(every), sorted(f.__name__ for f in every - {case.kernel for case in cases}))
"""


def test_every_kernel_is_launched_by_some_case(compiled_python: Python) -> None:
    run = compiled_python(UNREACHED)
    count, _, unreached = run.stdout.strip().partition(" ")
    assert unreached == "[]" and int(count) > 25, run.stdout


# Records launches with every kind of argument.
RECORDED = """
from collections import namedtuple
import torch
from pearl_rt.kernels.forward.rms_norm import rms_norm_kernel
from pearl_rt.kernels.tools.record import Recorder, specialised, tensor
from pearl_rt.kernels.verify.rollback import rollback_kernel
x, record = tensor(torch.float16, 2, 3), Recorder("some operator")
with record("of 32"):
    rms_norm_kernel[(1,)](x, x, x, None, 32, 1.5, HAS_RESIDUAL=False, BLOCK_H=64, num_warps=2, maxnreg=24)
    rms_norm_kernel[(1,)](x, x, x, x, 1, 1.5, True, 64)
    rollback_kernel[(1,)](x, x, x, x, x, 16, 16, 16, BLOCK=16)
print(*specialised(namedtuple("Pair", "a b c")(x, None, 32)))
for case in record.cases:
    print(case.name, *case.signature.values())
    print(case.constants, case.divisible_by_16, case.num_warps, case.num_stages, case.options)
"""


def test_records_what_a_launch_is_given(compiled_python: Python) -> None:
    run = compiled_python(RECORDED)
    assert run.stdout.splitlines() == [
        "Pair(a='*fp16', b='constexpr', c='i32') ('D', None, 'D')",
        "some operator of 32 rms_norm *fp16 *fp16 *fp16 constexpr i32 fp32 constexpr constexpr",
        "{(3,): None, (6,): False, (7,): 64} ((0,), (1,), (2,), (4,)) 2 3 {'maxnreg': 24}",
        "some operator of 32 rms_norm *fp16 *fp16 *fp16 *fp16 i32 fp32 constexpr constexpr",
        "{(6,): True, (7,): 64} ((0,), (1,), (2,), (3,)) 4 3 {}",
        "some operator of 32 rollback *fp16 *fp16 *fp16 *fp16 *fp16 i32 i32 i32 constexpr",
        "{(8,): 16} ((0,), (1,), (2,), (3,), (4,)) 4 3 {}",
    ], run.stdout
