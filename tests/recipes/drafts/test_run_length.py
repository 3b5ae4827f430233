"""Rows of windows count by the chance that all places before them stand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from train_models import small_model

from recipes.train.__main__ import main
from recipes.train.data.remembered import LearntRows
from recipes.train.data.tokenised_corpus import TokenisedCorpus
from recipes.train.distill import distillation_loss
from recipes.train.divergence import forward_kl
from recipes.train.drafts import run_length
from recipes.train.drafts.diffusion import Windows, diffusion_loss, diffusion_model, window_rows
from recipes.train.drafts.eagle3 import eagle3_loss, eagle3_model
from recipes.train.drafts.parallel import mask_rows, parallel_model
from recipes.train.drafts.run_length import WindowPlaces, run_length_weights
from recipes.train.model.export import export
from recipes.train.model.sizes import new_model, sized_config
from recipes.train.model.taps import taps_of

Row = tuple[int, int, int]  # text, start, depth


@pytest.fixture
def target_directory(tokenised: TokenisedCorpus, tmp_path: Path) -> Path:
    """A model with room for a row of text."""
    model = new_model(sized_config("tiny", 300, 0, 512), torch.device("cpu"))
    export(model, tokenised.tokenizer, tmp_path / "target")
    return tmp_path / "target"


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chance_to_count(accepted: dict[Row, float]) -> dict[Row, float]:
    """The definition, not normalised: the product over the places before a row, where they have a row."""
    return {
        (text, start, depth): math.prod(accepted.get((text, start, before), 1.0) for before in range(depth))
        for text, start, depth in accepted
    }


def mean_by_hand(losses: dict[Row, Tensor], accepted: dict[Row, float]) -> Tensor:
    """Chances over their mean weight the mean."""
    chances = chance_to_count(accepted)
    return sum(chances[row] * loss for row, loss in losses.items()) / sum(chances.values())  # type: ignore[return-value]


def judged(
    p: Tensor, q: Tensor, starts: Sequence[int], depths: Sequence[int]
) -> tuple[dict[Row, Tensor], dict[Row, float]]:
    """Losses and acceptance of rows, from logits [B, L, V]."""
    far, shared = forward_kl(p, q), torch.minimum(p.softmax(-1), q.softmax(-1)).sum(-1)
    rows = [(text, at) for text in range(len(p)) for at in range(len(starts))]
    return (
        {(text, starts[at], depths[at]): far[text, at] for text, at in rows},
        {(text, starts[at], depths[at]): shared[text, at].item() for text, at in rows},
    )


def same(got: Tensor, want: Tensor, weights: Sequence[Tensor]) -> None:
    """Both losses, and their gradients: that of the definition has none through the chances."""
    torch.testing.assert_close(got, want)
    of_got, of_want = (torch.autograd.grad(loss, weights, allow_unused=True) for loss in (got, want))
    for ours, theirs in zip(of_got, of_want, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["masks", "windows"])
@pytest.mark.parametrize("length", [1, 2, 30])
def test_weights_are_those_of_the_definition(kind: str, length: int) -> None:
    if kind == "masks":
        places = mask_rows(length, 5, 0.7, 0.3, chance()).places
    else:
        places = window_rows(length, Windows(6, 0.8, 0.5), chance()).places
    total = len(places.starts)
    accepted = torch.rand(3, total, generator=chance(1))
    starts, depths = places.starts.tolist(), places.depths.tolist()
    assert len(set(zip(starts, depths, strict=True))) == total and (length < 30 or max(depths) == 5)
    known = {
        (text, starts[at], depths[at]): accepted[text, at].item() for text in range(3) for at in range(total)
    }
    want = torch.tensor([float(each) for each in chance_to_count(known).values()]).view(3, total)
    got = run_length_weights(accepted.requires_grad_(), places)
    torch.testing.assert_close(got, want / want.mean())
    assert got.mean().item() == pytest.approx(1, abs=1e-5) and not got.requires_grad


def test_a_place_without_a_row_stands() -> None:
    places = WindowPlaces(torch.tensor([4, 4, 4, 9]), torch.tensor([3, 0, 2, 2]))
    got = run_length_weights(torch.tensor([[0.3, 0.5, 0.25, 0.1]]), places)
    torch.testing.assert_close(got, torch.tensor([[0.125, 1, 0.5, 1]]) * 4 / 2.625)


def test_a_draft_that_never_stands_learns_at_first_places_only() -> None:
    places = mask_rows(8, 3, 1, 1, chance()).places
    got = run_length_weights(torch.zeros(2, len(places.starts)), places)
    assert torch.equal(got > 0, (places.depths == 0).expand_as(got)) and got.mean().item() == pytest.approx(1)


def test_the_loss_of_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of rows in a chunk of logits."""
    monkeypatch.setattr("recipes.train.loss.LOGIT_ROWS", 7)
    target, draft, length = small_model(3), parallel_model(small_model(1, seed=1)), 12
    text = torch.randint(300, (2, length + 1), generator=chance(2))
    made = mask_rows(length, 3, 0.7, 0.2, chance())
    starts = (made.visible[:, :length].sum(dim=1) - 1).tolist()
    depths = [place - start for place, start in zip(made.positions.tolist(), starts, strict=True)]
    fed = made.fed(text[:, :-1], 300)
    q = draft.hidden_states(fed, positions=made.positions, visible=made.visible) @ draft.head_weight[:300].T
    with torch.no_grad():
        p = target(text[:, :-1])[:, made.positions]
    losses, accepted = judged(p, q, starts, depths)
    got = distillation_loss(target, draft, text, "forward_kl", 0.0, made, run_length=True)
    same(got, mean_by_hand(losses, accepted), list(draft.parameters()))
    plain = distillation_loss(target, draft, text, "forward_kl", 0.0, made)
    assert abs(plain.item() - got.item()) > 1e-3
    assert plain.item() == pytest.approx(torch.stack(list(losses.values())).mean().item(), rel=1e-5)
    wanted = text[:, 1:][:, made.positions]
    spoken = {
        row: 0.7 * loss - 0.3 * q.log_softmax(-1)[row[0], at, wanted[row[0], at]]
        for at, row, loss in (
            (index % len(starts), row, loss) for index, (row, loss) in enumerate(losses.items())
        )
    }
    got = distillation_loss(target, draft, text, "forward_kl", 0.3, made, run_length=True)
    torch.testing.assert_close(got, mean_by_hand(spoken, accepted))


