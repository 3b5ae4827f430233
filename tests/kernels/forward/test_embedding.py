"""embedding against its definition: widening, ids out of range, and what it leaves alone."""

import pytest
import torch

from pearl_rt.kernels.forward.embedding import embedding
from pearl_rt.kernels.forward.linear import num_parts
from pearl_rt.kernels.reference.forward import embedding as reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(("num_tokens", "hidden"), [(1, 1), (5, 63), (3, 1000), (2, 1100)])
def test_rows_of_the_table(num_tokens: int, hidden: int, dtype: torch.dtype, device: torch.device) -> None:
    weight = torch.randn(17, hidden, device=device).to(dtype)
    input_ids = torch.tensor([16, 0, -1, 17, 2**31 - 1], dtype=torch.int32, device=device)[:num_tokens]
    whole = torch.full((num_tokens + 2, hidden), torch.nan, device=device)  # canary rows around
    embedding(input_ids, weight, whole[1:-1])
    expected = torch.empty(num_tokens, hidden, device=device)
    reference.embedding(input_ids, weight, expected)
    assert torch.equal(whole[1:-1], expected)
    assert whole[[0, -1]].isnan().all()
    assert torch.equal(expected[0], weight[16].float())


@pytest.mark.parametrize(("num_tokens", "hidden"), [(1, 1), (5, 63), (2, 2200)])
def test_writes_what_the_first_layer_reads(num_tokens: int, hidden: int, device: torch.device) -> None:
    weight = torch.randn(17, hidden, device=device).half()
    input_ids = torch.tensor([16, 0, -1, 17, 3], dtype=torch.int32, device=device)[:num_tokens]
    next_norm, parts = torch.randn(hidden, device=device).half(), num_parts(hidden)
    found, expected = (
        (
            torch.full((num_tokens, hidden), torch.nan, device=device),
            torch.full((num_tokens, hidden), torch.nan, device=device).half(),
            torch.full((num_tokens, parts), torch.nan, device=device),
        )
        for _ in range(2)
    )
    embedding(input_ids, weight, found[0], next_norm, *found[1:])
    reference.embedding(input_ids, weight, expected[0], next_norm, *expected[1:])
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[2], expected[2])


def test_refusals_name_the_argument(device: torch.device) -> None:
    ids = torch.zeros(3, dtype=torch.int32, device=device)
    weight, out = torch.zeros(4, 8, device=device), torch.zeros(3, 8, device=device)
    with pytest.raises(ValueError, match=r"embedding: input_ids is torch.int64, expected torch.int32"):
        embedding(ids.long(), weight, out)
    with pytest.raises(ValueError, match=r"embedding: out has shape \[2, 8\], expected \[3, \*\]"):
        embedding(ids, weight, out[:2])
    with pytest.raises(ValueError, match=r"embedding: weight has strides"):
        embedding(ids, weight.t().contiguous().t(), out)
    with pytest.raises(ValueError, match=r"pass all of next_norm, scaled and next_squares, or none"):
        embedding(ids, weight, out, weight[0])
    with pytest.raises(ValueError, match=r"next_squares has shape \[3, 2\], expected \[3, 1\]"):
        embedding(ids, weight, out, weight[0], out.clone(), torch.zeros(3, 2, device=device))


def test_op(device: torch.device) -> None:
    ids = torch.tensor([1, 3], dtype=torch.int32, device=device)
    args = (ids, torch.randn(4, 8, device=device), torch.zeros(2, 8, device=device))
    torch.library.opcheck(torch.ops.pearl_rt.embedding, args)
