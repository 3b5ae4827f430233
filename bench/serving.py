"""What a client waits for: the first token of each turn of a long chat, and answers with a JSON schema beside
free text.

    python bench/serving.py                         both, on SmolLM2-135M-Instruct in 8 bits, by lookup
    python bench/serving.py --parts forms           answers alone: two minutes; or chats
    python bench/serving.py --target models/target --draft models/draft      the trained pair
    python bench/serving.py --turns 8 --repeats 1 --num-prompts 2            in short

Chats: a turn is the text so far, --turn-tokens new ones, and an answer, with and without the cache of
prompts. Its figure is the time to the first token, the median of --repeats chats; without the cache there is
one chat. Forms: each prompt asks for an object, and is answered greedily with a schema and with as many
tokens of free text, program by program, by turns. Their figure is the time of a token behind the first. The
last line is the same as JSON. Exit status 1 if the cache changed a token, a program changed an answer, or an
answer is not of the schema.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import dataclass, field
from typing import Any

if not __package__:  # run as a script: our modules are bench.*, and none of them may shadow another's
    sys.path[0] = os.path.dirname(sys.path[0])

import jsonschema
import numpy as np

from bench.harness.command import add_shared, exit_code, finish, require_positive
from bench.harness.environment import ROOT
from bench.harness.table import format_table
from bench.model_pairs.model_pair import ModelPair, open_pair, report_environment
from bench.model_pairs.published import UnreachableError, published_model, widened
from pearl_rt.errors import CheckpointError
from pearl_rt.types.metrics import RequestMetrics
from pearl_rt.types.sampling_params import SamplingParams
from pearl_rt.types.structured_outputs import StructuredOutputsParams

PARTS = ("chats", "forms")
TOWNS = ROOT / "bench" / "prompts" / "towns.jsonl"
WORD = {"type": "string", "maxLength": 24}
TOWN = {
    "type": "object",
    "properties": {
        "name": WORD,
        "country": WORD,
        "population": {"type": "integer", "minimum": 0, "maximum": 99_999_999},
        "is_capital": {"type": "boolean"},
        "known_for": {"type": "array", "items": WORD, "minItems": 2, "maxItems": 3},
    },
    "required": ["name", "country", "population", "is_capital", "known_for"],
    "additionalProperties": False,
}
LONGEST = 400  # tokens of an answer with the schema
ANSWER = 16  # tokens of a turn's answer
TURN_COLUMNS = (
    ("turn", "turn", "d"),
    ("length", "prompt", "d"),
    ("found", "found", "d"),
    ("ms", "ms", ".2f"),
    ("x_second", "x turn 2", ".2f"),
    ("plain_ms", "without: ms", ".2f"),
    ("plain_x_second", "x turn 2", ".2f"),
)
FORM_COLUMNS = (
    ("program", "program", "s"),
    ("tokens", "tokens", "d"),
    ("json_per_round", "JSON: a round", ".2f"),
    ("forced", "of them forced", ".0%"),
    ("free_per_round", "free: a round", ".2f"),
    ("json_ms", "JSON: ms", ".3f"),
    ("free_ms", "free: ms", ".3f"),
    ("json_x_free", "JSON tok/s, x free", ".2f"),
)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="The first tokens of a long chat's turns, and answers with a schema."
    )
    models = ("target", "draft", "dtype", "weights", "draft-weights")
    add_shared(parser, *models, "num-prompts", "repeats", "seed", num_prompts=4, repeats=5)
    add_shared(parser, "isa", "threads", "json-out")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured")
    parser.add_argument("--turns", type=int, default=20, help="of a chat")
    parser.add_argument("--turn-tokens", type=int, default=32, help="new ones of a turn, beside the answer")
    parser.add_argument("--gamma", type=int, default=4, help="drafts per window of sd")
    options = parser.parse_args(argv)
    require_positive(parser, options, "num-prompts", "repeats", "turn-tokens", "gamma")
    if options.turns < 2:
        parser.error(f"--turns {options.turns}: a chat has two turns at least")
    options.pair, options.device, options.draft_device, options.max_num_seqs = None, "cpu", None, 1
    options.prompts, options.prefix_caching, options.forms = TOWNS, True, ()
    return options


class Chats:
    """Times by turn of chats that begin differently, on one engine."""

    def __init__(self, options: argparse.Namespace, pair: ModelPair, is_cached: bool) -> None:
        self.options, self.pair, self.is_cached = options, pair, is_cached
        self.answers: list[list[int]] = []
        self.lengths: list[int] = []
        self.found: list[int | None] = []
        self.seconds: list[list[float]] = [[] for _ in range(options.turns)]

    def run(self, number: int) -> None:
        """One chat, the same for each number."""
        words = [token for prompt in self.pair.prompts for token in prompt]
        rng = np.random.default_rng((self.options.seed, number))
        params = SamplingParams(max_tokens=ANSWER, ignore_eos=True, private=not self.is_cached)
        text: list[int] = []
        self.lengths, self.found = [], []
        for turn in range(self.options.turns):
            text += rng.choice(words, self.options.turn_tokens).tolist()
            [output] = self.pair.engine.generate(text, params, strategy="ar")
            self.seconds[turn].append(output.metrics.ttft)
            self.lengths.append(len(text))
            self.found.append(output.num_cached_tokens)
            self.answers.append(output.token_ids)
            text += output.token_ids


def turn_rows(cached: Chats, plain: Chats) -> list[dict[str, Any]]:
    """One a turn: medians over the chats, and what they are of the second turn's."""
    ms, without = ([statistics.median(own) * 1e3 for own in chats.seconds] for chats in (cached, plain))
    return [
        {
            "turn": turn + 1,
            "length": cached.lengths[turn],
            "found": cached.found[turn],
            "ms": ms[turn],
            "x_second": ms[turn] / ms[1],
            "plain_ms": without[turn],
            "plain_x_second": without[turn] / without[1],
        }
        for turn in range(len(ms))
    ]


