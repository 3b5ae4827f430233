"""sample: bit for bit the numpy definition, at awkward vocabularies, strides, temperatures; and its law."""

import warnings

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from chi_square import FALSE_ALARM, p_value
from logit_rows import SHAPES, row_of
from rows import Canary, poisoned

from pearl_rt.kernels.reference.sampling import sample as reference
from pearl_rt.kernels.sampling import sample as kernel
from pearl_rt.reference import judge as definition
from pearl_rt.reference import noise
from pearl_rt.reference.noise import Purpose

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")

TEMPERATURES = (0.0, 1e-5, 0.3, 1.0, 7.0, 1e5)


def tokens(
    logits: torch.Tensor,
    temperature: list[float],
    seed: list[int],
    positions: list[int],
    purpose: int,
    thresholds: torch.Tensor | None = None,
) -> list[int]:
    """Through the operator, into a guarded tensor, with a workspace of NaN."""
    device, rows = logits.device, len(logits)
    out = Canary(rows, device=device)
    torch.ops.pearl_rt.sample(
        logits,
        torch.tensor(temperature, device=device),
        torch.tensor(seed, device=device),
        torch.tensor(positions, device=device),
        purpose,
        out.tensor,
        thresholds,
        poisoned(kernel.workspace_size(rows, logits.shape[1]), device),
    )
    out.check()
    return out.tensor.tolist()


@pytest.mark.parametrize("vocab", [1, 3, 63, 111, 1000])
def test_every_kind_of_row_in_one_batch(vocab: int, device: torch.device) -> None:
    rng = np.random.default_rng(vocab)
    cases = [(s, t) for s in SHAPES for t in TEMPERATURES]
    rows = [row_of(shape, vocab, rng) for shape, _ in cases]
    temperature = [t for _, t in cases]
    seed = rng.integers(-(2**62), 2**62, len(cases)).tolist()
    positions = rng.integers(0, 2**40, len(cases)).tolist()
    got = tokens(torch.from_numpy(np.stack(rows)).to(device), temperature, seed, positions, Purpose.DRAFT)
    for i, row in enumerate(rows):
        want = definition.sample(row, temperature[i], seed[i], positions[i], Purpose.DRAFT)
        assert got[i] == want, cases[i]
        assert row[got[i]] > -np.inf


@pytest.mark.parametrize("vocab", [3, 1000, 5000])
def test_rows_are_kept_as_they_are(vocab: int, device: torch.device) -> None:
    """In the rows that are named, bits and NaN and all, whatever a threshold cuts; out may have a stride."""
    rng = np.random.default_rng(vocab)
    logits = torch.from_numpy(rng.normal(0, 2, (3, vocab)).astype(np.float32)).to(device)
    logits[1, 1] = torch.nan
    rows = torch.tensor([4, 0, 3], device=device)
    kept, out = torch.full((6, vocab + 2), 7.0, device=device), torch.full((3, 4), -9, dtype=torch.int32)
    out = out.to(device)
    zeros, ones = torch.zeros(3, dtype=torch.int64, device=device), torch.ones(3, device=device)
    space = poisoned(kernel.workspace_size(3, vocab), device)
    arguments = (logits, ones, zeros, zeros, Purpose.DRAFT)
    torch.ops.pearl_rt.sample(*arguments, out[:, 2], ones, space, kept[:, :vocab], rows)
    assert torch.equal(kept[rows, :vocab].view(torch.int32), logits.view(torch.int32))
    assert (kept[:, vocab:] == 7).all() and (kept[[1, 2, 5]] == 7).all()
    plain = torch.empty(3, dtype=torch.int32, device=device)
    torch.ops.pearl_rt.sample(*arguments, plain, ones, space)
    assert torch.equal(out[:, 2], plain)
    assert (out[:, [0, 1, 3]] == -9).all()
    with pytest.raises(ValueError, match="sample: one of kept and kept_rows given: pass both, or neither"):
        torch.ops.pearl_rt.sample(*arguments, plain, ones, space, kept[:, :vocab])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("vocab", [4097, 8193, 32000, 128256, 151936])
