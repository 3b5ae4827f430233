"""The KV cache of the CPU executor in blocks: the bits of a cache in one piece, whosever and wherever."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_executor import CPUS, ISAS, SHAPES, Model, feed, largest_error, reference_logits, same_bits

from pearl_rt import _C, RequestError, _testing

NUM_TOKENS = 75
LENGTH = 80  # of a sequence at most: five blocks of 16
HUGE = 2147480000  # in entries of a block table that must not be read


def paged(
    model: Model, weights: Any, num_blocks: int | None, block_size: int, cpus: list[int] | None = None
) -> Any:
    """An executor of two slots whose blocks are all NaN."""
    tables = (model.cos.numpy(), model.sin.numpy())
    sizes = {"num_blocks": num_blocks, "block_size": block_size}
    executor = _C.LlamaExecutor(weights, _C.CoreSet(cpus or CPUS[:1]), 2, len(model.cos), *tables, **sizes)
    for block in range(executor.num_blocks):
        _testing.poison_block(executor, block, 0)
    return executor


def model_of(name: str) -> Model:
    return Model(replace(SHAPES[name], vocab_size=64), max_len=LENGTH)


def split(total: int, rng: random.Random) -> list[int]:
    """Sizes of pieces, 1 to 16 rows and now and then more."""
    sizes: list[int] = []
    while total:
        sizes.append(min(total, rng.choice([1, 1, 2, 3, 7, 16, 40])))
        total -= sizes[-1]
    return sizes


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["gqa", "mqa-wide-group", "ragged-sizes"])
def test_bits_are_those_of_one_piece(name: str, isa: str, dtype: str) -> None:
    """Two sequences in calls of unlike sizes, their blocks in each other's gaps, and NaN all around."""
    model, rng = model_of(name), random.Random(2)
    ids = [model.token_ids(NUM_TOKENS), model.token_ids(NUM_TOKENS)[::-1]]
    weights = model.weights(dtype, isa)
    alone = paged(model, weights, None, 256)  # a sequence is one block
    whole = [alone.forward(0, own, 0, NUM_TOKENS) for own in ids]
    for block_size in (16, 48):
        per_slot = -(-NUM_TOKENS // block_size)
        blocks = list(range(2 * per_slot + 3))
        rng.shuffle(blocks)
        tables = [[*blocks[slot * per_slot : (slot + 1) * per_slot], HUGE, -1] for slot in range(2)]
        executor = paged(model, weights, len(blocks), block_size, CPUS[:2])
        found: list[list[np.ndarray]] = [[], []]
        sizes = [split(NUM_TOKENS, rng) for _ in ids]
        at = [0, 0]
        while any(sizes):
            live = [slot for slot in range(2) if sizes[slot]]
            segments = []
            for slot in live:
                count = sizes[slot].pop()
                segments.append((slot, ids[slot][at[slot] : at[slot] + count], at[slot], count))
                at[slot] += count
            for slot in live:  # what lies behind, as a window that was taken back leaves it
                _testing.poison_block(
                    executor, tables[slot][(at[slot] - 1) // block_size], (at[slot] - 1) % block_size + 1
                )
            for slot, logits in zip(
                live, executor.forward_batch(segments, [tables[s] for s in live]), strict=True
            ):
                found[slot].append(logits)
        for slot in range(2):
            assert same_bits(np.concatenate(found[slot]), whole[slot]), (block_size, slot)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["gqa", "mqa-wide-group", "ragged-sizes"])
@pytest.mark.parametrize("block_size", [16, 48])
def test_rows_are_copied_between_blocks(name: str, dtype: str, block_size: int) -> None:
    """A sequence goes on in another block, behind rows that were copied there in two parts of any parity."""
    model, rng = model_of(name), random.Random(block_size)
    ids, weights = model.token_ids(block_size), model.weights(dtype)
    whole = paged(model, weights, None, 256).forward(0, ids, 0, block_size)
    for _ in range(4):
        executor = paged(model, weights, 3, block_size)
        rows = rng.randint(2, block_size - 1)
        first = rng.randint(1, rows - 1)
        executor.forward_batch([(0, ids[:rows], 0, 0)], [[1]])
        _testing.copy_rows(executor, 1, 2, 0, first)
        _testing.copy_rows(executor, 1, 2, first, rows - first)
        [behind] = executor.forward_batch([(0, ids[rows:], rows, block_size - rows)], [[2]])
        assert same_bits(behind, whole[rows:]), (rows, first)
        _testing.copy_rows(executor, 2, 1, rows, block_size - rows)  # and back, behind rows that stay
        [last] = executor.forward_batch([(0, ids[-1:], block_size - 1, 1)], [[1]])
        assert same_bits(last, whole[-1:])


def test_copies_out_of_range_are_refused() -> None:
    executor = paged(model_of("gqa"), model_of("gqa").weights(), 4, 16)
    for block, to, row, count in ((4, 0, 0, 1), (0, -1, 0, 1), (0, 1, 17, 0), (0, 1, 9, 8), (0, 1, 0, -1)):
        with pytest.raises(RequestError, match=r"block|row"):
            _testing.copy_rows(executor, block, to, row, count)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("heads", [1, 3])
def test_any_number_of_rows_has_the_bits_of_one(heads: int, isa: str, dtype: str) -> None:
    """1 to 16 query rows at once, then multiples of 3. A head, and a block of values, have more inputs than
    AVX2 widens at once (128).
    """
    shape = {"num_attention_heads": heads, "num_key_value_heads": 1, "head_dim": 136, "num_hidden_layers": 1}
    model = Model(replace(SHAPES["gqa"], vocab_size=64, **shape), max_len=160)
    ids, weights = model.token_ids(152), model.weights(dtype, isa)
    one = feed(paged(model, weights, None, 256), 0, ids, [1] * 152)
    assert largest_error(one, reference_logits(model, ids)) < (1e-5 if dtype == "float32" else 0.02)
    for block_size in (16, 256):
        executor = paged(model, weights, None, block_size)
        assert same_bits(feed(executor, 0, ids, [*range(16, 0, -1), 16]), one), block_size
        assert same_bits(executor.forward(1, ids, 0, 152), one), block_size


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, -1], ids=hex)
@pytest.mark.parametrize("isa", ISAS)
def test_nan_of_a_key_stays_nan(isa: str, bits: int) -> None:
    """Whatever its bits: rounding must not carry over them."""
    model = model_of("gqa")
    for head in range(2):
        model.tensors["model.layers.1.self_attn.k_proj.weight"].view(torch.int32)[16 * head] = bits
    for num_tokens in (1, 20):
        for dtype in ("bfloat16", "float32"):
            executor = paged(model, model.weights(dtype, isa), None, 16)
            assert np.isnan(executor.forward(0, model.token_ids(num_tokens), 0, num_tokens)).all(), dtype


