"""Which program should run next: expected tokens and seconds per round, from step times and acceptance.

Pure arithmetic: it knows no engine, no lane and no clock. Place i of a window (1, 2, ..) has a chance c_i
that its draft is accepted where those before it are. Where one rate is given, all have it, and p_k =
c_1 .. c_k is a^k (Leviathan et al., arXiv 2211.17192):

  ar     one token per t_T(1)
  sd     1 + p_1 + .. + p_g tokens per t_D(g) + t_T(g+1)
  pearl  two states (arXiv 2408.11850), a Markov chain:
           pre    one draft judged,  1 token;                            -> post with probability c_1
           post   g drafts judged,   1 + c_2 + c_2 c_3 + .. + c_2 .. c_g;  -> post with probability p_g
         for the first of a window is judged a round before the others. So post holds c_1 / (c_1 + 1 - p_g) of
         the rounds; one takes max(t_D(g), t_T(1 or g)), both measured side by side, or their sum where lanes
         share cores.

t_T(n) is the time of a score over n tokens, t_D(g) that of a window of g drafts, measured for one sequence.
For b at once a score takes t_T(b n), and a window, whose steps have b rows each, t_D(g) t_T(b) / t_T(1): the
draft is taken to slow down with rows as the target does. A window that one pass fills, or a few, has steps of
b g rows, and takes t_D(g) t_T(b g) / t_T(g).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pearl_rt.strategy.program import MAX_GAMMA, STRATEGIES

Chances = float | Sequence[float]  # of each place of a window, [0] the first; of all places, if it is one
GAMMAS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15)  # windows that the planner looks at
PLACE_PRIOR = 20.0  # counts that the chance of a place begins with


@dataclass(frozen=True)
class StepTimes:
    """Seconds that the steps of one placement take.

    The `beside_` tables are the same steps while the other lane is at work on its own cores, as they are in
    pearl; None where lanes share their cores and take turns.
    """

    target: Mapping[int, float]  # tokens in the forward -> seconds to score and judge
    window: Mapping[int, float] | None = None  # gamma -> seconds to draft a window; None: no draft
    beside_target: Mapping[int, float] | None = None
    beside_window: Mapping[int, float] | None = None
    is_measured: bool = True  # False: the figures stand for a device that was not timed
    drafts_at_once: bool = False  # a window is one pass of gamma rows, or a few; not gamma passes of one

    @classmethod
    def constant(cls, target: float, draft: float, *, overlaps: bool = True) -> "StepTimes":
        """Of a target whose pass takes the same time for one token and for a window, and a draft whose every
        token does. overlaps: on devices that share no bottleneck; else they take turns. Seconds, or any unit.
        """
        tables = {1: target, MAX_GAMMA + 1: target}, {1: draft, MAX_GAMMA: draft * MAX_GAMMA}
        return cls(*tables, *tables) if overlaps else cls(*tables)


@dataclass(frozen=True)
class Plan:
    """A program that could run, and what is expected of it."""

    strategy: str
    gamma: int
    placement: str
    tokens_per_round: float  # of all sequences together
    seconds_per_round: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_per_round / self.seconds_per_round

    def slowed(self, factor: float) -> "Plan":
        """The same program if its rounds take `factor` times as long."""
        return replace(self, seconds_per_round=self.seconds_per_round * factor)


@dataclass
class Acceptance:
    """A running acceptance rate, over all and by place: a Beta prior, and counts that lose half their weight
    every `half_life` judged drafts.

    The prior (7 of 10) is hopeful on purpose: what is never drafted is never measured. For the same reason
    counts fade a little with every request that drafts nothing, so that a pair given up on is tried again
    later.
    """

    prior_accepted: float = 7.0
    prior_judged: float = 10.0
    half_life: float = 500.0
    accepted: float = field(default=0.0, init=False)
    judged: float = field(default=0.0, init=False)
    accepted_at: list[float] = field(default_factory=lambda: [0.0] * MAX_GAMMA, init=False)
    judged_at: list[float] = field(default_factory=lambda: [0.0] * MAX_GAMMA, init=False)

    @property
    def chances(self) -> list[float]:
        """[MAX_GAMMA] of each place; few counts say little, and then it is that of the place before."""
        found, before = [], self.rate
        for accepted, judged in zip(self.accepted_at, self.judged_at, strict=True):
            before = (PLACE_PRIOR * before + accepted) / (PLACE_PRIOR + judged)
            found.append(before)
        return found

    @property
    def rate(self) -> float:
        return (self.prior_accepted + self.accepted) / (self.prior_judged + self.judged)

    def update(
        self, accepted: int, judged: int, accepted_at: Sequence[int] = (), judged_at: Sequence[int] = ()
    ) -> None:
        """Adds one request's counts, and those of the places of its windows; one that judged nothing fades
        the older ones by a tenth.
        """
        keep = 0.5 ** (judged / self.half_life) if judged else 0.9
        self.accepted = self.accepted * keep + accepted
        self.judged = self.judged * keep + judged
        for counts, new in ((self.accepted_at, accepted_at), (self.judged_at, judged_at)):
            counts[:] = [count * keep for count in counts]
            for place, more in enumerate(new[:MAX_GAMMA]):
                counts[place] += more


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


def all_stand(acceptance: Chances, places: range) -> list[float]:
    """[1 + len(places)] the chance that none, the first, the first two, .. of these places stand: all of them
    last. places: of a window, 0 the first; one that has no chance of its own has the last one's.
    """
    found = [1.0]
    for place in places:
        one = (
            acceptance if isinstance(acceptance, int | float) else acceptance[min(place, len(acceptance) - 1)]
        )
        found.append(found[-1] * one)
    return found


def chances_of(accepted_at: Sequence[int], judged_at: Sequence[int], rate: float) -> Chances:
    """As they were counted, with `rate` for a place that was not judged."""
    return [a / n if n else rate for a, n in zip(accepted_at, judged_at, strict=True)] or rate


def sd_tokens(acceptance: Chances, gamma: int) -> float:
    """Expected tokens of a serial round, the bonus token included."""
    return sum(all_stand(acceptance, range(gamma)))


def pearl_post_share(acceptance: Chances, gamma: int) -> float:
    """Share of PEARL's rounds that begin with gamma - 1 tokens pending, in the long run."""
    window = all_stand(acceptance, range(gamma))
    return window[1] / (window[1] + 1 - window[-1]) if window[1] else 0.0


