"""Safetensors files: what safetensors refuses is refused, and what changes while it is read is an error."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pearl_rt import _C
from pearl_rt.backends.cpu import Model, native_config
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.loader import load_tensors, save_checkpoint
from pearl_rt.checkpoint.shapes import tensor_shapes
from pearl_rt.checkpoint.stored_tensors import TensorFile
from pearl_rt.errors import CheckpointError

CONFIG = ModelConfig("llama", 111, 96, 128, 2, 6, 2, 24)
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
DAMAGED = "is truncated, damaged or not a safetensors file"


def saved(path: Path, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint that is there now."""
    generator = torch.Generator().manual_seed(0)
    tensors = {n: torch.randn(s, generator=generator).to(dtype) for n, s in tensor_shapes(CONFIG).items()}
    save_checkpoint(path, CONFIG, tensors)
    return tensors


def test_tensors_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    expected = saved(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    tensors = load_tensors(tmp_path, CONFIG)
    tensors[Q_PROJ].zero_()  # a copy of the caller's own
    assert torch.equal(tensors[Q_PROJ], expected[Q_PROJ])
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    shutil.rmtree(tmp_path)  # it stays open
    assert torch.equal(tensors[Q_PROJ], expected[Q_PROJ])


def test_files_are_closed_with_their_tensors(tmp_path: Path) -> None:
    def open_files() -> int:
        names = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        return sum(os.path.exists(name) and os.readlink(name).startswith(str(tmp_path)) for name in names)

    saved(tmp_path)
    tensors = load_tensors(tmp_path, CONFIG)
    assert open_files() == 1
    del tensors
    assert open_files() == 0
    (tmp_path / "model.safetensors").write_bytes(b"12345678")
    with pytest.raises(CheckpointError):
        load_tensors(tmp_path, CONFIG)
    gc.collect()
    assert open_files() == 0


@pytest.mark.parametrize("change", ["cut", "changed"])
def test_a_file_that_changes_under_its_tensors(tmp_path: Path, change: str) -> None:
    saved(tmp_path)
    tensors, file = load_tensors(tmp_path, CONFIG), tmp_path / "model.safetensors"
    if change == "cut":
        os.truncate(file, 4096)
    else:
        told = file.stat()
        os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns + 10**9))
    with pytest.raises(
        CheckpointError, match=f"model.safetensors was {change} while it was read.*: load it again"
    ):
        tensors["lm_head.weight"]
    with pytest.raises(
        CheckpointError, match=f"model.safetensors was {change} while it was read: load it again"
    ):
        Model.pack(CONFIG, tensors, dtype="float32", isa=None, max_model_len=16)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_file_that_is_cut_while_it_is_packed(tmp_path: Path, dtype: str) -> None:
    saved(tmp_path)
    tensors, layers = load_tensors(tmp_path, CONFIG), []

    def cut(done: int, _: int) -> None:
        layers.append(done)
        os.truncate(tmp_path / "model.safetensors", 8192)

    with pytest.raises(
        CheckpointError, match=r"tensor 'model\.layers\.1\..*' in .*model.safetensors was cut while"
    ):
        _C.LlamaWeights(native_config(CONFIG), tensors.places(), dtype, None, cut)
    assert layers == [1]


def header_of(content: bytes) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header


def with_raw_header(content: bytes, raw: bytes) -> bytes:
    return len(raw).to_bytes(8, "little") + raw + content[8 + int.from_bytes(content[:8], "little") :]


def with_header(content: bytes, header: object) -> bytes:
    return with_raw_header(content, json.dumps(header).encode())


def with_entry(content: bytes, **change: object) -> bytes:
    header = header_of(content)
    header[Q_PROJ] |= change
    return with_header(content, header)


def moved(content: bytes, shift: int) -> bytes:
    """What comes behind a tensor lies so much later; earlier, it overlaps."""
    header = header_of(content)
    end = header[Q_PROJ]["data_offsets"][1]
    for told in header.values():
        if told.get("data_offsets", [0])[0] >= end:
            told["data_offsets"] = [offset + shift for offset in told["data_offsets"]]
    moved_to = with_header(content, header)
    return moved_to + bytes(shift) if shift > 0 else moved_to[:shift]


