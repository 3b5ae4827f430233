"""The command line of `python -m recipes.train`: every command with its options. Nothing runs here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from recipes.train.data.corpus import STDLIB
from recipes.train.distill import SOURCES
from recipes.train.divergence import DIVERGENCES
from recipes.train.model.sizes import SIZES


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


def _add_learning(parser: argparse.ArgumentParser, sources: Sequence[str] = SOURCES) -> None:
    """Of a draft that learns from its target: what it learns, and on which rows."""
    parser.add_argument("--divergence", choices=DIVERGENCES)
    parser.add_argument("--remembered", type=Path, help="rows come from this folder, made by `remember`")
    parser.add_argument("--text-share", type=float)
    parser.add_argument("--samples-from", choices=sources)
    parser.add_argument("--sample-temperature", type=float)
    parser.add_argument(
        "--decay", type=float, default=0.5, help="share of the run in which the rate goes to zero"
    )
    _add_training(parser)


def _add_masks(parser: argparse.ArgumentParser) -> None:
    """Of a draft that learns at mask tokens: how many places have them."""
    parser.add_argument("--keep", type=float, help="share of the places with a d-th mask that have one more")
    parser.add_argument("--least", type=float, help="share of all places that has every mask, at least")
    _add_run_length(parser)


def _add_run_length(parser: argparse.ArgumentParser) -> None:
    """Of a draft that learns to fill windows."""
    parser.add_argument(
        "--run-length",
        action="store_true",
        default=None,
        help="a row of a window counts by the chance that all places before it stand",
    )


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """Of all commands; the chosen one is `command`."""
    parser = argparse.ArgumentParser(prog="python -m recipes.train", description=description)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--data", default=STDLIB, help="'stdlib', or a directory of text files")
        sub.add_argument("--device", default="cpu", help="cpu or cuda")
        sub.add_argument("--threads", type=int)
        return sub

    sub = command("tokenizer", "train a byte-level BPE tokenizer")
    sub.add_argument("--vocab-size", type=int, default=4096)
    sub.add_argument("--out", type=Path, required=True)

    sub = command("prompts", "cut benchmark prompts from held-out files")
    sub.add_argument("--tokenizer", type=Path, required=True, help="directory with tokenizer.json")
    sub.add_argument("--count", type=int, default=12)
    sub.add_argument("--out", type=Path, required=True)

    sub = command("pretrain", "train a model on text, from random weights")
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

    sub = command("distill", "teach a draft what its target would say")
    sub.add_argument("--target", type=Path, required=True)
    sub.add_argument("--draft", type=Path, help="begin with this model")
    sub.add_argument("--size", choices=SIZES, default="3m", help="without --draft: a new one of this size")
    sub.add_argument("--ids", type=int, help="the loss is over so many ids of the text, the most frequent")
    sub.add_argument("--cross-entropy", type=float)
    _add_learning(sub)

    sub = command("exit", "teach one layer behind the target's first ones what it would say")
    sub.add_argument("--target", type=Path, required=True)
    sub.add_argument("--exit-layer", type=int, required=True, help="layers of the target in front of it")
    sub.add_argument("--mask-token", type=int, help="an id that no text has: it fills windows in one pass")
    sub.add_argument("--masks", type=int, default=0, help="rows behind a place: one less than the window")
    _add_masks(sub)
    sub.add_argument("--ids", type=int, help="the loss is over so many ids of the text, the most frequent")
    sub.add_argument("--bits", type=int, choices=(16, 8), default=16, help="of the matrices in --out")
    _add_learning(sub)

    sub = command("parallel", "teach a draft to fill a window in one pass")
    sub.add_argument("--target", type=Path, required=True)
    sub.add_argument("--draft", type=Path, help="begin with this model, for instance a distilled draft")
    sub.add_argument("--size", choices=SIZES, default="3m", help="without --draft: a new one of this size")
    sub.add_argument(
        "--mask-token", type=int, help="an id that no text has; default: one more behind the vocabulary"
    )
    sub.add_argument("--masks", type=int, default=7, help="rows behind a place: one less than the window")
    _add_masks(sub)
    sub.add_argument("--ids", type=int, help="the loss is over so many ids of the text, the most frequent")
    sub.add_argument("--cross-entropy", type=float)
    _add_learning(sub, ("text", "target"))

    sub = command("diffusion", "teach a draft to fill a window in a few passes")
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
    _add_run_length(sub)
    _add_learning(sub, ("text", "target"))

    sub = command("eagle3", "teach a head to draft from what its target computed")
    sub.add_argument("--target", type=Path, required=True)
    sub.add_argument("--tap", type=int, action="append", help="a layer whose input is read; given in order")
    sub.add_argument("--draft-vocab", type=int, help="ids that it drafts, the most frequent ones; 32000")
    sub.add_argument("--steps", type=int, default=4, help="rows in a row that go on from the head's own")
    _add_run_length(sub)
    sub.add_argument("--bits", type=int, choices=(16, 8), default=16, help="of the matrices in --out")
    _add_learning(sub, ("text", "target"))

    sub = command("write", "let a chat model write conversations: text for a draft of its own")
    sub.add_argument("--target", type=Path, required=True, help="a directory or a GGUF file with a template")
    sub.add_argument("--count", type=int, required=True, help="conversations; those in --out are kept")
    sub.add_argument("--out", type=Path, required=True, help="folder of text files, for --data")
    sub.add_argument("--question-tokens", type=int, default=160)
    sub.add_argument("--answer-tokens", type=int, default=400)
    sub.add_argument("--temperature", type=float, default=0.8, help="of every second answer; 0 of the others")
    sub.add_argument("--together", type=int, default=16, help="conversations that are written at once")
    sub.add_argument("--seed", type=int, default=0)

    sub = command("remember", "keep what the target computes on a text, for exit, parallel and eagle3")
    sub.add_argument("--target", type=Path, required=True)
    sub.add_argument("--tap", type=int, action="append", help="a layer whose input is kept too, for eagle3")
    sub.add_argument("--length", type=int, default=512, help="tokens of a row")
    sub.add_argument("--rows", type=int, help="default: the text once")
    sub.add_argument("--seed", type=int, default=1)
    sub.add_argument("--out", type=Path, required=True, help="folder, for --remembered")

    sub = command("prune", "cut a draft to begin with out of its target")
    sub.add_argument("--target", type=Path, required=True)
    sub.add_argument("--layers", type=int, required=True)
    sub.add_argument("--intermediate-size", type=int, required=True)
    sub.add_argument("--out", type=Path, required=True)

    sub = command("evaluate", "held-out loss, and acceptance of each draft")
    sub.add_argument("--target", type=Path, required=True)
    sub.add_argument("--draft", action="append", default=[], help="may be given more than once")
    sub.add_argument("--card", type=Path, help="training.json that gets the figures")

    sub = command("report", "write the README of a training.json, and draw its loss curves")
    sub.add_argument("--card", type=Path, required=True)
    sub.add_argument("--out", type=Path, required=True)
    sub.add_argument("--plot", type=Path, help="PNG; needs matplotlib")
    return parser
