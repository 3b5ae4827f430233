"""What a client waits for: the first token of each turn of a long chat, and answers with a JSON schema beside
free text.

    python bench/serving.py                                           SmolLM2-135M-Instruct, which looks up
    python bench/serving.py --target models/target --draft models/draft      the trained pair
    python bench/serving.py --turns 8 --repeats 1 --num-prompts 2     in short

Chats: a turn is the text so far, --turn-tokens new ones, and an answer, with and without the cache of
prompts. Its figure is the time to the first token, by the wall and of all cores, the median of --repeats
chats. Forms: each prompt is answered greedily with a schema, and with as many tokens of free text, by turns.
Their figure is the time of a token behind the first. The last line is the same as JSON. Exit status 1 if the
cache changed a token, a strategy changed an answer, or an answer is not of the schema.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import replace
from typing import Any

if not __package__:  # run as a script: our modules are bench.*, and none of them may shadow another's
    sys.path[0] = os.path.dirname(sys.path[0])

import jsonschema
import numpy as np

from bench.harness.command import add_shared, exit_code, finish, require_positive
from bench.harness.table import format_table
from bench.model_pairs.model_pair import ModelPair, open_pair, report_environment
from bench.model_pairs.published import UnreachableError, published_model
from pearl_rt.errors import CheckpointError
from pearl_rt.types.outputs import RequestOutput
from pearl_rt.types.sampling_params import SamplingParams
from pearl_rt.types.structured_outputs import StructuredOutputsParams

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
TURNS = (("turn", "turn", "d"), ("length", "prompt", "d"), ("found", "found", "d"))
TIMES = (("ms", "ms", ".2f"), ("cpu_ms", "CPU ms", ".2f"), ("x_second", "x turn 2", ".2f"))
WITHOUT = (("plain_ms", "without: ms", ".2f"), ("plain_x_second", "x turn 2", ".2f"))
FORM_COLUMNS = (
    ("strategy", "strategy", "s"),
    ("gamma", "gamma", "d"),
    ("tokens", "tokens", "d"),
    ("free_ms", "free ms/token", ".3f"),
    ("json_ms", "JSON", ".3f"),
    ("ratio", "JSON / free", ".2f"),
    ("free_cpu_ms", "free CPU ms/token", ".3f"),
    ("json_cpu_ms", "JSON", ".3f"),
    ("cpu_ratio", "JSON / free", ".2f"),
)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="The first tokens of a long chat's turns, and answers with a schema."
    )
    shared = (
        "target",
        "draft",
        "dtype",
        "weights",
        "draft-weights",
        "prompts",
        "num-prompts",
        "repeats",
        "seed",
    )
    add_shared(parser, *shared, "isa", "threads", "json-out", num_prompts=4, repeats=3)
    parser.add_argument("--turns", type=int, default=20, help="of a chat")
    parser.add_argument("--turn-tokens", type=int, default=32, help="new ones of a turn, beside the answer")
    parser.add_argument("--gamma", type=int, default=4, help="drafts per window of sd")
    options = parser.parse_args(argv)
    require_positive(parser, options, "num-prompts", "repeats", "turn-tokens", "gamma")
    if options.turns < 2:
        parser.error(f"--turns {options.turns}: a chat has two turns at least")
    options.pair, options.device, options.draft_device, options.max_num_seqs = None, "cpu", None, 1
    return options


class Chats:
    """Times by turn of chats that begin differently, on one engine."""

    def __init__(self, options: argparse.Namespace, pair: ModelPair, is_cached: bool) -> None:
        self.options, self.pair, self.is_cached = options, pair, is_cached
        self.answers: list[list[int]] = []
        self.lengths: list[int] = []
        self.found: list[int | None] = []
        self.wall: list[list[float]] = [[] for _ in range(options.turns)]
        self.cpu: list[list[float]] = [[] for _ in range(options.turns)]

    def run(self) -> None:
        words = [token for prompt in self.pair.prompts for token in prompt]
        rng = np.random.default_rng(self.options.seed)
        for _ in range(self.options.repeats):
            text: list[int] = []
            self.lengths, self.found = [], []
            for turn in range(self.options.turns):
                text += rng.choice(words, self.options.turn_tokens).tolist()
                text += self.answer(turn, text)

    def answer(self, turn: int, text: list[int]) -> list[int]:
        begin, used = time.perf_counter(), time.process_time()
        one = SamplingParams(max_tokens=1, ignore_eos=True, private=not self.is_cached)
        [first] = self.pair.engine.generate(text, one, strategy="ar")
        self.wall[turn].append(time.perf_counter() - begin)
        self.cpu[turn].append(time.process_time() - used)
        whole = SamplingParams(max_tokens=ANSWER, ignore_eos=True, private=not self.is_cached)
        [output] = self.pair.engine.generate(text, whole, strategy="ar")
        self.lengths.append(len(text))
        self.found.append(first.num_cached_tokens)
        self.answers.append(output.token_ids)
        return output.token_ids


def turn_rows(cached: Chats, plain: Chats) -> list[dict[str, Any]]:
    """One a turn: medians over the chats, and what they are of the second turn's."""
    wall, cpu, without = (
        [statistics.median(s) * 1e3 for s in t] for t in (cached.wall, cached.cpu, plain.wall)
    )
    return [
        {
            "turn": turn + 1,
            "length": cached.lengths[turn],
            "found": cached.found[turn],
            "ms": wall[turn],
            "cpu_ms": cpu[turn],
            "x_second": wall[turn] / wall[1],
            "plain_ms": without[turn],
            "plain_x_second": without[turn] / without[1],
        }
        for turn in range(len(wall))
    ]


