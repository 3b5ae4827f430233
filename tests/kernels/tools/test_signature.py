"""What an operator's schema and checks are, read off the annotations of its launcher."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import pytest
import torch
from torch import Tensor

from pearl_rt.kernels.base.signature import OperatorSignature


class Pair(NamedTuple):
    lengths: Annotated[Tensor, "int32 [B]"]
    ends: Annotated[Tensor, "int32 [B + 1] out"]


def launcher(
    x: Annotated[Tensor, "float [B, V] rows"],
    k: int,
    pair: Pair,
    best: Annotated[Tensor, "fp32|x [B, k - 1] out"],
    bias: Annotated[Tensor | None, "x [V]"] = None,
    scaled: bool = False,
) -> None:
    calls.append((x, k, pair, best, bias, scaled))


calls: list[Any] = []
ints = torch.zeros(4, dtype=torch.int32)
GOOD = {"x": torch.zeros(3, 5).half(), "k": 3, "pair": Pair(ints[:3], ints), "best": torch.zeros(3, 2)}


def test_a_tuple_stands_for_its_fields(device: torch.device) -> None:
    described = OperatorSignature(launcher)
    assert described.schema == (
        "launcher(Tensor x, int k, Tensor lengths, Tensor(a!) ends, Tensor(b!) best, Tensor? bias=None, "
        "bool scaled=False) -> ()"
    )
    described.operator(launcher)(GOOD["x"], 3, ints[:3], ints, best=GOOD["best"])
    [(_, k, pair, _, bias, scaled)] = calls
    assert k == 3 and isinstance(pair, Pair) and pair.ends is ints and bias is None and not scaled


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"x": torch.zeros(3, 5, dtype=torch.int32)},
            "launcher: x is torch.int32, expected torch.float32",
        ),
        ({"x": torch.zeros(3, 10)[:, ::2]}, "x has strides .*: make its last dimension contiguous"),
        ({"pair": Pair(ints[:2], ints)}, r"lengths has shape \[2\], expected \[3\]"),
        ({"pair": Pair(ints[:3], ints[:3])}, r"ends has shape \[3\], expected \[4\]"),
        ({"pair": Pair(torch.zeros(6, dtype=torch.int32)[::2], ints)}, "lengths has strides"),
        ({"k": 4}, r"best has shape \[3, 2\], expected \[3, 3\]"),
        (
            {"best": torch.zeros(3, 2).double()},
            "torch.float64, expected torch.float32 or torch.float16",
        ),
        ({"bias": torch.zeros(5)}, "bias is torch.float32, expected torch.float16"),
        ({"bias": torch.zeros(5, device="meta").half()}, "bias on meta"),
    ],
)
def test_refuses(change: dict[str, Any], said: str) -> None:
    described = OperatorSignature(launcher)
    with pytest.raises(ValueError, match=said):
        described.check((), GOOD | change)


def test_an_argument_that_is_not_there_is_named() -> None:
    given = {name: value for name, value in GOOD.items() if name not in ("pair", "k")}
    with pytest.raises(TypeError, match=r"launcher: k, pair must be passed"):
        OperatorSignature(launcher).check((), given)
