"""An EAGLE-3 head beside its target: the text is that of plain decoding, rounds are those of the definition,
and what it cannot do is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_eagle3_checkpoints import as_speculators, as_vllm
from tiny_heads import (
    HEAD,
    TARGET,
    VOCAB,
    Tensors,
    definition,
    planted_head,
    planted_target,
    random_head,
)
from tiny_pairs import byte_tokenizer, random_tensors

from pearl_rt import CheckpointError, ConfigError, Engine, RequestError, ResourceError, SamplingParams
from pearl_rt.backends import cpu
from pearl_rt.backends.cpu import Model
from pearl_rt.checkpoint.loader import save_checkpoint
from pearl_rt.checkpoint.source import load_pair, pair_sources
from pearl_rt.checkpoint.views.eagle3 import OFFSETS, Eagle3Config, save_eagle3
from pearl_rt.lowlevel.pair import DevicePair
from pearl_rt.reference.drafters.eagle3 import EagleHead
from pearl_rt.reference.judge import ReferenceJudge
from pearl_rt.reference.round import Limits, RoundResult, decode

SHAPE: dict[str, Any] = {"max_model_len": 640, "num_threads": 2, "max_num_seqs": 4}
PROMPTS = [[7], [3, 1, 4, 1, 5, 9, 2, 6], [(5 * i + 2) % VOCAB for i in range(33)]]
LONG = [(11 * i + 4) % VOCAB for i in range(530)]  # of three chunks
GREEDY = SamplingParams(max_tokens=24)
LOUD = SamplingParams(temperature=0.8, max_tokens=24, seed=3)
PENALISED = SamplingParams(
    temperature=1.1,
    max_tokens=24,
    seed=5,
    repetition_penalty=1.4,
    presence_penalty=0.5,
    top_p=0.9,
    min_tokens=4,
)
PLANTED = planted_target()


def planted_engine(head: tuple[Eagle3Config, Tensors] | None = None, **options: Any) -> Engine:
    config, tensors = planted_head() if head is None else head
    return Engine(TARGET, PLANTED, config, tensors, **SHAPE | options)


class Definition:
    """What the definition drafts. It is told how much is final as what ends windows is."""

    def __init__(self, head: EagleHead, target: Any) -> None:
        self.head, self.target, self.committed = head, target, 0

    has_refused = False

    def begin(self, committed: Sequence[int], num_pending: int, room: int = 0) -> None:
        assert num_pending == 0
        self.committed = len(committed)

    def goes_on(self) -> bool:
        return True

    def takes(self, logits: np.ndarray, prefix: Sequence[int]) -> bool:
        return True

    def add(self, position: int, token: int) -> None:
        pass

    def __call__(self, prefix: Sequence[int]) -> np.ndarray:
        taps = self.target.forward_taps(0, list(prefix[: self.committed]), 0)
        return self.head.draft_row(prefix, self.committed, taps, VOCAB)


def defined_rounds(
    head: tuple[Eagle3Config, Tensors], prompt: list[int], params: SamplingParams, gamma: int
) -> list[RoundResult]:
    packed = Model.pack(TARGET, PLANTED, dtype="float32", isa=None, max_model_len=640)
    taps = head[0].taps_of(TARGET)
    drafts = Definition(definition(head[1], head[0], TARGET, PLANTED), packed.executor([0], taps=taps))
    plain = packed.executor([0])
    limits = Limits(len(prompt) + params.max_tokens)
    judge = ReferenceJudge("coupled", params.temperature, params.seed or 0)

    def target(prefix: Sequence[int]) -> np.ndarray:
        row: np.ndarray = plain.forward(0, list(prefix), 0, 1)[0]
        return row

    return decode(target, drafts, prompt, "sd", gamma, limits, judge, stop=drafts)


@pytest.mark.parametrize("weights", ["auto", "int8", "int4"])
def test_every_program_is_ar_to_the_bit(weights: str) -> None:
    options = {"weights": weights, "draft_weights": weights, "judge": "coupled", "dtype": "bfloat16"}
    with planted_engine(**options) as engine:
        for params in (GREEDY, LOUD, PENALISED):
            want = [one.token_ids for one in engine.generate(PROMPTS, params, strategy="ar")]
            for gamma in (1, 3, 16):
                got = engine.generate(PROMPTS, params, strategy="sd", gamma=gamma)
                assert [one.token_ids for one in got] == want, (params, gamma)
                assert all(one.metrics.judged > 0 for one in got)
        stats = engine.stats()
    assert stats["drafter"]["kind"] == "eagle3" and stats["drafter"]["shared_layers"] is None
    assert not stats["prefix_cache"]["is_on"]


def test_a_lookup_in_front_of_a_head() -> None:
    """Both draft, and the text is that of plain decoding; the planner's windows too."""
    options = {"judge": "coupled", "draft_lookup": True}
    cycle = [[11, 12, 13] * 7, *PROMPTS]
    with planted_engine(**options) as engine:
        for params in (GREEDY, LOUD, PENALISED):
            want = [one.token_ids for one in engine.generate(cycle, params, strategy="ar")]
            for program in ({"strategy": "sd", "gamma": 3}, {}):
                got = engine.generate(cycle, params, **program)
                assert [one.token_ids for one in got] == want, (params, program)
        members = engine.stats()["drafter"]["members"]
    assert set(members) == {"lookup", "eagle3"} and all(one["windows"] > 0 for one in members.values())


