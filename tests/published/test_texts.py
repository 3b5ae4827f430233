"""SmolLM2-135M-Instruct from its GGUF file: transformers' tokens, the same bits in each way to run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.model_pairs.model_prompts import prompts_for
from bench.model_pairs.published import published_model, widened
from bench.model_pairs.weight_views import hugging_face_model
from pearl_rt import Engine, SamplingParams
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.loader import load_tensors

ROOT = Path(__file__).resolve().parents[2]
COUNT = 64
TIE = 1e-3  # of two logits: fp32 sums of other orders differ by some 1e-5


@pytest.fixture(scope="module")
def file() -> Path:
    return published_model()


def greedy(engine: Engine, prompts: list[list[int]], count: int, **options: Any) -> list[list[int]]:
    params = SamplingParams(max_tokens=count, ignore_eos=True)
    return [output.token_ids for output in engine.generate(prompts, params, **options)]


def test_tokens_are_transformers_own(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """64 greedy tokens on 8 prompts, fp32, over the values of the file. Where one differs, the likeliest two
    are a tie, and one prompt in four may have one.
    """
    config = ModelConfig.from_pretrained(file)
    tensors = load_tensors(file, config)
    oracle = hugging_face_model(config, {name: tensors.read(name, torch.float32) for name in tensors})
    prompts = prompts_for(file, None, 8).token_ids
    with Engine.from_pretrained(file, "none", dtype="float32") as engine:
        texts = [greedy(engine, [prompt], COUNT, strategy="ar")[0] for prompt in prompts]
    ties = []
    for number, (prompt, ours) in enumerate(zip(prompts, texts, strict=True)):
        with torch.inference_mode():  # one pass over what we wrote
            logits = oracle(torch.tensor([prompt + ours])).logits[0, len(prompt) - 1 : -1]
        for place, token in enumerate(ours):
            row = logits[place]
            if (likeliest := int(row.argmax())) != token:
                gap = float(row[likeliest] - row[token])
                assert gap < TIE, f"prompt {number}, token {place}: {token}, transformers has {likeliest}"
                ties.append((number, place, gap))
    with capsys.disabled():
        print(f"\n{len(prompts)} prompts of {COUNT} tokens are transformers', ties: {ties or 'none'}")
    assert len(ties) <= 2


@pytest.mark.parametrize("kept", [Path, widened], ids=["4 bits", "8 bits"])
def test_the_same_bits_in_every_way_to_run(file: Path, kept: Callable[[Path], Path]) -> None:
    """Programs, companies, threads and instruction sets; a draft that skips layers, and lookup."""
    path = kept(file)
    prompts = prompts_for(path, None, 3).token_ids
    with Engine.from_pretrained(path, max_num_seqs=3) as engine:
        want = [greedy(engine, [prompt], 24, strategy="ar")[0] for prompt in prompts]
        for strategy in ("ar", "sd", "pearl"):
            assert greedy(engine, prompts, 24, strategy=strategy) == want, strategy
    for options in ({"num_threads": 1}, {"draft": "self", "skip_layers": [9, 17]}):
        with Engine.from_pretrained(path, **options) as engine:
            assert greedy(engine, prompts[:1], 24, strategy="sd", gamma=3) == want[:1], options
    with Engine.from_pretrained(path, isa="portable") as engine:  # whose sums have an order of their own
        plain = greedy(engine, prompts[:1], 12, strategy="ar")
        assert greedy(engine, prompts[:1], 12, strategy="sd", gamma=3) == plain


def test_a_chat_from_the_command_line(file: Path) -> None:
    """Nothing is said of a draft: it looks up, and --stats says what that was worth."""
    command = [
        sys.executable,
        "-m",
        "pearl_rt",
        "chat",
        "--target",
        str(file),
        "--max-tokens",
        "40",
        "--stats",
    ]
    done = subprocess.run(
        command,
        input="What is the capital of France? Answer, and repeat the question.\n",
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout and "<|im_end|>" not in done.stdout
    drafter = json.loads(done.stderr[done.stderr.index("{") :])["drafter"]
    assert drafter["kind"] == "lookup" and drafter["tokens_per_round"] >= 1


@pytest.mark.parametrize("draft", ["eagle3", "exit", "parallel"])
def test_each_shipped_draft_writes_the_same_text(file: Path, draft: str) -> None:
    """The drafts in models/smollm2, which learned from the file of 8 bits; here beside that of 4."""
    prompts = prompts_for(file, None, 4).token_ids
    with Engine.from_pretrained(file, ROOT / "models/smollm2" / draft, max_model_len=1024) as engine:
        want = greedy(engine, prompts, COUNT, strategy="ar")
        assert greedy(engine, prompts, COUNT, strategy="sd", gamma=2) == want
        assert greedy(engine, prompts, COUNT, strategy="auto") == want
        assert engine.stats()["drafter"]["acceptance"] > 0.1
