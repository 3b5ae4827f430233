"""Trimming of block tables against its definition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pearl_rt.kernels.reference.verify.rollback import rollback as reference
from pearl_rt.kernels.verify.rollback import BLOCK, rollback

CANARY = 123456


def outputs(block_table: torch.Tensor) -> list[torch.Tensor]:
    """freed and num_freed, in fresh memory."""
    return [torch.full_like(block_table, CANARY), torch.full_like(block_table[:, 0], CANARY)]


def run(
    function: Callable[..., None], tables: list[torch.Tensor], block_size: int, margin: int
) -> list[torch.Tensor]:
    """All five tensors after a call, the arguments untouched."""
    block_table, num_blocks, committed_lens = (t.clone() for t in tables)
    freed, num_freed = outputs(block_table)
    function(block_table, num_blocks, committed_lens, freed, num_freed, block_size, margin)
    return [block_table, num_blocks, committed_lens, freed, num_freed]


def test_worked_example(device: torch.device) -> None:
    tables = [torch.tensor(t, dtype=torch.int32, device=device) for t in ([[7, 3, 9, 4]], [4], [20])]
    block_table, num_blocks, committed_lens, freed, num_freed = run(rollback, tables, block_size=16, margin=5)
    assert block_table.tolist() == [[7, 3, -1, -1]]
    assert num_blocks.tolist() == [2]
    assert committed_lens.tolist() == [20]
    assert freed.tolist() == [[9, 4, -1, -1]]
    assert num_freed.tolist() == [2]


@pytest.mark.parametrize(
    ("table_width", "block_size", "margin"),
    [(1, 16, 0), (63, 16, 17), (BLOCK, 256, 9), (BLOCK + 1, 48, 0), (1000, 16, 2**31 - 1)],
    ids=str,
)
def test_matches_the_definition(table_width: int, block_size: int, margin: int, device: torch.device) -> None:
    """Lengths at both sides of a block's end, ended sequences, nothing to give back, counts out of range."""
    most = table_width * block_size
    lengths = [0, 1, block_size - margin, block_size - margin + 1, most // 2, most - margin, most, -3]
    lengths = [max(n, -3) for n in lengths] * 2
    owned = [table_width] * 8 + [table_width // 2] * 6 + [0, table_width + 5]
    generator = torch.Generator().manual_seed(0)
    block_table = torch.randint(
        0, 2**31 - 1, (len(lengths), table_width), generator=generator, dtype=torch.int32
    )
    tables = [
        block_table.to(device),
        torch.tensor(owned, dtype=torch.int32, device=device),
        torch.tensor(lengths, dtype=torch.int32, device=device),
    ]
    for found, expected in zip(
        run(rollback, tables, block_size, margin), run(reference, tables, block_size, margin), strict=True
    ):
        assert torch.equal(found, expected)


def test_second_call_frees_nothing(device: torch.device) -> None:
    tables = [torch.tensor(t, dtype=torch.int32, device=device) for t in ([[7, 3, 9, 4]], [4], [20])]
    first = run(rollback, tables, block_size=16, margin=5)
    second = run(rollback, first[:3], block_size=16, margin=5)
    assert torch.equal(second[0], first[0])
    assert second[4].tolist() == [0]
    assert second[3].tolist() == [[-1] * 4]


def test_operator(device: torch.device) -> None:
    tables = [torch.tensor(t, dtype=torch.int32, device=device) for t in ([[7, 3, 9, 4]], [4], [20])]
    expected = run(rollback, tables, 16, 5)
    arguments = (*tables, *outputs(tables[0]), 16, 5)
    torch.library.opcheck(torch.ops.pearl_rt.rollback.default, arguments)
    torch.ops.pearl_rt.rollback(*arguments)
    for found, wanted in zip(arguments, expected, strict=False):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (
            0,
            torch.zeros(2, 3, dtype=torch.int64),
            r"rollback: block_table is torch.int64, expected torch.int32",
        ),
        (1, torch.zeros(3, dtype=torch.int32), r"num_blocks has shape \[3\], expected \[2\]"),
        (3, torch.zeros(2, 2, dtype=torch.int32), r"freed has shape \[2, 2\], expected \[2, 3\]"),
        (5, 0, r"block_size is 0, expected at least 1"),
        (6, -1, r"margin is -1, expected 0 or more"),
    ],
)
def test_refuses(index: int, value: object, message: str, device: torch.device) -> None:
    arguments: list[object] = [torch.zeros(2, 3, dtype=torch.int32, device=device)]
    arguments += [torch.zeros(2, dtype=torch.int32, device=device) for _ in range(2)]
    arguments += [*outputs(arguments[0]), 16, 0]  # type: ignore[arg-type]
    arguments[index] = value.to(device) if isinstance(value, torch.Tensor) else value
    with pytest.raises(ValueError, match=message):
        rollback(*arguments)  # type: ignore[arg-type]
