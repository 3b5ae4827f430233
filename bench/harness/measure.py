"""The instrument: runs the same prompts through every program, interleaved, and compares tokens before times.

Knows programs only by name and engines only as something that generates; knows no models, no tables and no
files.

A `Program` is one row of the table. `sweep` finds the best gamma of a kind of program with a few short
runs, `measure` runs the chosen programs over all prompts in the order A B C, A B C, .. (each round starting
one further, so that no program always follows the same one), and `first_difference` says whether all of
them wrote the same tokens.

Speed-ups are paired: the ratio of two programs' seconds on the same prompt, the median over prompts. A
drift of the machine's clock over the run cancels.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from pearl_rt.types.metrics import RequestMetrics

OWN = ("ar", "sd", "pearl", "auto")  # strategies; every other name is a peer's
WARM_TOKENS = 8


@dataclass(frozen=True)
class Program:
    """One way to generate: a strategy, where its lanes sit, its window, how drafts are judged at T > 0."""

    strategy: str  # ar, sd, pearl, auto, or a peer's name
    placement: str = "shared"  # where lanes sit, or, on a device, in which form rounds are launched
    gamma: int = 0  # 0: none, or the program chooses
    judge: str = "coupled"
    batch: int = 0  # prompts at once, where sizes are compared; 0: there is one size
    rounds_ahead: int = 0  # queued on a GPU, where depths are compared; 0: the engine's own

    @property
    def kind(self) -> tuple[str, str]:
        return self.strategy, self.placement

    def __str__(self) -> str:
        window = f" gamma {self.gamma}" if self.gamma else ""
        together = f" in batches of {self.batch}" if self.batch else ""
        return f"{self.strategy}/{self.placement}{window}{together}"


@dataclass(frozen=True)
class Workload:
    """What every program is given. Prompts are token ids, so that no tokenizer is timed."""

    prompts: Sequence[Sequence[int]]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    batch: int = 1  # prompts that run at once
    one_seed: bool = False  # for all prompts: batches of any size then write the same

    def part(self, num_prompts: int, max_tokens: int) -> Workload:
        """The same, over fewer prompts and tokens."""
        return replace(self, prompts=self.prompts[:num_prompts], max_tokens=min(max_tokens, self.max_tokens))

    def at(self, temperature: float) -> Workload:
        """The same, at another temperature."""
        return replace(self, temperature=temperature)

    def seed_of(self, prompt: int) -> int:
        """Of the batch that begins with this prompt."""
        return self.seed + (0 if self.one_seed else prompt)

    def firsts(self) -> range:
        """The first prompt of each batch."""
        return range(0, len(self.prompts), self.batch)

    def together(self, prompt: int) -> range:
        """The prompts of the batch that begins with this one."""
        return range(prompt, min(prompt + self.batch, len(self.prompts)))


@dataclass(frozen=True)
class Sample:
    """One prompt through one program."""

    prompt: int
    token_ids: list[int]
    seconds: float  # around the whole call, prefill included; in a batch, this prompt's share of that
    ttft: float
    tpot: float
    metrics: RequestMetrics | None  # None for a peer


class Runner(Protocol):
    """Generates max_tokens, past any end-of-text token, from the batch that begins with prompt i of a
    workload -> a sample for each of its prompts.
    """

    def __call__(self, program: Program, workload: Workload, prompt: int) -> list[Sample]: ...


@dataclass(frozen=True)
class Difference:
    """The first place at which two programs wrote different tokens."""

    prompt: int
    position: int
    programs: tuple[Program, Program]
    token_ids: tuple[int | None, int | None]  # None: had ended there

    def __str__(self) -> str:
        a, b = self.programs
        x, y = self.token_ids
        return f"prompt {self.prompt}, token {self.position}: {a} wrote {x}, {b} wrote {y}"


@dataclass
class Measured:
    """All samples of one program."""

    program: Program
    samples: list[Sample] = field(default_factory=list)

    @property
    def metrics(self) -> list[RequestMetrics]:
        """Of our own programs; a peer has none."""
        return [s.metrics for s in self.samples if s.metrics is not None]

    def seconds_by_prompt(self) -> dict[int, float]:
        """Median seconds of each prompt over the repeats."""
        prompts = {s.prompt for s in self.samples}
        return {
            p: statistics.median(s.seconds for s in self.samples if s.prompt == p) for p in sorted(prompts)
        }


Progress = Callable[[str], None]  # called with the name of each run before it starts


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading ids in which both agree."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def first_difference(measured: Iterable[Measured]) -> Difference | None:
    """The first prompt and token at which any program departs from the first one's output, or None.

    All programs must write the same tokens, with two exceptions. A program judged by rejection is compared
    with the same strategy and window only. auto judged by rejection is not compared: it may choose another
    strategy for each prompt.
    """
    everyone = [(m.program, s) for m in measured for s in m.samples]
    reference: dict[tuple[Any, int], tuple[Program, Sample]] = {}
    found: list[Difference] = []
    for program, sample in everyone:
        by_law = program.judge == "rejection" and program.strategy != "ar"
        if by_law and program.strategy == "auto":
            continue
        owed = (program.strategy, program.gamma) if by_law else None
        base_program, base = reference.setdefault((owed, sample.prompt), (program, sample))
        n = common_prefix(base.token_ids, sample.token_ids)
        if n < max(len(base.token_ids), len(sample.token_ids)):
            pair = tuple(ids[n] if n < len(ids) else None for ids in (base.token_ids, sample.token_ids))
            found.append(Difference(sample.prompt, n, (base_program, program), (pair[0], pair[1])))
    return min(found, key=lambda d: (d.prompt, d.position), default=None)


def measure(
    runner: Runner,
    programs: Sequence[Program],
    workload: Workload,
    *,
    repeats: int = 1,
    progress: Progress = lambda _: None,
    warm_tokens: int = WARM_TOKENS,
) -> list[Measured]:
    """Every program over every prompt, `repeats` times, interleaved, after a short uncounted run of each."""
    results = [Measured(program) for program in programs]
    if warm_tokens:
        for result in results:
            runner(result.program, workload.part(workload.batch, warm_tokens), 0)
    turn = 0
    for _ in range(repeats):
        for prompt in workload.firsts():
            for i in range(len(results)):
                result = results[(i + turn) % len(results)]
                progress(str(result.program))
                result.samples += runner(result.program, workload, prompt)
            turn += 1
    return results


def sweep(
    runner: Runner,
    kinds: Sequence[Program],
    gammas: Sequence[int],
    workload: Workload,
    progress: Progress = lambda _: None,
    warm_tokens: int = WARM_TOKENS,
) -> tuple[list[Program], dict[str, dict[int, float]]]:
    """The best gamma of each kind (strategy and placement), and tok/s of all that were tried."""
    programs = [Program(k.strategy, k.placement, gamma, k.judge) for k in kinds for gamma in gammas]
    rates: dict[str, dict[int, float]] = {}
    best: dict[tuple[str, str], Program] = {}
    for result in measure(runner, programs, workload, progress=progress, warm_tokens=warm_tokens):
        rate = tokens_per_second(result)
        rates.setdefault("/".join(result.program.kind), {})[result.program.gamma] = rate
        held = best.get(result.program.kind)
        if held is None or rate > rates["/".join(held.kind)][held.gamma]:
            best[result.program.kind] = result.program
    return [best[kind.kind] for kind in kinds], rates


def tokens_per_second(result: Measured) -> float:
    """New tokens over seconds of all samples, prefill included."""
    return sum(len(s.token_ids) for s in result.samples) / sum(s.seconds for s in result.samples)


def speed_up(result: Measured, base: Measured) -> float:
    """How many times faster than base: the median over prompts of base's seconds over result's."""
    mine, theirs = result.seconds_by_prompt(), base.seconds_by_prompt()
    return statistics.median(theirs[p] / mine[p] for p in mine)


def mean_metric(result: Measured, name: str) -> float | None:
    """Mean over samples of one of the engine's figures; None for a peer, or where it isn't defined: how busy
    a lane was is not known of one sequence among others.
    """
    values = [
        getattr(metrics, name) for metrics in result.metrics if metrics.trace or not name.endswith("_busy")
    ]
    values = [v for v in values if not math.isnan(v)]
    return float(np.mean(values)) if values else None


def pooled(result: Measured, numerator: str, denominator: str) -> float | None:
    """Sum of one count over the sum of another, over all samples."""
    below = sum(getattr(m, denominator) for m in result.metrics)
    return sum(getattr(m, numerator) for m in result.metrics) / below if below else None


def by_position(metrics: Sequence[RequestMetrics]) -> list[float]:
    """Of the drafts that were judged in each place of the window, the share that stood."""
    judged: Counter[int] = Counter()
    accepted: Counter[int] = Counter()
    for one in metrics:
        judged.update(dict(enumerate(one.judged_at)))
        accepted.update(dict(enumerate(one.accepted_at)))
    return [accepted[place] / judged[place] for place in sorted(judged) if judged[place]]


def tokens_per_round(metrics: Sequence[RequestMetrics]) -> float:
    """Over all requests together."""
    return sum(len(m.token_times) - 1 for m in metrics) / max(sum(m.rounds for m in metrics), 1)


def row_of(result: Measured, ar: Measured | None, sd: Measured | None) -> dict[str, Any]:
    """One row of the table: times in ms; x_ar and x_sd are None where there is nothing to compare with.

    TPOT is a request's mean time a token after its first; p50 and p95 are over requests.
    """
    tpots = [s.tpot * 1e3 for s in result.samples]
    program = result.program
    ran = sorted({f"{m.strategy}/{m.placement} {m.gamma}" for m in result.metrics})
    return {
        "strategy": program.strategy,
        "placement": program.placement,
        "gamma": program.gamma or None,
        "judge": program.judge,
        "ttft_ms": statistics.median(s.ttft for s in result.samples) * 1e3,
        "tpot_p50_ms": float(np.percentile(tpots, 50)),
        "tpot_p95_ms": float(np.percentile(tpots, 95)),
        "tokens_per_second": tokens_per_second(result),
        "x_ar": speed_up(result, ar) if ar else None,
        "x_sd": speed_up(result, sd) if sd else None,
        "acceptance": pooled(result, "accepted", "judged"),
        "tokens_per_round": mean_metric(result, "tokens_per_round"),
        "mean_accepted_tokens": mean_metric(result, "mean_accepted_tokens"),
        "draft_busy": mean_metric(result, "draft_busy") if program.strategy != "ar" else None,
        "target_busy": mean_metric(result, "target_busy"),
        "ran": ran if program.strategy == "auto" else None,
    }


def rows_of(results: Sequence[Measured], *, equal: bool) -> list[dict[str, Any]]:
    """All rows; speed-ups only if outputs were equal. x_ar: against the first ar, x_sd: the best sd that is
    judged as ar is.
    """
    ar = next((r for r in results if r.program.strategy == "ar"), None)
    judge = ar.program.judge if ar is not None else "coupled"
    serial = [r for r in results if r.program.strategy == "sd" and r.program.judge == judge]
    sd = max(serial, key=tokens_per_second, default=None)
    return [row_of(r, ar if equal else None, sd if equal else None) for r in results]


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What call returns, and its wall seconds."""
    begin = time.perf_counter()
    value = call()
    return value, time.perf_counter() - begin
