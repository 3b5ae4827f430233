"""logprobs: the definition in numpy, id for id, and to the bit where sums are; ties, masks, gaps, poison."""

from typing import Any

import numpy as np
import pytest
import torch
from logit_rows import SHAPES, row_of
from rows import Canary, among_nan, poisoned

from pearl_rt.kernels.reference.sampling import logprobs as reference
from pearl_rt.kernels.sampling import logprobs as kernel
from pearl_rt.reference import logprobs as definition

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
UNTOUCHED = Canary.VALUE
Told = tuple[list[list[int]], torch.Tensor, list[list[int]]]


def run(module: Any, logits: torch.Tensor, tokens: list[int], k: int) -> Told:
    """(ids, logprobs, ranks), of guarded outputs and a workspace of NaN."""
    device, rows = logits.device, len(logits)
    outputs = [Canary(rows, 1 + k, device=device) for _ in range(3)]
    ids, values, ranks = (output.tensor for output in outputs)
    space = poisoned(kernel.workspace_size(*logits.shape, k), device)
    asked = torch.tensor(tokens, dtype=torch.int32, device=device)
    module.logprobs(logits, asked, k, ids, values.view(torch.float32), ranks, space)
    for output in outputs:
        output.check()
    return ids.tolist(), values.view(torch.float32).cpu(), ranks.tolist()


@pytest.mark.parametrize("k", [0, 1, 5, 20])
@pytest.mark.parametrize("vocab", [1, 63, 1000, 8193])
def test_every_row_is_the_definition(vocab: int, k: int, device: torch.device) -> None:
    """Two rows among NaN, the token of one being its likeliest. 8193 is a tile and one entry more."""
    k = min(k, vocab)
    logits = among_nan(2, vocab, dtype=torch.float32, device=device, seed=vocab)
    tokens = [int(logits[0].argmax()), vocab // 2]
    ids, values, ranks = run(kernel, logits, tokens, k)
    for r, token in enumerate(tokens):
        row = logits[r].cpu().numpy()
        told = definition.logprobs(row, token, k)
        likeliest = np.argsort(-row, kind="stable")[:k].tolist()
        assert ids[r] == [token, *likeliest]
        assert ranks[r] == [told[i].rank for i in ids[r]]
        assert values[r].tolist() == [told[i].logprob for i in ids[r]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_awkward_rows(dtype: torch.dtype, device: torch.device) -> None:
    """Ties by lower id, both zeros alike, entries that are -inf, and rows that were not asked for."""
    rng = np.random.default_rng(5)
    shapes = [shape for shape in SHAPES if shape != "huge" or dtype == torch.float32]
    rows = np.stack([row_of(shape, 70, rng) for shape in shapes for _ in range(2)])
    logits = torch.from_numpy(rows).to(device, dtype)
    tokens = [int(logits[r].argmax()) if r % 2 else -1 for r in range(len(rows))]
    tokens[2] = 69
    ids, values, ranks = run(kernel, logits, tokens, 20)
    wanted_ids, wanted, wanted_ranks = run(reference, logits, tokens, 20)
    assert (ids, ranks) == (wanted_ids, wanted_ranks)
    assert torch.equal(values.view(torch.int32), wanted.view(torch.int32))
    for r, token in enumerate(tokens):
        assert (ids[r] == [UNTOUCHED] * 21) == (token < 0)
    flat = shapes.index("flat") * 2 + 1
    assert ids[flat][1:] == list(range(20)) and ranks[flat] == [1] * 21


def test_a_row_is_the_same_in_any_company(device: torch.device) -> None:
    whole = torch.randn(5, 2 * 130, generator=torch.Generator().manual_seed(2)).to(device)
    rows = whole[:, 30:160]  # 130 entries, 260 apart
    together = run(kernel, rows, [3, -1, 129, 0, 64], 5)
    for r, token in ((0, 3), (2, 129), (4, 64)):
        alone = run(kernel, rows[r : r + 1].contiguous(), [token], 5)
        assert alone[0][0] == together[0][r] and alone[2][0] == together[2][r]
        assert torch.equal(alone[1][0], together[1][r])


def test_opcheck_and_wrong_arguments(device: torch.device) -> None:
    logits = torch.randn(2, 40, device=device)
    ints = torch.zeros(2, 6, dtype=torch.int32, device=device)
    tokens = torch.tensor([1, -1], dtype=torch.int32, device=device)
    space = poisoned(kernel.workspace_size(2, 40, 5), device)
    good = [logits, tokens, 5, ints, torch.zeros(2, 6, device=device), ints.clone(), space]
    torch.library.opcheck(torch.ops.pearl_rt.logprobs.default, tuple(good))
    for place, wrong, said in (
        (0, logits.double(), "logits is torch.float64"),
        (1, tokens.long(), "token_ids is torch.int64"),
        (2, 21, r"k is 21, expected 0\.\.20"),
        (2, -1, "k is -1"),
        (2, 4, r"ids has shape \[2, 6\], expected \[2, 5\]"),
        (4, ints, "logprobs is torch.int32"),
        (6, space[:32], "workspace has 32 bytes"),
    ):
        args = list(good)
        args[place] = wrong
        with pytest.raises(ValueError, match=said):
            kernel.logprobs(*args)
    with pytest.raises(ValueError, match=r"k is 5, expected 0\.\.3, the vocabulary being 3"):
        kernel.logprobs(logits[:, :3], *good[1:])
