"""filters: thresholds against the reference and against vLLM's definition by sorting; ties, ends, and what is
off."""

from typing import Any

import numpy as np
import pytest
import torch
from chi_square import FALSE_ALARM, p_value
from logit_rows import row_of
from rows import poisoned

from pearl_rt.kernels.reference.sampling import filters as reference
from pearl_rt.kernels.sampling import filters as kernel
from pearl_rt.kernels.sampling import sample as sampling

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")


def run(
    module: Any, logits: torch.Tensor, t: list, k: list | None, p: list | None, m: list | None
) -> torch.Tensor:
    """Thresholds, from NaN."""
    device, rows = logits.device, len(logits)
    out = torch.full((rows + 2,), float("nan"), device=device)
    floats = [None if x is None else torch.tensor(x, dtype=torch.float32, device=device) for x in (t, p, m)]
    ints = None if k is None else torch.tensor(k, dtype=torch.int32, device=device)
    space = poisoned(kernel.workspace_size(*logits.shape), device)
    module.filters(logits, floats[0], ints, *floats[1:], out[1:-1], space)
    assert out[[0, -1]].isnan().all() and not out[1:-1].isnan().any()
    return out[1:-1]


def by_sorting(row: np.ndarray, t: float, k: int, p: float, m: float) -> np.ndarray:
    """The kept set as vLLM makes it: temperature, min_p, top_k, top_p, in fp64; ties are kept. [V] bool"""
    scaled = row.astype(np.float64) / t
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    kept = probs >= m * probs.max() if m > 0 else np.ones(len(row), bool)
    if 0 < k < len(row):
        kept &= scaled >= np.sort(scaled)[-k]
    if p < 1:
        probs = np.where(kept, probs, 0)
        probs /= probs.sum()
        kept &= np.array([probs[scaled > x].sum() < p for x in scaled])
    return kept


CASES = [  # temperature, top_k, top_p, min_p
    (1.0, 1, 1.0, 0.0),
    (1.0, 5, 1.0, 0.0),
    (0.7, -1, 0.9, 0.0),
    (1.0, -1, 1.0, 0.1),
    (0.5, 20, 0.8, 0.02),
    (1.0, -1, 1.0, 0.0),
    (0.0, 5, 0.5, 0.5),
    (1.0, 10**6, 0.999, 0.0),
    (1.0, -1, 0.0, 1.0),
]


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["normal", "ties", "masked", "one", "huge", "flat"])
def test_thresholds_are_the_references_and_keep_what_sorting_keeps(shape: str, device: torch.device) -> None:
    rng = np.random.default_rng(len(shape))
    rows = np.stack([row_of(shape, 111, rng) for _ in CASES])
    logits = torch.from_numpy(rows).to(device)
    t, k, p, m = (list(x) for x in zip(*CASES, strict=True))
    got = run(kernel, logits, t, k, p, m)
    assert torch.equal(got, run(reference, logits, t, k, p, m))
    for row, threshold, case in zip(rows, got.tolist(), CASES, strict=True):
        kept = row >= threshold
        assert kept[row.argmax()], case
        if case[0] > 0 and shape != "huge":
            assert np.array_equal(
                kept & (row > -np.inf),
                by_sorting(row, *case[:2], max(case[2], 1e-9), case[3]) & (row > -np.inf),
            ), case
        elif case[0] == 0:
            assert threshold == -np.inf


@pytest.mark.slow
@pytest.mark.parametrize("vocab", [1, 3, 1025, 8193])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_vocabularies_of_several_tiles(vocab: int, dtype: torch.dtype, device: torch.device) -> None:
    logits = torch.from_numpy(np.random.default_rng(vocab).normal(0, 3, (1, vocab))).to(device, dtype)
    args = ([0.8], [200], [0.85], [0.001])
    assert torch.equal(run(kernel, logits, *args), run(reference, logits, *args))


@pytest.mark.slow
def test_rows_with_more_candidates_than_a_list_holds(device: torch.device) -> None:
    """Flat rows: top_p and top_k keep most of them. The last one's list is full to an entry."""
    vocab = kernel.LIST + 600
    rows = np.random.default_rng(6).normal(0, 0.3, (4, vocab)).astype(np.float32)
    rows[3] = np.where(np.arange(vocab) < kernel.LIST, rows[3], -50)
    logits = torch.from_numpy(rows).to(device)
    k, p = [-1, kernel.LIST + 300, kernel.LIST + 200, -1], [0.97, 1.0, 0.9, 0.97]
    args = ([1.0] * 4, k, p, [0.0] * 4)
    assert torch.equal(run(kernel, logits, *args), run(reference, logits, *args))


