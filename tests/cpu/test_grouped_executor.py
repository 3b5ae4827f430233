"""The executor over weights of 8 and 4 bits: logits near the definition's, and bits that depend on no
company.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from test_executor import CPUS, ISAS, SHAPES, Model, feed, largest_error, reference_logits, same_bits

from pearl_rt import _C
from pearl_rt.backends.cpu import view_of
from pearl_rt.reference.groups import Groups

NUM_TOKENS = 150
NAMES = ("gqa", "mha-tied", "ragged-sizes", "qkv-bias", "deep-k")


def groups_of(model: Model, bits: int) -> dict[str, Groups]:
    """The model's matrices, rounded as the executor does it."""
    return {
        name: Groups.quantize(tensor.numpy(), 8 if "embed" in name or "head" in name else bits)
        for name, tensor in model.tensors.items()
        if tensor.ndim == 2
    }


@cache
def expected(name: str, bits: int) -> tuple[Model, list[int], np.ndarray]:
    """A shape's model, its tokens, and the logits that the definition gives of its rounded values."""
    model = Model(SHAPES[name])
    kept = model.tensors
    groups = groups_of(model, bits)
    rounded = {key: torch.from_numpy(matrix.dequantize()) for key, matrix in groups.items()}
    model.tensors = kept | rounded
    ids = model.token_ids(NUM_TOKENS)
    logits = reference_logits(model, ids, groups=groups)
    model.tensors = kept
    return model, ids, logits


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_rounded_values(name: str, isa: str, bits: int) -> None:
    """As the definition computes them; the order of other sums may move an activation to the next code, which
    then spreads. Without codes of activations the mean is beyond 0.012.
    """
    model, ids, exact = expected(name, bits)
    executor = model.executor(model.weights("float32", isa, bits=bits), CPUS[:2])
    logits = executor.forward(0, ids, 0, NUM_TOKENS)
    assert largest_error(logits, exact) < 0.05
    assert np.abs(logits - exact).mean() < 0.01 * np.abs(exact).mean()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", NAMES)
def test_groups_of_a_file_are_what_rounding_gives(name: str, bits: int) -> None:
    model = Model(SHAPES[name])
    ids = model.token_ids(20)
    views = {key: view_of(tensor) for key, tensor in model.tensors.items()}
    views |= {key: view_of(groups) for key, groups in groups_of(model, bits).items()}
    stored = _C.LlamaWeights(vars(model.shape), views, "bfloat16", None)
    rounded = model.weights(bits=bits)
    assert stored.weight_bytes == rounded.weight_bytes < model.weights().weight_bytes
    logits = model.executor(rounded).forward(0, ids, 0, 20)
    assert same_bits(model.executor(stored).forward(0, ids, 0, 20), logits)


def test_a_matrix_with_one_part_of_elements_is_elements() -> None:
    """Codes beside bf16 in one matrix become bf16: no part is rounded to fewer bits unasked."""
    model = Model(SHAPES["gqa"])
    ids, name = model.token_ids(20), "model.layers.0.self_attn.k_proj.weight"
    groups = groups_of(model, 8)[name]
    views = {key: view_of(tensor) for key, tensor in model.tensors.items()} | {name: view_of(groups)}
    stored = _C.LlamaWeights(vars(model.shape), views, "float32", None)
    model.tensors[name] = torch.from_numpy(groups.dequantize())
    logits = model.executor(model.weights("float32")).forward(0, ids, 0, 20)
    assert same_bits(model.executor(stored).forward(0, ids, 0, 20), logits)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["gqa", "ragged-sizes"])
def test_bits_do_not_depend_on_rows_threads_or_batch(name: str, isa: str, bits: int) -> None:
    model = Model(SHAPES[name])
    ids, other = model.token_ids(NUM_TOKENS), model.token_ids(NUM_TOKENS)[::-1]
    weights = model.weights("bfloat16", isa, bits=bits)
    executor = model.executor(weights, CPUS[:1])
    whole = executor.forward(0, ids, 0, NUM_TOKENS)
    every_count = [*range(1, 17), 14]
    assert same_bits(feed(executor, 1, ids, every_count), whole)
    threaded = model.executor(weights, CPUS[:2])
    assert same_bits(threaded.forward(0, ids, 0, NUM_TOKENS), whole)
    assert same_bits(feed(threaded, 1, ids, every_count[::-1]), whole)
    first, second = threaded.forward_batch([(1, ids, 0, NUM_TOKENS), (0, other, 0, NUM_TOKENS)])
    assert same_bits(first, whole) and same_bits(second, executor.forward(0, other, 0, NUM_TOKENS))
