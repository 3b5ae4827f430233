"""Which program should run next: expected tokens and seconds per round, from step times and an acceptance
rate.

Pure arithmetic: it knows no engine, no lane and no clock. The model takes every draft token to be accepted
with the same probability a, independently (Leviathan et al., arXiv 2211.17192):

  ar     one token per t_T(1)
  sd     1 + a + .. + a^g = (1 - a^(g+1)) / (1 - a) tokens per g t_d + t_T(g+1)
  pearl  two states (arXiv 2408.11850), a Markov chain:
           pre    one draft judged,  1 token;                   -> post with probability a
           post   g drafts judged,   1 + a + .. + a^(g-1);      -> post with probability a^g
         so post holds a / (a + 1 - a^g) of the rounds; a round drafts g tokens beside a score of 1 or g rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

STRATEGIES = ("ar", "sd", "pearl")
PLACEMENTS = ("shared", "split")
MAX_GAMMA = 16
GAMMAS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16)  # windows that the planner looks at


@dataclass(frozen=True)
class StepTimes:
    """Seconds that the steps of one placement take.

    `beside_draft` and `beside_target` are the same steps while the other lane is at work on its own cores, or
    None where lanes share their cores and take turns.
    """

    target: Mapping[int, float]  # tokens in the forward -> seconds, target alone
    draft: float = 0.0  # one draft token, draft alone
    beside_draft: Mapping[int, float] | None = None  # tokens -> seconds of the target beside a busy draft
    beside_target: float | None = None  # one draft token beside a busy target


@dataclass(frozen=True)
class Plan:
    """A program that could run, and what is expected of it."""

    strategy: str
    gamma: int
    placement: str
    tokens_per_round: float
    seconds_per_round: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_per_round / self.seconds_per_round


@dataclass
class Acceptance:
    """A running acceptance rate: a Beta prior, and counts that lose half their weight every `half_life`
    judged drafts.

    The prior (7 of 10) is hopeful on purpose: what is never drafted is never measured. For the same reason
    counts fade a little with every request that drafts nothing, so that a pair given up on is tried again
    later.
    """

    prior_accepted: float = 7.0
    prior_judged: float = 10.0
    half_life: float = 500.0
    accepted: float = field(default=0.0, init=False)
    judged: float = field(default=0.0, init=False)

    @property
    def rate(self) -> float:
        return (self.prior_accepted + self.accepted) / (self.prior_judged + self.judged)

    def update(self, accepted: int, judged: int) -> None:
        """Adds one request's counts; one that judged nothing fades the older ones by a tenth."""
        keep = 0.5 ** (judged / self.half_life) if judged else 0.9
        self.accepted = self.accepted * keep + accepted
        self.judged = self.judged * keep + judged


def seconds(table: Mapping[int, float], tokens: int) -> float:
    """Time of a forward over `tokens` tokens: linear between measured sizes, the last slope beyond them."""
    if tokens in table:
        return table[tokens]
    sizes = sorted(table)
    if len(sizes) == 1 or tokens < sizes[0]:
        return table[sizes[0]] * max(1.0, tokens / sizes[0])
    above = next((i for i, size in enumerate(sizes) if size > tokens), len(sizes) - 1)
    low, high = sizes[above - 1], sizes[above]
    slope = max(0.0, (table[high] - table[low]) / (high - low))
    return table[low] + slope * (tokens - low)


def sd_tokens(acceptance: float, gamma: int) -> float:
    """Expected tokens of a serial round: 1 + a + .. + a^gamma, the bonus token included."""
    return sum(acceptance**k for k in range(gamma + 1))


def pearl_post_share(acceptance: float, gamma: int) -> float:
    """Share of PEARL's rounds that begin with gamma - 1 tokens pending, in the long run."""
    leave = 1 - acceptance**gamma
    return acceptance / (acceptance + leave) if acceptance else 0.0


def pearl_tokens(acceptance: float, gamma: int) -> float:
    """Expected tokens of a PEARL round, over both states."""
    post = pearl_post_share(acceptance, gamma)
    return (1 - post) + post * sum(acceptance**k for k in range(gamma))


def side_by_side(first: float, first_beside: float, second: float, second_beside: float) -> float:
    """Seconds until two steps that start together are both done, given each one's time alone and beside the
    other.

    Once one is done, what is left of the other goes on at its own speed. Without contention this is the
    maximum.
    """
    if first_beside > second_beside:
        first, first_beside, second, second_beside = second, second_beside, first, first_beside
    return first_beside + (1 - first_beside / second_beside) * second


def plan(strategy: str, gamma: int, placement: str, times: StepTimes, acceptance: float) -> Plan:
    """What one program is expected to do with these step times and this acceptance rate."""
    if strategy == "ar":
        return Plan("ar", 0, placement, 1.0, seconds(times.target, 1))
    window = gamma * times.draft
    if strategy == "sd":
        return Plan(
            "sd", gamma, placement, sd_tokens(acceptance, gamma), window + seconds(times.target, gamma + 1)
        )

    def round_seconds(pending: int) -> float:
        score = seconds(times.target, pending + 1)
        if times.beside_draft is None or times.beside_target is None:
            return window + score
        return side_by_side(
            window, gamma * times.beside_target, score, seconds(times.beside_draft, pending + 1)
        )

    post = pearl_post_share(acceptance, gamma)
    mean_seconds = (1 - post) * round_seconds(0) + post * round_seconds(gamma - 1)
    return Plan("pearl", gamma, placement, pearl_tokens(acceptance, gamma), mean_seconds)


def plans(
    times: Mapping[str, StepTimes],
    acceptance: float,
    *,
    strategies: Iterable[str] = STRATEGIES,
    gammas: Sequence[int] = GAMMAS,
) -> list[Plan]:
    """Every program that these allow, best first; among equals the simpler one, which comes first in
    STRATEGIES.

    times: placement -> its step times; only the placements in it are considered.
    """
    found = [
        plan(strategy, gamma, placement, times[placement], acceptance)
        for strategy in STRATEGIES
        if strategy in strategies
        for placement in times
        for gamma in ((0,) if strategy == "ar" else gammas)
    ]
    return sorted(found, key=lambda p: -p.tokens_per_second)
