"""An EAGLE-3 head on the kernels, in the interpreter: the text is plain decoding's, rounds are those of the
CPU executor, and each drafted token is the definition's.

The CPU feeds the head what was committed; a step on the device always feeds as many rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_heads import (
    HEAD,
    IDS,
    LAYER,
    TARGET,
    VOCAB,
    Tensors,
    definition,
    planted_head,
    planted_target,
    random_head,
)

from pearl_rt import ConfigError, DevicePair, Engine, Request, SamplingParams
from pearl_rt.backends.cpu import Model
from pearl_rt.checkpoint.loader import save_checkpoint
from pearl_rt.checkpoint.source import pair_sources
from pearl_rt.checkpoint.views.eagle3 import Eagle3Config, save_eagle3
from pearl_rt.device.kv_pool import KvPool
from pearl_rt.device.model import DeviceModel
from pearl_rt.device.pair_sizes import PairSizes, draft_steps_of, held_bytes
from pearl_rt.device.steps import TargetSteps

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled in this process")
MAX_LEN = 48
WIDE = replace(LAYER, head_dim=16)  # the kernels take heads of 16 and more
PLANTED = planted_target()
PROMPTS = [[7], [3, 1, 4, 1, 5, 9, 2, 6], [(5 * i + 2) % VOCAB for i in range(33)]]  # of one chunk, and three
GREEDY = SamplingParams(max_tokens=11)
LOUD = SamplingParams(temperature=0.5, max_tokens=10, seed=3)
SHAPED = replace(LOUD, temperature=1.0, repetition_penalty=1.4, top_p=0.9, min_tokens=4, logit_bias={5: 2.0})
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "its own norms": {"norm_before_residual": True, "norm_output": True},
    "a norm of each tap": {"fc_norm": True},
    "a norm of all taps": {"norm_before_fc": True},
    "all ids": {"draft_vocab_size": VOCAB},
    "the last row": {"taps": (0, 3, 4)},
}
NARROW = "its own embedding"


@cache
def head_of(variant: str) -> tuple[Eagle3Config, Tensors]:
    """Planted; the one with its own embedding is random, and narrower than its target."""
    if variant in VARIANTS:
        changes = VARIANTS[variant]
        if variant == "all ids":
            config, tensors = planted_head(layer=WIDE)
            whole = random_head(replace(config, draft_vocab_size=VOCAB), 3)
            rows = torch.eye(VOCAB, TARGET.hidden_size) * 0.6
            return replace(config, **changes), tensors | {"d2t": whole["d2t"], "lm_head.weight": rows}
        return planted_head(layer=WIDE, **changes)
    narrow = replace(WIDE, hidden_size=32, intermediate_size=64)
    config = replace(HEAD, layer=narrow, target_hidden_size=TARGET.hidden_size)
    return config, random_head(config, 5, has_embedding=True)


def engine_of(variant: str, device: str, **options: Any) -> Engine:
    shape: dict[str, Any] = {"max_model_len": MAX_LEN, "max_num_seqs": 2, "judge": "coupled"}
    shape |= {"num_threads": 1, "placement": "shared"} if device == "cpu" else {}
    return Engine(TARGET, PLANTED, *head_of(variant), device=device, **shape | options)


def rounds(engine: Engine, params: SamplingParams, gamma: int) -> list[tuple[Any, ...]]:
    """Three requests in two slots: the last one joins."""
    outputs = engine.generate(PROMPTS, params, strategy="sd", gamma=gamma)
    return [(o.token_ids, o.metrics.rounds, o.metrics.accepted, o.metrics.judged) for o in outputs]


RUNS = ((GREEDY, 3), (LOUD, 2), (SHAPED, 1))


OFTEN = ("plain", "its own norms")
SELDOM = [pytest.param(one, marks=pytest.mark.slow) for one in (*VARIANTS, NARROW) if one not in OFTEN]


@pytest.mark.parametrize("variant", [*OFTEN, *SELDOM])
def test_rounds_are_the_executors(variant: str) -> None:
    runs = RUNS if variant == "plain" else RUNS[:1]
    with engine_of(variant, "cpu") as engine:
        expected = [rounds(engine, *each) for each in runs]
    with engine_of(variant, "interpret") as engine:
        for (params, gamma), wanted in zip(runs, expected, strict=True):
            plain = [one.token_ids for one in engine.generate(PROMPTS, params, strategy="ar")]
            found = rounds(engine, params, gamma)
            assert [tokens for tokens, *_ in found] == plain
            assert found == wanted
        stats = engine.stats()
    assert stats["drafter"]["kind"] == "eagle3" and not stats["prefix_cache"]["is_on"]
    if variant in OFTEN:
        accepted, judged = (sum(one[i] for one in expected[0]) for i in (2, 3))
        assert 0 < accepted < judged


def test_rejection_has_the_rows_that_were_drawn_from() -> None:
    """Rounds are the executor's, whose law is tested: with the same noise, q and p say what stands."""
    found = []
    for device in ("cpu", "interpret"):
        with engine_of("plain", device, judge="rejection") as engine:
            found.append([rounds(engine, replace(LOUD, seed=seed, top_k=9), 2) for seed in (5, 6)])
    assert found[0] == found[1]
    assert sum(accepted for own in found[0] for _, _, accepted, _ in own) > 0


