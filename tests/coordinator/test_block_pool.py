"""The free list of a KV cache: nothing is given out twice, nothing is lost."""

import random

import pytest

from pearl_rt import _testing


def test_random_reserves_and_releases() -> None:
    rng = random.Random(1)
    for num_blocks in (1, 2, 7, 40):
        pool = _testing.BlockPool(num_blocks, 16)
        held: list[list[int]] = []
        for _ in range(500):
            owned = {block for ids in held for block in ids}
            assert pool.num_free == num_blocks - len(owned) == num_blocks - sum(map(len, held))
            if held and rng.random() < 0.5:
                pool.release(held.pop(rng.randrange(len(held))))
                continue
            count = rng.randint(0, num_blocks)
            ids = pool.reserve(count)
            assert (ids is None) == (count > num_blocks - len(owned))
            if ids is not None:
                assert len(set(ids)) == count and not owned & set(ids)
                assert all(0 <= block < num_blocks for block in ids)
                held.append(ids)


def test_what_was_released_last_is_given_out_first() -> None:
    pool = _testing.BlockPool(4, 32)
    first, second = pool.reserve(2), pool.reserve(2)
    assert (first, second) == ([0, 1], [2, 3])
    pool.release(first)
    pool.release(second)
    assert pool.reserve(4) == [2, 3, 0, 1]


@pytest.mark.parametrize("ids", [[0, 1, 0], [1, 2], [-1], [4], [0, 2**30]])
def test_a_free_block_is_not_taken_back(ids: list[int]) -> None:
    pool = _testing.BlockPool(4, 16)
    assert pool.reserve(2) == [0, 1]
    with pytest.raises(RuntimeError, match="that is free"):
        pool.release(ids)
    assert pool.num_free == 2  # and nothing was
    pool.release([0, 1])
    assert pool.num_free == 4


def test_sizes() -> None:
    pool = _testing.BlockPool(3, 48)
    assert [pool.blocks_for(tokens) for tokens in (0, 1, 48, 49, 144)] == [0, 1, 1, 2, 3]
    for sizes, text in (((0, 16), "num_blocks is 0"), ((1, 17), "block_size is 17"), ((1, 512), "up to 256")):
        with pytest.raises(ValueError, match=text):
            _testing.BlockPool(*sizes)