class Forms:
    """Answers with the schema and free ones, by turns, by one program."""

    def __init__(self, pair: ModelPair, strategy: str, gamma: int | None) -> None:
        self.pair, self.strategy, self.gamma = pair, strategy, gamma
        self.texts: list[str] = []
        self.wall: dict[str, float] = {"free": 0.0, "json": 0.0}
        self.cpu: dict[str, float] = {"free": 0.0, "json": 0.0}
        self.tokens = 0

    def run(self, repeats: int) -> None:
        form = StructuredOutputsParams(json=TOWN)
        with_form = SamplingParams(max_tokens=LONGEST, structured_outputs=form, private=True)
        self.once(self.pair.prompts[0], replace(with_form, max_tokens=1))  # compiles the form
        for prompt in self.pair.prompts * repeats:
            output = self.timed("json", prompt, with_form)
            if output.finish_reason == "stop":
                jsonschema.validate(json.loads(output.text), TOWN)
            self.texts.append(output.text)
            count = len(output.token_ids)
            self.timed("free", prompt, SamplingParams(max_tokens=count, ignore_eos=True, private=True))
            self.tokens += count - 1

    def once(self, prompt: list[int], params: SamplingParams) -> tuple[RequestOutput, float]:
        """(output, seconds of all cores)"""
        used = time.process_time()
        [output] = self.pair.engine.generate(prompt, params, strategy=self.strategy, gamma=self.gamma)
        return output, time.process_time() - used

    def timed(self, kind: str, prompt: list[int], params: SamplingParams) -> RequestOutput:
        """The first token is left out: by the wall, and as a call that ends with it."""
        _, first = self.once(prompt, replace(params, max_tokens=1))
        output, used = self.once(prompt, params)
        times = output.metrics.token_times
        self.wall[kind] += times[-1] - times[0]
        self.cpu[kind] += used - first
        return output

    def row(self) -> dict[str, Any]:
        figures: dict[str, Any] = {
            f"{kind}_ms": 1e3 * spent / self.tokens for kind, spent in self.wall.items()
        }
        figures |= {f"{kind}_cpu_ms": 1e3 * spent / self.tokens for kind, spent in self.cpu.items()}
        figures["ratio"] = figures["json_ms"] / figures["free_ms"]
        figures["cpu_ratio"] = figures["json_cpu_ms"] / figures["free_cpu_ms"]
        return {"strategy": self.strategy, "gamma": self.gamma, "tokens": self.tokens} | figures


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Everything: prints the tables, returns the figures."""
    if options.target is None and options.draft is None:
        try:
            options.target = published_model()
        except UnreachableError as error:
            raise CheckpointError(f"{error}: pass --target and --draft") from None
    pair = open_pair(argparse.Namespace(**vars(options), prefix_caching=True))
    with pair.engine:
        figures = report_environment(pair, options)
        plain, cached = Chats(options, pair, False), Chats(options, pair, True)
        for chats in (plain, cached):
            chats.run()
        rows = turn_rows(cached, plain)
        print(f"\n{format_table(rows, (*TURNS, *TIMES, *WITHOUT))}\n", flush=True)
        programs = [Forms(pair, "ar", None), Forms(pair, "sd", options.gamma)]
        for program in programs:
            program.run(options.repeats)
    forms = [program.row() for program in programs]
    print(format_table(forms, FORM_COLUMNS))
    equal = cached.answers == plain.answers and programs[0].texts == programs[1].texts
    print("the cache and the strategy changed no answer" if equal else "ANSWERS DIFFER")
    return finish(figures | {"turns": rows, "forms": forms, "outputs_equal": equal}, options.json_out)


def main(argv: list[str] | None = None) -> int:
    options = parse_arguments(argv)
    return exit_code("serving", lambda: measured(options))


if __name__ == "__main__":
    sys.exit(main())