@pytest.mark.parametrize("weights", [pytest.param("int8", marks=pytest.mark.slow), "int4"])
def test_codes_are_read(weights: str) -> None:
    """Of the target's embedding, which the head has none of, and of the head."""
    with engine_of("plain", "interpret", weights=weights, draft_weights=weights) as engine:
        plain = [one.token_ids for one in engine.generate(PROMPTS[1:], GREEDY, strategy="ar")]
        outputs = engine.generate(PROMPTS[1:], GREEDY, strategy="sd", gamma=2)
        assert [one.token_ids for one in outputs] == plain
        assert sum(one.metrics.accepted for one in outputs) > 0


def pair_of(variant: str, gamma_max: int) -> DevicePair:
    """What an engine launches, by hand."""
    cpu = torch.device("cpu")
    sources = pair_sources(TARGET, PLANTED, *head_of(variant), dtype="float32")
    target = DeviceModel.of_source(sources[0], cpu)
    draft = target.view(sources[1])
    pool = KvPool.of(None, num_slots=2, max_model_len=MAX_LEN, block_size=16)
    shape = {"num_slots": 2, "prefill_chunk": 16, "gamma_max": gamma_max}
    sizes = PairSizes.of(target.config, draft.config, pool, **shape)
    features = sizes.features(target, draft)
    assert features is not None
    features.rows.fill_(torch.nan)  # what was not stored may not be read
    lane = sizes.steps(TargetSteps, target, features=features)
    return DevicePair(lane, sizes.steps(draft_steps_of(draft), draft, lane.state, features=features))


def definition_of(variant: str) -> Callable[[list[int], int], Any]:
    """(text and drafts, how much of that is text) -> the row behind it, [V]."""
    config, tensors = head_of(variant)
    head = definition(tensors, config, TARGET, PLANTED)
    packed = Model.pack(TARGET, PLANTED, dtype="float32", isa=None, max_model_len=MAX_LEN)
    target = packed.executor([0], taps=config.taps_of(TARGET))

    def row(tokens: list[int], committed: int) -> Any:
        taps = target.forward_taps(0, tokens[:committed], 0)
        return head.draft_row(tokens, committed, taps, VOCAB)

    return row


