"""An exit layer is trained, what it shares with its target stays as it is, and engines take it."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from train_models import MACHINE, small_model

from pearl_rt import Engine, SamplingParams
from pearl_rt.checkpoint.views.exit_layer import ExitConfig, load_exit
from pearl_rt.errors import RequestError
from pearl_rt.reference.groups import Groups
from recipes.train.data.tokenised_corpus import TokenisedCorpus
from recipes.train.distill import DistillSettings, distill
from recipes.train.drafts.exit_layer import exit_model, write_exit
from recipes.train.model.export import export
from recipes.train.optimizer import Optimizers, Schedule


def test_the_layer_learns_and_the_target_does_not(
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
        draft = exit_model(target, 1)
        run = distill(
            target,
            draft,
            tokenised,
            MACHINE,
            settings,
            minutes=minutes,
            run_directory=tmp_path / "run",
            out=tmp_path / "exit",
            write=write_exit,
        )
    curve = [row["loss_text"] for row in run.curve()]
    assert len(curve) > 20 and sum(curve[-3:]) < 0.9 * sum(curve[:3])
    for name, tensor in draft.state_dict().items():
        is_own = ".layers.1." in name or name == "model.norm.weight"
        assert torch.equal(tensor, before[name]) != is_own, name
    config, tensors = load_exit(tmp_path / "exit", target.config)
    assert config == ExitConfig(
        target.config.hidden_size, target.config.vocab_size, 1, config.intermediate_size
    )
    own = draft.state_dict()
    assert all(torch.equal(tensor, own[name].to(torch.bfloat16)) for name, tensor in tensors.items())
    export(target, tokenised.tokenizer, tmp_path / "target")
    with Engine.from_pretrained(tmp_path / "target", tmp_path / "exit", max_model_len=64) as engine:
        greedy = SamplingParams(max_tokens=24)
        [want] = engine.generate([5, 6], greedy, strategy="ar")
        [got] = engine.generate([5, 6], greedy, strategy="sd", gamma=3)
    assert got.token_ids == want.token_ids and got.metrics.judged > 0


@pytest.mark.parametrize("layer", [0, 3])
def test_an_exit_that_leaves_nothing_out(layer: int) -> None:
    with pytest.raises(RequestError, match=f"--exit-layer {layer}: the target has 3 layers"):
        exit_model(small_model(3), layer)


def test_what_is_written_of_some_ids_in_8_bits(tokenised: TokenisedCorpus, tmp_path: Path) -> None:
    """And with a mask token: an engine drafts by it."""
    target = small_model(3)
    ids = torch.tensor([3, 4, 9, 299])
    draft = exit_model(target, 1, mask_token=7)
    write_exit(draft, tokenised.tokenizer, tmp_path / "exit", ids, 8)
    config, tensors = load_exit(tmp_path / "exit", target.config)
    assert (config.draft_vocab_size, config.pard_token) == (4, 7)
    assert (tensors["d2t"] + torch.arange(4)).tolist() == ids.tolist()
    matrix = tensors["model.layers.1.mlp.up_proj.weight"]
    assert isinstance(matrix, Groups) and matrix.bits == 8
    export(target, tokenised.tokenizer, tmp_path / "target")
    with Engine.from_pretrained(tmp_path / "target", tmp_path / "exit", max_model_len=64) as engine:
        greedy = SamplingParams(max_tokens=24)
        [want] = engine.generate([5, 6], greedy, strategy="ar")
        [got] = engine.generate([5, 6], greedy, strategy="sd", gamma=3)
        assert got.token_ids == want.token_ids and engine.stats()["drafter"]["shared_ids"] == 4
    with pytest.raises(RequestError, match="--mask-token 300: the target has ids 0 to 299"):
        exit_model(target, 1, mask_token=300)


def test_matrices_step_by_what_the_machine_multiplies() -> None:
    """Muon, whose products are in bf16, where a machine has these, else AdamW; and both lower a loss."""
    for products, kind in ((torch.bfloat16, torch.optim.Muon), (torch.float32, torch.optim.AdamW)):
        model = torch.nn.Linear(8, 8)
        optimizers = Optimizers(model, 0.05, 0.05, products)
        assert type(optimizers._all[0]) is kind
        x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        losses = []
        for _ in range(30):
            loss = (model(x) - x).square().mean()
            loss.backward()
            optimizers.step(1.0)
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0], kind
