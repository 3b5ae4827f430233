"""What the planner says of step times and an acceptance rate that the user gives: `python -m pearl_rt plan`.

Knows figures only: no model, no device, no clock.
"""

from dataclasses import asdict, dataclass

from pearl_rt.errors import ConfigError
from pearl_rt.strategy.planner import Plan, StepTimes, plans
from pearl_rt.strategy.program import STRATEGIES
from pearl_rt.types.json import Json
from pearl_rt.types.values import Number

LONGEST_MS = 1e6
STEP_MS = Number(0, LONGEST_MS, above=True, off="milliseconds of one forward pass, measured or expected")
ALPHA = Number(0, 1, off="the share of drafted tokens that the target accepts, as metrics.acceptance_rate")
ASSUMED = "one sequence, on two devices that share no bottleneck; every token of a draft takes as long"


@dataclass(frozen=True)
class Answer:
    """The best program of each strategy, best first."""

    target_ms: float
    draft_ms: float
    alpha: float
    programs: list[Plan]

    @classmethod
    def of(cls, target_ms: object, draft_ms: object, alpha: object) -> "Answer":
        """Raises ConfigError for a time or a rate that cannot be, NaN and infinity included."""
        target = STEP_MS("--target-ms", target_ms, ConfigError)
        draft = STEP_MS("--draft-ms", draft_ms, ConfigError)
        rate = ALPHA("--alpha", alpha, ConfigError)
        times = {"devices": StepTimes.constant(target * 1e-3, draft * 1e-3)}
        ranked = plans(times, rate)
        best = [next(p for p in ranked if p.strategy == strategy) for strategy in STRATEGIES]
        return cls(target, draft, rate, sorted(best, key=ranked.index))

    def over_ar(self, program: Plan) -> float:
        """How many times as fast as plain decoding."""
        return program.tokens_per_second * self.target_ms * 1e-3

    def to_dict(self) -> Json:
        """As JSON has it; times in seconds, but for the two that were given."""
        programs = [
            asdict(p) | {"tokens_per_second": p.tokens_per_second, "x_ar": self.over_ar(p)}
            for p in self.programs
        ]
        given = {"target_ms": self.target_ms, "draft_ms": self.draft_ms, "alpha": self.alpha}
        return given | {"assumed": ASSUMED, "chosen": programs[0], "programs": programs}

    def __str__(self) -> str:
        """A line for each strategy, and what was assumed."""
        lines = ["strategy  gamma  tokens a round  ms a round  tokens/s   x ar"]
        for p in self.programs:
            lines.append(
                f"{p.strategy:<8}  {p.gamma or '-':>5}  {p.tokens_per_round:14.2f}  "
                f"{p.seconds_per_round * 1e3:10.3f}  {p.tokens_per_second:8.1f}  {self.over_ar(p):5.2f}"
            )
        rates = {p.strategy: p.tokens_per_second for p in self.programs}
        lines.append(
            f"pearl is {rates['pearl'] / rates['sd']:.2f} times the best sd. Expected for {ASSUMED}."
        )
        return "\n".join(lines)
