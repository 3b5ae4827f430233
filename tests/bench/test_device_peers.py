"""Peers on a device: near-ties told from wrong tokens, Hugging Face on our weights, absent engines."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from bench_fakes import TINY, Logits, packed

from bench.harness import measure as m
from bench.harness import peers
from bench.model_pairs.weight_views import hugging_face_model, weight_views
from bench.rounds.teacher_forced import TIE, compare_forced, format_forced

# the same model, up to rounding


@pytest.mark.parametrize(
    ("second", "ties", "wrong"),
    [(8.0, 0, None), (15.9, 1, None), (15.0, 0, (6, 2)), (float("nan"), 0, (6, 0))],
    ids=["first-choice", "near-tie", "wrong", "nan"],
)
def test_near_ties_are_told_from_wrong_tokens(
    second: float, ties: int, wrong: tuple[int, int] | None
) -> None:
    """Prompt [0, 1], then 2, 3, 5: the last has `second` where the best has 16 in bf16 (a unit is 0.125)."""
    logits = torch.full((5, 8), -1.0)
    for place, token in ((1, 2), (2, 3), (3, 4)):
        logits[place, token] = 16.0
    logits[3, 5] = 16.0 if second == 8.0 else second
    if math.isnan(second):
        logits[:] = second
    if second == 8.0:
        logits[3, 4] = second
    found = compare_forced(Logits(logits, torch.bfloat16), [(6, [0, 1], [2, 3, 5])])
    assert TIE[torch.bfloat16] * 16 == 0.25
    assert found.near_ties == ties and found.first_wrong == wrong and found.tokens == 3
    text = format_forced("Hugging Face", found)
    assert ("BEYOND ROUNDING in prompt 6" in text) == (wrong is not None)


# peers


@pytest.fixture(scope="module")
def hugging_face() -> peers.HuggingFace:
    """Two random models over views; the static cache is not compiled."""
    pytest.importorskip("transformers")
    models = [hugging_face_model(TINY, weight_views(TINY, packed(TINY, seed)[1])) for seed in (3, 4)]
    return peers.HuggingFace(*models, compiled=True, may_compile=False)


def test_hugging_face_writes_the_same_text_in_each_of_its_ways(
    hugging_face: peers.HuggingFace,
) -> None:
    workload = m.Workload([[5, 9, 33, 2], [7]], 9)
    programs = hugging_face.programs(3)
    assert [str(p) for p in programs] == [
        "hf ar/eager",
        "hf assisted/eager",
        "hf assisted/eager gamma 3",
        "hf compiled/static",
    ]
    results = m.measure(hugging_face, programs, workload, warm_tokens=0)
    assert m.first_difference(results) is None
    for result in results:
        for sample in result.samples:
            assert len(sample.token_ids) == 9 and sample.ttft > 0 and sample.metrics is None
    texts = [(s.prompt, workload.prompts[s.prompt], s.token_ids) for s in results[0].samples]
    assert compare_forced(hugging_face.target, texts).holds
    assert not compare_forced(hugging_face.target, [(0, [5, 9], [1, 1, 1, 1])]).holds


def test_a_batch_is_padded_and_writes_the_same_text(hugging_face: peers.HuggingFace) -> None:
    prompts = [[5, 9, 33, 2], [7], [80, 3]]
    program = m.Program("hf ar", "eager")
    alone, together = (
        m.measure(hugging_face, [program], m.Workload(prompts, 9, batch=batch), warm_tokens=0)
        for batch in (1, 3)
    )
    assert m.first_difference([*alone, *together]) is None
    assert [sample.prompt for sample in together[0].samples] == [0, 1, 2]
    assert len({sample.seconds for sample in together[0].samples}) == 1, "each has its share of the call"


def test_an_absent_engine_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    runners, absent = peers.engine_peers(Path("target"))
    assert not runners and absent == dict.fromkeys(("vllm", "sglang", "gpt-fast"), "not installed")
    monkeypatch.setattr(peers, "find_spec", lambda name: object())
    runners, absent = peers.engine_peers(None)
    assert not runners and "--target" in absent["vllm"] and "no package" in absent["gpt-fast"]


def test_engines_are_called_as_they_document(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins with vLLM's and SGLang's names; neither is installed here."""
    told: list[Any] = []

    class LLM:
        def __init__(self, **options: Any) -> None:
            told.append(options)

        def generate(self, prompts: list[dict[str, list[int]]], params: Any, use_tqdm: bool) -> list[Any]:
            ids = prompts[0]["prompt_token_ids"]
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=(ids[-1],) * params.max_tokens)])]

    class SglangEngine:
        def __init__(self, **options: Any) -> None:
            raise RuntimeError("no GPU\nat all")

    vllm, sglang = ModuleType("vllm"), ModuleType("sglang")
    vllm.__dict__.update(__version__="0.1", LLM=LLM, SamplingParams=lambda **o: SimpleNamespace(**o))
    sglang.__dict__.update(__version__="0.2", Engine=SglangEngine)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "sglang", sglang)
    installed = {"vllm", "sglang"}
    monkeypatch.setattr(peers, "find_spec", lambda name: object() if name in installed else None)
    [runner], absent = peers.engine_peers(Path("target"))
    assert told[0]["model"] == "target" and told[0]["max_num_seqs"] == 1
    assert absent == {"sglang": "does not start: no GPU", "gpt-fast": "not installed"}
    [program] = runner.programs(4)
    [sample] = runner(program, m.Workload([[1, 2, 3]], 5), 0)
    assert str(program) == "vllm/own graphs" and sample.token_ids == [3] * 5 and sample.seconds >= 0
