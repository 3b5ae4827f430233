"""Whether the same tokens come, bit for bit, whatever writes them on a device: every form of launching, every
program, alone and in a batch, greedy and by coupled noise.

    python bench/equality.py                 32 prompts x 1,000 tokens on a GPU: four minutes of an H100
    python bench/equality.py --num-prompts 8 --max-tokens 96 --budget 60
    python bench/equality.py --device interpret --pair planted:0.01m+0.01m@0.7 ...      the same path, no GPU

The pair is planted, small, with heads of real sizes and prompts of 1 to 300 ids, some across a chunk. Its
target keeps the planted rule four times in five only, and else the noise of its layers decides: a target
with wide margins would write the same tokens from other bits. All is compared with `ar` of the first form,
alone. Prints a table, and as its last line the same figures as JSON. Exit status 1 if a token differed or a
form failed. What the budget left out is named.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

if not __package__:  # run as a script: our modules are bench.*, and none of them may shadow another's
    sys.path[0] = os.path.dirname(sys.path[0])

import numpy as np
from tqdm import tqdm

from bench.harness.command import add_shared, described, exit_code, finish, require_positive
from bench.harness.goals import EQUALITY_GOALS, format_goals, verdict
from bench.harness.measure import common_prefix
from bench.harness.table import format_table
from bench.model_pairs.model_pair import EAGER, plan_on_device
from bench.model_pairs.planted import PairSpec
from pearl_rt.engine import Engine
from pearl_rt.errors import PearlError
from pearl_rt.strategy.engine_options import FORMS
from pearl_rt.strategy.program import STRATEGIES
from pearl_rt.types.sampling_params import SamplingParams

PAIR = "planted:127m+51m@0.9"
RATIO = 5.0  # r of the target (see planting.py): over 32,000 ids it keeps its rule 0.80 of the time
LONGEST_PROMPT, INTERPRETED_PROMPT = 300, 8  # more than a chunk, and one of two
EAGER_ALONE = 2, 200  # prompts and tokens: each launch is Python's there
COLUMNS = (
    ("form", "form", "s"),
    ("batch", "batch", "d"),
    ("strategy", "strategy", "s"),
    ("gamma", "gamma", "d"),
    ("temperature", "T", "g"),
    ("prompts", "prompts", "d"),
    ("tokens", "tokens", "d"),
    ("different", "different", "d"),
    ("first", "first difference", "s"),
    ("acceptance", "accept", ".3f"),
    ("seconds", "s", ".1f"),
)


@dataclass(frozen=True)
class Way:
    """One way to write the answers."""

    form: str
    batch: int  # sequences at once, on an engine for so many
    strategy: str
    gamma: int  # 0: none
    temperature: float

    def __str__(self) -> str:
        window = f" gamma {self.gamma}" if self.gamma else ""
        return f"{self.strategy}{window}, {self.form}, {self.batch} at once, T = {self.temperature:g}"


@dataclass(frozen=True)
class Row:
    """What became of a way."""

    way: Way
    status: str = "ok"  # or "failed", "left out"
    note: str = ""
    prompts: int = 0
    tokens: int = 0  # of each
    different: int = 0  # prompts whose tokens are not the reference's
    prompt: int | None = None  # of these, the one that departs first, and at which token
    token: int | None = None
    acceptance: float | None = None
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        fields = asdict(self)
        return fields.pop("way") | fields

    def cells(self) -> dict[str, Any]:
        """For the table."""
        ran = self.status == "ok"
        first = f"token {self.token} of prompt {self.prompt}" if self.different else None
        return self.to_dict() | {
            "gamma": self.way.gamma or None,
            "prompts": self.prompts if ran else None,
            "tokens": self.tokens if ran else None,
            "different": self.different if ran else None,
            "first": first if ran else f"{self.status}: {self.note}",
        }


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The same tokens from every form, program and batch.")
    parser.add_argument("--pair", default=PAIR, help=f"planted:TARGET+DRAFT@ALPHA (default: {PAIR})")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or interpret")
    work = ("num-prompts", "max-tokens", "seed", "json-out")
    add_shared(parser, *work, num_prompts=32, max_tokens=1000)
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument("--forms", nargs="+", choices=FORMS, help="default: all")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--gamma", type=int, default=4)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--budget", type=float, default=240.0, help="seconds after which nothing is begun")
    options = parser.parse_args(argv)
    require_positive(parser, options, "num-prompts", "max-tokens", "gamma")
    if options.device == "interpret":
        if options.forms:
            parser.error("--forms is for a GPU: the interpreter has one")
        options.forms = [EAGER]
    options.forms = options.forms or list(FORMS)
    if min(options.batches) < 1 or 1 not in options.batches:
        parser.error(f"--batches {options.batches}: 1 is what the others are compared with: name it too")
    return options


def ways_of(options: argparse.Namespace) -> list[Way]:
    """All of them: what is compared with first, then by engine, so that each is built once."""
    return [
        Way(form, batch, strategy, options.gamma if strategy != "ar" else 0, temperature)
        for form in options.forms
        for batch in sorted(options.batches)
        for strategy in sorted(options.strategies, key=STRATEGIES.index)
        for temperature in options.temperature
    ]


def varied_prompts(vocab_size: int, count: int, longest: int, seed: int) -> list[list[int]]:
    """Random ids; the lengths go from 1 to `longest` and back, so that a batch has short and long ones."""
    rng = np.random.default_rng([seed, count])
    lengths = [1 + (i * 97) % longest for i in range(count - 1)] + [longest]
    return [rng.integers(2, vocab_size, length).tolist() for length in lengths]


MakeEngine = Callable[[str, int], Engine]  # form, sequences at once


def engines_of(options: argparse.Namespace) -> tuple[MakeEngine, list[list[int]]]:
    """What makes engines of the pair, and its prompts. The draft is not calibrated: any agreement does."""
    plan = plan_on_device(options, PairSpec.parse(options.pair))
    target, draft = plan.configs
    longest = INTERPRETED_PROMPT if options.device == "interpret" else LONGEST_PROMPT
    prompts = varied_prompts(plan.vocab_size, options.num_prompts, longest, options.seed)

    def make(form: str, batch: int) -> Engine:
        own: dict[str, Any] = {} if options.device == "interpret" else {"form": form}
        return Engine(
            target,
            plan.target_tensors(RATIO),
            draft,
            plan.draft_tensors(),
            judge="coupled",
            device=options.device,
            gamma=options.gamma,
            max_num_seqs=batch,
            max_model_len=longest + options.max_tokens,
            **own,
        )

    return make, prompts


@dataclass
class Comparison:
    """Runs ways, and holds each against the first answers at its temperature."""

    make_engine: MakeEngine
    prompts: Sequence[list[int]]
    max_tokens: int
    seed: int

    def __post_init__(self) -> None:
        self.reference: dict[float, list[list[int]]] = {}

    def run(
        self,
        ways: Sequence[Way],
        *,
        deadline: float,
        clock: Callable[[], float] = time.monotonic,
        report: Callable[[Way], None] = lambda _: None,
    ) -> list[Row]:
        """A row a way. An engine that fails hides no other; after the deadline nothing is begun."""
        rows: list[Row] = []
        for form, batch in dict.fromkeys((way.form, way.batch) for way in ways):
            own = [way for way in ways if (way.form, way.batch) == (form, batch)]
            if clock() > deadline:
                rows += [Row(way, "left out", "no time") for way in own]
                continue
            try:
                engine = self.make_engine(form, batch)
            except (PearlError, RuntimeError) as error:
                rows += [Row(way, "failed", described(error)) for way in own]
                continue
            with engine:
                for way in own:
                    report(way)
                    late = clock() > deadline
                    rows.append(Row(way, "left out", "no time") if late else self.row(engine, way))
            del engine
            gc.collect()  # its weights and graphs, before the next one's
        return rows

    def row(self, engine: Engine, way: Way) -> Row:
        """Everything that one way writes, compared."""
        count, tokens = len(self.prompts), self.max_tokens
        if way.form == EAGER and way.batch == 1:
            count, tokens = min(count, EAGER_ALONE[0]), min(tokens, EAGER_ALONE[1])
        begin = time.perf_counter()
        try:
            outputs = engine.generate(
                [list(prompt) for prompt in self.prompts[:count]],
                SamplingParams(
                    temperature=way.temperature, max_tokens=tokens, seed=self.seed, ignore_eos=True
                ),
                strategy=way.strategy,
                gamma=way.gamma or None,
            )
        except (PearlError, RuntimeError) as error:
            return Row(way, "failed", described(error))
        seconds = time.perf_counter() - begin
        found = [output.token_ids for output in outputs]
        reference = self.reference.setdefault(way.temperature, found)
        departures = [
            (common_prefix(theirs, ours), prompt)
            for prompt, (theirs, ours) in enumerate(zip(reference, found, strict=False))
            if theirs[:tokens] != ours[:tokens] or len(ours) != tokens
        ]
        token, first = min(departures, default=(None, None))
        judged = sum(output.metrics.judged for output in outputs)
        accepted = sum(output.metrics.accepted for output in outputs)
        return Row(
            way,
            "ok",
            "",
            min(len(reference), count),
            tokens,
            len(departures),
            first,
            token,
            accepted / judged if judged else None,
            seconds,
        )


def goal_rows(rows: Sequence[Row]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What ran, and the tags of what was left out, for goals.verdict."""
    tags = {"op": "equality"}
    ran = [
        {
            "name": str(row.way),
            "tags": tags,
            "status": row.status,
            "note": row.note,
            "different": row.different,
        }
        for row in rows
        if row.status != "left out"
    ]
    return ran, [tags for row in rows if row.status == "left out"]


