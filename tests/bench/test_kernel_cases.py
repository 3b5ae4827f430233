"""The cases of the kernel bench, small, through Triton's interpreter: what they hand to kernels and compare
with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from bench.kernel_cases import attention as attention_cases
from bench.kernel_cases import linear as linear_cases
from bench.kernel_cases import step as step_cases
from bench.kernel_cases import verify as verify_cases
from bench.kernel_cases.case import Job, Row, Spec, run_case
from bench.kernel_cases.timer import Call, Rotation
from pearl_rt.kernels.base.shapes import ModelShape

COPIES = 2
TINY = ModelShape("tiny", 64, 96, 2, 4, 2, 16, 111)
HALF = torch.float16  # bf16 is wrong in the interpreter


class Immediate:
    """A timer that runs calls at once; every call takes a microsecond."""

    device = "cpu"

    def run(self, calls: Sequence[Call]) -> None:
        for call in calls:
            call()

    def prepare(self, calls: Sequence[Call], rotation: Rotation) -> Sequence[Call]:
        self.run(calls)
        return calls

    def sample(self, prepared: Sequence[Call]) -> float:
        self.run(prepared)
        return 1e-6


JOBS: dict[str, Callable[[], Job]] = {
    "linear": lambda: linear_cases.linear_job(COPIES, 3, 48, 64, dtype=HALF),
    "linear-fp32": lambda: linear_cases.linear_job(COPIES, 3, 48, 64, in_fp32=True, dtype=HALF),
    "linear-residual": lambda: linear_cases.linear_job(COPIES, 3, 48, 64, residual=True, dtype=HALF),
    "gate_up_silu": lambda: linear_cases.gate_up_job(COPIES, 3, 48, 64, dtype=HALF),
    "rms_norm": lambda: linear_cases.rms_norm_job(COPIES, 3, 96, dtype=HALF),
    "rms_norm-residual": lambda: linear_cases.rms_norm_job(COPIES, 3, 96, residual=True, dtype=HALF),
    "attention": lambda: attention_cases.attention_job(COPIES, TINY, 2, 3, 256, dtype=HALF),
    "qkv_rope_store": lambda: attention_cases.store_job(COPIES, TINY, 3, dtype=HALF),
    "sample": lambda: verify_cases.sample_job(COPIES, 3, 111),
    "filters": lambda: verify_cases.filters_job(1, 2, 64),
    "judge": lambda: verify_cases.judge_job(COPIES, 2, 2, 111, "rejection"),
    "verify-rejection": lambda: verify_cases.verify_job(COPIES, 2, 2, 111, "rejection"),
    "verify-coupled": lambda: verify_cases.verify_job(COPIES, 2, 2, 111, "coupled"),
    "step": lambda: step_cases.step_job(1, TINY, 3, 40, dtype=HALF),
    "step-int4": lambda: step_cases.step_job(1, TINY, 3, 40, dtype=HALF, rounded="int4"),
}


def run_job(job: Callable[[], Job]) -> Row:
    torch.manual_seed(0)
    return run_case(Spec("op", "name", 1000, lambda copies: job()), Immediate(), 1 << 20, 1e9, repeats=1)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the bench itself runs them there")
@pytest.mark.parametrize("name", JOBS)
def test_a_case_runs_and_agrees_with_its_reference(name: str) -> None:
    row = run_job(JOBS[name])
    assert row.status == "ok", row.note
    assert not row.peer_notes
    assert name.startswith(("verify", "qkv")) or row.x, "a peer ran too"
