"""A lookup in front of a draft model, of a parallel and a diffusion draft, of an exit layer and of the target
itself: the text is that of plain decoding, and both draft.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted import Bench, tokens_of
from tiny_pairs import TINY, Pair, random_tensors

from pearl_rt import _C, ConfigError, Engine, SamplingParams
from pearl_rt.checkpoint.views.exit_layer import ExitConfig, exit_shapes
from pearl_rt.cli.commands import main
from pearl_rt.types.outputs import RequestOutput

PROMPTS = [[7], [3, 1, 4, 1, 5, 9, 2, 6], list(range(40, 103)), [11, 12, 13] * 7]  # of 1, 8, 63 and 21 tokens
GREEDY, LOUD = SamplingParams(max_tokens=48), SamplingParams(temperature=0.7, max_tokens=48, seed=3)
SHAPE: dict[str, Any] = {"max_model_len": 128, "num_threads": 2, "max_num_seqs": 4, "draft_lookup": True}
PROGRAMS = [("sd", "shared"), ("sd", "split"), ("pearl", "shared"), ("pearl", "split")]
MASKS = {"parallel": {"pard_token": 287}, "diffusion": {"diffusion_mask_token": 287, "diffusion_passes": 3}}
KINDS = ("model", "parallel", "diffusion", "self", "exit")


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair.make("half-right", num_hidden_layers=3)


def engine_of(pair: Pair, kind: str = "model", **options: Any) -> Engine:
    options = SHAPE | options
    if kind == "self":
        return Engine(pair.config, pair.target, drafter="self", skip_layers=[1], **options)
    if kind == "exit":
        config = ExitConfig(hidden_size=64, vocab_size=288, exit_layer=2, intermediate_size=96)
        shapes = exit_shapes(config.draft_config(pair.config))
        own = {name: tensor for name, tensor in random_tensors(pair.config, 1).items() if name in shapes}
        return Engine(pair.config, pair.target, config, own, **options)
    return Engine(
        pair.config, pair.target, replace(pair.config, **MASKS.get(kind, {})), pair.draft, **options
    )


def texts(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.token_ids for output in outputs]


@pytest.mark.parametrize("kind", KINDS)
def test_every_program_is_ar_to_the_bit(pair: Pair, kind: str) -> None:
    with engine_of(pair, kind, judge="coupled") as engine:
        for params in (GREEDY, LOUD):
            want = texts(engine.generate(PROMPTS, params, strategy="ar"))
            for number, (strategy, placement) in enumerate(PROGRAMS):
                program = {"strategy": strategy, "placement": placement, "gamma": (1, 3, 8, 16)[number]}
                assert texts(engine.generate(PROMPTS, params, **program)) == want, program
        found = engine.stats()["drafter"]
    assert found["kind"] == kind and set(found["members"]) == {"lookup", kind}
    assert all(member["windows"] > 0 for member in found["members"].values())


@pytest.mark.parametrize("stop", ["confidence:0.3", "marginal", "thompson"])
def test_with_windows_that_end_early(pair: Pair, stop: str) -> None:
    with engine_of(pair, judge="coupled", draft_stop=stop) as engine:
        want = texts(engine.generate(PROMPTS, LOUD, strategy="ar"))
        for strategy in ("sd", "pearl"):
            assert texts(engine.generate(PROMPTS, LOUD, strategy=strategy, gamma=8)) == want


@pytest.mark.parametrize("kind", ["model", "diffusion"])
def test_the_figures_of_both_are_those_of_all(pair: Pair, kind: str) -> None:
    with engine_of(pair, kind) as engine:
        outputs = engine.generate(PROMPTS, GREEDY, strategy="sd", gamma=4)
        stats = engine.stats()
    looked_up, sampled = ([getattr(o.metrics, name) for o in outputs] for name in ("looked_up", "sampled"))
    for figure in ("judged", "accepted"):
        both = sum(getattr(one, figure) for one in looked_up + sampled)
        assert both == sum(getattr(o.metrics, figure) for o in outputs) == stats["totals"][figure]
    windows = [sum(one.windows for one in own) for own in (looked_up, sampled)]
    members = stats["drafter"]["members"]
    assert [members[name]["windows"] for name in ("lookup", kind)] == windows and min(windows) > 0
    accepted = sum(one.accepted for one in looked_up) / sum(one.judged for one in looked_up)
    assert members["lookup"]["acceptance"] == accepted
    with engine_of(pair, kind, draft_lookup=False) as engine:
        engine.generate(PROMPTS, GREEDY, strategy="sd", gamma=4)
        assert engine.stats()["drafter"]["members"] is None
        assert engine.stats()["totals"]["looked_up"]["windows"] == 0


def test_a_window_that_is_looked_up_runs_no_model() -> None:
    """The draft's passes are its own drafts, and one for the prompt: what it missed costs none."""
    target = {"rule": 5, "vocab_size": 2}
    shape = {"chain_cost": 0.2, "draft": target | {"divergence": 0.3}, "capacity": 512}
    bench = Bench.build("shared", target=target, **shape)
    request = _C.Request([0, 1, 1], gamma=5, max_tokens=400, temperature=0.0)
    results = bench.run("sd", request)
    by_model = [one for one in results if one.num_judged > 0 and 0 not in one.certain]
    by_lookup = [one for one in results if 0 in one.certain]
    assert len(by_model) > 10 and len(by_lookup) > 10
    assert all(len(one.certain) == min(one.accept_len + 1, one.num_judged) for one in by_lookup)
    assert bench.draft.num_forwards == 1 + sum(one.num_judged for one in by_model)
    plain = Bench.build("shared", target=target, capacity=512)
    assert tokens_of(results) == tokens_of(plain.run("ar", request))


