"""Matrices of codes as kernels read them: the values of any parts, rounding, sizes before one is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pairs import TINY, random_tensors

from pearl_rt.checkpoint.shapes import tensor_shapes, weight_bytes
from pearl_rt.checkpoint.source import ModelSource
from pearl_rt.device.kv_pool import KvPool
from pearl_rt.device.pair_sizes import PairSizes
from pearl_rt.errors import CheckpointError
from pearl_rt.kernels.reference.forward.coded import values_of
from pearl_rt.model.coded_matrix import CodedMatrix, Coding
from pearl_rt.model.llama import LlamaWeights
from pearl_rt.reference.groups import GroupForm, Groups, Outline

CPU, META = torch.device("cpu"), torch.device("meta")
Q4, Q8, Q8_16 = GroupForm(4, 32, True), GroupForm(8), GroupForm(8, 16)


def groups_of(form: GroupForm, n: int, k: int, seed: int = 0) -> Groups:
    rng = np.random.default_rng(seed)
    low, high = (0, 16) if form.bits == 4 else (-128, 128)
    count = -(-k // form.group)
    return Groups(
        rng.integers(low, high, (n, k)).astype(np.uint8 if form.bits == 4 else np.int8),
        rng.random((n, count)).astype(np.float16),
        rng.standard_normal((n, count)).astype(np.float16) if form.has_minimums else None,
        form.group,
    )


def dense(matrix: CodedMatrix) -> torch.Tensor:
    return values_of(matrix.codes, matrix.scales, matrix.group, matrix.k)


@pytest.mark.parametrize("k", [1, 31, 33, 64, 65, 200])
@pytest.mark.parametrize(
    "forms",
    [(Q4,), (Q8,), (Q8_16,), (Q4, Q4), (Q4, Q8), (Q8_16, Q8), (Q4, Q4, Q8_16), (GroupForm(8, 32, True), Q8)],
    ids=lambda forms: "+".join(f"{f.bits}/{f.group}{'m' * f.has_minimums}" for f in forms),
)
def test_values_are_those_of_the_parts(forms: tuple[GroupForm, ...], k: int) -> None:
    parts = {str(i): groups_of(form, 3 + i, k, i) for i, form in enumerate(forms)}
    joined = GroupForm.joined(forms, 0)
    assert joined is not None
    matrix = CodedMatrix.pack(parts, joined, 0, CPU)
    expected = torch.from_numpy(np.concatenate([part.dequantize() for part in parts.values()]))
    assert matrix.shape == expected.shape and torch.equal(dense(matrix), expected)
    assert torch.equal(dense(matrix.first_rows(2)), expected[:2])
    outlines = {name: Outline(part.shape, part.form) for name, part in parts.items()}
    empty = CodedMatrix.pack(outlines, joined, 0, META)
    assert (empty.shape, empty.nbytes) == (matrix.shape, matrix.nbytes)
    if k == 64:
        assert matrix.nbytes == joined.num_bytes(matrix.shape)


@pytest.mark.parametrize(
    ("parts", "bits", "expected"),
    [
        ([Q8, None], 0, None),
        ([None], 8, Q8),
        ([None], 4, Q4),
        ([Q4, None], 8, GroupForm(8, 32, True)),
        ([Q8, Q4], 4, Q4),
        ([Q8_16, Q4], 8, GroupForm(8, 16, True)),
        ([Q8_16], 4, Q4),
    ],
)
def test_one_form_holds_all_parts(
    parts: list[GroupForm | None], bits: int, expected: GroupForm | None
) -> None:
    assert GroupForm.joined(parts, bits) == expected


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 33), (16, 96), (3, 200)])
def test_rounding_has_the_bits_of_the_definition(n: int, k: int, bits: int) -> None:
    values = np.random.default_rng(0).standard_normal((n, k), np.float32)
    values[0, 0], values[-1] = 3.0, -0.5  # a group of one value too
    expected, found = Groups.quantize(values, bits), Coding.rounded("w", torch.from_numpy(values), bits)
    assert np.array_equal(found.codes.numpy(), expected.codes)
    assert np.array_equal(found.scales.numpy(), expected.scales)
    if expected.minimums is not None:
        assert found.minimums is not None and np.array_equal(found.minimums.numpy(), expected.minimums)


def test_parts_are_rounded_that_have_more_bits() -> None:
    wide, kept = groups_of(Q8, 4, 70), groups_of(Q4, 2, 70)
    plain = torch.randn(3, 70, generator=torch.Generator().manual_seed(1))
    matrix = CodedMatrix.pack({"wide": wide, "kept": kept, "plain": plain}, Q4, 4, CPU)
    rounded = [Groups.quantize(wide.dequantize(), 4), kept, Groups.quantize(plain.numpy(), 4)]
    expected = np.concatenate([part.dequantize() for part in rounded])
    assert torch.equal(dense(matrix), torch.from_numpy(expected))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_what_has_no_code_is_refused(bits: int, value: float) -> None:
    plain = torch.randn(2, 40)
    plain[1, 35] = value
    with pytest.raises(CheckpointError, match=rf"tensor 'some\.weight' .* cannot have {bits} bits: .*'auto'"):
        CodedMatrix.pack({"some.weight": plain}, GroupForm(bits, 32, bits == 4), bits, CPU)


@pytest.mark.parametrize(("weights", "wide"), [("int8", 8), ("int4", 4)])
def test_a_model_is_rounded_but_for_norms(weights: str, wide: int) -> None:
    """Embedding and head have 8 bits, and are one matrix where they are tied."""
    config = replace(TINY, tie_word_embeddings=True)
    tensors = random_tensors(config, 3)
    packed = LlamaWeights.pack(config, tensors, dtype=torch.float32, device=CPU, weights=weights)
    assert packed.lm_head is packed.embed_tokens and packed.dtype == torch.float32
    layer, prefix = packed.layers[1], "model.layers.1"
    names = [f"{prefix}.mlp.{name}_proj.weight" for name in ("gate", "up")]
    expected = Groups.quantize(torch.cat([tensors[name] for name in names]).numpy(), wide).dequantize()
    for matrix, bits in ((layer.gate_up_proj, wide), (packed.lm_head, 8)):
        assert isinstance(matrix, CodedMatrix)
        assert matrix.codes.dtype == (torch.uint8 if bits == 4 else torch.int8)
    assert isinstance(layer.gate_up_proj, CodedMatrix)
    assert torch.equal(dense(layer.gate_up_proj), torch.from_numpy(expected))
    assert torch.equal(layer.input_layernorm, tensors[f"{prefix}.input_layernorm.weight"])


def source(weights: str, forms: dict[str, GroupForm]) -> ModelSource:
    """A model that is not read: shapes alone."""
    config = replace(TINY, hidden_size=128, intermediate_size=256)
    tensors: dict[str, Any] = {
        name: Outline(shape, forms[name]) if name in forms else torch.empty(shape, device=META)
        for name, shape in tensor_shapes(config).items()
    }
    return ModelSource("target", config, "bfloat16", tensors, weights)


@pytest.mark.parametrize("weights", ["auto", "int8", "int4"])
@pytest.mark.parametrize("stored", [False, True], ids=["elements", "codes"])
def test_memory_is_counted_in_packed_bytes(weights: str, stored: bool) -> None:
    matrices = [name for name, shape in tensor_shapes(source("auto", {}).config).items() if len(shape) == 2]
    one = source(weights, dict.fromkeys(matrices, Q4) if stored else {})
    sizes = PairSizes.of(
        one.config,
        None,
        KvPool.of(None, num_slots=1, max_model_len=32, block_size=16),
        num_slots=1,
        prefill_chunk=16,
    )
    counted = one.num_bytes()
    assert sizes.memory([one])["the target's weights"] == counted
    wide = weight_bytes(one.config, "bfloat16")
    share = {("auto", False): 1.0, ("int8", False): 34 / 64}.get((weights, stored))
    assert counted < wide / 2 if share is None else abs(counted / wide - share) < 0.01
