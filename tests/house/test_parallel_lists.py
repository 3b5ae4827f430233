"""Numbers and names that C++, numpy and the kernels each write down for themselves are the same.

The kernels import no C++, and the references import no kernels: one list cannot serve all.
"""

from __future__ import annotations

import re
from pathlib import Path

from pearl_rt import state
from pearl_rt.kernels.reference.verify import verify as reference_verify
from pearl_rt.kernels.verify import phases
from pearl_rt.strategy.program import JUDGES

CSRC = Path(__file__).resolve().parents[2] / "csrc"


def found(place: str, pattern: str) -> list[str]:
    """All that the pattern finds in a file below csrc."""
    return re.findall(pattern, (CSRC / place).read_text())


def test_finish_reasons() -> None:
    [names] = found("coordinator/ring.h", r"enum class FinishReason : uint8_t \{(.*?)\}")
    own = [name.strip() for name in names.split(",")]
    assert own[:5] == ["kIdle", "kRunning", "kStop", "kLength", "kError"]
    for number, name in enumerate(("IDLE", "RUNNING", "STOP", "LENGTH", "BAD_LOGITS")):
        assert getattr(state, name) == number
    for name in ("RUNNING", "STOP", "LENGTH", "BAD_LOGITS"):
        assert getattr(reference_verify, name) == getattr(state, name)


def test_the_header_of_a_verdict() -> None:
    assert found("cuda/memory/verdict_ring.h", r"kHeader = (\d+);") == [str(state.RING_HEADER)]


def test_judges() -> None:
    assert JUDGES == phases.KINDS
    [names] = found("sampling/judge.cpp", r'kCoupled \? "(\w+)" : "(\w+)"')
    assert set(names) == set(JUDGES)
