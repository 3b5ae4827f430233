"""keep_rows and head_input against their definitions: awkward sizes, padding, poison, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pearl_rt.kernels.head.head_input import head_input
from pearl_rt.kernels.head.keep_rows import keep_rows
from pearl_rt.kernels.reference.head.head_input import head_input as defined_input
from pearl_rt.kernels.reference.head.keep_rows import keep_rows as defined_rows
from pearl_rt.model.coded_matrix import CodedMatrix
from pearl_rt.reference.groups import GroupForm

EPS = 1e-5
NAN = float("nan")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("has_norm", [False, True], ids=["as it is", "normed"])
@pytest.mark.parametrize("named", ["all", "sources", "places", "both"])
@pytest.mark.parametrize("width", [1, 63, 64, 1000])
def test_rows_are_kept_as_defined(width: int, named: str, has_norm: bool, device: torch.device) -> None:
    """Rows that nothing reads are NaN, and those that nothing writes stay so."""
    x = drawn(7, width + 3)[:, :width].to(device)
    sources = torch.tensor([5, 0, 5, 3], dtype=torch.int32, device=device)
    places = torch.tensor([2, -1, 8, 0], dtype=torch.int64, device=device)
    if "all" not in named and named != "places":
        x[[1, 2, 4, 6]] = NAN
    if named == "places":
        x[4:] = NAN
    given: dict[str, Any] = {"eps": EPS}
    given |= {"sources": sources} if named in ("sources", "both") else {}
    given |= {"places": places} if named in ("places", "both") else {}
    given |= {"norm": drawn(width, seed=1).to(device)} if has_norm else {}
    out, expected = (torch.full((9, width + 5), NAN, device=device) for _ in range(2))
    keep_rows(x, out[:, 2 : 2 + width], **given)
    defined_rows(x, expected[:, 2 : 2 + width], **given)
    torch.testing.assert_close(out, expected, rtol=2e-6, atol=2e-6, equal_nan=True)
    assert has_norm or torch.equal(out.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert out.isnan().any() and not out.isnan().all()


@pytest.mark.parametrize("bits", [0, 8, 4])
@pytest.mark.parametrize("keeps_norm", [False, True])
@pytest.mark.parametrize("width", [16, 96, 700])
def test_what_a_layer_reads_is_as_defined(
    width: int, keeps_norm: bool, bits: int, device: torch.device
) -> None:
    """Of padding the feature is 0, and ids out of range read the nearest row."""
    table, codes = drawn(11, width), {}
    weight = table.to(device)
    if bits:
        form = GroupForm.joined([None], bits)
        assert form is not None
        packed = CodedMatrix.pack({"table": table}, form, bits, device)
        weight, codes = packed.codes, {"scales": packed.scales, "group": packed.group}
    ids = torch.tensor([3, 10, -1, 99, 7, 0], dtype=torch.int32, device=device)
    norms = drawn(width, seed=2).to(device), drawn(width, seed=3).to(device)
    features = torch.full((9, width), NAN, device=device)
    features[[8, 0, 4, 2]] = drawn(4, width, seed=4).to(device)
    places = torch.tensor([8, 0, -1, 4, 2, -1], device=device)
    ends = torch.tensor([0, 1, 1, 2, 2, 3, 3, 3, 3, 4], dtype=torch.int32, device=device)
    for given, written in (((places, None), 6), ((None, ends), 4)):
        found = [torch.full((6, size), NAN, device=device) for size in (2 * width, width)]
        expected = [tensor.clone() for tensor in found]
        head_input(ids, weight, features, *given, *norms, EPS, keeps_norm, *found, **codes)
        defined_input(ids, weight, features, *given, *norms, EPS, keeps_norm, *expected, **codes)
        for own, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(own, wanted, rtol=5e-6, atol=5e-6, equal_nan=True)
            assert int((~own.isnan().any(1)).sum()) == written


def test_refusals_name_the_argument(device: torch.device) -> None:
    x, out = drawn(3, 8).to(device), drawn(2, 8).to(device)
    with pytest.raises(ValueError, match="keep_rows: out has 2 rows, and 3 are kept"):
        keep_rows(x, out)
    with pytest.raises(ValueError, match="keep_rows: x has 3 rows, and 4 are kept"):
        keep_rows(x, out, places=torch.zeros(4, dtype=torch.int64, device=device))
    ids, norm = torch.zeros(3, dtype=torch.int32, device=device), torch.ones(8, device=device)
    to = torch.empty(3, 16, device=device), torch.empty(3, 8, device=device)
    with pytest.raises(ValueError, match="head_input: pass places or ends"):
        head_input(ids, x, x, None, None, norm, norm, EPS, False, *to)
    with pytest.raises(ValueError, match=r"head_input: x has shape \[3, 8\]"):
        places = torch.zeros(3, dtype=torch.int64, device=device)
        head_input(ids, x, x, places, None, norm, norm, EPS, False, to[1], to[1])
