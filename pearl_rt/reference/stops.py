"""Where the window of a draft model ends before gamma, "marginal" down to nothing. The definition that
csrc/drafters/stop_rule.cpp matches bit for bit.

    confidence  behind a row whose likeliest token has a probability below `at`
    adaedl      behind a row with 1 - sqrt(0.2 H) < threshold, H being its entropy in nats (AdaEDL, arXiv
                2410.18351). The threshold begins as `at` and moves with each verdict: up by a thousandth
                while fewer than 0.9 of the drafts stand, else down.
    marginal    before a pass that is worth less than it costs: the chance that all drafts up to the next one
                stand, over `at` steps of the target, is below the tokens that the round has so far for each
                step spent. Likewise before a row more, which costs 1/64. Chances are counted by the
                probability of the row's likeliest token. Where no pass is worth it, every 16th window tries.
                Where one pass has the rows of a whole window, it is worth as long a run as one expects.
    auto        as marginal, with costs that were measured: of a pass, of one more row that is judged. Whether
                a window has a first pass is weighed before (drafters/chain.py). Until a draft was judged,
                the first of a window is not refused
    thompson    behind each draft by chance: theta is drawn from Beta(1 + stood, 1 + fell), the counts being
                the request's, and the window goes on with probability theta (Beta-TS of EESD, arXiv
                2406.03853). A window has one token at least, so that something is always learned.

A row that was computed costs little to judge, so that the token of a doubtful one is the last of its window.

The text keeps its law. Whether position i is drafted is decided by rows up to that of i, the drafts before i,
counts of verdicts, and, by chance, noise of a purpose that decides nothing else; never by the token that
would be drawn at i, and never by noise that draws or judges. So it is settled before that noise of i is
looked at, and of the positions that are drafted nothing is known beforehand. For the
same reason the counts are of drafts up to the first that fell: their positions are final. Those behind it are
drafted again, with the noise that they had, and must not be told of. AdaEDL's own rate, accepted over
drafted, would.

It knows rows and drafts; no clock but for the measured costs of "auto", and not how a window is judged.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pearl_rt.reference import noise
from pearl_rt.reference.drafters.lookup import Rate
from pearl_rt.reference.noise import Floats, Purpose, Words
from pearl_rt.reference.processors import inverse_temperature, scaled, total, usable
from pearl_rt.reference.step_costs import StepCosts

OF_ENTROPY, WANTED = 0.2, 0.9
KEPT_ACCEPTANCE, KEPT_THRESHOLD, STEP = 0.5, 0.9, 0.01
ROW_COST = 1 / 64
CLASSES, PRIOR = 8, 8
HOPED, HOPED_OF = 7.0, 10.0
LONGEST_QUIET = 15


def shape_of(row: Floats, temperature: float) -> tuple[float, float]:
    """(probability of the likeliest token, entropy in nats) of a usable row, at temperature 1 if it is 0."""
    inverse = inverse_temperature(temperature) if np.float32(temperature) > 0 else np.float32(1.0)
    x = scaled(row, inverse)
    weights = noise.exp(x)
    products = np.zeros_like(x)
    np.multiply(weights, x, out=products, where=weights > 0)
    mass = total(weights)
    logarithm = noise.log(np.array([mass], dtype=np.float32))[0]
    return float(1.0 / mass), max(float(np.float64(logarithm) - total(products) / mass), 0.0)


def chance(words: Words, rate: Rate) -> int:
    """A draw from Beta(1 + stood, 1 + fell), in steps of 2^-32. words: [judged + 1], of noise. The a-th
    smallest of a + b - 1 uniforms has the law Beta(a, b) (Devroye, "Non-Uniform Random Variate Generation",
    1986); of words it is exact, whatever computes it.
    """
    return int(np.sort(words)[rate.stood])


def goes_on_by_chance(seed: int, position: int, rate: Rate) -> bool:
    """With a chance that is drawn first. position: of the draft that would be next."""
    words = noise.words(seed, position, Purpose.STOP, rate.judged + 2)
    return int(words[0]) < chance(words[1:], rate)


@dataclass
class Stop:
    """The windows of one request. row: a row of logits behind a prefix -> as it is sampled from."""

    rule: str
    at: float
    temperature: float
    row: Callable[[Floats, Sequence[int]], Floats]
    seed: int = 0
    at_once: bool = False  # one pass of the draft has the rows of all of a window
    costs: StepCosts = field(default_factory=StepCosts)  # of "auto"
    room: int = 0  # of the window
    taken: int = 0  # its rows
    has_refused: bool = False  # the window ended before its first row, which was computed
    threshold: float = 0.0
    acceptance: float = WANTED
    every: Rate = field(default_factory=Rate)
    rates: dict[int, Rate] = field(default_factory=dict)  # by class of the likeliest token's probability
    drafted: list[tuple[int, int, int]] = field(default_factory=list)  # (position, token, class), not judged
    quiet: int = 0  # windows without a pass, since the last one
    is_on_final: bool = False
    is_last: bool = False  # the last row was doubtful, or chance says so: the window ends behind it
    passes: int = 0
    row_class: int = 0
    chance: float = 1.0  # that all of the window stand
    tokens: float = 1.0  # that are expected of the round
    spent: float = 1.0  # steps of the target

    def __post_init__(self) -> None:
        self.threshold = self.at

    def begin(self, committed: Sequence[int], num_pending: int, room: int = 0) -> None:
        """Before a window of at most `room` drafts: takes in the verdicts on earlier ones."""
        stood, done, fell = 0, 0, False
        for position, token, row_class in self.drafted:
            if fell or position >= len(committed):
                break
            fell = committed[position] != token
            stood, done = stood + (not fell), done + 1
            self.every.add(not fell)
            self.rates.setdefault(row_class, Rate()).add(not fell)
        self.drafted = [] if fell or not num_pending else self.drafted[done:]
        if done:
            self.acceptance = KEPT_ACCEPTANCE * self.acceptance + (1 - KEPT_ACCEPTANCE) * (stood / done)
            moved = self.threshold + STEP if self.acceptance < WANTED else self.threshold - STEP
            kept = KEPT_THRESHOLD * self.threshold + (1 - KEPT_THRESHOLD) * moved
            self.threshold = min(max(kept, 0.0), 1.0)
        self.is_on_final = not num_pending
        self.passes = self.taken = 0
        self.room = room
        self.is_last = self.has_refused = False
        self.chance = self.tokens = self.spent = 1.0

    def goes_on(self) -> bool:
        """Before each pass of the draft for a token of the window: whether it is worth one."""
        if self.rule not in ("marginal", "auto"):
            return not self.is_last
        if self.at_once and self.passes:
            return True  # the row is there
        following = (HOPED + self.every.stood) / (HOPED_OF + self.every.judged)
        if self.rule == "auto":
            more = self._pass_cost() + self._row_cost()
            return not self.passes or self.chance * following * self.spent > more * self.tokens
        expected = following / (1 - following) if self.at_once else following  # that stand, of a pass
        is_worth_it = self.chance * expected * self.spent > self.at * self.tokens
        if self.passes:
            return is_worth_it
        is_worth_it = is_worth_it or self.quiet >= LONGEST_QUIET
        if self.is_on_final:
            self.quiet = 0 if is_worth_it else self.quiet + 1
        return is_worth_it

    def takes(self, logits: Floats, prefix: Sequence[int]) -> bool:
        """Behind it: whether the window has the token of this row. Else it ends before it."""
        if self.rule == "thompson":
            return True
        row = self.row(logits, prefix)
        if not usable(row):
            return True
        top, entropy = shape_of(row, self.temperature)
        if self.rule not in ("marginal", "auto"):
            bound = 1 - np.sqrt(OF_ENTROPY * entropy)
            is_sure = top >= self.at if self.rule == "confidence" else bound >= self.threshold
            self.is_last = not is_sure
            return True
        self.row_class = min(int(CLASSES * top), CLASSES - 1)
        if not self.passes or not self.at_once:
            self.spent += self._pass_cost()
        self.passes += 1
        rate = self.rates.get(self.row_class, Rate())
        stands = self.chance * ((rate.stood + self.row_class + 0.5) / (rate.judged + PRIOR))
        is_first = self.rule == "auto" and not self.taken and not self.every.judged
        if not is_first and not stands * self.spent > self._row_cost() * self.tokens:
            self.has_refused = not self.taken
            return False
        self.chance = stands
        self.tokens += stands
        self.spent += self._row_cost()
        self.taken += 1
        return True

    def _pass_cost(self) -> float:
        """Of one more pass, in steps of the target."""
        if self.rule != "auto":
            return self.at
        before = 0 if self.at_once else self.costs.window(self.passes)
        spent = self.costs.window(self.room if self.at_once else self.passes + 1) - before
        return spent / self.costs.score(0)

    def _row_cost(self) -> float:
        """Of one more row that the target scores."""
        if self.rule != "auto":
            return ROW_COST
        return (self.costs.score(self.taken + 1) - self.costs.score(self.taken)) / self.costs.score(0)

    def add(self, position: int, token: int) -> None:
        """That token, once it was drawn."""
        self.drafted.append((position, token, self.row_class))
        if self.rule == "thompson":
            self.is_last = not goes_on_by_chance(self.seed, position + 1, self.every)
