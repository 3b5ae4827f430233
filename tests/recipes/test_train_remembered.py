"""A target's rows are kept in a folder, and drafts learn from them what they learn from the target itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from train_models import MACHINE, small_model

from pearl_rt.errors import CheckpointError, RequestError
from recipes.train.__main__ import main
from recipes.train.data.remembered import LearntRows, Remembered, Sizes, remember
from recipes.train.data.stream import PackedStream
from recipes.train.data.tokenised_corpus import TokenisedCorpus, frequent_ids
from recipes.train.distill import distillation_loss
from recipes.train.drafts.eagle3 import eagle3_loss, eagle3_model
from recipes.train.drafts.exit_layer import exit_model
from recipes.train.drafts.parallel import mask_rows
from recipes.train.model.export import export
from recipes.train.model.taps import taps_of


@pytest.fixture
def stream(tokenised: TokenisedCorpus) -> PackedStream:
    return PackedStream(tokenised.train, tokenised.weights, 24, seed=1)


def test_rows_are_what_the_target_computes(stream: PackedStream, tmp_path: Path) -> None:
    """Each row once in an epoch, in another order in the next; and the loss is the same to bf16."""
    target = small_model(3)
    remember(target, MACHINE, stream, tmp_path, 11, [3, 1], together=4)
    known = Remembered(tmp_path, target.config)
    epochs = [known.batch(first, 11, (1, 3)) for first in (0, 11)]
    texts = [[tuple(row) for row in epoch.tokens.tolist()] for epoch in epochs]
    assert sorted(texts[0]) == sorted(texts[1]) == sorted(map(tuple, stream.batch(0, 11).tolist()))
    assert texts[0] != texts[1]
    rows = epochs[0]
    with MACHINE.autocast():
        taps, states = taps_of(target, rows.tokens[:, :-1], (1, 3))
    torch.testing.assert_close(rows.states, states.float(), atol=0.05, rtol=0.05)
    torch.testing.assert_close(rows.taps, torch.cat(taps, dim=-1).float(), atol=0.05, rtol=0.05)
    draft, masked = exit_model(target, 1, 7), mask_rows(24, 3, 0.7, 0.2, torch.Generator().manual_seed(0))
    for masks in (None, masked):
        of_rows = [
            distillation_loss(target, draft, rows.tokens, "forward_kl", 0.0, masks, kept).item()
            for kept in (None, rows.states)
        ]
        assert of_rows[1] == pytest.approx(of_rows[0], rel=0.02)
    head = eagle3_model(target, [], 90, [0, 1, 3])
    remember(target, MACHINE, stream, tmp_path / "more", 11, [0, 1, 3])
    rows = Remembered(tmp_path / "more", target.config).batch(0, 11, (0, 1, 3))
    want = eagle3_loss(target, head, LearntRows(rows.tokens), "forward_kl", 3).item()
    assert eagle3_loss(target, head, rows, "forward_kl", 3).item() == pytest.approx(want, rel=0.02)


def test_it_goes_on_where_it_stopped(stream: PackedStream, tmp_path: Path) -> None:
    target, told = small_model(2), []

    def stop(rows: int) -> None:
        told.append(rows)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remember(target, MACHINE, stream, tmp_path, 9, [], together=2, told=stop)
    with pytest.raises(CheckpointError, match="has 4 of 9 rows"):
        Remembered(tmp_path, target.config)
    with pytest.raises(RequestError, match="give another folder"):
        remember(target, MACHINE, stream, tmp_path, 9, [1])
    remember(target, MACHINE, stream, tmp_path, 9, [], together=2, told=told.append)
    assert told == [0, 2, 2, 4, 2, 2, 1]
    assert Sizes.read(tmp_path).done == 9
    remember(target, MACHINE, stream, tmp_path / "at once", 9, [], together=2)
    want, got = ((tmp_path / name).read_bytes() for name in ("at once/states", "states"))
    assert got == want


def test_of_another_target_and_without_a_tap(stream: PackedStream, tmp_path: Path) -> None:
    target = small_model(2)
    with pytest.raises(CheckpointError, match=r"rows.json cannot be read.*recipes.train remember"):
        Remembered(tmp_path, target.config)
    remember(target, MACHINE, stream, tmp_path, 2, [1])
    with pytest.raises(RequestError, match=r"inputs of layers \(1,\), not of 2: add --tap 2"):
        Remembered(tmp_path, target.config).batch(0, 1, (2,))
    sizes = Sizes.read(tmp_path)
    Sizes(**{**vars(sizes), "vocab_size": 301}).write(tmp_path)
    with pytest.raises(CheckpointError, match=r"vocab_size \(\d+, 301\), and this one has \(\d+, 300\)"):
        Remembered(tmp_path, target.config)


def test_the_loss_over_some_ids(tokenised: TokenisedCorpus) -> None:
    """Over all of them it is the whole loss; over the likeliest ones it is that of these."""
    target = small_model(2)
    draft = exit_model(target, 1)
    rows = torch.from_numpy(tokenised.train[0][:25].astype("int64"))[None]
    whole = distillation_loss(target, draft, rows, "forward_kl", 0.0)
    every = distillation_loss(target, draft, rows, "forward_kl", 0.0, ids=torch.arange(300))
    torch.testing.assert_close(every, whole)
    ids = frequent_ids(tokenised.train, 300, 7)
    some = distillation_loss(target, draft, rows, "forward_kl", 0.0, ids=ids)
    p, q = (model(rows[:, :-1])[0][:, ids].log_softmax(-1) for model in (target, draft))
    torch.testing.assert_close(some, (p.exp() * (p - q)).sum(-1).mean())


def test_commands_of_a_target_from_elsewhere(
    tokenised: TokenisedCorpus, text_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows are remembered, and each kind of draft learns from them; another source beside them is refused."""
    export(small_model(3), tokenised.tokenizer, tmp_path / "target")
    common = ["--target", str(tmp_path / "target"), "--data", str(text_directory)]
    rows = ["--remembered", str(tmp_path / "rows")]
    remembering = ["--length", "32", "--rows", "8", "--tap", "1", "--tap", "2", "--tap", "3"]
    assert main(["remember", *common, *remembering, "--out", str(tmp_path / "rows")]) == 0
    for name, *own in (
        ["exit", "--exit-layer", "1", "--ids", "40", "--bits", "8"],
        ["exit", "--exit-layer", "1", "--mask-token", "7", "--masks", "3"],
        ["parallel", "--size", "tiny", "--masks", "3"],
        ["diffusion", "--size", "tiny", "--window", "4"],
        ["eagle3", "--draft-vocab", "90", "--steps", "2", "--tap", "1", "--tap", "2", "--tap", "3"],
    ):
        run = tmp_path / "run" / "-".join([name, *own])
        places = ["--run", str(run), "--out", str(tmp_path / "out" / name)]
        short = ["--minutes", "0.001", "--tokens-per-step", "64"]
        assert main([name, *common, *rows, *own, *places, *short]) == 0, name
        assert (tmp_path / "out" / name / "model.safetensors").is_file()
    capsys.readouterr()
    assert main(["eagle3", *common, *rows, *places, *short, "--text-share", "0.5"]) == 2
    assert "--text-share 0.5: all rows come from --remembered" in capsys.readouterr().err