@pytest.mark.parametrize("kind", ["model", "diffusion"])
def test_a_seed_is_a_text(pair: Pair, kind: str) -> None:
    """By rejection the tokens depend on the windows, and these on no neighbour and on nothing before."""
    program = {"strategy": "sd", "gamma": 6, "judge": "rejection"}
    with engine_of(pair, kind) as engine:
        engine.generate(PROMPTS, LOUD, judge="coupled")  # earlier answers
        together = texts(engine.generate(PROMPTS, LOUD, **program))
        alone = [texts(engine.generate(prompt, LOUD, **program))[0] for prompt in reversed(PROMPTS)]
        assert alone[::-1] == together == texts(engine.generate(PROMPTS, LOUD, **program))


@pytest.mark.parametrize("kind", ["model", "diffusion"])
def test_windows_that_the_planner_chooses(pair: Pair, kind: str) -> None:
    with engine_of(pair, kind, judge="coupled") as engine:
        assert texts(engine.generate(PROMPTS, LOUD)) == texts(engine.generate(PROMPTS, LOUD, strategy="ar"))
        [alone] = engine.generate(PROMPTS[3], GREEDY, strategy="sd")
        assert alone.token_ids == engine.generate(PROMPTS[3], GREEDY, strategy="ar")[0].token_ids
        assert engine.stats()["step_times"]["shared"]["window"]


@pytest.mark.parametrize("drafter", ["lookup", "none", "auto"])
def test_a_chain_needs_a_model(pair: Pair, drafter: str) -> None:
    kind = "lookup" if drafter == "auto" else drafter
    with pytest.raises(ConfigError, match=f"draft_lookup .*the drafter is '{kind}': pass draft=DIRECTORY"):
        Engine(pair.config, pair.target, drafter=drafter, draft_lookup=True, device="cpu")
    with pytest.raises(ConfigError, match="draft_lookup runs on the CPU only so far"):
        Engine(pair.config, pair.target, pair.config, pair.draft, draft_lookup=True, device="interpret")
    with pytest.raises(ConfigError, match="draft_lookup"):
        engine_of(pair, draft_lookup="yes")


def test_the_command_line_says_what_each_drafted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, draft = Pair.make("half-right").save(tmp_path)
    asked = ["generate", "--target", str(target), "--prompt", "abcabcabcabc", "--max-tokens", "30", "--stats"]
    asked += ["--max-model-len", str(TINY.max_position_embeddings // 32), "--threads", "1"]
    said = []
    for own in (["--draft", "none"], ["--draft", str(draft), "--draft-lookup", "--strategy", "sd"]):
        assert main([*asked, *own]) == 0
        said.append(capsys.readouterr())
    assert said[0].out == said[1].out
    assert '"members": null' in said[0].err and '"lookup": {' in said[1].err