VARIANTS: list[dict[str, Any]] = [{}, {"norm_before_residual": True, "norm_output": True}, {"fc_norm": True}]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_rounds_are_those_of_the_definition(changes: dict[str, Any]) -> None:
    """Together and alone, once with a prompt of several chunks: as many drafts stand in as many rounds. A
    planted head is often right where its taps are of their places, and where d2t leads to its tokens.
    """
    head = planted_head(**changes)
    prompts = [*PROMPTS, *([] if changes else [LONG[:262]])]
    with planted_engine(head, judge="coupled") as engine:
        for params, gamma in ((GREEDY, 4), (LOUD, 3)):
            together = engine.generate(prompts, params, strategy="sd", gamma=gamma)
            alone = [engine.generate(prompt, params, strategy="sd", gamma=gamma)[0] for prompt in prompts]
            accepted = judged = 0
            for prompt, *outputs in zip(prompts, together, alone, strict=True):
                rounds = defined_rounds(head, prompt, params, gamma)
                for output in outputs:
                    metrics = output.metrics
                    assert output.token_ids == [token for each in rounds for token in each.token_ids]
                    assert metrics.rounds == len(rounds) - 1
                    assert metrics.accepted == sum(each.accept_len for each in rounds)
                accepted, judged = accepted + metrics.accepted, judged + metrics.judged
            assert 0.15 * judged < accepted < judged


def test_a_head_that_reads_the_wrong_place_is_seldom_right() -> None:
    """So that the test above would see it: taps of another layer, or d2t off by one."""

    def rate(head: tuple[Eagle3Config, Tensors]) -> float:
        with planted_engine(head) as engine:
            [output] = engine.generate([3, 4], replace(GREEDY, max_tokens=200), strategy="sd", gamma=3)
            return output.metrics.acceptance_rate

    config, tensors = planted_head()
    assert rate((config, tensors)) > 0.3
    ids = tensors[OFFSETS] + torch.arange(len(tensors[OFFSETS]))
    moved = tensors | {OFFSETS: ids.roll(1) - torch.arange(len(ids))}
    assert rate((config, moved)) < 0.1


@pytest.mark.parametrize("stop", ["confidence:0.3", "adaedl", "marginal", "thompson"])
def test_windows_that_end_early(stop: str) -> None:
    with planted_engine(judge="coupled", draft_stop=stop) as engine:
        for params in (GREEDY, LOUD):
            want = [one.token_ids for one in engine.generate(PROMPTS, params, strategy="ar")]
            got = engine.generate(PROMPTS, params, strategy="sd", gamma=8)
            assert [one.token_ids for one in got] == want


def test_requests_that_join_and_leave() -> None:
    """Among them long prompts, whose chunks go in beside the rounds of others; and a second run."""
    prompts = [LONG, *PROMPTS, LONG[:300], [1], LONG[:257], LONG[:256], [2, 3]]
    with planted_engine(judge="coupled", max_num_seqs=3) as engine:
        want = [engine.generate(prompt, LOUD, strategy="ar")[0].token_ids for prompt in prompts]
        for _ in range(2):
            handles = [engine.submit(prompt, LOUD, strategy="sd", gamma=3) for prompt in prompts]
            outputs = [handle.result(60) for handle in handles]
            assert [output.token_ids for output in outputs] == want
            assert all(output.metrics.accepted > 0 for output in outputs)
        handles = [engine.submit(prompt, LOUD) for prompt in prompts]
        handles[0].cancel()
        assert [handle.result(60).token_ids for handle in handles[1:]] == want[1:]


def test_sequences_that_are_longer_than_the_heads_positions() -> None:
    """It attends to as many of the last ones as it has, and drafts on."""
    config, tensors = planted_head(layer=replace(HEAD.layer, max_position_embeddings=64))
    with planted_engine((config, tensors), judge="coupled") as engine:
        longer = replace(GREEDY, max_tokens=100)
        for prompt in ([7], LONG[:40], LONG[:64], LONG[:65], LONG[:300]):
            [want] = engine.generate(prompt, longer, strategy="ar")
            [got] = engine.generate(prompt, longer, strategy="sd", gamma=4)
            assert got.token_ids == want.token_ids
            assert got.metrics.accepted > got.metrics.rounds / 4
        assert engine.stats()["draft_max_model_len"] == engine.max_model_len


