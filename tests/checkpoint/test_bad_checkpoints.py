"""Bad checkpoints at the front door: one clear error, before memory is taken, and the next engine works."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
from tiny_pairs import TINY, Pair, byte_tokenizer, random_tensors

from pearl_rt import CheckpointError, ConfigError, Engine, ResourceError, SamplingParams
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.loader import save_checkpoint
from pearl_rt.checkpoint.shapes import tensor_shapes
from pearl_rt.cli import commands as cli

FOUR = SamplingParams(max_tokens=4)
OPTIONS = {"strategy": "pearl", "gamma": 2, "placement": "shared", "max_model_len": 32, "num_threads": 1}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return Pair.make("half-right").save(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def pair(good: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A sound (target, draft) that a test may damage."""
    return tuple(Path(shutil.copytree(path, tmp_path / path.name)) for path in good)  # type: ignore[return-value]


def works(target: Path, draft: Path) -> list[int]:
    with Engine.from_pretrained(target, draft, **OPTIONS) as engine:
        (output,) = engine.generate("abc", FOUR)
    assert len(output.token_ids) == 4
    return output.token_ids


def edit_config(path: Path, **change: object) -> None:
    content = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(content | change))


def truncate(path: Path) -> None:
    os.truncate(path / "model.safetensors", (path / "model.safetensors").stat().st_size // 2)


def scribble(path: Path) -> None:
    with (path / "model.safetensors").open("r+b") as file:
        file.write(b"\xff" * 64)


def to_pickle(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def sentencepiece_only(path: Path) -> None:
    (path / "tokenizer.json").rename(path / "tokenizer.model")


def other_vocabulary(path: Path) -> None:
    content = json.loads((path / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    one, two = list(vocab)[:2]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    (path / "tokenizer.json").write_text(json.dumps(content))


def write_pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


def make_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def write_index(path: Path, shard: str) -> None:
    (path / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": shard}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


DAMAGES: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "truncated": (truncate, CheckpointError, r"is truncated, damaged or not a .* fetch it again"),
    "corrupt": (scribble, CheckpointError, "truncated, damaged or not a safetensors file"),
    "pickle": (to_pickle, CheckpointError, "convert them to safetensors"),
    "no-weights": (lambda p: (p / "model.safetensors").unlink(), CheckpointError, "holds no weights"),
    "no-config": (lambda p: (p / "config.json").unlink(), CheckpointError, "it has no config.json"),
    "damaged-config": (lambda p: (p / "config.json").write_text("{"), CheckpointError, "not valid JSON"),
    "no-tokenizer": (lambda p: (p / "tokenizer.json").unlink(), CheckpointError, "has no tokenizer.json"),
    "damaged-tokenizer": (lambda p: os.truncate(p / "tokenizer.json", 99), CheckpointError, "not a readable"),
    "tokenizer-model": (sentencepiece_only, CheckpointError, "only tokenizer.model"),
    "another-model": (lambda p: edit_config(p, model_type="gpt2"), ConfigError, "model_type 'gpt2'"),
    "quantised": (
        lambda p: edit_config(p, quantization_config={"quant_method": "aqlm"}),
        ConfigError,
        "quantised .*'aqlm'",
    ),
    "one-layer-more": (
        lambda p: edit_config(p, num_hidden_layers=3),
        CheckpointError,
        r"'model\.layers\.2\..*' \[.*\] is missing",
    ),
    "one-layer-less": (
        lambda p: edit_config(p, num_hidden_layers=1),
        CheckpointError,
        r"'model\.layers\.1\..*' \[.*\] .* no place in this model",
    ),
    "other-heads": (
        lambda p: edit_config(p, num_key_value_heads=4),
        CheckpointError,
        r"k_proj.weight' .* has shape \[32, 64\], expected \[64, 64\]",
    ),
    "window-bites": (
        lambda p: edit_config(
            p, model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=16
        ),
        ConfigError,
        "sliding window of 16 tokens.* max_model_len=16 or less",
    ),
    "nested-config": (
        lambda p: (p / "config.json").write_text('{"a":' * 10**5 + "1" + "}" * 10**5),
        CheckpointError,
        "not valid JSON",
    ),
    "a-pointer-for-the-config": (lambda p: write_pointer(p / "config.json"), CheckpointError, "git-lfs"),
    "a-pointer-for-the-tokenizer": (
        lambda p: write_pointer(p / "tokenizer.json"),
        CheckpointError,
        r"tokenizer\.json is a pointer of git-lfs",
    ),
    "a-pipe-for-the-tokenizer": (
        lambda p: make_pipe(p / "tokenizer.json"),
        CheckpointError,
        "is not a file of bytes",
    ),
    "a-pipe-for-the-weights": (
        lambda p: make_pipe(p / "model.safetensors"),
        CheckpointError,
        "is not a file of bytes",
    ),
    "millions-of-layers": (
        lambda p: edit_config(p, num_hidden_layers=10**7),
        CheckpointError,
        "num_hidden_layers must be a positive integer, got 10000000, and 4096 is the most",
    ),
    "a-name-that-is-too-long": (
        lambda p: write_index(p, "x" * 5000 + ".safetensors"),
        CheckpointError,
        "is not a file in",
    ),
    "nothing-there": (shutil.rmtree, CheckpointError, "does not exist"),
}


# Past a draft's window the target goes on alone.
CASES = [
    pytest.param(which, *damage, id=f"{name}-{which}")
    for name, damage in DAMAGES.items()
    for which in ("target", "draft")
    if (name, which) != ("window-bites", "draft")
]


@pytest.mark.parametrize(("which", "damage", "error", "named"), CASES)
def test_refused_at_load(
    pair: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    which: str,
    damage: Callable[[Path], object],
    error: type[Exception],
    named: str,
) -> None:
    damage(pair[which == "draft"])
    with pytest.raises(error, match=named) as caught:
        Engine.from_pretrained(*pair, **OPTIONS)
    command = ["generate", "--target", str(pair[0]), "--draft", str(pair[1]), "--prompt", "abc"]
    assert cli.main([*command, "--max-model-len", "32"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err == f"pearl_rt: {caught.value}\n"


def test_another_engine_works_after_a_refusal(good: tuple[Path, Path], pair: tuple[Path, Path]) -> None:
    expected = works(*good)
    truncate(pair[1])
    for _ in range(3):
        with pytest.raises(CheckpointError):
            works(*pair)
    assert works(*good) == expected


def test_a_name_on_the_hub_is_not_a_path(good: tuple[Path, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"hf download meta-llama/Llama-3\.1-8B"):
        Engine.from_pretrained("meta-llama/Llama-3.1-8B")
    with pytest.raises(CheckpointError, match=r"hf download JackFram/llama-68m"):
        Engine.from_pretrained(good[0], "JackFram/llama-68m")


def test_a_draft_with_another_vocabulary(pair: tuple[Path, Path]) -> None:
    other_vocabulary(pair[1])
    with Engine.from_pretrained(*pair, **OPTIONS) as engine:
        assert engine.stats()["drafter"]["shared_ids"] == 256
    with pytest.raises(ConfigError, match="draft's tokenizer differs from the target's in 2 of 256 ids"):
        Engine.from_pretrained(*pair, device="interpret", **OPTIONS)


@pytest.mark.parametrize("rows", [256, 320], ids=["fewer-rows", "more-rows"])
@pytest.mark.parametrize("strategy", ["sd", "pearl"])
def test_a_draft_padded_otherwise_is_fine(pair: tuple[Path, Path], rows: int, strategy: str) -> None:
    padded = replace(TINY, vocab_size=rows)
    save_checkpoint(pair[1], padded, random_tensors(padded, 0))
    params = SamplingParams(max_tokens=24)
    with Engine.from_pretrained(*pair, **OPTIONS | {"max_model_len": 64}) as engine:
        expected = engine.generate("abc", params, strategy="ar")[0]
        output = engine.generate("abc", params, strategy=strategy)[0]
    assert (output.token_ids, output.text) == (expected.token_ids, expected.text)


def test_a_window_that_does_not_bite_is_fine(pair: tuple[Path, Path]) -> None:
    expected = works(*pair)
    for path in pair:
        edit_config(path, model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=32)
    assert works(*pair) == expected
    with Engine.from_pretrained(*pair, **OPTIONS | {"max_model_len": None}) as engine:
        assert engine.max_model_len == 32


def test_not_enough_memory_for_the_cache(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for path in pair:
        edit_config(path, max_position_embeddings=10**9)
    with pytest.raises(ResourceError, match=r"of KV cache") as caught:
        Engine.from_pretrained(*pair, **OPTIONS | {"max_model_len": 10**9})
    said = str(caught.value)
    per_model = 2 * 2 * 2 * 16 * 4 * 10**9 / 2**30  # k and v, layers, heads, head_dim, bytes, tokens
    assert f"{16 * per_model:.2f} GiB for 8000000000 tokens of KV cache" in said
    assert (
        "GiB available" in said
        and "lower max_num_seqs, max_model_len or kv_cache_tokens" in said
        and "dtype='bfloat16'" in said
    )
    command = ["generate", "--target", str(pair[0]), "--prompt", "a", "--max-model-len", "1000000000"]
    assert cli.main(command) == 2
    assert "not enough memory" in capsys.readouterr().err
    works(*pair)


def write_sparse(path: Path, config: ModelConfig) -> None:
    """A checkpoint of the right size on paper, whose weights take no room on disk."""
    path.mkdir()
    header, end = {}, 0
    for name, shape in tensor_shapes(config).items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)
    (path / "config.json").write_text(json.dumps(config.to_dict()))
    byte_tokenizer().save(str(path / "tokenizer.json"))


def test_not_enough_memory_for_the_weights(good: tuple[Path, Path], tmp_path: Path) -> None:
    sizes = {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "head_dim": 128}
    heads = {"num_attention_heads": 128, "num_key_value_heads": 8}
    big = replace(TINY, **sizes, **heads, torch_dtype="bfloat16")
    try:
        write_sparse(tmp_path / "big", big)
    except OSError:
        pytest.skip("this file system has no sparse files of that size")
    with pytest.raises(ResourceError, match=r"7\d\d\.\d\d GiB needed \(7\d\d\.\d\d GiB for the target's"):
        Engine.from_pretrained(tmp_path / "big", good[1], max_model_len=64)
    with pytest.raises(ResourceError, match=r"GiB for the draft's weights.*or take smaller models"):
        Engine.from_pretrained(good[0], tmp_path / "big", max_model_len=64)


def test_ids_that_the_model_has_no_row_for(pair: tuple[Path, Path]) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(pair[0] / "tokenizer.json"))
    tokenizer.add_tokens([f"<extra{i}>" for i in range(40)])
    tokenizer.save(str(pair[0] / "tokenizer.json"))
    with Engine.from_pretrained(pair[0], **OPTIONS | {"strategy": "ar", "gamma": None}) as engine:
        with pytest.raises(ValueError, match="is 295, out of range: the vocabulary has ids 0 to 287"):
            engine.generate("abc<extra39>", FOUR)
        assert len(engine.generate("abc<extra3>", FOUR)[0].token_ids) == 4
