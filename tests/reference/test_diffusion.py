"""Windows of a few passes, as the definition has them: which places get a token when, from which rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pearl_rt.reference.drafters.diffusion import Diffusion
from pearl_rt.reference.noise import Floats
from pearl_rt.reference.processors import Transform

VOCAB, MASK = 12, 11
TEXT = [1, 2]


class Rows:
    """A draft that says place + 1, and is surer of a place the higher it is in `order`; it keeps what it was
    fed.
    """

    def __init__(self, order: Sequence[int]) -> None:
        self.order, self.fed = order, []

    def __call__(self, text: Sequence[int], fed: Sequence[int]) -> list[Floats]:
        assert text == TEXT
        self.fed.append(list(fed))
        rows = np.zeros((len(fed) + 1, VOCAB), np.float32)
        for place, sureness in enumerate(self.order):
            rows[place, place + 1] = 1 + sureness
        return list(rows)


def plain(row: Floats, prefix: Sequence[int]) -> Floats:
    return row


def test_the_surest_places_come_first() -> None:
    """Of five places and two passes three, the first of them in any case, then the others."""
    rows = Rows([0, 1, 4, 2, 3])
    assert Diffusion(rows, MASK, 2, 0.0, plain).window(TEXT[:1], TEXT[1:], 5) == [1, 2, 3, 4, 5]
    assert rows.fed == [[MASK] * 4, [1, MASK, 3, MASK]]


@pytest.mark.parametrize(
    ("passes", "numbers"), [(1, [0]), (2, [0, 4]), (3, [0, 3, 6]), (8, [*range(8)]), (16, [*range(8)])]
)
def test_places_with_a_token_before_each_pass(passes: int, numbers: list[int]) -> None:
    """Of eight; a pass gives one place more at least."""
    rows = Rows(range(8)[::-1])
    assert len(Diffusion(rows, MASK, passes, 0.7, plain).window(TEXT, [], 8)) == 8
    assert [7 - fed.count(MASK) for fed in rows.fed] == numbers


@pytest.mark.parametrize("most", [0, 1])
def test_windows_without_masks(most: int) -> None:
    rows = Rows([0] * most)
    assert Diffusion(rows, MASK, 4, 1.0, plain).window(TEXT, [], most) == [1] * most
    assert rows.fed == [[]] * most


def test_equally_sure_places_come_in_order() -> None:
    rows = Rows([3] * 6)
    Diffusion(rows, MASK, 3, 0.0, plain).window(TEXT, [], 6)
    assert rows.fed[1:] == [[1, 2, MASK, MASK, MASK], [1, 2, 3, 4, MASK]]


def test_a_place_is_guessed_behind_those_before_it() -> None:
    """Tokens and guesses count for penalties; a place without any token ends the window."""

    def same(text: Sequence[int], fed: Sequence[int]) -> list[Floats]:
        return [np.array([0, 0, 0, 3, 2.9, 2.8, 0, 0], np.float32)] * (len(fed) + 1)

    penalised = Transform(presence_penalty=0.5, prompt_len=2)
    assert Diffusion(same, MASK, 2, 0.0, penalised.row).window(TEXT, [], 4) == [3, 4, 5, 3]

    def nothing(row: Floats, prefix: Sequence[int]) -> Floats:
        return row if len(prefix) < 4 else np.full_like(row, -np.inf)

    assert Diffusion(same, MASK, 2, 0.0, nothing).window(TEXT, [], 4) == [3, 3]
    assert Diffusion(same, MASK, 2, 0.0, lambda row, _: row - np.inf).window(TEXT, [], 4) == []


def test_sureness_is_that_of_the_row_as_it_is_sampled() -> None:
    """Two near tokens are less sure than one, but for top_k = 1, behind which all are equally sure."""
    near = np.array([5, 4.9, 0, 0, 0, 0, 0, 0], np.float32)
    sure = np.array([0, 0, 5, 0, 0, 0, 0, 0], np.float32)
    asked: list[list[int]] = []

    def rows(text: Sequence[int], fed: Sequence[int]) -> list[Floats]:
        asked.append(list(fed))
        return [sure, near, sure, near][: len(fed) + 1]

    Diffusion(rows, MASK, 2, 0.8, plain).window(TEXT, [], 4)
    assert asked[1] == [2, MASK, 2]
    asked.clear()
    Diffusion(rows, MASK, 2, 0.8, Transform(temperature=0.8, top_k=1).row).window(TEXT, [], 4)
    assert asked[1] == [2, 0, MASK]
