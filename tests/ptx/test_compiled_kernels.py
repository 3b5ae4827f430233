"""Compiled kernels on the host: the operators, mistakes in them, and engines, in processes of their own.

This process has its kernels in the interpreter, as the rest of the tests. `make ptx` runs all tests of
kernels compiled.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = "tests/kernels"
# Of each operator: fp16 and bf16 where it has both, small shapes, few kernels to compile.
OPERATORS = [
    *(
        f"{KERNELS}/forward/test_linear.py::test_epilogues[bias-{case}-fp16]"
        for case in ("to-fp16", "residual")
    ),
    f"{KERNELS}/forward/test_linear.py::test_split_k[to-fp16-tail]",
    f"{KERNELS}/forward/test_linear.py::test_errs_no_more_than_torch[8-896-4864-bf16]",
    f"{KERNELS}/forward/test_gate_up_silu.py::test_is_the_definition[17-40-576-to-fp16]",
    f"{KERNELS}/forward/test_gate_up_silu.py::test_errs_no_more_than_torch_in_bf16[9-1536-576]",
    f"{KERNELS}/forward/test_coded_weights.py::test_each_value_compiled[q4-bf16]",
    f"{KERNELS}/forward/test_coded_weights.py::test_each_value_compiled[q8-fp16]",
    f"{KERNELS}/forward/test_coded_weights.py::test_gate_up_silu_is_the_definition[17-63-200-q4]",
    f"{KERNELS}/forward/test_coded_weights.py::test_embedding_has_each_value[q8-63]",
    f"{KERNELS}/forward/test_rms_norm.py::test_rounds_bf16_once[576]",
    f"{KERNELS}/head/test_head_kernels.py::test_rows_are_kept_as_defined[63-both-normed]",
    f"{KERNELS}/head/test_head_kernels.py::test_what_a_layer_reads_is_as_defined[96-True-4]",
    *(
        f"{KERNELS}/forward/test_attention.py::test_matches_the_definition_in_bf16[{q_len}-(9, 3, 64)-63]"
        for q_len in (8, 200)
    ),
    f"{KERNELS}/forward/test_attention.py::test_both_kernels_mean_the_same_at_the_seam[torch.float16]",
    f"{KERNELS}/forward/test_interpreted.py::test_debug_finds_slots",
    f"{KERNELS}/sampling/test_sample.py::test_every_kind_of_row_in_one_batch[111]",
    f"{KERNELS}/sampling/test_filters.py::test_vocabularies_of_several_tiles[dtype1-1025]",
    f"{KERNELS}/verify/test_verify.py::test_rounds_are_the_decoders[pearl-3-12-16-coupled]",
    f"{KERNELS}/verify/test_verify.py::test_rounds_are_the_decoders[sd-3-12-16-rejection]",
]
PARTS = {  # as long as each other
    "sm_80": [*OPERATORS, "tests/ptx/compiled/test_engines.py"],
    "sm_90": [
        *OPERATORS,
        "tests/ptx/compiled/test_compiled_mutants.py",
        "tests/ptx/compiled/test_compiled_pdl.py",
    ],
}


@pytest.fixture(scope="module")
def parts(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, tuple[subprocess.Popen[str], Path]]]:
    """Each part as a process that has begun, and what it writes: each takes one core."""
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    begun = {}
    for part, tests in PARTS.items():
        out = tmp_path_factory.mktemp("ptx") / part
        command = [sys.executable, "-m", "pytest", "-q", "--no-skips", "-p", "no:cacheprovider"]
        with out.open("w") as stdout:
            process = subprocess.Popen(
                [*command, "--ptx", part, *tests],
                cwd=ROOT,
                env=environment,
                stdout=stdout,
                stderr=subprocess.STDOUT,
                text=True,
            )
        begun[part] = process, out
    yield begun
    for process, _ in begun.values():
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", PARTS)
def test_compiled_kernels(part: str, parts: dict[str, tuple[subprocess.Popen[str], Path]]) -> None:
    process, out = parts[part]
    status = process.wait()
    said = out.read_text()
    assert status == 0, said
    assert " passed" in said and "million instructions of warps" in said