def test_large_vocabularies(vocab: int, dtype: torch.dtype, device: torch.device) -> None:
    """Ties over tiles: rounding to halves makes many equal maxima."""
    rng = np.random.default_rng(vocab)
    logits = torch.from_numpy(np.round(rng.normal(0, 2, (2, vocab)) * 2) / 2).to(device, dtype)
    got = tokens(logits, [0.0, 0.8], [5, 6], [7, 2**33], Purpose.TARGET)
    rows = logits.float().cpu().numpy()
    assert got == [
        definition.sample(rows[0], 0.0, 5, 7, Purpose.TARGET),
        definition.sample(rows[1], 0.8, 6, 2**33, Purpose.TARGET),
    ]


def test_the_reference_is_the_definition(device: torch.device) -> None:
    rng = np.random.default_rng(3)
    rows = np.stack([row_of(shape, 111, rng) for shape in SHAPES for _ in TEMPERATURES])
    temperature = torch.tensor(TEMPERATURES * len(SHAPES), device=device)
    seed = torch.arange(len(rows), device=device)
    out = torch.zeros(len(rows), dtype=torch.int32, device=device)
    reference.sample(torch.from_numpy(rows).to(device), temperature, seed, seed + 5, 0, out, None, out)
    want = [
        definition.sample(row, t, i, i + 5, Purpose.DRAFT)
        for i, (row, t) in enumerate(zip(rows, temperature.tolist(), strict=True))
    ]
    assert out.tolist() == want