def report(options: argparse.Namespace, rows: Sequence[Row]) -> dict[str, Any]:
    """Prints everything, returns the figures."""
    print(format_table([row.cells() for row in rows], COLUMNS))
    verdicts = [verdict(goal, *goal_rows(rows)) for goal in EQUALITY_GOALS]
    wrong = [row for row in rows if row.different or row.status == "failed"]
    compared = sum(row.prompts for row in rows)
    print(
        f"{compared} answers compared, prompts x forms x programs x batches: "
        f"{sum(row.different for row in rows)} differ"
    )
    print(format_goals(verdicts))
    figures = {
        "pair": options.pair,
        "device": options.device,
        "num_prompts": options.num_prompts,
        "max_tokens": options.max_tokens,
        "rows": [row.to_dict() for row in rows],
        "goals": [v.to_dict() for v in verdicts],
        "outputs_equal": not wrong,
    }
    return finish(figures, options.json_out)


def compared(options: argparse.Namespace, deadline: float) -> dict[str, Any]:
    """Runs every way within its time -> the figures."""
    make_engine, prompts = engines_of(options)
    ways = ways_of(options)
    print(
        f"{options.pair} on {options.device}, the target's r {RATIO:g}; {len(prompts)} prompts of "
        f"{min(map(len, prompts))} to {max(map(len, prompts))} ids"
    )
    comparison = Comparison(make_engine, prompts, options.max_tokens, options.seed)
    with tqdm(total=len(ways), unit="way", file=sys.stderr, dynamic_ncols=True) as bar:

        def progress(way: Way) -> None:
            bar.set_postfix_str(str(way))
            bar.update()

        rows = comparison.run(ways, deadline=deadline, report=progress)
    return report(options, rows)


def main(argv: list[str] | None = None) -> int:
    options = parse_arguments(argv)
    deadline = time.monotonic() + options.budget
    return exit_code("equality", lambda: compared(options, deadline))


if __name__ == "__main__":
    sys.exit(main())
