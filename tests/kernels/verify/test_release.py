"""How a round's entry is published: what is compiled for the store of its number, the last of the entry."""

from __future__ import annotations

from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

# Prints, for every kernel that publishes: stores with release, atomics of system scope, and of the stores and
# barriers of the kernel the last three, in order.
PROGRAM = """
import re
from pearl_rt.kernels.tools.cases import cases_of
from pearl_rt.kernels.tools.compile import build
for operator, word in {asked}:
    case = next(case for case in cases_of(operator) if word in case.name)
    for arch in (80, 90):
        ptx = build(case, arch).asm["ptx"]
        ends = re.findall(r"\\b(st\\.global|st\\.release\\.sys\\.global|bar\\.sync)", ptx)[-3:]
        atomics = re.findall(r"\\b(?:atom|red)\\.\\S*sys", ptx)
        print(len(re.findall(r"st\\.release", ptx)), len(atomics), *ends)
"""


@pytest.mark.parametrize(
    "asked",
    [
        [("publish_logprobs", "k 0 publish")],
        pytest.param(
            [("verify", "rejection 32000 gamma 8 rejection"), ("verify", "coupled 32000 gamma 8 coupled")],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["publish_logprobs", "verify"],
)
def test_the_number_is_a_posted_store_behind_all_others(
    asked: list[tuple[str, str]], compiled_python: Callable[[str], CompletedProcess[str]]
) -> None:
    """No atomic on the host's memory, on any chip; a barrier is between the entry and its number."""
    run = compiled_python(PROGRAM.format(asked=asked))
    expected = "1 0 st.global bar.sync st.release.sys.global"
    assert run.stdout.splitlines() == [expected] * 2 * len(asked), run.stdout
