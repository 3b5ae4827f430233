"""Teaches a draft its target's next-token distribution, on text and on what the draft itself writes.

DistillSpec (arXiv 2310.08461): a draft is asked for tokens after its own tokens, so that is where it must
agree. Text keeps it from drifting; the target's own samples serve where no text suits the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from pearl_rt.errors import ConfigError, RequestError
from pearl_rt.strategy.program import MAX_GAMMA
from recipes.train.data.remembered import LearntRows, Remembered
from recipes.train.data.stream import PackedStream
from recipes.train.data.tokenised_corpus import TokenisedCorpus
from recipes.train.divergence import DIVERGENCES
from recipes.train.drafts.eagle3 import Eagle3Model
from recipes.train.drafts.parallel import MaskRows, mask_rows
from recipes.train.loss import mean_loss
from recipes.train.model.export import export
from recipes.train.model.llama import LlamaForCausalLM
from recipes.train.model.sampler import sample_rows
from recipes.train.model.session import Machine, compile_layers
from recipes.train.optimizer import Optimizers, Schedule
from recipes.train.pretrain import BAR_FORMAT
from recipes.train.run import Run

SOURCES = ("text", "draft", "target")


@dataclass(frozen=True)
class DistillSettings:
    """A step's rows are text (share `text_share`), or begin as text and go on as `samples_from` writes.
    masks, keep, least: of a draft that fills windows in one pass, see mask_rows(); 0: it goes token by token.
    run_length: rows of windows count by run_length_weights().
    """

    divergence: str = "forward_kl"
    cross_entropy: float = 0.0  # weight of the text's own next token, on text rows
    text_share: float = 0.5
    samples_from: str = "draft"
    sample_temperature: float = 1.0
    text_length: int = 512
    prompt_length: int = 64
    sample_length: int = 192  # after the prompt
    tokens_per_step: int = 4096
    lr: float = 1.5e-3
    embedding_lr: float = 1.5e-3
    schedule: Schedule = field(default_factory=lambda: Schedule(decay=0.5))
    seed: int = 1
    masks: int = 0
    keep: float = 0.7
    least: float = 0.2
    run_length: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.divergence not in DIVERGENCES:
            raise RequestError(f"--divergence {self.divergence!r}: give one of {', '.join(DIVERGENCES)}")
        if self.samples_from not in SOURCES:
            raise RequestError(f"--samples-from {self.samples_from!r}: give one of {', '.join(SOURCES)}")
        if not 0 <= self.text_share <= 1:
            raise RequestError(f"--text-share {self.text_share}: give a share from 0 to 1")
        if not 0 <= self.masks < MAX_GAMMA:
            raise RequestError(f"--masks {self.masks}: give 1 to {MAX_GAMMA - 1}, one less than a window")
        if self.masks and self.samples_from == "draft":
            raise RequestError(
                "--samples-from draft: a draft that fills windows in one pass learns from what others write: "
                "give text or target"
            )
        for name in ("keep", "least"):
            if not 0 <= getattr(self, name) <= 1:
                raise RequestError(f"--{name} {getattr(self, name)}: give a share from 0 to 1")

    def is_text_step(self, step: int) -> bool:
        """Spread evenly, so that any stretch of steps has the share asked for."""
        return self.samples_from == "text" or int((step + 1) * self.text_share) > int(step * self.text_share)

    def mask_rows(self, length: int, step: int, device: torch.device) -> MaskRows | None:
        """Of a step's texts of `length` tokens; None for a draft that goes token by token."""
        if not self.masks:
            return None
        chance = torch.Generator().manual_seed(self.seed + step)
        return mask_rows(length, self.masks, self.keep, self.least, chance).to(device)


def check_pair(target: LlamaForCausalLM, draft: LlamaForCausalLM) -> None:
    """Raises ConfigError if the two cannot be compared token by token. A mask token may be one id more."""
    sizes = target.config.vocab_size, draft.config.vocab_size
    masks = draft.config.pard_token, draft.config.diffusion_mask_token
    if sizes[1] not in (sizes[0], sizes[0] + (sizes[0] in masks)):
        raise ConfigError(
            f"the target's vocab_size is {sizes[0]} and the draft's {sizes[1]}: "
            "a draft needs its target's tokenizer"
        )