def test_min_p_that_leaves_less_than_top_k(device: torch.device) -> None:
    logits = torch.tensor([[3.0, 2.9, 0.0, -1.0], [3.0, 2.9, 2.8, -1.0]], device=device)
    args = ([1.0] * 2, [3, 3], None, [0.2] * 2)
    got = run(kernel, logits, *args)
    assert torch.equal(got, run(reference, logits, *args))
    assert (logits >= got[:, None]).sum(1).tolist() == [2, 3]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_filter_that_is_not_given_is_off(which: int, device: torch.device) -> None:
    logits = torch.from_numpy(np.random.default_rng(which).normal(0, 3, (2, 50))).to(device, torch.float32)
    given: list = [[5, 5], [0.6, 0.6], [0.2, 0.2]]
    given[which] = None
    off: list = [[5, 5], [0.6, 0.6], [0.2, 0.2]]
    off[which] = [[-1] * 2, [1.0] * 2, [0.0] * 2][which]
    got = run(kernel, logits, [1.0, 1.0], *given)
    assert torch.equal(got, run(kernel, logits, [1.0, 1.0], *off))
    assert torch.equal(got, run(reference, logits, [1.0, 1.0], *given))


def test_rows_that_cannot_be_used_and_company(device: torch.device) -> None:
    """They keep everything, so that sampling still flags them; the others' thresholds do not change."""
    rng = np.random.default_rng(1)
    rows = rng.normal(0, 3, (5, 70)).astype(np.float32)
    rows[0, 3], rows[1, 4], rows[2] = np.nan, np.inf, -np.inf
    logits = torch.from_numpy(rows).to(device)
    args = ([1.0] * 5, [9] * 5, [0.7] * 5, [0.01] * 5)
    got = run(kernel, logits, *args)
    assert (got[:3] == -torch.inf).all()
    alone = run(kernel, logits[4:], *(x[:1] for x in args))
    assert torch.equal(got[4:], alone)


def test_the_law_of_filtered_sampling(device: torch.device) -> None:
    """Chi-square against the renormalised kept set; false alarm 1e-4, had the seeds not been fixed."""
    row = np.random.default_rng(3).normal(0, 1.5, 40).astype(np.float32)
    case = (0.9, 20, 0.8, 0.01)
    logits = torch.from_numpy(row).to(device)[None]
    threshold = run(kernel, logits, *([x] for x in case))
    runs = 8_000
    seeds = torch.arange(runs, device=device)
    out = torch.zeros(runs, dtype=torch.int32, device=device)
    space = poisoned(sampling.workspace_size(runs, 40), device)
    temperature = torch.full((runs,), case[0], device=device)
    ones = torch.ones(runs, dtype=torch.int64, device=device)
    sampling.sample(
        logits.expand(runs, 40), temperature, seeds, ones, 3, out, threshold.expand(runs).contiguous(), space
    )
    law = np.where(by_sorting(row, *case), np.exp(row.astype(np.float64) / case[0]), 0)
    counts = np.bincount(out.tolist(), minlength=40)
    assert p_value(counts, law / law.sum() * runs) > FALSE_ALARM
    assert 1 < (law > 0).sum() < 20


def test_opcheck_and_wrong_arguments(device: torch.device) -> None:
    logits = torch.randn(2, 40, device=device)
    ones = torch.ones(2, device=device)
    k = torch.full((2,), 5, dtype=torch.int32, device=device)
    space = poisoned(kernel.workspace_size(2, 40), device)
    good = [logits, ones, k, None, ones * 0.1, torch.zeros(2, device=device), space]
    torch.library.opcheck(torch.ops.pearl_rt.filters.default, tuple(good))
    for place, wrong, said in (
        (0, logits.double(), "logits is torch.float64"),
        (2, ones, "top_k is torch.float32"),
        (5, torch.zeros(3, device=device), r"thresholds has shape \[3\]"),
        (6, space[:32], "workspace has 32 bytes"),
    ):
        args = list(good)
        args[place] = wrong
        with pytest.raises(ValueError, match=said):
            kernel.filters(*args)
