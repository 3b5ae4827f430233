"""Two devices whose steps take given times: scripted models behind the real lanes, coordinator and ring.

Draft and target have a thread each and no shared bottleneck, as a step is a wait. What is measured is what
the machinery adds to the steps, and what its overlap gives. Tokens are a hash of what stands before them; at
a chosen share of the places, given by the hash too, the draft's token is the target's. Knows no tables.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from bench.harness.measure import Program, Sample, Workload, timed
from bench.model_pairs.shapes import config_of
from bench.rounds.expected import expected_rounds
from pearl_rt import _C
from pearl_rt.backends.base import Lanes
from pearl_rt.device.kv_pool import KvPool
from pearl_rt.errors import ConfigError
from pearl_rt.kernels.base.shapes import ModelShape
from pearl_rt.scheduling.job import Job
from pearl_rt.strategy.chooser import Chooser
from pearl_rt.strategy.planner import GAMMAS, Plan, StepTimes
from pearl_rt.strategy.program_choice import ProgramChoice
from pearl_rt.strategy.step_timing import POLL_MS
from pearl_rt.types.metrics import RequestMetrics
from pearl_rt.types.request import Request
from pearl_rt.types.sampling_params import SamplingParams

VOCAB = 64
PROMPT = (1, 2, 3, 4)
PLACEMENT = "split"  # two devices
CONFIG = config_of(ModelShape("timed", 32, 48, 1, 1, 1, 32, VOCAB))  # a vocabulary; nothing else is read
CHOICE = ProgramChoice(("ar", "sd", "pearl"), (PLACEMENT,), GAMMAS)


@dataclass(frozen=True)
class Steps:
    """Milliseconds of one forward pass, whatever its tokens."""

    target_ms: float
    draft_ms: float

    @property
    def times(self) -> StepTimes:
        """As the planner takes them."""
        return StepTimes.constant(self.target_ms * 1e-3, self.draft_ms * 1e-3)

    def round_ms(self, strategy: str, gamma: int) -> float:
        """A round in which the machinery takes no time."""
        if strategy == "ar":
            return self.target_ms
        window = gamma * self.draft_ms
        return self.target_ms + window if strategy == "sd" else max(self.target_ms, window)


class TimedLanes(Lanes):
    """Lanes over scripted executors, one device for each."""

    overlaps = True

    def __init__(self, steps: Steps, rule: int, alpha: float, max_tokens: int) -> None:
        """rule: which text. alpha: share of the places where the draft's likeliest token is the target's."""
        try:
            from pearl_rt import _testing
        except ImportError:
            raise ConfigError(
                "timed devices are made of pearl_rt._testing, which only a checkout has that is built in "
                "place: run `make build` there"
            ) from None
        pool = KvPool.of(None, num_slots=1, max_model_len=max(len(PROMPT) + max_tokens, 256))
        super().__init__(PLACEMENT, CONFIG, CONFIG, pool)
        shape = {"vocab_size": VOCAB, "max_model_len": pool.max_model_len, "rule": rule}
        shape |= {"num_blocks": pool.num_blocks, "block_size": pool.block_size}
        # Where a draft diverges it has another row of random logits, of which one in VOCAB has the same top.
        divergence = (1 - alpha) * VOCAB / (VOCAB - 1)
        self.target = _testing.ScriptedExecutor(**shape, step_us=steps.target_ms * 1e3)
        self.draft = _testing.ScriptedExecutor(
            **shape, step_us=steps.draft_ms * 1e3, divergence=min(divergence, 1.0)
        )
        lanes = [
            _C.CpuLane("target", self.target, _C.Device([])),
            _C.CpuLane("draft", self.draft, _C.Device([])),
        ]
        self.coordinator = self.coordinator_of(lanes, 1, pool, VOCAB, VOCAB)


def decode(lanes: TimedLanes, plan: Plan, max_tokens: int) -> tuple[list[int], RequestMetrics]:
    """One greedy answer by a program -> its tokens and what it cost."""
    request = Request(PROMPT, gamma=plan.gamma, max_tokens=max_tokens, ignore_eos=True)
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    job = Job(None, request, params, CHOICE, "coupled", tokenizer=None)
    job.plan = plan
    job.ask()
    lanes.start(plan.strategy, request, job.judge)
    while (results := lanes.next(POLL_MS, 64)) is not None:
        if results:
            job.add(results)
    output = job.finish(lanes.trace())
    return output.token_ids, output.metrics


def agreements(rule: int, alpha: float, max_tokens: int) -> list[bool]:
    """[max_tokens - 1] whether the draft's token is the target's, at each place behind the first."""
    lanes = TimedLanes(Steps(0.0, 0.0), rule, alpha, max_tokens)
    ids, _ = decode(lanes, Plan("ar", 0, PLACEMENT, 1.0, 1.0), max_tokens)
    rows = lanes.draft.forward(0, [*PROMPT, *ids[:-1]], 0, max_tokens - 1)
    return [bool(row) for row in rows.argmax(axis=1) == ids[1:]]


def counted_rounds(strategy: str, agrees: Sequence[bool], gamma: int) -> int:
    """How many rounds a program takes over this text: pearl_rt/reference/round.py, by agreements alone."""
    at, pending, rounds = 0, 0, 0
    while at < len(agrees):
        judged = {"ar": 0, "sd": gamma, "pearl": pending + 1}[strategy]
        accepted = next((k for k in range(judged) if not all(agrees[at + k : at + k + 1])), judged)
        stands = accepted == judged
        at += accepted + (strategy != "pearl" or not stands)
        pending = gamma - 1 if strategy == "pearl" and stands else 0
        rounds += 1
    return rounds


@dataclass(frozen=True)
class Text:
    """A scripted text whose agreements are typical of their rate."""

    rule: int
    alpha: float
    max_tokens: int
    agrees: list[bool]
    deviation: float  # the largest, over programs, of the rounds taken from those that the rate gives

    @classmethod
    def typical(
        cls, alpha: float, max_tokens: int, programs: Iterable[tuple[str, int]], rules: Iterable[int]
    ) -> Text:
        """The most typical of these rules for these programs, (strategy, gamma). A short text of random
        agreements may be far from its rate: at 0.95 and 200 tokens the rounds of two texts differ by a fifth.
        """
        expected = {(s, gamma): expected_rounds(s, alpha, gamma, max_tokens - 1) for s, gamma in programs}

        def deviation(agrees: Sequence[bool]) -> float:
            return max(abs(counted_rounds(s, agrees, g) / n - 1) for (s, g), n in expected.items())

        texts = [(rule, agreements(rule, alpha, max_tokens)) for rule in rules]
        worst, rule, agrees = min((deviation(agrees), rule, agrees) for rule, agrees in texts)
        return cls(rule, alpha, max_tokens, agrees, worst)


@dataclass
class TimedPair:
    """bench.harness.measure.Runner over timed devices; auto learns from whatever has run."""

    steps: Steps
    text: Text
    chooser: Chooser = field(default_factory=Chooser)
    lanes: TimedLanes = field(init=False)

    def __post_init__(self) -> None:
        text = self.text
        self.lanes = TimedLanes(self.steps, text.rule, text.alpha, text.max_tokens)

    def __call__(self, program: Program, workload: Workload, prompt: int) -> list[Sample]:
        """Each workload is the one text, or as much of it."""
        plan = Plan(program.strategy, program.gamma, PLACEMENT, 1.0, 1.0)
        if program.strategy == "auto":
            plan = self.chooser.choose(CHOICE, "greedy")
        (ids, metrics), seconds = timed(lambda: decode(self.lanes, plan, workload.max_tokens))
        if self.chooser.times:
            self.chooser.learn(plan, "greedy", metrics)
        return [Sample(prompt, ids, seconds, metrics.ttft, metrics.tpot, metrics)]


def overhead_us(metrics: RequestMetrics, steps: Steps) -> float:
    """What a round takes beside its steps: the median over rounds, from verdict to verdict."""
    ends = sorted(set(metrics.token_times))
    periods = [(after - before) * 1e6 for before, after in pairwise(ends)]
    return statistics.median(periods) - steps.round_ms(metrics.strategy, metrics.gamma) * 1e3