def named_twice(content: bytes) -> bytes:
    header = header_of(content)
    raw = f'{json.dumps(header)[:-1]}, "{Q_PROJ}": {json.dumps(header[Q_PROJ])}}}'
    return with_raw_header(content, raw.encode())


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda c: b"", rf"model\.safetensors, of 0 bytes, {DAMAGED} .*: fetch it again"),
    "seven-bytes": (lambda c: c[:7], DAMAGED),
    "inside-header": (lambda c: c[:200], f"of 200 bytes, {DAMAGED}"),
    "inside-tensors": (lambda c: c[: len(c) // 2], DAMAGED),
    "one-byte-short": (lambda c: c[:-1], DAMAGED),
    "one-byte-more": (lambda c: c + b"x", DAMAGED),
    "git-lfs-pointer": (
        lambda c: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "a pointer of git-lfs, not the file: `git lfs pull`",
    ),
    "garbage": (lambda c: bytes(range(256)) * 40, DAMAGED),
    "header-of-exabytes": (lambda c: b"\xff" * 8 + c[8:], DAMAGED),
    "header-no-json": (lambda c: c[:8] + b"x" + c[9:], DAMAGED),
    "header-list": (lambda c: with_header(c, [1]), DAMAGED),
    "header-nested": (lambda c: with_raw_header(c, b'{"a":' * 100_000), DAMAGED),
    "header-utf-16": (lambda c: with_raw_header(c, json.dumps(header_of(c)).encode("utf-16")), DAMAGED),
    "header-no-offsets": (lambda c: with_header(c, {Q_PROJ: {"dtype": "F32", "shape": [1]}}), DAMAGED),
    "name-twice": (named_twice, f"'{Q_PROJ}' stands twice"),
    "offsets-short": (lambda c: with_entry(c, data_offsets=[0, 8]), DAMAGED),
    "offsets-reversed": (lambda c: with_entry(c, data_offsets=[64, 0]), DAMAGED),
    "offsets-into-header": (lambda c: with_entry(c, data_offsets=[-27648, 0]), DAMAGED),
    "offsets-past-end": (lambda c: with_entry(c, data_offsets=[10**12, 10**12 + 27648]), DAMAGED),
    "offsets-of-halves": (
        lambda c: with_entry(c, data_offsets=[n + 0.5 for n in header_of(c)[Q_PROJ]["data_offsets"]]),
        DAMAGED,
    ),
    "tensors-overlap": (lambda c: moved(c, -64), DAMAGED),
    "tensors-apart": (lambda c: moved(c, 64), DAMAGED),
    "shape-negative": (lambda c: with_entry(c, shape=[-144, -96]), DAMAGED),
    "shape-of-fractions": (lambda c: with_entry(c, shape=[144.9, 96]), DAMAGED),
    "shape-of-texts": (lambda c: with_entry(c, shape=["144", "96"]), DAMAGED),
    "shape-absurd": (lambda c: with_entry(c, shape=[2**63, 96]), DAMAGED),
    "dtype-unknown": (lambda c: with_entry(c, dtype="Q4"), "Q4"),
}


@pytest.mark.parametrize(("damage", "named"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_files(tmp_path: Path, damage: Callable[[bytes], bytes], named: str) -> None:
    saved(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match=named):
        load_tensors(tmp_path, CONFIG)


def test_any_cut_is_noticed(tmp_path: Path) -> None:
    saved(tmp_path)
    file = tmp_path / "model.safetensors"
    size = file.stat().st_size
    for length in range(size - 1, 0, -max(1, size // 60)):
        os.truncate(file, length)
        with pytest.raises(CheckpointError, match=DAMAGED):
            load_tensors(tmp_path, CONFIG)


@pytest.mark.parametrize("padding", range(4))
def test_headers_of_any_length(tmp_path: Path, padding: int) -> None:
    """Tensors that lie where no float may: as the format allows."""
    expected = saved(tmp_path, torch.float32)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    raw = json.dumps(header_of(content)).encode()
    file.write_bytes(with_raw_header(content, raw + b" " * (-len(raw) % 4 + padding)))
    tensors = load_tensors(tmp_path, CONFIG)
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    for dtype in ("float32", "bfloat16"):
        models = [Model.pack(CONFIG, t, dtype=dtype, isa=None, max_model_len=8) for t in (tensors, expected)]
        cores = [min(os.sched_getaffinity(0))]
        one, other = (model.executor(cores).forward(0, [1, 2, 3], 0, 1) for model in models)
        assert (one == other).all()


@pytest.mark.parametrize("kind", ["pipe", "folder", "nothing"])
def test_what_is_no_file(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "model.safetensors"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    named = (
        "cannot be read: No such file"
        if kind == "nothing"
        else "is not a file of bytes, but a folder, a pipe"
    )
    with pytest.raises(CheckpointError, match=rf"model\.safetensors {named}"):
        TensorFile(file)