def pearl_tokens(acceptance: Chances, gamma: int) -> float:
    """Expected tokens of a PEARL round, over both states."""
    post = pearl_post_share(acceptance, gamma)
    return (1 - post) + post * sum(all_stand(acceptance, range(1, gamma)))


def window_seconds(
    window: Mapping[int, float], target: Mapping[int, float], gamma: int, num_seqs: int, rows: int = 1
) -> float:
    """Time of a window of gamma drafts for each of so many sequences. rows: of a pass, for each of them."""
    alone = seconds(window, gamma)
    return alone if num_seqs == 1 else alone * seconds(target, num_seqs * rows) / seconds(target, rows)


def plan(
    strategy: str, gamma: int, placement: str, times: StepTimes, acceptance: Chances, num_seqs: int = 1
) -> Plan:
    """What one program is expected to do with these step times and this acceptance."""
    if strategy == "ar":
        return Plan("ar", 0, placement, float(num_seqs), seconds(times.target, num_seqs))
    assert times.window is not None, f"{strategy} needs a draft"
    drafted = gamma if times.drafts_at_once else 1
    window = window_seconds(times.window, times.target, gamma, num_seqs, drafted)
    if strategy == "sd":
        spent = window + seconds(times.target, num_seqs * (gamma + 1))
        return Plan("sd", gamma, placement, num_seqs * sd_tokens(acceptance, gamma), spent)

    def round_seconds(pending: int) -> float:
        rows = num_seqs * (pending + 1)
        if times.beside_target is None or times.beside_window is None:
            return window + seconds(times.target, rows)
        beside = window_seconds(times.beside_window, times.beside_target, gamma, num_seqs, drafted)
        return max(beside, seconds(times.beside_target, rows))

    post = pearl_post_share(acceptance, gamma)
    mean_seconds = (1 - post) * round_seconds(0) + post * round_seconds(gamma - 1)
    return Plan("pearl", gamma, placement, num_seqs * pearl_tokens(acceptance, gamma), mean_seconds)


def plans(
    times: Mapping[str, StepTimes],
    acceptance: Chances,
    *,
    strategies: Iterable[str] = STRATEGIES,
    gammas: Sequence[int] = GAMMAS,
    slowdowns: Mapping[tuple[str, str], float] | None = None,
    num_seqs: int = 1,
) -> list[Plan]:
    """Every program that these allow, best first; among equals the simpler one, which comes first in
    STRATEGIES.

    times: placement -> its step times; only the placements in it are considered. slowdowns: (strategy,
    placement) -> seconds that rounds took over what was expected, where that is known.
    """
    known = slowdowns or {}
    found = [
        plan(strategy, gamma, placement, times[placement], acceptance, num_seqs).slowed(
            known.get((strategy, placement), 1.0)
        )
        for strategy in STRATEGIES
        if strategy in strategies
        for placement in times
        for gamma in ((0,) if strategy == "ar" else gammas)
    ]
    return sorted(found, key=lambda p: -p.tokens_per_second)
