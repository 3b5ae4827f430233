"""How many tokens a second several sequences get together, and what each of them waits for it.

    python bench/throughput.py                               the pair in models/, batches of 1 to 16
    python bench/throughput.py --pair planted:88m+8m@0.8 --peers hf
    python bench/throughput.py --device cuda --pair planted:8b+135m@0.9 --batches 1 4 16 --gamma 10

The same prompts in batches of each size with each program, interleaved; greedy, or sampled with the same
noise for all (judge "coupled"). On a device an engine has steps for so many sequences, so that each size has
an engine of its own, one after the other. Prints a card, a table, and as its last line the same figures as
JSON. Exit status 1, and no speed-ups, if a batch changed a token of any program.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script: our modules are bench.*, and none of them may shadow another's
    sys.path[0] = os.path.dirname(sys.path[0])

from tqdm import tqdm

from bench.harness.batched_peer import BatchedHuggingFace
from bench.harness.environment import bandwidth_card, format_card, machine_card
from bench.harness.exit_code import exit_code
from bench.harness.measure import WARM_TOKENS, timed
from bench.harness.table import format_table
from bench.model_pairs.model_pair import Subject, open_subject
from bench.model_pairs.planted import PairSpec
from pearl_rt import SamplingParams
from pearl_rt.options import FORMS

if TYPE_CHECKING:
    from bench.model_pairs.device_model_pair import DeviceSubject

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


@dataclass
class Figures:
    """One program at one size of batch."""

    strategy: str
    gamma: int
    batch: int
    seconds: float = 0.0
    outputs: dict[int, list[int]] = field(default_factory=dict)  # prompt -> its tokens
    metrics: list[Any] = field(default_factory=list)  # of ours; a peer has none

    @property
    def tokens_per_second(self) -> float:
        return sum(map(len, self.outputs.values())) / self.seconds

    def row(self) -> dict[str, Any]:
        """What the table and the JSON have of it, without speed-ups."""
        row: dict[str, Any] = {
            "strategy": self.strategy,
            "gamma": self.gamma or None,
            "batch": self.batch,
            "tokens_per_second": self.tokens_per_second,
            **dict.fromkeys(("x_ar", "x_alone", "ttft_p50_ms", "tpot_p50_ms", "tpot_p95_ms")),
            **dict.fromkeys(("acceptance", "tokens_per_round", "accepted_per_position")),
        }
        if not self.metrics:
            return row
        tpots = sorted(m.tpot * 1e3 for m in self.metrics)
        judged, rounds = sum(m.judged for m in self.metrics), sum(m.rounds for m in self.metrics)
        row |= {
            "ttft_p50_ms": statistics.median(m.ttft * 1e3 for m in self.metrics),
            "tpot_p50_ms": statistics.median(tpots),
            "tpot_p95_ms": tpots[min(len(tpots) - 1, round(0.95 * len(tpots)))],
            "acceptance": sum(m.accepted for m in self.metrics) / judged if judged else None,
            "tokens_per_round": sum(len(m.token_times) - 1 for m in self.metrics) / max(rounds, 1),
            "accepted_per_position": by_position(self.metrics) or None,
        }
        return row


def by_position(metrics: Sequence[Any]) -> str:
    """Of the drafts that were judged in each place of the window, the share that stood."""
    judged: Counter[int] = Counter()
    accepted: Counter[int] = Counter()
    for one in metrics:
        judged.update(dict(enumerate(one.judged_at)))
        accepted.update(dict(enumerate(one.accepted_at)))
    return " ".join(f"{accepted[place] / judged[place]:.2f}" for place in sorted(judged) if judged[place])


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tokens a second of several sequences at once.")
    parser.add_argument("--target", type=Path, help="checkpoint directory (default: models/target)")
    parser.add_argument("--draft", type=Path, help="checkpoint directory (default: models/draft)")
    parser.add_argument("--pair", help="planted:TARGET+DRAFT@ALPHA instead of checkpoints")
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float32"))
    parser.add_argument("--prompts", type=Path, help="text, or JSONL")
    parser.add_argument("--num-prompts", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument(
        "--strategies",
        nargs="+",
        default=["ar", "sd", "pearl", "auto"],
        choices=("ar", "sd", "pearl", "auto"),
    )
    parser.add_argument("--gamma", type=int, default=3, help="drafts per window of sd and pearl")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or interpret")
    parser.add_argument("--form", choices=FORMS, default=FORMS[0], help="how a GPU's rounds are launched")
    parser.add_argument("--isa", help="force an instruction set")
    parser.add_argument("--threads", type=int, help="cores to use")
    parser.add_argument("--peers", choices=("hf",), help="hf: Hugging Face's batched generate beside ours")
    parser.add_argument("--json-out", type=Path, help="write the JSON of the last line, indented")
    options = parser.parse_args(argv)
    for name in ("num_prompts", "max_tokens", "repeats", "gamma"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)} would measure nothing")
    if min(options.batches) < 1 or max(options.batches) > options.num_prompts:
        parser.error(f"--batches {options.batches}: pass sizes of 1 to --num-prompts ({options.num_prompts})")
    options.max_num_seqs = max(options.batches)
    options.draft_device, options.forms = None, [options.form]
    if options.device != "cpu" and options.peers:
        parser.error("--peers is for a CPU: on a device bench/latency.py runs them, one sequence at a time")
    return options


def measure(
    subject: Subject | DeviceSubject, options: argparse.Namespace, batches: Sequence[int]
) -> list[Figures]:
    """Every program at every size, by turns: a slow minute of the machine hits all alike."""
    found = {
        (strategy, batch): Figures(strategy, options.gamma if strategy in ("sd", "pearl") else 0, batch)
        for batch in batches
        for strategy in options.strategies
    }
    total = options.repeats * len(found)
    with tqdm(total=total, unit="run", file=sys.stderr, dynamic_ncols=True, leave=False) as bar:
        for _ in range(options.repeats):
            for figures in found.values():
                run(subject, options, figures)
                bar.update()
    return list(found.values())


def run(subject: Subject | DeviceSubject, options: argparse.Namespace, figures: Figures) -> None:
    """All prompts once, a batch after the other."""
    params = SamplingParams(
        temperature=options.temperature, max_tokens=options.max_tokens, seed=options.seed, ignore_eos=True
    )
    for first in range(0, len(subject.prompts), figures.batch):
        prompts = subject.prompts[first : first + figures.batch]
        generate = partial(
            subject.engine.generate,
            prompts,
            params,
            strategy=figures.strategy,
            gamma=figures.gamma or None,
            placement=None if figures.strategy == "auto" else "shared",
            judge="coupled",
        )
        outputs, seconds = timed(generate)
        figures.seconds += seconds
        for place, output in enumerate(outputs, first):
            figures.outputs[place] = output.token_ids
            figures.metrics.append(output.metrics)


def first_difference(found: Sequence[Figures]) -> str | None:
    """Where two programs or sizes wrote different tokens, or None."""
    reference = found[0]
    for other in found[1:]:
        for prompt, tokens in reference.outputs.items():
            if other.outputs[prompt] != tokens:
                return (
                    f"prompt {prompt}: {other.strategy} in batches of {other.batch} wrote other tokens than "
                    f"{reference.strategy} in batches of {reference.batch}"
                )
    return None


def with_speed_ups(found: Sequence[Figures], repeats: int) -> list[dict[str, Any]]:
    """Rows, compared with ar in batches of the same size, and with the same program alone."""
    rates = {(f.strategy, f.batch): f.tokens_per_second * repeats for f in found}
    rows = []
    for figures in found:
        row, rate = figures.row(), rates[figures.strategy, figures.batch]
        row["tokens_per_second"] = rate
        for name, other in (("x_ar", ("ar", figures.batch)), ("x_alone", (figures.strategy, 1))):
            row[name] = rate / rates[other] if other in rates else None
        rows.append(row)
    return rows


def measure_on_device(options: argparse.Namespace) -> dict[str, Any]:
    """An engine for each size, one after the other: prints everything, returns the figures."""
    from bench.harness.device_latency import device_card, print_card
    from bench.model_pairs.device_model_pair import open_on_device

    found: list[Figures] = []
    told: dict[str, Any] = {}
    for batch in options.batches:
        subject = open_on_device(argparse.Namespace(**vars(options) | {"max_num_seqs": batch}))
        with subject.engine:
            if not told:
                machine, bandwidth = device_card(subject)
                print_card(subject, machine, bandwidth)
                told = {
                    "machine": machine,
                    "bandwidth_gb_per_second": {"copy": bandwidth / 1e9} if bandwidth else None,
                    "models": [asdict(m) for m in subject.figures],
                }
            if subject.plan is not None:
                subject.plant(PairSpec.parse(options.pair).alpha, lambda what: None)
            print(*subject.notes, f"an engine for {batch}", sep="; ", flush=True)
            if subject.is_gpu:  # every program once: captured, compiled, warm
                warm = argparse.Namespace(**vars(options) | {"max_tokens": WARM_TOKENS, "repeats": 1})
                measure(subject, warm, [batch])
            found += measure(subject, options, [batch])
            told["notes"] = subject.notes
        del subject
        gc.collect()  # its weights and graphs, before the next one's
    return finish(options, found, told, {})


def report(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """Prints everything, returns the figures."""
    from pearl_rt import _C

    isa = options.isa or _C.detect_isa()
    dtype = "bfloat16" if options.dtype == "auto" else options.dtype
    machine = machine_card(isa=isa, cpus=subject.cores, dtype=dtype)
    bandwidth = bandwidth_card(_C.CoreSet(subject.cores), subject.figures)
    print(format_card(machine, subject.figures, bandwidth), *subject.notes, sep="\n", flush=True)
    found = measure(subject, options, options.batches)
    difference = first_difference(found)
    agreement: dict[int, float] = {}
    if options.peers and difference is None:
        with subject.checkpoint_directories() as (target, _):
            peer = BatchedHuggingFace(target, len(subject.cores))
            machine["transformers"] = peer.version
            for batch in options.batches:
                outputs, seconds = peer.generate(subject.prompts, options.max_tokens, batch)
                found.append(Figures("hf ar", 0, batch, seconds * options.repeats, dict(enumerate(outputs))))
                same = sum(found[0].outputs[i] == tokens for i, tokens in enumerate(outputs))
                agreement[batch] = same / len(outputs)
    told = {
        "machine": machine,
        "bandwidth_gb_per_second": bandwidth,
        "models": [asdict(m) for m in subject.figures],
        "notes": subject.notes,
    }
    return finish(options, found, told, agreement)


def finish(
    options: argparse.Namespace,
    found: Sequence[Figures],
    told: dict[str, Any],
    agreement: dict[int, float],
) -> dict[str, Any]:
    """The table and the JSON. told: the machine and the models; agreement: of a peer, by batch."""
    difference = first_difference([figures for figures in found if figures.metrics])
    rows = with_speed_ups(found, options.repeats) if difference is None else [f.row() for f in found]
    print(f"\n{format_table(rows, COLUMNS)}")
    print(difference or "all programs wrote the same tokens in every batch")
    for batch, share in agreement.items():
        print(f"hf ar in batches of {batch}: {share:.0%} of its answers are ours, token for token")
    figures = told | {
        "rows": rows,
        "peer_agreement": agreement,
        "outputs_equal": difference is None,
    }
    print(json.dumps(figures))
    if options.json_out:
        options.json_out.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def main(argv: list[str] | None = None) -> int:
    options = parse_arguments(argv)

    def measured() -> dict[str, Any]:
        if options.device != "cpu":
            return measure_on_device(options)
        subject = open_subject(options)
        with subject.engine:
            return report(subject, options)

    return exit_code("throughput", measured)


if __name__ == "__main__":
    sys.exit(main())