def distillation_loss(
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    rows: Tensor,  # [B, T+1]
    divergence: str,
    cross_entropy: float,
    masked: MaskRows | None = None,
    states: Tensor | None = None,
    ids: Tensor | None = None,
    run_length: bool = False,
) -> Tensor:
    """mean_loss() of all positions. masked: of the draft's rows of T tokens and of masks beside them, each
    against the target's at its position. states: the target's [B, T, hidden] where they are known. ids: p and
    q are of these alone, [n] int64. run_length: rows of `masked` count by run_length_weights().
    """
    inputs, wanted = rows[:, :-1], rows[:, 1:]
    if states is None:
        with torch.no_grad():
            states = target.hidden_states(inputs)
    if masked is None:
        own = draft.hidden_states(inputs)
    else:
        assert draft.config.pard_token is not None
        fed = masked.fed(inputs, draft.config.pard_token)
        own = draft.hidden_states(fed, positions=masked.positions, visible=masked.visible)
        states, wanted = states[:, masked.positions], wanted[:, masked.positions]
    heads = target.head_weight, draft.head_weight[: target.config.vocab_size]
    if ids is not None:
        heads = heads[0][ids], heads[1][ids]
    places = masked.places if masked is not None and run_length else None
    return mean_loss(states, own, wanted, heads, divergence, cross_entropy, places)


def distill(
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM | Eagle3Model,
    tokenised: TokenisedCorpus,
    machine: Machine,
    settings: DistillSettings,
    *,
    minutes: float,
    run_directory: Path,
    out: Path,
    write: Callable[[Any, Tokenizer, Path], None] = export,
    loss_of: Callable[[LearntRows], Tensor] | None = None,
    remembered: Remembered | None = None,
    layers: Sequence[int] = (),
    ids: Tensor | None = None,
) -> Run:
    """Trains `draft` in place, but for what is frozen; goes on with what `run_directory` holds, and writes it
    to `out` as write() does. loss_of: what is descended instead of distillation_loss(). remembered: where all
    rows come from, with the inputs of `layers`. ids: of the loss, see distillation_loss().
    """
    if settings.run_length and not settings.masks and loss_of is None:
        raise RequestError(
            "--run-length: a draft that goes token by token fills no windows; give --masks too"
        )
    if isinstance(draft, LlamaForCausalLM):
        check_pair(target, draft)
    target.requires_grad_(False)
    optimizers = Optimizers(draft, settings.lr, settings.embedding_lr, machine.products)
    given = {k: v for k, v in asdict(settings).items() if k != "compile"}
    run = Run(run_directory, {"stage": "distill", "config": draft.config.to_dict(), **given}, minutes)
    run.resume(draft, optimizers)
    if settings.compile:
        compile_layers(target)
        if isinstance(draft, LlamaForCausalLM):
            compile_layers(draft)
    text_length = settings.text_length if remembered is None else remembered.sizes.length
    text_rows = max(1, settings.tokens_per_step // text_length)
    sample_length = settings.prompt_length + settings.sample_length
    sample_count = max(1, settings.tokens_per_step // sample_length)
    texts = PackedStream(tokenised.train, tokenised.weights, settings.text_length, settings.seed)
    prompts = PackedStream(tokenised.train, tokenised.weights, settings.prompt_length, settings.seed + 1)
    writer = target
    if settings.samples_from == "draft" and isinstance(draft, LlamaForCausalLM):
        writer = draft
    bar = tqdm(total=run.budget, initial=run.seconds, unit="s", desc="distill", bar_format=BAR_FORMAT)
    with run.until_interrupted(), bar:
        while not run.is_over:
            is_text = remembered is not None or settings.is_text_step(run.step)
            known: LearntRows | None = None
            if remembered is not None:
                known = remembered.batch(run.step * text_rows, text_rows, layers).to(machine.device)
                rows = known.tokens
            elif is_text:
                rows = texts.batch(run.step * text_rows, text_rows).to(machine.device)
            else:
                start = prompts.batch(run.step * sample_count, sample_count)[:, :-1].to(machine.device)
                chance = machine.generator(settings.seed + run.step)
                rows = sample_rows(
                    writer, machine, start, settings.sample_length + 1, settings.sample_temperature, chance
                )
            weight = settings.cross_entropy if is_text else 0.0
            known = known or LearntRows(rows)
            masked = settings.mask_rows(rows.shape[1] - 1, run.step, machine.device)
            with machine.autocast():
                if loss_of is not None:
                    loss = loss_of(known)
                else:
                    assert isinstance(draft, LlamaForCausalLM)
                    loss = distillation_loss(
                        target,
                        draft,
                        rows,
                        settings.divergence,
                        weight,
                        masked,
                        known.states,
                        ids,
                        settings.run_length,
                    )
            loss.backward()
            multiplier = settings.schedule.multiplier(run.step, run.progress)
            optimizers.step(multiplier)
            name = "loss_text" if is_text else "loss_samples"
            run.tick(rows.numel() - len(rows), **{name: loss.item(), "lr": settings.lr * multiplier})
            bar.set_postfix_str(f"{name} {loss.item():.3f}", refresh=False)
            bar.update(min(run.seconds, run.budget) - bar.n)
            if run.save_if_due(draft, optimizers):
                write(draft, tokenised.tokenizer, out)
    run.save(draft, optimizers)
    write(draft, tokenised.tokenizer, out)
    return run
