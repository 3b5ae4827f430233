"""The drafts in models/ that fill windows at once: each writes the target's text, and is of use to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pearl_rt import Engine, SamplingParams

MODELS = Path(__file__).parents[3] / "models"


@pytest.mark.parametrize("draft", ["parallel", "diffusion"])
def test_a_shipped_draft_says_what_the_target_says(draft: str) -> None:
    lines = (MODELS / "heldout/prompts.jsonl").read_text().splitlines()[:3]
    prompts = [json.loads(line)["prompt"] for line in lines]
    greedy = SamplingParams(max_tokens=32, ignore_eos=True)
    with Engine.from_pretrained(MODELS / "target", MODELS / draft, max_model_len=1024) as engine:
        assert engine.stats()["drafter"]["kind"] == draft
        want = [one.token_ids for one in engine.generate(prompts, greedy, strategy="ar")]
        outputs = engine.generate(prompts, greedy, strategy="sd", gamma=3)
        assert [one.token_ids for one in outputs] == want
        judged = sum(one.metrics.judged_at[0] for one in outputs)
        assert sum(one.metrics.accepted_at[0] for one in outputs) > 0.4 * judged > 8
