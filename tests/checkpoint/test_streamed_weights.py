"""Quantised weights go from their files to the packed model one matrix at a time, with the bits that they
have when the whole model is decoded first.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import Type, write
from test_quantised import FORMATS, save
from tiny_pairs import TINY, random_tensors

from pearl_rt import _C, CheckpointError, _testing
from pearl_rt.backends import cpu
from pearl_rt.backends.cpu import Model, sources_of, view_of
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.loader import load_tensors
from pearl_rt.checkpoint.stored_tensors import StoredTensors
from pearl_rt.reference.groups import Groups

KINDS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
WIDE = replace(TINY, hidden_size=256, intermediate_size=512, num_attention_heads=8, head_dim=32)
IDS = [5, 3, 250, 17, 9, 1, 88]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def gguf_file(folder: Path, kinds: Sequence[str]) -> StoredTensors:
    """A model whose matrices are of these types in turn."""
    names = [name for name, tensor in random_tensors(WIDE, 0).items() if tensor.dim() == 2]
    kind_of = {name: Type[kinds[i % len(kinds)]] for i, name in enumerate(names)}
    write(folder / "model.gguf", WIDE, random_tensors(WIDE, 0), kind_of.__getitem__)
    return load_tensors(folder / "model.gguf", ModelConfig.from_pretrained(folder / "model.gguf"))


def decoded_first(tensors: StoredTensors, dtype: str) -> dict[str, Any]:
    """Every tensor in memory: as codes, as values, or as it lies in the file."""
    found: dict[str, Any] = {}
    for name, stored in tensors._stored.items():
        groups = None if dtype == "float32" else tensors.groups(name)
        own = None if stored.place else getattr(torch, dtype)
        found[name] = stored.read(own) if groups is None else groups
    return found


def logits(config: ModelConfig, tensors: Any, dtype: str, weights: str) -> np.ndarray:
    model = Model.pack(config, tensors, dtype=dtype, isa=None, max_model_len=16, weights=weights)
    executor = model.executor([min(cpu.choose_cores(None))])
    return executor.forward(0, IDS, 0, len(IDS))


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_decoded_as_the_definition_does_it(tmp_path: Path, kind: str) -> None:
    """As codes, and as values; the rows of q and k are put in order."""
    tensors = gguf_file(tmp_path, [kind])
    for name in tensors:
        k = tensors.shape(name)[-1]
        groups, values = tensors.groups(name), tensors[name]
        if groups is None:
            continue
        codes = _testing.unpacked(tensors.places()[name], k)
        assert same_bits(codes, groups.dequantize()), name
        as_values = _testing.unpacked(tensors.places(keeps_codes=False)[name], k)
        assert same_bits(as_values, values.numpy()), name
        rounded = Groups.quantize(groups.dequantize(), 4).dequantize()
        if groups.bits == 8:
            assert same_bits(_testing.unpacked(tensors.places()[name], k, 4), rounded), name


@pytest.mark.parametrize("kinds", [*((kind,) for kind in KINDS), KINDS], ids="-".join)
def test_logits_of_a_gguf_file(tmp_path: Path, kinds: Sequence[str]) -> None:
    tensors = gguf_file(tmp_path, kinds)
    for dtype in ("bfloat16", "float32"):
        places = tensors.places(keeps_codes=dtype != "float32")
        assert places.keys() == set(tensors), "a matrix of a GGUF file is computed in Python"
        decoded = decoded_first(tensors, dtype)
        for weights in ("auto", "int8", "int4"):
            expected = logits(WIDE, decoded, dtype, weights)
            assert same_bits(logits(WIDE, tensors, dtype, weights), expected), (dtype, weights)


@pytest.mark.parametrize("kind", ["F16", "F32", "BF16"])
def test_logits_of_codes_beside_elements(tmp_path: Path, kind: str) -> None:
    """Whose rows of q and k are put in order as well."""
    tensors = gguf_file(tmp_path, ("Q4_K", kind, "Q8_0", kind))
    for dtype in ("bfloat16", "float32"):
        expected = logits(WIDE, decoded_first(tensors, dtype), dtype, "auto")
        assert same_bits(logits(WIDE, tensors, dtype, "auto"), expected), dtype


@pytest.mark.parametrize("form", FORMATS)
def test_logits_of_a_quantised_checkpoint(tmp_path: Path, form: str) -> None:
    save(tmp_path, *FORMATS[form])
    config = ModelConfig.from_pretrained(tmp_path)
    tensors = load_tensors(tmp_path, config)
    for dtype, weights in (("bfloat16", "auto"), ("bfloat16", "int4"), ("float32", "auto")):
        expected = logits(config, decoded_first(tensors, dtype), dtype, weights)
        assert same_bits(logits(config, tensors, dtype, weights), expected), (dtype, weights)


def test_one_matrix_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """q, k and v are packed as one, and so are gate and up."""
    save(tmp_path, *FORMATS["gptq"])
    config = ModelConfig.from_pretrained(tmp_path)
    tensors = load_tensors(tmp_path, config)
    alive: list[weakref.ref[Any]] = []
    most = 0

    def watched(tensor: Any) -> Any:
        nonlocal most
        view = view_of(tensor)
        alive.append(weakref.ref(view[0]))
        most = max(most, sum(reference() is not None for reference in alive))
        return view

    monkeypatch.setattr(cpu, "view_of", watched)
    logits(config, tensors, "bfloat16", "auto")
    assert len(alive) == 7 * config.num_hidden_layers and most == 3
    assert not any(reference() for reference in alive)


def test_what_a_maker_raises_comes_out(tmp_path: Path) -> None:
    save(tmp_path, *FORMATS["awq"])
    config = ModelConfig.from_pretrained(tmp_path)
    sources = sources_of(load_tensors(tmp_path, config), "bfloat16")
    name = "model.layers.1.mlp.up_proj.weight"
    make, shape, form = sources[name]  # type: ignore[misc]

    def broken() -> Any:
        raise CheckpointError("of another world")

    def packed(source: Any) -> Any:
        return _C.LlamaWeights(cpu.native_config(config), sources | {name: source}, "bfloat16")

    with pytest.raises(CheckpointError, match="of another world"):
        packed((broken, shape, form))
    other = view_of(Groups.quantize(np.ones((16, 64), np.float32), 4))
    with pytest.raises(ValueError, match=f"'{name}' is not of the shape and form that were said"):
        packed((lambda: other, shape, form))
    with pytest.raises(ValueError, match=f"what was made for tensor '{name}' is no tensor in memory"):
        packed((lambda: 5, shape, form))
    with pytest.raises(ValueError, match="not of the shape and form"):
        packed((lambda: (make, shape, form), shape, form))
    short = np.ones(10, np.float32), "float32", shape
    with pytest.raises(ValueError, match=f"'{name}' has 40 bytes, which are not those of shape"):
        packed((lambda: short, shape, None))
    with pytest.raises(ValueError, match="has 4 bits in groups of 16"):
        packed((make, shape, (4, 16, True)))
    packed((make, shape, form))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({3: "Q2_K"}, "'weight' is Q2_K, not one of"),
        ({4: [256, 100]}, "has 100 columns, no whole blocks of Q4_K"),
        ({4: [256]}, "of blocks is no matrix"),
        ({4: [-1, 256]}, "rows of a matrix of blocks"),
        ({2: -1}, "bytes of a file before a tensor"),
        ({6: 0}, "rows of a head"),
        ({6: 7}, "has 256 rows and heads of 7"),
    ],
)
def test_blocks_that_cannot_be(tmp_path: Path, change: dict[int, object], words: str) -> None:
    tensors = gguf_file(tmp_path, ["Q4_K"])
    place: list[Any] = list(tensors.places()["model.layers.0.self_attn.o_proj.weight"])
    for at, value in change.items():
        place[at] = value
    with pytest.raises(ValueError, match=words):
        _testing.unpacked(tuple(place), 256)
    cut = (*place[:2], 2**40, "Q4_K", [256, 256], "blk.0", 1, True)
    with pytest.raises(CheckpointError, match=r"'blk\.0' in .*model\.gguf was cut while it was read"):
        _testing.unpacked(cut, 256)