@dataclass
class Kind:
    """What answers of one kind took behind their first tokens."""

    seconds: float = 0.0
    tokens: int = 0
    rounds: int = 0
    forced: int = 0

    def add(self, metrics: RequestMetrics) -> None:
        self.seconds += metrics.token_times[-1] - metrics.token_times[0]
        self.tokens += len(metrics.token_times) - 1
        self.rounds += metrics.rounds
        self.forced += sum(origin.kind == "forced" for origin in metrics.origins)


@dataclass
class Forms:
    """Answers with the schema and free ones, by one program. strategy None: what the engine chooses."""

    pair: ModelPair
    name: str
    options: dict[str, Any]
    texts: list[str] = field(default_factory=list)
    kinds: dict[str, Kind] = field(default_factory=lambda: {"json": Kind(), "free": Kind()})

    def run(self, prompt: list[int], is_counted: bool) -> None:
        """Both kinds of answers to one prompt. Raises ValidationError for one that is not of the schema."""
        form = StructuredOutputsParams(json=json.dumps(TOWN))
        asked = SamplingParams(max_tokens=LONGEST, structured_outputs=form, private=True)
        [output] = self.pair.engine.generate(prompt, asked, **self.options)
        if output.finish_reason == "stop":
            jsonschema.validate(json.loads(output.text), TOWN)
        as_long = SamplingParams(max_tokens=len(output.token_ids), ignore_eos=True, private=True)
        [free] = self.pair.engine.generate(prompt, as_long, **self.options)
        if not is_counted:
            return
        self.texts += [output.text, free.text]
        self.kinds["json"].add(output.metrics)
        self.kinds["free"].add(free.metrics)

    def row(self) -> dict[str, Any]:
        found: dict[str, Any] = {"program": self.name, "tokens": self.kinds["json"].tokens}
        for name, kind in self.kinds.items():
            found[f"{name}_ms"] = 1e3 * kind.seconds / kind.tokens
            found[f"{name}_per_round"] = kind.tokens / kind.rounds
        found["forced"] = self.kinds["json"].forced / found["tokens"]
        return found | {"json_x_free": found["free_ms"] / found["json_ms"]}


def measured_chats(options: argparse.Namespace, pair: ModelPair) -> tuple[list[dict[str, Any]], bool]:
    """(a row a turn, whether the cache changed no token)"""
    cached, plain = Chats(options, pair, True), Chats(options, pair, False)
    plain.run(0)
    for number in range(options.repeats):
        cached.run(number)
    rows = turn_rows(cached, plain)
    print(f"\n{format_table(rows, TURN_COLUMNS)}", flush=True)
    return rows, cached.answers[: options.turns] == plain.answers


def measured_forms(options: argparse.Namespace, pair: ModelPair) -> tuple[list[dict[str, Any]], bool]:
    """(a row a program, whether no program changed a text)"""
    asked: dict[str, dict[str, Any]] = {
        "ar": {"strategy": "ar"},
        f"sd, gamma {options.gamma}": {"strategy": "sd", "gamma": options.gamma},
        "auto": {},
    }
    programs = [Forms(pair, name, own) for name, own in asked.items()]
    for program in programs:
        program.run(pair.prompts[0], False)  # compiles the form; auto learns what it does
    for repeat in range(options.repeats):
        for prompt in pair.prompts:
            for program in programs[:: -1 if repeat % 2 else 1]:
                program.run(prompt, True)
    rows = [program.row() for program in programs]
    print(f"\n{format_table(rows, FORM_COLUMNS)}", flush=True)
    texts = [sorted(program.texts) for program in programs]
    return rows, all(own == texts[0] for own in texts)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Everything: prints the tables, returns the figures."""
    if options.target is None and options.draft is None:
        try:
            options.target = widened(published_model())
        except UnreachableError as error:
            raise CheckpointError(f"{error}: pass --target and --draft") from None
    pair = open_pair(options)
    with pair.engine:
        figures, equal = report_environment(pair, options), True
        for name, measure in (("chats", measured_chats), ("forms", measured_forms)):
            if name in options.parts:
                figures[name], same = measure(options, pair)
                equal = equal and same
    print("\nneither the cache nor a program changed an answer" if equal else "\nANSWERS DIFFER")
    return finish(figures | {"outputs_equal": equal}, options.json_out)


def main(argv: list[str] | None = None) -> int:
    options = parse_arguments(argv)
    return exit_code("serving", lambda: measured(options))


if __name__ == "__main__":
    sys.exit(main())
