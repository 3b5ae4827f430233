"""A draft learns to fill a window in a few passes: training sees what decoding does, and engines take it."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from train_models import MACHINE, small_model

from pearl_rt import Engine, SamplingParams
from pearl_rt.backends.cpu import Model
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.errors import ConfigError, RequestError
from recipes.train.__main__ import main
from recipes.train.data.tokenised_corpus import TokenisedCorpus
from recipes.train.distill import DistillSettings, check_pair, distill
from recipes.train.model.export import export
from recipes.train.model.llama import LlamaForCausalLM
from recipes.train.optimizer import Schedule
from recipes.train.parallel import parallel_model
from recipes.train.windows.diffusion import Windows, diffusion_loss, diffusion_model, window_rows


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draft_model(layers: int = 3, passes: int = 2) -> LlamaForCausalLM:
    return diffusion_model(small_model(layers, seed=1), None, passes)


def test_a_row_of_training_is_a_row_of_decoding() -> None:
    """Each row of a window has the logits of the CPU's executor behind the text up to its place."""
    model, length = draft_model(), 24
    mask = model.config.diffusion_mask_token
    assert mask == 300 and model.config.pard_token is None
    made = window_rows(length, Windows(6), chance())
    rows = made.rows
    text = torch.randint(300, (1, length), generator=chance(1))
    fed = made.fed(text, mask)
    with torch.no_grad():
        states = model.hidden_states(fed, positions=rows.positions, visible=rows.visible)
        torch.testing.assert_close(states[:, :length], model.hidden_states(text), rtol=1e-4, atol=1e-5)
        logits = (states @ model.head_weight.T)[0]
    packed = Model.pack(model.config, model.state_dict(), dtype="float32", isa=None, max_model_len=64)
    run = packed.executor([0], 1)
    places = rows.visible[:, :length].sum(dim=1) - 1
    depths = rows.positions - places
    seen = 0
    for place in range(length):
        own = torch.nonzero((places == place) & (depths > 0)).flatten()
        own = own[depths[own].argsort()]
        assert depths[own].tolist() == list(range(1, len(own) + 1))
        if not len(own):
            continue
        ids = [*text[0, : place + 1].tolist(), *fed[0, own].tolist()]
        got = torch.from_numpy(run.forward(0, ids, 0, len(own), len(own)))
        torch.testing.assert_close(logits[own], got, rtol=1e-3, atol=1e-3)
        seen += len(own)
    assert seen > length


@pytest.mark.parametrize("length", [1, 2, 63, 1000])
@pytest.mark.parametrize("windows", [Windows(2), Windows(8), Windows(16, 1, 1), Windows(4, 0, 0)], ids=str)
def test_which_rows_have_a_token_and_which_learn(length: int, windows: Windows) -> None:
    made = window_rows(length, windows, chance())
    rows, learns = made.rows, set(made.learns.tolist())
    places = rows.visible[:, :length].sum(dim=1) - 1
    depths = rows.positions - places
    assert made.has_token[:length].all() and learns >= set(range(length))
    has = {(int(p), int(d)): bool(h) for p, d, h in zip(places, depths, made.has_token, strict=True)}
    for number, (place, depth) in enumerate(has):
        if depth == 0:
            continue
        assert (number in learns) == (not has.get((place, depth + 1), False))
        assert has[place, 1] or not has[place, depth]  # the first place has its token first
    known = [depth for (_, depth), is_known in has.items() if is_known and depth]
    assert length < 63 or windows.least == 0 or 0 < len(known) < len(has) - length


def test_it_learns_and_engines_take_it(
    tokenised: TokenisedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And goes on where it stopped."""
    monkeypatch.setattr("recipes.train.run.time", SimpleNamespace(monotonic=count(1.0).__next__))
    target = small_model(3)
    settings = DistillSettings(
        samples_from="target",
        text_length=64,
        prompt_length=16,
        sample_length=48,
        tokens_per_step=128,
        lr=5e-3,
        schedule=Schedule(2, 0.5),
    )
    for minutes in (0.3, 0.6):
        draft = draft_model(1, passes=3)

        def loss_of(rows: torch.Tensor, draft: LlamaForCausalLM = draft) -> torch.Tensor:
            return diffusion_loss(target, draft, rows, "forward_kl", Windows(4))

        run = distill(
            target,
            draft,
            tokenised,
            MACHINE,
            settings,
            minutes=minutes,
            run_directory=tmp_path / "run",
            out=tmp_path / "draft",
            loss_of=loss_of,
        )
    curve = [row["loss_text"] for row in run.curve() if "loss_text" in row]
    assert len(curve) > 12 and sum(curve[-3:]) < 0.9 * sum(curve[:3])
    config = ModelConfig.from_pretrained(tmp_path / "draft")
    assert (config.diffusion_mask_token, config.diffusion_passes, config.vocab_size) == (300, 3, 301)
    export(target, tokenised.tokenizer, tmp_path / "target")
    with Engine.from_pretrained(tmp_path / "target", tmp_path / "draft", max_model_len=64) as engine:
        greedy = SamplingParams(max_tokens=24)
        [want] = engine.generate([5, 6], greedy, strategy="ar")
        [got] = engine.generate([5, 6], greedy, strategy="sd", gamma=4)
        assert engine.stats()["drafter"]["kind"] == "diffusion"
    assert got.token_ids == want.token_ids and got.metrics.judged > 0


def test_what_cannot_be() -> None:
    assert diffusion_model(small_model(), 7, 1).config.diffusion_mask_token == 7
    known = diffusion_model(parallel_model(small_model(), 9), None, 4).config  # a mask that it had
    assert (known.pard_token, known.diffusion_mask_token, known.diffusion_passes) == (None, 9, 4)
    assert (
        parallel_model(diffusion_model(small_model(), 9, 2)).config == parallel_model(small_model(), 9).config
    )
    for token in (300, -1):
        with pytest.raises(RequestError, match=f"--mask-token {token}: the vocabulary has ids 0 to 299"):
            diffusion_model(small_model(), token, 2)
    for passes in (0, 17):
        with pytest.raises(RequestError, match=f"--passes {passes}: give 1 to 16"):
            diffusion_model(small_model(), None, passes)
    for length in (1, 17):
        with pytest.raises(RequestError, match=f"--window {length}: give 2 to 16 places"):
            Windows(length)
    with pytest.raises(RequestError, match=r"--least -0\.1: give a share"):
        Windows(least=-0.1)
    check_pair(small_model(), draft_model())
    with pytest.raises(ConfigError, match="a draft needs its target's tokenizer"):
        check_pair(draft_model(), small_model())


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        "diffusion",
        "--target",
        "none",
        "--minutes",
        "1",
        "--run",
        str(tmp_path),
        "--out",
        str(tmp_path),
    ]
    assert main([*asked, "--window", "1"]) == 2
    assert "--window 1: give 2 to 16 places" in capsys.readouterr().err
