"""The merge of attention's splits: the launch that does it changes no bit, and counters are left at zero."""

from __future__ import annotations

import pytest
import torch
from compiled import skip_where_compiled
from test_attention import FP32, random_case

from pearl_rt.kernels.forward import attention as module

attention = torch.ops.pearl_rt.attention


pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("contexts", "q_lens", "heads", "launches"),
    [
        pytest.param([600, 20, 258], [1, 1, 1], (3, 1, 64), 1, id="one-token"),
        pytest.param([513, 3, 300], [4, 3, 1], (4, 2, 128), 2, id="rows-of-four-tiles"),
        pytest.param([4700], [2], (2, 2, 256), 1, id="long-splits"),
        pytest.param([258, 257], [4, 8], (8, 1, 32), 1, id="tiles-with-one-split-and-with-two"),
    ],
)
def test_the_launch_that_merges_changes_no_bit(
    contexts: list[int],
    q_lens: list[int],
    heads: tuple[int, int, int],
    launches: int,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last program of a tile, or a second kernel, which a call with counters needs for many rows only."""
    case = random_case(contexts, q_lens, heads, 64, FP32, device)
    apart = case.run(counted=False)
    assert not apart[: case.num_rows].isnan().any()
    assert torch.equal(case.run(), apart)
    if launches == 1:
        monkeypatch.setattr(module, "merge_kernel", None)  # a launch would fail
        assert torch.equal(case.run(), apart)
    else:
        monkeypatch.setattr(module, "merges_at_once", lambda *_: True)
        monkeypatch.setattr(module, "merge_kernel", None)
        assert torch.equal(case.run(), apart)


def test_counters_are_left_at_zero_by_a_launch_that_fails(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the interpreter; where kernels are compiled a fault ends the process's use of the GPU."""
    skip_where_compiled()
    case = random_case([600], [1], (2, 1, 16), 16, FP32, device)
    counters = torch.ones(8, dtype=torch.int32)
    monkeypatch.setattr(module, "split_kernel", None)
    with pytest.raises(TypeError):
        attention(
            **vars(case), out=case.poisoned_out(), workspace=case.poisoned_workspace(), counters=counters
        )
    assert not counters.any()


def test_refuses_too_few_counters(device: torch.device) -> None:
    case = random_case([20], [2], (2, 1, 16), 16, FP32, device)
    counters = torch.zeros(9, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match=r"attention: 9 counters, needs 10, one for each row and head of q"):
        attention(
            **vars(case), out=case.poisoned_out(), workspace=case.poisoned_workspace(), counters=counters
        )