def test_the_loss_of_windows_of_a_few_passes() -> None:
    target, draft, length = small_model(3), diffusion_model(small_model(1, seed=1), None, 2), 14
    text = torch.randint(300, (2, length + 1), generator=chance(2))
    windows = Windows(5, 0.9, 0.5)
    made = window_rows(length, windows, chance(int(text.sum())))
    starts = made.rows.visible[:, :length].sum(dim=1) - 1
    depths = made.rows.positions - starts
    fed = made.fed(text[:, :-1], 300)
    states = draft.hidden_states(fed, positions=made.rows.positions, visible=made.rows.visible)
    q = states[:, made.learns] @ draft.head_weight[:300].T
    with torch.no_grad():
        p = target(text[:, :-1])[:, made.rows.positions[made.learns]]
    losses, accepted = judged(p, q, starts[made.learns].tolist(), depths[made.learns].tolist())
    rows = LearntRows(text)
    got = diffusion_loss(target, draft, rows, "forward_kl", windows, True)
    same(got, mean_by_hand(losses, accepted), list(draft.parameters()))
    plain = diffusion_loss(target, draft, rows, "forward_kl", windows)
    assert abs(plain.item() - got.item()) > 1e-3
    assert plain.item() == pytest.approx(torch.stack(list(losses.values())).mean().item(), rel=1e-5)


def test_the_loss_of_steps() -> None:
    """A row of step n is of the window that starts n rows before it."""
    target = small_model(3)
    draft = eagle3_model(target, [np.arange(300)], 90, [0, 2, 3])
    tokens = torch.randint(300, (2, 13), generator=chance(2))
    parts, states = taps_of(target, tokens[:, :-1], (0, 2, 3))
    with torch.no_grad():
        embedded = target.model.embed_tokens(tokens[:, 1:-1])
        p = states[:, 1:] @ target.head_weight[draft.target_ids].T
    features = draft.fc(torch.cat(parts, dim=-1)[:, :-1])
    past: list[tuple[Tensor, Tensor]] = []
    losses: dict[Row, Tensor] = {}
    accepted: dict[Row, float] = {}
    for number in range(3):
        outputs = draft.rows(embedded, features, past)
        q = draft.lm_head(draft.model.norm(outputs))
        starts = [row - number for row in range(number, 11)]
        far, shared = judged(p[:, number:], q[:, number:], starts, [number] * len(starts))
        losses |= far
        accepted |= shared
        features = torch.cat((features[:, :1], outputs[:, :-1]), dim=1)
    rows = LearntRows(tokens)
    got = eagle3_loss(target, draft, rows, "forward_kl", 3, True)
    same(got, mean_by_hand(losses, accepted), list(draft.parameters()))
    plain = eagle3_loss(target, draft, rows, "forward_kl", 3)
    means = [torch.stack([far for row, far in losses.items() if row[2] == n]).mean().item() for n in range(3)]
    assert plain.item() == pytest.approx((means[0] + 0.8 * means[1] + 0.64 * means[2]) / 2.44, rel=1e-5)
    assert abs(plain.item() - got.item()) > 1e-3


COMMANDS = {
    "exit": "--exit-layer 1 --mask-token 7 --masks 2",
    "parallel": "--size tiny --masks 2",
    "diffusion": "--size tiny --window 3",
    "eagle3": "--draft-vocab 90 --steps 2",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_weights_only_where_it_is_asked_to(
    command: str,
    target_directory: Path,
    text_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("recipes.train.run.time", SimpleNamespace(monotonic=count(1.0).__next__))
    made: list[Tensor] = []

    def seen(accepted: Tensor, places: WindowPlaces) -> Tensor:
        made.append(run_length_weights(accepted, places))
        return made[-1]

    monkeypatch.setattr(run_length, "run_length_weights", seen)
    shared = f"--data {text_directory} --target {target_directory} --samples-from text --tokens-per-step 512"
    for more in ("", "--run-length"):
        assert not made
        folders = f"--run {tmp_path / f'run{more}'} --out {tmp_path / f'out{more}'} --minutes 0.03"
        assert main([command, *f"{COMMANDS[command]} {shared} {folders} {more}".split()]) == 0
    assert made and all(weights.mean().item() == pytest.approx(1, abs=1e-4) for weights in made)


def test_a_draft_that_fills_no_windows(
    target_directory: Path, text_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = f"--data {text_directory} --target {target_directory} --minutes 0.01 --run-length"
    folders = f"--run {tmp_path / 'run'} --out {tmp_path / 'out'}"
    assert main(["exit", "--exit-layer", "1", *f"{shared} {folders}".split()]) == 2
    assert "--run-length: a draft that goes token by token fills no windows" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit):
        main(["distill", *f"{shared} {folders}".split()])