def test_answers_of_a_form(tmp_path: Path) -> None:
    """Tokens that the form forces are fed to the head one by one; one that it has not got ends a window."""
    target = replace(TARGET, vocab_size=288, eos_token_ids=(0,))
    tensors = random_tensors(target, 3)
    layer = replace(HEAD.layer, vocab_size=288)
    config = replace(HEAD, layer=layer, draft_vocab_size=100)
    save_checkpoint(tmp_path / "target", target, tensors)
    byte_tokenizer().save(str(tmp_path / "target" / "tokenizer.json"))
    save_eagle3(tmp_path / "head", config, random_head(config, 4), target)
    form = {"regex": "(red|green) (apples?|pears) and [a-z]{3,9} then the same again"}
    with Engine.from_pretrained(tmp_path / "target", tmp_path / "head", judge="coupled", **SHAPE) as engine:
        for seed in range(4):
            params = SamplingParams(temperature=1.0, seed=seed, max_tokens=60, structured_outputs=form)
            [want] = engine.generate("Say", params, strategy="ar")
            [got] = engine.generate("Say", params, strategy="sd", gamma=5)
            assert got.token_ids == want.token_ids and got.metrics.judged > 5


def test_the_default_program_from_directories(tmp_path: Path) -> None:
    """As the planner chooses it, from each layout."""
    save_checkpoint(tmp_path / "target", TARGET, PLANTED)
    config, tensors = planted_head()
    for name, layout in (("eagle", lambda path: path), ("vllm", as_vllm), ("speculators", as_speculators)):
        save_eagle3(tmp_path / name, config, tensors, TARGET)
        layout(tmp_path / name)
        with Engine(*load_pair(tmp_path / "target", tmp_path / name), **SHAPE) as engine:
            [want] = engine.generate([5, 6], GREEDY, strategy="ar")
            [got] = engine.generate([5, 6], GREEDY)
            assert got.token_ids == want.token_ids


def test_where_it_cannot_run(tmp_path: Path) -> None:
    config, tensors = planted_head()
    pair = (TARGET, PLANTED, config, tensors)
    with planted_engine() as engine:
        with pytest.raises(
            RequestError, match="strategy 'pearl' drafts while the target works, and an EAGLE-3"
        ):
            engine.generate([1], GREEDY, strategy="pearl", gamma=2)
        with pytest.raises(
            RequestError, match="placement 'split' is for a draft that works beside its target"
        ):
            engine.generate([1], GREEDY, placement="split")
    with pytest.raises(ConfigError, match=r"strategy 'pearl' drafts while .*pass strategy='sd' or 'auto'"):
        Engine(*pair, strategy="pearl", **SHAPE)
    with pytest.raises(ConfigError, match="drafter 'lookup' was asked for, and a draft model was given"):
        Engine(*pair, drafter="lookup", **SHAPE)
    with pytest.raises(ConfigError, match="pass both, or neither"):
        Engine(TARGET, PLANTED, config)
    with pytest.raises(CheckpointError, match=r"tensor 'fc.weight' of the draft does not fit"):
        Engine(TARGET, PLANTED, config, {n: t for n, t in tensors.items() if n != "fc.weight"})
    save_checkpoint(tmp_path / "target", TARGET, PLANTED)
    save_eagle3(tmp_path / "head", config, tensors, TARGET)
    with pytest.raises(ConfigError, match="is an EAGLE-3 head, which drafts for an Engine only"):
        DevicePair.from_pretrained(tmp_path / "target", tmp_path / "head")


def test_memory_of_the_head_and_of_taps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are counted: as much more is needed than without a draft."""
    config, tensors = planted_head()
    backend = cpu.CpuBackend(2, None, 4)
    pool = backend.kv_pool(640)
    needed: list[int] = []
    for draft in ((None, None), (config, tensors)):
        sources = pair_sources(TARGET, PLANTED, *draft, dtype="float32", drafter="none")
        low, high = 0, 1 << 30
        while high - low > 1:
            middle = (low + high) // 2
            monkeypatch.setattr(cpu, "available_memory", lambda known=middle: known)
            try:
                backend.check_memory(sources, pool, num_placements=1)
                high = middle
            except ResourceError as error:
                low = middle
                assert ("for what the head reads" in str(error)) == (draft[0] is not None)
        needed.append(high)
    own = sum(4 * tensor.numel() for name, tensor in tensors.items() if name != OFFSETS)
    cache = 2 * config.layer.num_key_value_heads * config.layer.head_dim * 4 * pool.num_tokens
    assert needed[1] - needed[0] == own + cache + 4 * 4 * 257 * config.tap_size
