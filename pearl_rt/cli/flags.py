"""Tables of parameters as flags of a command line: one for each row, from its type, default and help.

Values are checked by the tables themselves, whose errors name the parameter and the way out.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pearl_rt.errors import ConfigError, RequestError
from pearl_rt.strategy.engine_options import EngineOptions
from pearl_rt.types.json import Json
from pearl_rt.types.sampling_params import SamplingParams
from pearl_rt.types.structured_outputs import Choices, Structured, StructuredOutputsParams
from pearl_rt.types.values import (
    Boolean,
    Integer,
    Layers,
    Number,
    NumbersById,
    Parameter,
    Texts,
    TokenIds,
    parameters,
)

if TYPE_CHECKING:
    from pearl_rt.engine import Engine

SHORTER = {"num_threads": "threads", "stop_token_ids": "stop-token-id", "json": "json-schema"}
FILES = ("json", "grammar")  # flags that name the file of a text


def flag_of(row: Parameter) -> str:
    """The flag of a parameter: its name with dashes, or a shorter one. What is on by default begins "no-"."""
    prefix = "--no-" if row.default is True else "--"
    return prefix + SHORTER.get(row.name, row.name.replace("_", "-"))


def add_flags(parser: argparse.ArgumentParser, table: type, but: str = "") -> None:
    """One flag for each row of a table, but one; those that are not given keep the row's default."""
    for row in (row for row in parameters(table) if row.name != but):
        if isinstance(row.rule, Structured):
            add_flags(parser, StructuredOutputsParams, but="reasoning")  # a flag for each form
            continue
        options: Json = {"dest": row.name, "default": argparse.SUPPRESS}
        if isinstance(row.rule, Boolean):
            both = argparse.BooleanOptionalAction  # and left out it is neither
            one = "store_false" if row.default is True else "store_true"
            options["action"] = both if row.rule.optional else one
        elif isinstance(row.rule, (Texts, Choices, TokenIds, Layers, NumbersById)):
            options |= {"action": "append", "metavar": "X"}
        else:
            options["metavar"] = "X"
        if row.name in FILES:
            options["metavar"] = "FILE"
        elif isinstance(row.rule, NumbersById):
            options["metavar"] = "ID=X"
        elif isinstance(row.rule, (Integer, TokenIds, Layers)):
            options["type"] = int
        elif isinstance(row.rule, Number):
            options["type"] = float
        is_plain = isinstance(row.default, (str, int, float)) and not isinstance(row.default, bool)
        default = f"; default {row.default}" if is_plain else ""
        repeated = "; may be repeated" if options.get("action") == "append" else ""
        text = f"{row.help}{default}{repeated}".replace("%", "%%")
        parser.add_argument(flag_of(row), help=text, **options)


def add_engine_flags(parser: argparse.ArgumentParser, *, is_alone: bool = False) -> None:
    """The models, and EngineOptions. is_alone: no draft."""
    parser.add_argument(
        "--target", type=Path, help="the target: a directory (config.json, safetensors), or a GGUF file"
    )
    if not is_alone:
        parser.add_argument(
            "--draft",
            metavar="PATH|self|lookup|none",
            help="a small model with the same tokenizer, likewise, or an exit layer or EAGLE-3 head of the "
            "target; self: the target without --skip-layers; lookup: repetitions of prompt and answer are "
            "drafts; none: plain decoding; default: lookup, on the CPU",
        )
    add_flags(parser, EngineOptions, but="drafter")  # --draft says it


def given(options: argparse.Namespace, table: type) -> Json:
    """The parameters of a table that were given as flags. Raises RequestError for an ID=X that is none, and a
    file that cannot be read.
    """
    found: Json = {}
    for row in parameters(table):
        if isinstance(row.rule, Structured):
            if form := given(options, StructuredOutputsParams):
                found[row.name] = StructuredOutputsParams(**form)
        elif row.name in FILES and hasattr(options, row.name):
            found[row.name] = _text_of(flag_of(row), getattr(options, row.name))
        elif hasattr(options, row.name):
            value = getattr(options, row.name)
            is_map = isinstance(row.rule, NumbersById)
            found[row.name] = dict(_entry(flag_of(row), text) for text in value) if is_map else value
    return found


def sampling_params(options: argparse.Namespace) -> SamplingParams:
    """Of parsed flags. Raises RequestError for a value that cannot be."""
    return SamplingParams(**given(options, SamplingParams))


def target_path(options: argparse.Namespace) -> Path:
    """--target. Raises ConfigError, which names the pair that ships, if it is missing."""
    if options.target is not None:
        return Path(options.target)
    shipped = Path("models/target")
    hint = f"; --target {shipped} --draft models/draft is the pair that ships" if shipped.is_dir() else ""
    raise ConfigError(f"--target is missing: give the directory or the GGUF file of a model{hint}")


def open_engine(options: argparse.Namespace) -> "Engine":
    """The engine that parsed flags ask for."""
    target = target_path(options)
    from pearl_rt.engine import Engine

    return Engine.from_pretrained(target, options.draft, **given(options, EngineOptions))


def _text_of(flag: str, file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RequestError(f"{flag} {file} cannot be read: {error}") from None


def _entry(flag: str, text: str) -> tuple[int, float]:
    token_id, _, amount = text.partition("=")
    try:
        return int(token_id), float(amount)
    except ValueError:
        raise RequestError(f"{flag} {text} is not ID=X: pass a token id and a number, as 42=-5") from None
