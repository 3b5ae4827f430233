"""`python -m recipes.train COMMAND`: tokenizer, prompts, pretrain, write, remember,
prune, distill, exit, parallel, diffusion, eagle3, evaluate, report.

Every training command can be killed and given again: it goes on. See docs/training.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from pearl_rt import Engine
from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.errors import PearlError, RequestError
from recipes.train.arguments import build_parser
from recipes.train.card import acceptance_table, plot_curves, read_card, readme, thinned, write_card
from recipes.train.data.bpe import save_tokenizer, train_tokenizer
from recipes.train.data.chats import write_chats
from recipes.train.data.corpus import read_corpus
from recipes.train.data.heldout import held_out_prompts, write_prompts
from recipes.train.data.remembered import LearntRows, Remembered, remember
from recipes.train.data.stream import PackedStream
from recipes.train.data.tokenised_corpus import TokenisedCorpus, frequent_ids, tokenise_corpus
from recipes.train.distill import DistillSettings, distill
from recipes.train.drafts.diffusion import Windows, diffusion_loss, diffusion_model
from recipes.train.drafts.eagle3 import eagle3_loss, eagle3_model, write_eagle3
from recipes.train.drafts.exit_layer import exit_model, write_exit
from recipes.train.drafts.parallel import parallel_model
from recipes.train.evaluate import acceptance_report, text_loss
from recipes.train.model.export import export
from recipes.train.model.prune import best_pruned
from recipes.train.model.session import Machine
from recipes.train.model.sizes import draft_config, new_model, sized_config
from recipes.train.optimizer import Schedule
from recipes.train.pretrain import PretrainSettings, pretrain
from recipes.train.run import Run


def _machine(arguments: argparse.Namespace) -> Machine:
    return Machine.named(arguments.device, arguments.threads)


def _given(kind: type, arguments: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """The fields of a settings class that the command line gives."""
    given = {f.name: getattr(arguments, f.name, None) for f in fields(kind)}
    return {name: value for name, value in given.items() if value is not None} | more


def _distilling(arguments: argparse.Namespace) -> DistillSettings:
    """Rows come from where they are remembered, else from what is asked for, else from what suits a draft."""
    given = _given(DistillSettings, arguments)
    if arguments.remembered is not None:
        for name in ("text_share", "samples_from", "sample_temperature"):
            if name in given:
                flag = "--" + name.replace("_", "-")
                raise RequestError(f"{flag} {given[name]}: all rows come from --remembered; drop one of them")
        given["samples_from"] = "text"
    elif arguments.command in ("diffusion", "eagle3") or given.get("masks"):
        given.setdefault("samples_from", "target")  # such a draft writes no text of its own
    schedule = Schedule(arguments.warmup_steps, arguments.decay)
    return DistillSettings(**given, schedule=schedule)


def _where(arguments: argparse.Namespace) -> dict[str, Any]:
    """How long a run may take, and the folders that it has."""
    return {"minutes": arguments.minutes, "run_directory": arguments.run, "out": arguments.out}


def _tokenised(arguments: argparse.Namespace, directory: Path) -> TokenisedCorpus:
    is_model = directory.is_file() or (directory / "config.json").exists()
    eos_ids = ModelConfig.from_pretrained(directory).eos_token_ids if is_model else ()
    return tokenise_corpus(arguments.data, directory, eos_ids[0] if eos_ids else None)


def _remembered(arguments: argparse.Namespace, target: ModelConfig) -> Remembered | None:
    given = arguments.remembered
    return None if given is None else Remembered(given, target, arguments.seed or 0)


def _ids(arguments: argparse.Namespace, tokenised: TokenisedCorpus, target: ModelConfig) -> Tensor:
    """The most frequent ids of the text, as many as --ids says."""
    if not 1 <= arguments.ids <= target.vocab_size:
        raise RequestError(f"--ids {arguments.ids}: the target has {target.vocab_size}, give 1 to that")
    return frequent_ids(tokenised.train, target.vocab_size, arguments.ids)


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
        if (arguments.masks > 0) != (arguments.mask_token is not None):
            raise RequestError("--masks and --mask-token: give both for windows of one pass, or neither")
        draft = exit_model(target, arguments.exit_layer, arguments.mask_token)
    elif arguments.draft:
        draft = machine.load(arguments.draft)
    else:
        draft = new_model(draft_config(arguments.size, target.config), machine.device)
    if arguments.command == "parallel":
        if arguments.masks < 1:
            raise RequestError(f"--masks {arguments.masks}: give 1 or more; `distill` trains without masks")
        draft = parallel_model(draft, arguments.mask_token)
    settings = _distilling(arguments)
    known = _remembered(arguments, target.config)
    ids = None
    if arguments.ids is not None:
        ids = _ids(arguments, tokenised, target.config).to(machine.device)
    write = partial(write_exit, ids=ids, bits=arguments.bits) if arguments.command == "exit" else export
    own: dict[str, Any] = {"write": write, "remembered": known, "ids": ids}
    run = distill(target, draft, tokenised, machine, settings, **own, **_where(arguments))
    _finish(arguments, arguments.name, run)


def run_write(arguments: argparse.Namespace) -> None:
    if arguments.count < 2:
        raise RequestError(f"--count {arguments.count}: give 2 or more, as one conversation is held out")
    template = ChatTemplate.from_pretrained(arguments.target)
    cores = {} if arguments.threads is None else {"num_threads": arguments.threads}
    bar = tqdm(total=arguments.count, unit=" conversations", desc="write")
    with Engine.from_pretrained(arguments.target, max_num_seqs=arguments.together, **cores) as engine, bar:
        tokens = write_chats(
            engine,
            template,
            arguments.out,
            arguments.count,
            question_tokens=arguments.question_tokens,
            answer_tokens=arguments.answer_tokens,
            temperature=arguments.temperature,
            seed=arguments.seed,
            told=bar.update,
        )
    print(f"{tokens:,} tokens of answers -> {arguments.out}")


def run_remember(arguments: argparse.Namespace) -> None:
    machine = _machine(arguments)
    tokenised = _tokenised(arguments, arguments.target)
    target = machine.load(arguments.target)
    layers = sorted(set(arguments.tap or ()))
    if not all(0 <= layer <= target.config.num_hidden_layers for layer in layers):
        raise RequestError(f"--tap {layers}: give layers from 0 to {target.config.num_hidden_layers}")
    stream = PackedStream(tokenised.train, tokenised.weights, arguments.length, arguments.seed)
    rows = arguments.rows or max(1, sum(map(len, tokenised.train)) // arguments.length)
    with tqdm(total=rows, unit=" rows", desc="remember") as bar:
        remember(target, machine, stream, arguments.out, rows, layers, told=bar.update)
    print(f"{rows} rows of {arguments.length} tokens, inputs of layers {layers} -> {arguments.out}")


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
    known = _remembered(arguments, target.config)

    def loss_of(rows: LearntRows) -> Tensor:
        return diffusion_loss(target, draft, rows, settings.divergence, windows, settings.run_length)

    run = distill(
        target, draft, tokenised, machine, settings, loss_of=loss_of, remembered=known, **_where(arguments)
    )
    _finish(arguments, arguments.name, run)


def run_eagle3(arguments: argparse.Namespace) -> None:
    if arguments.steps < 1:
        raise RequestError(f"--steps {arguments.steps}: give 1 or more")
    machine = _machine(arguments)
    tokenised = _tokenised(arguments, arguments.target)
    target = machine.load(arguments.target)
    draft = eagle3_model(target, tokenised.train, arguments.draft_vocab, arguments.tap)
    settings = _distilling(arguments)

    def loss_of(rows: LearntRows) -> Tensor:
        return eagle3_loss(target, draft, rows, settings.divergence, arguments.steps, settings.run_length)

    layers = draft.config.taps_of(target.config)
    known = _remembered(arguments, target.config)
    own: dict[str, Any] = {
        "write": partial(write_eagle3, bits=arguments.bits),
        "loss_of": loss_of,
        "remembered": known,
        "layers": layers,
    }
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


COMMANDS = {
    "tokenizer": run_tokenizer,
    "prompts": run_prompts,
    "pretrain": run_pretrain,
    "write": run_write,
    "remember": run_remember,
    "distill": run_distill,
    "exit": run_distill,
    "parallel": run_distill,
    "diffusion": run_diffusion,
    "eagle3": run_eagle3,
    "prune": run_prune,
    "evaluate": run_evaluate,
    "report": run_report,
}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser(__doc__).parse_args(argv)
    if getattr(arguments, "name", "") is None:
        arguments.name = arguments.command
    try:
        COMMANDS[arguments.command](arguments)
    except PearlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
