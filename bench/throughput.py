"""How many tokens a second several sequences get together, and what each of them waits for it.

    python bench/throughput.py                               the pair in models/, batches of 1 to 16
    python bench/throughput.py --pair planted:88m+8m@0.8 --peers hf
    python bench/throughput.py --device cuda --pair planted:8b+135m@0.9 --batches 1 4 16 --gamma 10

The same prompts in batches of each size with each program, interleaved; greedy, or sampled with the same
noise for all (judge "coupled"). On a device an engine has steps for so many sequences, so that each size has
an engine of its own, one after the other. Prints the environment, a table, and as its last line the same
figures as JSON. Exit status 1, and no speed-ups, if a batch changed a token of any program.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
from collections.abc import Sequence
from typing import Any

if not __package__:  # run as a script: our modules are bench.*, and none of them may shadow another's
    sys.path[0] = os.path.dirname(sys.path[0])

import numpy as np
from tqdm import tqdm

from bench.harness.command import MODELS, add_shared, exit_code, finish, require_positive
from bench.harness.measure import (
    Measured,
    Program,
    Workload,
    by_position,
    first_difference,
    measure,
    pooled,
    tokens_per_round,
    tokens_per_second,
)
from bench.harness.table import format_table
from bench.model_pairs.model_pair import ModelPair, open_pair, report_environment
from pearl_rt.strategy.engine_options import FORMS

COLUMNS = (
    ("strategy", "strategy", "s"),
    ("gamma", "gamma", "d"),
    ("batch", "batch", "d"),
    ("tokens_per_second", "tok/s", ".1f"),
    ("x_ar", "x ar", ".2f"),
    ("x_alone", "x batch 1", ".2f"),
    ("ttft_p50_ms", "TTFT p50 ms", ".2f"),
    ("tpot_p50_ms", "TPOT p50 ms", ".3f"),
    ("tpot_p95_ms", "p95", ".3f"),
    ("acceptance", "accept", ".3f"),
    ("tokens_per_round", "tok/round", ".2f"),
    ("accepted_per_position", "accepted by position", "s"),
)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tokens a second of several sequences at once.")
    work = ("prompts", "num-prompts", "max-tokens", "repeats", "seed", "isa", "threads", "json-out")
    add_shared(parser, *MODELS, *work, num_prompts=16, max_tokens=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument(
        "--strategies",
        nargs="+",
        default=["ar", "sd", "pearl", "auto"],
        choices=("ar", "sd", "pearl", "auto"),
    )
    parser.add_argument("--gamma", type=int, default=3, help="drafts per window of sd and pearl")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or interpret")
    parser.add_argument("--form", choices=FORMS, default=FORMS[0], help="how a GPU's rounds are launched")
    parser.add_argument("--peers", choices=("hf",), help="hf: Hugging Face's batched generate beside ours")
    options = parser.parse_args(argv)
    require_positive(parser, options, "num-prompts", "max-tokens", "repeats", "gamma")
    if min(options.batches) < 1 or max(options.batches) > options.num_prompts:
        parser.error(f"--batches {options.batches}: pass sizes of 1 to --num-prompts ({options.num_prompts})")
    options.draft_device, options.forms = None, [options.form]
    if options.device != "cpu" and options.peers:
        parser.error("--peers is for a CPU: on a device bench/latency.py runs them, one sequence at a time")
    return options


def programs_of(options: argparse.Namespace, pair: ModelPair, batch: int) -> list[Program]:
    """What runs at one size: in the first form on a device, on all cores of a CPU."""
    place = pair.forms[0] if pair.on_device else "shared"
    return [
        Program(
            strategy,
            "auto" if strategy == "auto" and not pair.on_device else place,
            options.gamma if strategy in ("sd", "pearl") else 0,
            batch=batch,
        )
        for strategy in options.strategies
    ]


def workload_of(options: argparse.Namespace, pair: ModelPair, batch: int) -> Workload:
    """The same prompts and noise at every size."""
    return Workload(pair.prompts, options.max_tokens, options.temperature, options.seed, batch, one_seed=True)


def row_of(result: Measured, rates: dict[tuple[str, int], float]) -> dict[str, Any]:
    """A row of the table and the JSON. rates: tok/s that it is compared with, none if tokens differ."""
    program, metrics, rate = result.program, result.metrics, tokens_per_second(result)
    tpots = [m.tpot * 1e3 for m in metrics]

    def times(strategy: str, batch: int) -> float | None:
        base = rates.get((strategy, batch))
        return rate / base if base else None

    return {
        "strategy": program.strategy,
        "gamma": program.gamma or None,
        "batch": program.batch,
        "tokens_per_second": rate,
        "x_ar": times("ar", program.batch),
        "x_alone": times(program.strategy, 1),
        "ttft_p50_ms": statistics.median(m.ttft * 1e3 for m in metrics) if metrics else None,
        "tpot_p50_ms": statistics.median(tpots) if metrics else None,
        "tpot_p95_ms": float(np.percentile(tpots, 95)) if metrics else None,
        "acceptance": pooled(result, "accepted", "judged"),
        "tokens_per_round": tokens_per_round(metrics) if metrics else None,
        "accepted_per_position": " ".join(f"{share:.2f}" for share in by_position(metrics)) or None,
    }


class Throughput:
    """Every program at every size of batch."""

    def __init__(self, options: argparse.Namespace, bar: tqdm[Any]) -> None:
        self.options, self.bar = options, bar
        self.found: list[Measured] = []
        self.figures: dict[str, Any] = {}
        self.agreement: dict[int, float] = {}  # of a peer with us, by batch

    def run(self, pair: ModelPair, batches: Sequence[int]) -> None:
        """On one engine, by turns."""
        options = self.options
        self.figures = self.figures or report_environment(pair, options)
        if pair.plan is not None:
            pair.replant(pair.plan.spec.alpha)
        self.figures["notes"] = pair.notes
        sizes = [f"an engine for {batch}" for batch in batches if pair.on_device]
        print("; ".join([*pair.notes, *sizes]), flush=True)
        for batch in batches:
            self.found += measure(
                pair.run,
                programs_of(options, pair, batch),
                workload_of(options, pair, batch),
                repeats=options.repeats,
                progress=lambda _: self.bar.update(),
                **({"warm_tokens": 0} if pair.device == "interpret" else {}),
            )

    def add_peer(self, pair: ModelPair) -> None:
        """Hugging Face behind ours, which may be compared: it has no batches beside an assistant."""
        peer = pair.hugging_face()
        self.figures["machine"]["transformers"] = peer.version
        ours = {sample.prompt: sample.token_ids for sample in self.found[0].samples}
        for batch in self.options.batches:
            workload = workload_of(self.options, pair, batch)
            [found] = measure(peer, [Program("hf ar", batch=batch)], workload, warm_tokens=0)
            self.found.append(found)
            same = sum(ours[sample.prompt] == sample.token_ids for sample in found.samples)
            self.agreement[batch] = same / len(found.samples)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Everything: prints the table, returns the figures."""
    on_device = options.device != "cpu"
    engines = [[batch] for batch in options.batches] if on_device else [options.batches]
    with tqdm(unit="run", file=sys.stderr, dynamic_ncols=True, leave=False) as bar:
        job = Throughput(options, bar)
        for batches in engines:
            pair = open_pair(argparse.Namespace(**vars(options), max_num_seqs=max(batches)))
            with pair.engine:
                job.run(pair, batches)
                difference = first_difference(job.found)
                if options.peers and difference is None:
                    job.add_peer(pair)
            del pair
            gc.collect()  # its weights and graphs, before the next one's
    rates = {(r.program.strategy, r.program.batch): tokens_per_second(r) for r in job.found}
    rows = [row_of(result, rates if difference is None else {}) for result in job.found]
    print(f"\n{format_table(rows, COLUMNS)}")
    print(difference or "all programs wrote the same tokens in every batch")
    for batch, share in job.agreement.items():
        print(f"hf ar in batches of {batch}: {share:.0%} of its answers are ours, token for token")
    equal = {"peer_agreement": job.agreement, "outputs_equal": difference is None}
    return finish(job.figures | {"rows": rows} | equal, options.json_out)


def main(argv: list[str] | None = None) -> int:
    options = parse_arguments(argv)
    return exit_code("throughput", lambda: measured(options))


if __name__ == "__main__":
    sys.exit(main())