@pytest.mark.parametrize("isa", ISAS)
def test_a_block_that_a_row_does_not_see_leaves_it_alone(isa: str) -> None:
    """Positions 12 to 27 in one pass, NaN from 18 on: rows 12 to 15 stand in another block."""
    model = model_of("gqa")
    model.tensors["model.embed_tokens.weight"][5] = math.nan
    ids = [token + 6 if token < 6 else token for token in model.token_ids(28)]
    executor = paged(model, model.weights("bfloat16", isa), None, 16)
    whole = executor.forward(0, ids, 0, 28)
    ids[18] = 5
    executor.forward(1, ids[:12], 0, 0)
    logits = executor.forward(1, ids[12:], 12, 16)
    assert same_bits(logits[:4], whole[12:16]) and np.isnan(logits[6:]).all()


def test_slots_have_blocks_of_their_own_without_a_table() -> None:
    model = model_of("gqa")
    weights, ids = model.weights(), model.token_ids(NUM_TOKENS)
    whole = paged(model, weights, None, 256).forward(0, ids, 0, NUM_TOKENS)
    executor = paged(model, weights, 7, 16)  # slot 0 has five, slot 1 has two
    assert (executor.num_blocks, executor.block_size, executor.num_slots) == (7, 16, 2)
    assert same_bits(executor.forward(0, ids, 0, NUM_TOKENS), whole)
    assert same_bits(executor.forward(1, ids[:32], 0, 32), whole[:32])
    with pytest.raises(
        ValueError, match="slot 1 has no 3 blocks of its own in a pool of 7; give it a block table"
    ):
        executor.forward(1, ids[32:33], 32, 1)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([0, 4], r"block 1 of its table is 4, which is not in \[0, 4\)"),
        ([-1, 0], r"block 0 of its table is -1"),
        ([0, HUGE], f"block 1 of its table is {HUGE}"),
        ([3], "its block table has 1 blocks of 16; positions up to 20 need 2"),
        ([], "its block table has 0 blocks of 16"),
    ],
    ids=["past", "negative", "huge", "short", "empty"],
)
def test_bad_block_tables_are_refused_by_value(table: list[int], message: str) -> None:
    model = model_of("gqa")
    executor = paged(model, model.weights(), 4, 16)
    with pytest.raises(ValueError, match=message):
        executor.forward_batch([(0, [1] * 20, 0, 0)], [table])
    with pytest.raises(ValueError, match="2 block tables for 1 segments"):
        executor.forward_batch([(0, [1], 0, 0)], [[0], [1]])


def test_bad_pools_are_refused() -> None:
    model = model_of("gqa")
    weights = model.weights()
    for num_blocks, block_size, text in (
        (0, 16, "num_blocks is 0"),
        (-3, 16, "num_blocks is -3"),
        (4, 0, "block_size is 0; it must be a multiple of 16, up to 256"),
        (4, 24, "block_size is 24"),
        (None, 512, "block_size is 512"),
    ):
        with pytest.raises(ValueError, match=text):
            paged(model, weights, num_blocks, block_size)
