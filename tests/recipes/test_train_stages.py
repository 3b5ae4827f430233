"""A few steps of each stage on a corpus of a few small files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from train_models import MACHINE

from pearl_rt.errors import ConfigError, RequestError
from recipes.train.data.tokenised_corpus import TokenisedCorpus
from recipes.train.distill import SOURCES, DistillSettings, distill
from recipes.train.evaluate import acceptance, held_out_rows
from recipes.train.model.sizes import new_model, sized_config
from recipes.train.optimizer import Schedule
from recipes.train.pretrain import PretrainSettings, pretrain
from recipes.train.run import Run

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def settings() -> PretrainSettings:
    return PretrainSettings(lr=1e-2, embedding_lr=1e-2, tokens_per_step=512, schedule=Schedule(2, 0.5))


@pytest.fixture(scope="module")
def clock() -> Iterator[None]:
    """A run's clock, on which every step takes a second, however long it takes here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recipes.train.run.time", SimpleNamespace(monotonic=count(1.0).__next__))
        yield


@pytest.fixture(scope="module")
def trained(
    clock: None,
    tokenised: TokenisedCorpus,
    settings: PretrainSettings,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path, Run]:
    run_directory, out = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("model")
    config = sized_config("tiny", 300, 0, 256)
    run = pretrain(
        config, tokenised, MACHINE, settings, minutes=40 / 60, run_directory=run_directory, out=out
    )
    return run_directory, out, run


@pytest.mark.slow
class TestTraining:
    """A few steps of each stage; the loss must fall and a run must go on where it stopped."""

    def test_loss_falls_and_the_model_loads_in_transformers(
        self, trained, tokenised: TokenisedCorpus
    ) -> None:
        _, out, run = trained
        curve = run.curve()
        assert [row["step"] for row in curve] == list(range(1, run.step + 1))
        assert curve[-1]["loss"] < 0.7 * curve[0]["loss"]
        assert curve[-1]["lr"] < 0.5 * max(row["lr"] for row in curve)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        ours, token_ids = MACHINE.load(out), torch.randint(300, (1, 50))
        assert torch.allclose(ours(token_ids), theirs(token_ids).logits, atol=1e-4)
        assert theirs.generation_config.eos_token_id == tokenised.eos_id

    def test_goes_on_where_it_stopped(
        self, trained, tokenised: TokenisedCorpus, settings: PretrainSettings
    ) -> None:
        run_directory, out, before = trained
        rows = before.curve()
        with (run_directory / "curve.jsonl").open("a") as file:  # killed while it wrote a row
            file.write(json.dumps({"step": before.step + 1, "loss": 9.0}) + '\n{"step": ')
        config = sized_config("tiny", 300, 0, 256)
        minutes = (before.step + 3) / 60
        after = pretrain(
            config, tokenised, MACHINE, settings, minutes=minutes, run_directory=run_directory, out=out
        )
        curve = after.curve()
        assert [row["step"] for row in curve] == list(range(1, after.step + 1))
        assert curve[: before.step] == rows
        assert after.step == before.step + 3 and all(row["loss"] < 9.0 for row in curve[before.step :])

    def test_another_run_in_its_place_is_refused(self, trained, tokenised: TokenisedCorpus) -> None:
        run_directory, out, _ = trained
        config = sized_config("tiny", 300, 0, 256)
        with pytest.raises(RequestError, match=r"lr 0\.01, now 0\.5"):
            pretrain(
                config,
                tokenised,
                MACHINE,
                PretrainSettings(lr=0.5, tokens_per_step=512, schedule=Schedule(2, 0.5)),
                minutes=1,
                run_directory=run_directory,
                out=out,
            )

    @pytest.mark.parametrize("samples_from", SOURCES)
    def test_distillation_raises_acceptance(
        self, trained, tokenised: TokenisedCorpus, samples_from: str, tmp_path: Path
    ) -> None:
        _, out, _ = trained
        target, draft = (
            MACHINE.load(out),
            new_model(sized_config("tiny", 300, 0, 256), torch.device("cpu"), 7),
        )
        rows = held_out_rows(tokenised.held_out, 96, 8)
        before = acceptance(target, draft, MACHINE, rows, 16).rejection["1.0"]
        settings = DistillSettings(
            samples_from=samples_from,
            text_share=0.5,
            text_length=64,
            prompt_length=8,
            sample_length=24,
            tokens_per_step=512,
            lr=1e-2,
            embedding_lr=1e-2,
            schedule=Schedule(2, 0.5),
        )
        distill(
            target, draft, tokenised, MACHINE, settings, minutes=8 / 60, run_directory=tmp_path, out=tmp_path
        )
        after = acceptance(target, draft, MACHINE, rows, 16).rejection["1.0"]
        assert after > before + 0.15

    def test_a_draft_of_another_vocabulary_is_refused(
        self, trained, tokenised: TokenisedCorpus, tmp_path: Path
    ) -> None:
        _, out, _ = trained
        draft = new_model(sized_config("tiny", 301, 0, 256), torch.device("cpu"))
        with pytest.raises(ConfigError, match="300 and the draft's 301"):
            distill(
                MACHINE.load(out),
                draft,
                tokenised,
                MACHINE,
                DistillSettings(),
                minutes=1,
                run_directory=tmp_path,
                out=tmp_path,
            )
