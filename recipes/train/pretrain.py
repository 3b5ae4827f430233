"""Next-token training of a model from random weights, for as many minutes as it is given.

Packed rows of 512 tokens for most of the run, of the model's whole length at its end, so that
max_position_embeddings is what the model was trained for. Ends with the learning rate at zero, by the clock.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from pearl_rt.checkpoint.config import ModelConfig
from recipes.train.data.stream import PackedStream
from recipes.train.data.tokenised_corpus import TokenisedCorpus
from recipes.train.model.export import export
from recipes.train.model.grow import grown
from recipes.train.model.llama import LlamaForCausalLM
from recipes.train.model.session import Machine, compile_layers, cross_entropy
from recipes.train.model.sizes import new_model
from recipes.train.optimizer import Optimizers, Schedule
from recipes.train.run import Run

BAR_FORMAT = "{l_bar}{bar}| {elapsed}<{remaining} {postfix}"


@dataclass(frozen=True)
class PretrainSettings:
    """All that decides the weights, but the data and the clock."""

    lr: float = 3e-3
    embedding_lr: float = 2.5e-3
    tokens_per_step: int = 4096
    micro_batch_tokens: int = 4096
    short_length: int = 512
    long_from: float = 0.85  # progress from which rows have the model's whole length
    schedule: Schedule = field(default_factory=Schedule)
    seed: int = 0
    compile: bool = False

    def length(self, progress: float, whole: int) -> int:
        return min(self.short_length, whole) if progress < self.long_from else whole


def pretrain(
    config: ModelConfig,
    tokenised: TokenisedCorpus,
    machine: Machine,
    settings: PretrainSettings,
    *,
    minutes: float,
    run_directory: Path,
    out: Path,
    begin_with: LlamaForCausalLM | None = None,
) -> Run:
    """Trains, goes on with what `run_directory` holds, and writes the model to `out` with each checkpoint.

    `begin_with`: a model of the same shape, or a shallower one that is grown; None: random weights.
    """
    if begin_with is None:
        model = new_model(config, machine.device, settings.seed)
    else:
        model = grown(begin_with, config)
    optimizers = Optimizers(model, settings.lr, settings.embedding_lr, machine.products)
    given = {k: v for k, v in asdict(settings).items() if k != "compile"}
    run = Run(run_directory, {"stage": "pretrain", "config": config.to_dict(), **given}, minutes)
    run.resume(model, optimizers)
    if settings.compile:
        compile_layers(model)
    stream: PackedStream | None = None
    num_rows = 0
    bar = tqdm(total=run.budget, initial=run.seconds, unit="s", desc="pretrain", bar_format=BAR_FORMAT)
    with run.until_interrupted(), bar:
        while not run.is_over:
            length = settings.length(run.progress, config.max_position_embeddings)
            if stream is None or stream.length != length:
                stream = PackedStream(tokenised.train, tokenised.weights, length, settings.seed)
                num_rows = max(1, min(settings.micro_batch_tokens, settings.tokens_per_step) // length)
            micro_batches = max(1, round(settings.tokens_per_step / (num_rows * length)))
            row = run.tokens // length
            loss = 0.0
            for i in range(micro_batches):
                rows = stream.batch(row + i * num_rows, num_rows).to(machine.device)
                with machine.autocast():
                    part = cross_entropy(model, rows) / micro_batches
                part.backward()
                loss += part.item()
            multiplier = settings.schedule.multiplier(run.step, run.progress)
            optimizers.step(multiplier)
            run.tick(micro_batches * num_rows * length, loss=loss, lr=settings.lr * multiplier)
            bar.set_postfix_str(f"loss {loss:.3f}, {run.tokens / run.seconds:,.0f} tokens/s", refresh=False)
            bar.update(min(run.seconds, run.budget) - bar.n)
            if run.save_if_due(model, optimizers):
                export(model, tokenised.tokenizer, out)
    run.save(model, optimizers)
    export(model, tokenised.tokenizer, out)
    return run