@pytest.mark.parametrize("others", [1, 4, 15, 63])
def test_a_row_does_not_depend_on_its_company(others: int, device: torch.device) -> None:
    rng = np.random.default_rng(others)
    rows = torch.from_numpy(np.stack([row_of("normal", 777, rng) for _ in range(others + 1)])).to(device)
    alone = tokens(rows[:1], [1.0], [9], [4], Purpose.BONUS)
    order = torch.arange(others, -1, -1)
    seed = [9 if i == 0 else int(i) for i in order]
    position = [4 if i == 0 else int(i) * 3 for i in order]
    assert (
        tokens(rows[order.to(device)], [1.0] * (others + 1), seed, position, Purpose.BONUS)[others:] == alone
    )


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf], ids=["nan", "-nan", "inf"])
@pytest.mark.parametrize("vocab", [3, 5000])
def test_rows_that_cannot_be_used(bad: float, vocab: int, device: torch.device) -> None:
    rows = np.zeros((8, vocab), dtype=np.float32)
    for i, place in enumerate((0, vocab // 2, vocab - 1)):
        rows[2 * i, place] = rows[2 * i + 1, place] = bad
    rows[6] = -np.inf
    logits = torch.from_numpy(rows).to(device)
    for thresholds in (None, torch.full((8,), -1.0, device=device)):
        got = tokens(logits, [0.0, 1.0] * 4, [1] * 8, [2] * 8, 0, thresholds)
        assert got[:7] == [-1] * 7 and 0 <= got[7] < vocab


def test_thresholds_keep_their_ties_and_nothing_below(device: torch.device) -> None:
    row = torch.tensor([0.0, 3.0, 1.0, 3.0, 2.0, -5.0], device=device)
    logits = row.expand(600, 6)  # rows at stride 0
    seeds = list(range(600))
    for threshold, kept in ((3.0, {1, 3}), (2.0, {1, 3, 4}), (-np.inf, {0, 1, 2, 3, 4, 5})):
        thresholds = torch.full((600,), threshold, device=device)
        assert set(tokens(logits, [5.0] * 600, seeds, [1] * 600, 0, thresholds)) == kept
        assert set(tokens(logits, [0.0] * 600, seeds, [1] * 600, 0, thresholds)) == {1}


def test_rows_may_lie_apart(device: torch.device) -> None:
    wide = torch.full((5, 200), float("nan"), device=device)
    wide[:, :111] = torch.randn(5, 111, generator=torch.Generator().manual_seed(0)).to(device)
    args = ([0.0, 1.0, 1.0, 0.5, 2.0], [1, 2, 3, 4, 5], [6] * 5, 3)
    assert tokens(wide[:, :111], *args) == tokens(wide[:, :111].contiguous(), *args)


@triton.jit
def _offsets_kernel(out_ptr, first, stride, N: tl.constexpr):
    row = first + tl.arange(0, N)
    tl.store(out_ptr + tl.arange(0, N), kernel.row_offset(row, stride))


def test_offsets_pass_two_to_the_31(device: torch.device) -> None:
    """By address: row 20,000 of a vocabulary of 151,936 starts behind 2^31 entries."""
    out = torch.zeros(16, dtype=torch.int64, device=device)
    _offsets_kernel[(1,)](out, 20_000, 151_936, 16)
    assert out.tolist() == [(20_000 + i) * 151_936 for i in range(16)]


def test_noise_of_minus_infinity_still_gives_a_token(device: torch.device) -> None:
    """Seed 0, position 25180, bonus, index 326 is one of the words whose uniform is 1."""
    row = torch.full((1, 1024), -torch.inf, device=device)
    row[0, 326] = 1.0
    assert noise.gumbel(noise.uniform(noise.words(0, 25180, Purpose.BONUS, 327)))[326] == -np.inf
    assert tokens(row, [1.0], [0], [25180], Purpose.BONUS) == [326]


@pytest.mark.slow
@pytest.mark.parametrize("vocab, draws", [(16, 20_000), (4096, 800)])
def test_the_law(vocab: int, draws: int, device: torch.device) -> None:
    """Chi-square against softmax; false alarm 1e-4 each, had the seeds not been fixed."""
    row = torch.from_numpy(np.random.default_rng(6).normal(0, 1.5 if vocab < 100 else 2.5, vocab)).float()
    got = tokens(row.to(device).expand(draws, vocab), [0.9] * draws, list(range(draws)), [8] * draws, 3)
    law = torch.softmax(row.double() / 0.9, 0).numpy()
    assert p_value(np.bincount(got, minlength=vocab), law * draws) > FALSE_ALARM


def test_opcheck(device: torch.device) -> None:
    logits = torch.randn(3, 40, device=device)
    ones = torch.ones(3, dtype=torch.int64, device=device)
    out = torch.zeros(3, dtype=torch.int32, device=device)
    space = poisoned(kernel.workspace_size(3, 40), device)
    args = (logits, torch.ones(3, device=device), ones, ones, 0, out, None, space)
    torch.library.opcheck(torch.ops.pearl_rt.sample.default, args)


def test_wrong_arguments_are_named(device: torch.device) -> None:
    logits = torch.zeros(3, 40, device=device)
    ones = torch.ones(3, dtype=torch.int64, device=device)
    out = torch.zeros(3, dtype=torch.int32, device=device)
    space = poisoned(kernel.workspace_size(3, 40), device)
    good = [logits, torch.ones(3, device=device), ones, ones, 0, out, None, space]
    for place, wrong, said in (
        (0, logits.int(), "logits is torch.int32"),
        (0, logits.t(), "make its last dimension contiguous"),
        (0, logits[0], "expected 2 dimensions"),
        (1, torch.ones(2, device=device), r"temperature has shape \[2\]"),
        (2, ones.int(), "seed is torch.int32"),
        (4, 5, "purpose is 5"),
        (5, out.long(), "out is torch.int64"),
        (7, space[:-16], "workspace has"),
    ):
        args = list(good)
        args[place] = wrong
        with pytest.raises(ValueError, match=said), warnings.catch_warnings():
            kernel.sample(*args)
