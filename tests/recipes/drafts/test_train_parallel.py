"""A draft learns to fill a window in one pass: its training sees what decoding does, and engines take it."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from train_models import MACHINE, small_model

from pearl_rt import Engine, SamplingParams
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.errors import ConfigError, RequestError
from recipes.train.data.tokenised_corpus import TokenisedCorpus
from recipes.train.distill import DistillSettings, check_pair, distill
from recipes.train.drafts.parallel import mask_rows, parallel_model
from recipes.train.evaluate import acceptance
from recipes.train.model.export import export
from recipes.train.optimizer import Schedule


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_row_of_training_is_a_row_of_decoding() -> None:
    """The d-th mask of a place has the state that it has behind the text up to there and d - 1 masks."""
    model = parallel_model(small_model())
    mask, length = model.config.pard_token, 20
    assert mask == 300
    made = mask_rows(length, 4, 0.7, 0.2, chance())
    text = torch.randint(300, (2, length), generator=chance(1))
    with torch.no_grad():
        fed = made.fed(text, mask)
        states = model.hidden_states(fed, positions=made.positions, visible=made.visible)
        torch.testing.assert_close(states[:, :length], model.hidden_states(text), rtol=1e-4, atol=1e-5)
        places = made.visible[:, :length].sum(dim=1) - 1
        for row in range(length, len(places)):
            place, position = int(places[row]), int(made.positions[row])
            behind = torch.full((2, position - place), mask)
            alone = model.hidden_states(torch.cat((text[:, : place + 1], behind), dim=1))[:, -1]
            torch.testing.assert_close(states[:, row], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 63, 1000])
@pytest.mark.parametrize(
    ("masks", "keep", "least"), [(1, 0.7, 0.2), (7, 0.7, 0.2), (3, 0.0, 0.0), (15, 1, 1)]
)
def test_places_are_dropped_depth_by_depth(length: int, masks: int, keep: float, least: float) -> None:
    made = mask_rows(length, masks, keep, least, chance())
    places = (made.visible[:, :length].sum(dim=1) - 1)[length:]
    depths = made.positions[length:] - places
    assert int(made.positions.max()) == length - 1
    before = set(range(length))
    for depth in range(1, masks + 1):
        chosen = set(places[depths == depth].tolist())
        most = max(1, int(length * max(keep**depth, least)))
        assert chosen <= before and len(chosen) <= most
        assert len(chosen) >= min(most, length) - depth
        before = chosen


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
        masks=3,
        schedule=Schedule(2, 0.5),
    )
    for minutes in (0.3, 0.6):
        draft = parallel_model(small_model(1, seed=1))
        run = distill(
            target,
            draft,
            tokenised,
            MACHINE,
            settings,
            minutes=minutes,
            run_directory=tmp_path / "run",
            out=tmp_path / "draft",
        )
    curve = [row["loss_text"] for row in run.curve() if "loss_text" in row]
    assert len(curve) > 12 and sum(curve[-3:]) < 0.9 * sum(curve[:3])
    assert ModelConfig.from_pretrained(tmp_path / "draft").pard_token == 300
    rows = torch.randint(300, (2, 24), generator=chance())
    assert 0 < acceptance(target, draft, MACHINE, rows, 4).rejection["1.0"] <= 1
    export(target, tokenised.tokenizer, tmp_path / "target")
    with Engine.from_pretrained(tmp_path / "target", tmp_path / "draft", max_model_len=64) as engine:
        greedy = SamplingParams(max_tokens=24)
        [want] = engine.generate([5, 6], greedy, strategy="ar")
        [got] = engine.generate([5, 6], greedy, strategy="sd", gamma=4)
        assert engine.stats()["drafter"]["kind"] == "parallel"
    assert got.token_ids == want.token_ids and got.metrics.judged > 0


def test_masks_that_cannot_be() -> None:
    assert parallel_model(small_model(), 7).config.pard_token == 7
    for token in (300, -1):
        with pytest.raises(RequestError, match=f"--mask-token {token}: the vocabulary has ids 0 to 299"):
            parallel_model(small_model(), token)
    for masks in (-1, 16):
        with pytest.raises(RequestError, match=f"--masks {masks}: give 1 to 15"):
            DistillSettings(masks=masks, samples_from="text")
    with pytest.raises(RequestError, match="--samples-from draft"):
        DistillSettings(masks=3, samples_from="draft")
    with pytest.raises(RequestError, match=r"--keep 1\.5"):
        DistillSettings(keep=1.5)
    check_pair(small_model(), parallel_model(small_model()))
    with pytest.raises(ConfigError, match="a draft needs its target's tokenizer"):
        check_pair(parallel_model(small_model()), small_model())
