"""`python -m recipes.train COMMAND`: tokenizer, prompts, pretrain, prune, distill, exit, parallel, diffusion,
eagle3, evaluate, report.

Every training command can be killed and given again: it goes on. See docs/training.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.errors import PearlError, RequestError
from recipes.train.card import acceptance_table, plot_curves, read_card, readme, thinned, write_card
from recipes.train.data.bpe import save_tokenizer, train_tokenizer
from recipes.train.data.corpus import STDLIB, read_corpus
from recipes.train.data.heldout import held_out_prompts, write_prompts
from recipes.train.data.stream import PackedStream
from recipes.train.data.tokenised_corpus import TokenisedCorpus, tokenise_corpus
from recipes.train.distill import SOURCES, DistillSettings, distill
from recipes.train.divergence import DIVERGENCES
from recipes.train.eagle3 import eagle3_loss, eagle3_model, write_eagle3
from recipes.train.evaluate import acceptance_report, text_loss
from recipes.train.exit_layer import exit_model, write_exit
from recipes.train.model.export import export
from recipes.train.model.prune import best_pruned
from recipes.train.model.session import Machine
from recipes.train.model.sizes import SIZES, draft_config, new_model, sized_config
from recipes.train.optimizer import Schedule
from recipes.train.parallel import parallel_model
from recipes.train.pretrain import PretrainSettings, pretrain
from recipes.train.run import Run
from recipes.train.windows.diffusion import Windows, diffusion_loss, diffusion_model


def _machine(arguments: argparse.Namespace) -> Machine:
    return Machine.named(arguments.device, arguments.threads)


def _given(kind: type, arguments: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """The fields of a settings class that the command line gives."""
    given = {f.name: getattr(arguments, f.name, None) for f in fields(kind)}
    return {name: value for name, value in given.items() if value is not None} | more


def _distilling(arguments: argparse.Namespace) -> DistillSettings:
    schedule = Schedule(arguments.warmup_steps, arguments.decay)
    return DistillSettings(**_given(DistillSettings, arguments, schedule=schedule))


def _where(arguments: argparse.Namespace) -> dict[str, Any]:
    """How long a run may take, and the folders that it has."""
    return {"minutes": arguments.minutes, "run_directory": arguments.run, "out": arguments.out}


def _tokenised(arguments: argparse.Namespace, directory: Path) -> TokenisedCorpus:
    config = directory / "config.json"
    eos_ids = ModelConfig.from_pretrained(directory).eos_token_ids if config.exists() else ()
    return tokenise_corpus(arguments.data, directory, eos_ids[0] if eos_ids else None)


def _finish(arguments: argparse.Namespace, name: str, run: Run) -> None:
    print(f"{name}: {run.step} steps, {run.tokens:,} tokens, {run.seconds / 60:.1f} min -> {arguments.out}")
    if run.interrupted:
        print("interrupted: give the same command to go on")
    elif arguments.card:
        curve = {"minutes": round(run.seconds / 60, 1), "tokens": run.tokens, "curve": thinned(run.curve())}
        write_card(arguments.card, **{name: curve | {"settings": run.settings}})


def run_tokenizer(arguments: argparse.Namespace) -> None:
    corpus = read_corpus(arguments.data)
    # Tests are written for a machine: they count less, here as in training.
    seen = [d for i, d in enumerate(corpus.train) if d.weight == 1.0 or i % 8 == 0]
    tokenizer = train_tokenizer(seen, arguments.vocab_size)
    save_tokenizer(tokenizer, arguments.out)
    tokens = sum(len(tokenizer.encode(d.text).ids) for d in corpus.held_out)
    characters = sum(len(d.text) for d in corpus.held_out)
    mean = f"{characters / tokens:.2f} characters a token on held-out files"
    print(f"{tokenizer.get_vocab_size()} tokens -> {arguments.out}; {mean}")


def run_prompts(arguments: argparse.Namespace) -> None:
    tokenised = tokenise_corpus(arguments.data, arguments.tokenizer)
    prompts = held_out_prompts(tokenised.tokenizer, tokenised.corpus.held_out, arguments.count)
    write_prompts(arguments.out, prompts)
    print(f"{len(prompts)} prompts -> {arguments.out}")


def run_pretrain(arguments: argparse.Namespace) -> None:
    machine = _machine(arguments)
    tokenised = tokenise_corpus(arguments.data, arguments.tokenizer)
    begin_with = machine.load(arguments.begin_with) if arguments.begin_with else None
    config = sized_config(
        arguments.size or "13m",
        tokenised.tokenizer.get_vocab_size(),
        tokenised.eos_id,
        arguments.max_position_embeddings,
    )
    if begin_with is not None and arguments.size is None:
        config = begin_with.config
    schedule = Schedule(arguments.warmup_steps, arguments.decay)
    settings = PretrainSettings(**_given(PretrainSettings, arguments, schedule=schedule))
    run = pretrain(
        config,
        tokenised,
        machine,
        settings,
        begin_with=begin_with,
        **_where(arguments),
    )
    _finish(arguments, arguments.name, run)


def run_distill(arguments: argparse.Namespace) -> None:
    machine = _machine(arguments)
    tokenised = _tokenised(arguments, arguments.target)
    target = machine.load(arguments.target)
    if arguments.command == "exit":
        draft = exit_model(target, arguments.exit_layer)
    elif arguments.draft:
        draft = machine.load(arguments.draft)
    else:
        draft = new_model(draft_config(arguments.size, target.config), machine.device)
    if arguments.command == "parallel":
        if arguments.masks < 1:
            raise RequestError(f"--masks {arguments.masks}: give 1 or more; `distill` trains without masks")
        draft = parallel_model(draft, arguments.mask_token)
    write = write_exit if arguments.command == "exit" else export
    settings = _distilling(arguments)
    run = distill(target, draft, tokenised, machine, settings, write=write, **_where(arguments))
    _finish(arguments, arguments.name, run)


def run_diffusion(arguments: argparse.Namespace) -> None:
    windows = Windows(arguments.window, arguments.keep, arguments.least)
    machine = _machine(arguments)
    tokenised = _tokenised(arguments, arguments.target)
    target = machine.load(arguments.target)
    if arguments.draft:
        draft = machine.load(arguments.draft)
    else:
        draft = new_model(draft_config(arguments.size, target.config), machine.device)
    draft = diffusion_model(draft, arguments.mask_token, arguments.passes)
    settings = _distilling(arguments)

    def loss_of(rows: Tensor) -> Tensor:
        return diffusion_loss(target, draft, rows, settings.divergence, windows)

    run = distill(target, draft, tokenised, machine, settings, loss_of=loss_of, **_where(arguments))
    _finish(arguments, arguments.name, run)


def run_eagle3(arguments: argparse.Namespace) -> None:
    if arguments.steps < 1:
        raise RequestError(f"--steps {arguments.steps}: give 1 or more")
    machine = _machine(arguments)
    tokenised = _tokenised(arguments, arguments.target)
    target = machine.load(arguments.target)
    draft = eagle3_model(target, tokenised.train, arguments.draft_vocab, arguments.tap)
    settings = _distilling(arguments)

    def loss_of(rows: Tensor) -> Tensor:
        return eagle3_loss(target, draft, rows, settings.divergence, arguments.steps)

    own: dict[str, Any] = {"write": write_eagle3, "loss_of": loss_of}
    run = distill(target, draft, tokenised, machine, settings, **own, **_where(arguments))
    _finish(arguments, arguments.name, run)


def run_evaluate(arguments: argparse.Namespace) -> None:
    machine = _machine(arguments)
    tokenised = _tokenised(arguments, arguments.target)
    target = machine.load(arguments.target)
    models = {"target": target} | {Path(p).name: machine.load(Path(p)) for p in arguments.draft}
    losses, reports = {}, {}
    for name, model in models.items():
        loss = text_loss(model, machine, tokenised.corpus.held_out, tokenised.held_out, tokenised.eos_id)
        losses[name] = vars(loss) | {"parameters": sum(p.numel() for p in model.parameters())}
        print(f"{name}: {loss.nats_per_token:.3f} nats per token, {loss.bits_per_byte:.3f} bits per byte")
        if name != "target":
            reports[name] = acceptance_report(target, model, machine, tokenised.held_out)
    if reports:
        print(acceptance_table(reports))
    if arguments.card:
        write_card(arguments.card, held_out=losses, acceptance=reports)


def run_prune(arguments: argparse.Namespace) -> None:
    machine = _machine(arguments)
    tokenised = _tokenised(arguments, arguments.target)
    target = machine.load(arguments.target)
    length = min(512, target.config.max_position_embeddings)
    rows = PackedStream(tokenised.train, tokenised.weights, length, seed=0).batch(0, 4).to(machine.device)
    draft = best_pruned(target, arguments.layers, arguments.intermediate_size, machine, rows)
    export(draft, tokenised.tokenizer, arguments.out)
    print(f"{sum(p.numel() for p in draft.parameters()):,} parameters -> {arguments.out}")


def run_report(arguments: argparse.Namespace) -> None:
    card = read_card(arguments.card)
    if arguments.plot:
        plot_curves(
            {k: v["curve"] for k, v in card.items() if isinstance(v, dict) and "curve" in v}, arguments.plot
        )
    arguments.out.write_text(readme(card))
    print(f"{arguments.card} -> {arguments.out}")


def _add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, required=True, help="wall-clock time of the whole run")
    parser.add_argument("--run", type=Path, required=True, help="checkpoint and curve; the same one goes on")
    parser.add_argument(
        "--out", type=Path, required=True, help="the model, as pearl_rt and transformers load it"
    )
    parser.add_argument("--lr", type=float)
    parser.add_argument("--embedding-lr", type=float)
    parser.add_argument("--tokens-per-step", type=int)
    parser.add_argument("--warmup-steps", type=int, default=30)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--compile", action="store_true", default=None, help="torch.compile: 50 s, then 1.2x")
    parser.add_argument("--card", type=Path, help="training.json that gets the curve")
    parser.add_argument("--name", default=None, help="the run's name in the card")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipes.train", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(function=function)
        sub.add_argument("--data", default=STDLIB, help="'stdlib', or a directory of text files")
        sub.add_argument("--device", default="cpu", help="cpu or cuda")
        sub.add_argument("--threads", type=int)
        return sub

    sub = command("tokenizer", run_tokenizer, "train a byte-level BPE tokenizer")
    sub.add_argument("--vocab-size", type=int, default=4096)
    sub.add_argument("--out", type=Path, required=True)

    sub = command("prompts", run_prompts, "cut benchmark prompts from held-out files")
    sub.add_argument("--tokenizer", type=Path, required=True, help="directory with tokenizer.json")
    sub.add_argument("--count", type=int, default=12)
    sub.add_argument("--out", type=Path, required=True)

    sub = command("pretrain", run_pretrain, "train a model on text, from random weights")
    sub.add_argument("--tokenizer", type=Path, required=True, help="directory with tokenizer.json")
    sub.add_argument("--size", choices=SIZES, help="13m, or that of --begin-with")
    sub.add_argument("--begin-with", type=Path, help="a model of this shape, or a shallower one to grow")
    sub.add_argument("--max-position-embeddings", type=int, default=2048)
    sub.add_argument(
        "--decay", type=float, default=0.3, help="share of the run in which the rate goes to zero"
    )
    sub.add_argument(
        "--long-from", type=float, help="share of the run after which rows have the whole length"
    )
    _add_training(sub)

    sub = command("distill", run_distill, "teach a draft what its target would say")
    sub.add_argument("--target", type=Path, required=True)
    sub.add_argument("--draft", type=Path, help="begin with this model")
    sub.add_argument("--size", choices=SIZES, default="3m", help="without --draft: a new one of this size")
    sub.add_argument("--divergence", choices=DIVERGENCES)
    sub.add_argument("--cross-entropy", type=float)
    sub.add_argument("--text-share", type=float)
    sub.add_argument("--samples-from", choices=SOURCES)
    sub.add_argument("--sample-temperature", type=float)
    sub.add_argument(
        "--decay", type=float, default=0.5, help="share of the run in which the rate goes to zero"
    )
    _add_training(sub)

    sub = command("exit", run_distill, "teach one layer behind the target's first ones what it would say")
    sub.add_argument("--target", type=Path, required=True)
    sub.add_argument("--exit-layer", type=int, required=True, help="layers of the target in front of it")
    sub.add_argument("--divergence", choices=DIVERGENCES)
    sub.add_argument("--text-share", type=float)
    sub.add_argument("--samples-from", choices=SOURCES)
    sub.add_argument(
        "--decay", type=float, default=0.5, help="share of the run in which the rate goes to zero"
    )
    _add_training(sub)

    sub = command("parallel", run_distill, "teach a draft to fill a window in one pass")
    sub.add_argument("--target", type=Path, required=True)
    sub.add_argument("--draft", type=Path, help="begin with this model, for instance a distilled draft")
    sub.add_argument("--size", choices=SIZES, default="3m", help="without --draft: a new one of this size")
    sub.add_argument(
        "--mask-token", type=int, help="an id that no text has; default: one more behind the vocabulary"
    )
    sub.add_argument("--masks", type=int, default=7, help="rows behind a place: one less than the window")
    sub.add_argument("--keep", type=float, help="share of the places with a d-th mask that have one more")
    sub.add_argument("--least", type=float, help="share of all places that has every mask, at least")
    sub.add_argument("--divergence", choices=DIVERGENCES)
    sub.add_argument("--cross-entropy", type=float)
    sub.add_argument("--text-share", type=float)
    sub.add_argument("--samples-from", choices=("text", "target"), default="target")
    sub.add_argument("--sample-temperature", type=float)
    sub.add_argument(
        "--decay", type=float, default=0.5, help="share of the run in which the rate goes to zero"
    )
    _add_training(sub)

    sub = command("diffusion", run_diffusion, "teach a draft to fill a window in a few passes")
    sub.add_argument("--target", type=Path, required=True)
    sub.add_argument("--draft", type=Path, help="begin with this model, for instance a distilled draft")
    sub.add_argument("--size", choices=SIZES, default="3m", help="without --draft: a new one of this size")
    sub.add_argument(
        "--mask-token", type=int, help="an id that no text has; default: one more behind the vocabulary"
    )
    sub.add_argument("--passes", type=int, default=2, help="with which a draft fills a window")
    sub.add_argument("--window", type=int, default=8, help="the longest window, in places")
    sub.add_argument("--keep", type=float, default=0.7, help="share of the windows that have one place more")
    sub.add_argument(
        "--least", type=float, default=0.2, help="share of all places that has every one, at least"
    )
    sub.add_argument("--divergence", choices=DIVERGENCES)
    sub.add_argument("--text-share", type=float)
    sub.add_argument("--samples-from", choices=("text", "target"), default="target")
    sub.add_argument("--sample-temperature", type=float)
    sub.add_argument(
        "--decay", type=float, default=0.5, help="share of the run in which the rate goes to zero"
    )
    _add_training(sub)

    sub = command("eagle3", run_eagle3, "teach a head to draft from what its target computed")
    sub.add_argument("--target", type=Path, required=True)
    sub.add_argument("--tap", type=int, action="append", help="a layer whose input is read; given in order")
    sub.add_argument("--draft-vocab", type=int, help="ids that it drafts, the most frequent ones; 32000")
    sub.add_argument("--steps", type=int, default=4, help="rows in a row that go on from the head's own")
    sub.add_argument("--divergence", choices=DIVERGENCES)
    sub.add_argument("--text-share", type=float)
    sub.add_argument("--samples-from", choices=("text", "target"), default="target")
    sub.add_argument("--sample-temperature", type=float)
    sub.add_argument(
        "--decay", type=float, default=0.5, help="share of the run in which the rate goes to zero"
    )
    _add_training(sub)

    sub = command("prune", run_prune, "cut a draft to begin with out of its target")
    sub.add_argument("--target", type=Path, required=True)
    sub.add_argument("--layers", type=int, required=True)
    sub.add_argument("--intermediate-size", type=int, required=True)
    sub.add_argument("--out", type=Path, required=True)

    sub = command("evaluate", run_evaluate, "held-out loss, and acceptance of each draft")
    sub.add_argument("--target", type=Path, required=True)
    sub.add_argument("--draft", action="append", default=[], help="may be given more than once")
    sub.add_argument("--card", type=Path, help="training.json that gets the figures")

    sub = command("report", run_report, "write the README of a training.json, and draw its loss curves")
    sub.add_argument("--card", type=Path, required=True)
    sub.add_argument("--out", type=Path, required=True)
    sub.add_argument("--plot", type=Path, help="PNG; needs matplotlib")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    if getattr(arguments, "name", "") is None:
        arguments.name = arguments.command
    try:
        arguments.function(arguments)
    except PearlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