@pytest.mark.parametrize(
    ("variant", "gamma"),
    [("plain", 3), ("plain", 1), ("its own norms", 3), ("a norm of each tap", 3), (NARROW, 2)],
)
def test_windows_are_the_definitions(variant: str, gamma: int) -> None:
    """Each row and token, also behind a draft that falls, and behind a whole window and a bonus token. An id
    that the head lacks has no chance.
    """
    pair, row = pair_of(variant, 4), definition_of(variant)
    pair.start([Request(prompt, gamma=gamma, max_tokens=14) for prompt in PROMPTS[1:]], keep_logits=True)
    pair.prefill()
    pair.verify()
    state, grown = pair.tensors, []
    for _ in range(4):
        pair.draft()
        for slot in range(2):
            assert int(state.pending[slot]) == 0
            end = int(state.committed[slot])
            text, window = state.token_ids[slot, :end].tolist(), state.draft_token_ids[slot].tolist()
            for place in range(int(state.num_draft_tokens[slot])):
                wanted = torch.from_numpy(row([*text, *window[:place]], end))
                found = state.draft_logits[slot, (end + place) % (2 * gamma)]
                torch.testing.assert_close(found, wanted, rtol=2e-4, atol=2e-4)
                assert int((wanted == -torch.inf).sum()) == VOCAB - IDS
                assert window[place] == int(found.argmax())
        before = state.committed.clone()
        pair.score()
        pair.verify()
        grown += (state.committed - before).tolist()
    assert min(grown) <= gamma and (gamma > 1 or max(grown) == gamma + 1), grown


def test_what_a_head_costs_in_memory() -> None:
    """Its weights but for the target's embedding, and a row for each token of the pool."""
    sources = pair_sources(TARGET, PLANTED, *head_of("plain"), dtype="float32")
    pool = KvPool.of(None, num_slots=1, max_model_len=MAX_LEN, block_size=16)
    sizes = PairSizes.of(TARGET, sources[1].config, pool, num_slots=1, prefill_chunk=16)
    parts = sizes.memory(sources)
    target = DeviceModel.of_source(sources[0], torch.device("cpu"))
    draft = target.view(sources[1])
    assert draft.weights.embed_tokens is target.weights.embed_tokens
    assert parts["the draft's weights"] == held_bytes(target, draft) - held_bytes(target)
    features = sizes.features(target, draft)
    assert features is not None
    assert features.rows.nbytes == pool.num_tokens * TARGET.hidden_size * 4
    assert parts["what the head reads"] == held_bytes(draft.head, features) - held_bytes(draft.head)


def test_what_is_refused(tmp_path: Path) -> None:
    config, tensors = head_of("plain")
    with pytest.raises(ConfigError, match=r"strategy 'pearl' drafts while .*pass strategy='sd' or 'auto'"):
        engine_of("plain", "interpret", strategy="pearl")
    with pytest.raises(ConfigError, match="draft_lookup runs on the CPU only so far"):
        engine_of("plain", "interpret", draft_lookup=True)
    with pytest.raises(ConfigError, match="draft_stop 'adaedl' runs on the CPU only so far"):
        engine_of("plain", "interpret", draft_stop="adaedl")
    for device in ("cpu", "cuda:1"):
        named = (
            f"draft_device '{device}' was given with draft 'eagle3', which reads what the target computes on"
        )
        with pytest.raises(ConfigError, match=named):
            engine_of("plain", "cuda", draft_device=device)
    short = replace(config, layer=replace(WIDE, max_position_embeddings=32))
    with pytest.raises(
        ConfigError, match="max_model_len 48 is more than the draft's max_position_embeddings"
    ):
        Engine(TARGET, PLANTED, short, tensors, device="interpret", max_model_len=MAX_LEN)
    named = "this engine's draft is an EAGLE-3 head: call generate"
    with engine_of("plain", "interpret") as engine, pytest.raises(ConfigError, match=named):
        engine.round("sd", 2)
    save_checkpoint(tmp_path / "target", TARGET, PLANTED)
    save_eagle3(tmp_path / "head", config, tensors, TARGET)
    with pytest.raises(ConfigError, match="is an EAGLE-3 head, which drafts for an Engine only so far"):
        DevicePair.from_pretrained(tmp_path / "target", tmp_path / "head")
