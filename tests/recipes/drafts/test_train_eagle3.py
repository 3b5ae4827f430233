"""A head is trained on what its target computes, as the runtime runs it, and engines take it."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from train_models import MACHINE, small_model

from pearl_rt import Engine, SamplingParams
from pearl_rt.checkpoint.views.eagle3 import check_eagle3, load_eagle3
from pearl_rt.errors import RequestError
from pearl_rt.reference.drafters.eagle3 import EagleHead
from recipes.train.data.tokenised_corpus import TokenisedCorpus
from recipes.train.distill import DistillSettings, distill
from recipes.train.drafts.eagle3 import eagle3_loss, eagle3_model, seen_rows, write_eagle3
from recipes.train.model.export import export
from recipes.train.model.taps import taps_of
from recipes.train.optimizer import Schedule


@pytest.mark.slow
def test_the_head_learns_and_the_target_does_not(
    tokenised: TokenisedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And goes on where it stopped."""
    monkeypatch.setattr("recipes.train.run.time", SimpleNamespace(monotonic=count(1.0).__next__))
    target = small_model(3)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    settings = DistillSettings(
        samples_from="text", text_length=64, tokens_per_step=128, lr=5e-3, schedule=Schedule(2, 0.5)
    )
    for minutes in (0.2, 0.4):
        draft = eagle3_model(target, tokenised.train, 90, None)
        run = distill(
            target,
            draft,
            tokenised,
            MACHINE,
            settings,
            minutes=minutes,
            run_directory=tmp_path / "run",
            out=tmp_path / "head",
            write=write_eagle3,
            loss_of=lambda rows, draft=draft: eagle3_loss(target, draft, rows, "forward_kl", 3),
        )
    curve = [row["loss_text"] for row in run.curve()]
    assert len(curve) > 20 and sum(curve[-3:]) < 0.8 * sum(curve[:3])
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())
    config, tensors = load_eagle3(tmp_path / "head", target.config)
    assert config.taps == (1, 2, 3) and config.draft_vocab_size == 90
    assert check_eagle3(tensors, config, target.config, "it") == draft.target_ids.tolist()
    export(target, tokenised.tokenizer, tmp_path / "target")
    with Engine.from_pretrained(tmp_path / "target", tmp_path / "head", max_model_len=64) as engine:
        greedy = SamplingParams(max_tokens=24)
        [want] = engine.generate([5, 6], greedy, strategy="ar")
        [got] = engine.generate([5, 6], greedy, strategy="sd", gamma=3)
    assert got.token_ids == want.token_ids and got.metrics.judged > 0


def test_what_is_trained_is_what_is_run() -> None:
    """Rows of each step are those of the definition, which goes on from its own."""
    target = small_model(3)
    draft = eagle3_model(target, [np.arange(300)], None, [0, 2, 3])
    tokens = torch.arange(7, 307, 9)[None] % 300
    parts, _ = taps_of(target, tokens, (0, 2, 3))
    taps = torch.cat(parts, dim=-1)
    weights = {name: tensor.numpy() for name, tensor in draft.state_dict().items()}
    weights["model.embed_tokens.weight"] = target.model.embed_tokens.weight.detach().numpy()
    layer = draft.config.layer
    sizes = layer.num_attention_heads, layer.num_key_value_heads, layer.rms_norm_eps
    head = EagleHead(weights, *sizes, draft.cos.numpy(), draft.sin.numpy(), draft.target_ids.tolist())
    past: list[tuple[torch.Tensor, torch.Tensor]] = []
    with torch.no_grad():
        embedded = target.model.embed_tokens(tokens[:, 1:])
        features = draft.fc(taps[:, :-1])
        for number in range(4):
            outputs = draft.rows(embedded, features, past)
            got = draft.lm_head(draft.model.norm(outputs))[0].numpy()
            for committed in (2, 3, 20):
                place = committed + number
                want = head.draft_row(tokens[0, :place].tolist(), committed, taps[0].numpy(), 300)
                np.testing.assert_allclose(got[place - 2], want[head.target_ids], atol=2e-4)
            features = torch.cat((features[:, :1], outputs[:, :-1]), dim=1)


def test_rows_see_the_text_and_their_own_window() -> None:
    first, second, third = (seen.int().tolist() for seen in seen_rows(4, 2))
    assert first == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]]
    assert second == [[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert third == torch.eye(4).int().tolist()


@pytest.mark.parametrize("number", [0, 301])
def test_ids_that_it_cannot_have(number: int) -> None:
    with pytest.raises(RequestError, match=f"--draft-vocab {number}: the target has 300 ids"):
        eagle3_model(small_model(3), [np.arange(9)], number, None)


def test_ids_are_the_most_frequent_ones() -> None:
    draft = eagle3_model(small_model(3), [np.array([5, 9, 9, 7, 7, 7, 250, 250])], 3, None)
    assert draft.target_ids.tolist() == [7, 9, 250]
