"""What an engine has learned about its pair, and the program that it picks from that.

Holds measured step times, acceptance by kind of sampling, and how far requests were from what was expected;
the arithmetic is the planner's. Knows nothing of lanes, and of requests only their figures.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import pearl_rt._C as _C
from pearl_rt.strategy.planner import Acceptance, Plan, StepTimes, chances_of, plan, plans, seconds
from pearl_rt.strategy.program_choice import ProgramChoice
from pearl_rt.strategy.step_timing import drift, target_steps
from pearl_rt.types.json import Json
from pearl_rt.types.metrics import RequestMetrics, TraceRow

MIN_TOKENS_TO_LEARN = 16  # shorter answers time little but noise
LEARNING_RATE = 0.3
LEAST_GAIN = 1.05  # over plain decoding, of a model behind a lookup: it is fed the prompt too
SELECTIVE_RATE = 0.85  # at least, of a drafter that ends its windows where they become doubtful


class Chooser:
    """Picks programs between requests.

    A regime is a kind of sampling with an acceptance of its own: "greedy", "rejection" or "coupled".
    """

    def __init__(self) -> None:
        self.times: dict[str, StepTimes] = {}  # placement -> what was measured at load
        self._acceptance: dict[str, Acceptance] = {}  # by regime
        self._slowdowns: dict[tuple[str, str], float] = {}  # (strategy, placement) -> seconds over expected
        self._observed: dict[tuple[str, int, str], float] = {}  # (strategy, gamma, placement) -> tokens/s
        self._last: tuple[Plan, str] | None = None  # what ran last, and in which regime
        self._num_requests = 0

    def choose(self, candidates: ProgramChoice, regime: str, num_seqs: int = 1) -> Plan:
        """The program with the best expected tokens per second for so many sequences at once. Times of all
        placements must be known.

        ar in a batch, where a single sequence would draft, is a program that drafts, with windows of 0: the
        batch will be smaller some day. So it is where a lookup may draft though the model does not pay.
        """
        found = self._plans(candidates, regime, num_seqs)
        best = found[0]
        if best.strategy == "ar" and candidates.looks_up:
            serial = (one for one in found if (one.strategy, one.placement) == ("sd", best.placement))
            return next(serial, best)
        if num_seqs == 1 or best.strategy != "ar":
            return best
        placed = replace(candidates, placements=(best.placement,))
        return self._plans(placed, regime)[0]

    def windows(self, chosen: Plan, candidates: ProgramChoice, regime: str, num_slots: int) -> list[int]:
        """[num_slots + 1] the best window of a program beside so many sequences; none if it has no choice.

        Numbers between those of _rungs() have the window of the one below: this is asked for every request.
        """
        options = candidates.windows(chosen.strategy)
        if len(options) < 2:
            return []

        def best(num_seqs: int) -> int:
            strategies = [chosen.strategy, *(["ar"] if 0 in options else [])]
            placed = replace(candidates, strategies=tuple(strategies), placements=(chosen.placement,))
            found = self._plans(placed, regime, num_seqs)
            plain = next((one for one in found if one.strategy == "ar"), None)
            gain = found[0].tokens_per_second / plain.tokens_per_second if plain else math.inf
            if candidates.looks_up and gain < LEAST_GAIN:
                return 0
            return found[0].gamma

        at = {num_seqs: best(num_seqs) for num_seqs in _rungs(num_slots)}
        found = [at[1]]  # beside none, as beside itself
        for num_seqs in range(1, num_slots + 1):
            found.append(at.get(num_seqs, found[-1]))
        return found

    def learn(
        self,
        chosen: Plan,
        regime: str,
        metrics: RequestMetrics,
        *,
        is_alone: bool = True,
        looks_up: bool = False,
    ) -> None:
        """Takes in one request. is_alone: no other ran beside it, so that its times are the program's.
        looks_up: a lookup is in front of the model, whose windows alone say what the model is worth.
        """
        self._last = chosen, regime
        self._num_requests += 1
        counts = self._acceptance.setdefault(regime, Acceptance())
        refused = metrics.sampled.refused  # as good as drafts that fell, at the first place
        if looks_up and metrics.looked_up.windows > 0:
            counts.update(metrics.sampled.accepted, metrics.sampled.judged + refused)
        else:
            judged_at = [n + refused * (place == 0) for place, n in enumerate(metrics.judged_at)]
            counts.update(metrics.accepted, metrics.judged + refused, metrics.accepted_at, judged_at)
        if not is_alone or len(metrics.token_times) < MIN_TOKENS_TO_LEARN:
            return
        strategy, gamma, placement = chosen.strategy, chosen.gamma, chosen.placement
        self._observed[strategy, gamma, placement] = metrics.tokens_per_second
        overlaps = self.times[placement].beside_target is not None
        if looks_up and not overlaps:  # windows may be empty there, and a round's expected time is not known
            return
        rate = metrics.acceptance_rate if metrics.judged else 0.0
        acceptance = chances_of(metrics.accepted_at, metrics.judged_at, rate)
        expected = plan(strategy, gamma, placement, self.times[placement], acceptance)
        slowdown = min(max(expected.tokens_per_second / metrics.tokens_per_second, 0.5), 2.0)
        known = self._slowdowns.get((strategy, placement), 1.0)
        self._slowdowns[strategy, placement] = known + LEARNING_RATE * (slowdown - known)

    def plain_tpot(
        self, chosen: Plan, rounds: Sequence[_C.RoundResult], trace: Sequence[TraceRow]
    ) -> float | None:
        """Seconds a token that plain decoding would have taken for a request that ran alone: the measured
        step of one token, in the placement where it is fastest, times the drift of the request's own steps.
        None where no step was measured, or nothing ran.
        """
        times = {name: known for name, known in self.times.items() if known.is_measured}
        if chosen.placement not in times:
            return None
        steps = target_steps(chosen.strategy, rounds, trace)
        drifted = drift(chosen.strategy, steps, times[chosen.placement])
        return drifted * min(seconds(known.target, 1) for known in times.values())

    def described(self, candidates: ProgramChoice) -> Json:
        """What ran last, what would run next, and every figure behind it. Times are in seconds."""
        regime = self._last[1] if self._last else "greedy"
        expected = self._plans(candidates, regime)
        return {
            "chosen": _plan_dict(self._last[0]) if self._last else None,
            "next": _plan_dict(self.choose(candidates, regime)),
            "requests": self._num_requests,
            "acceptance": {regime: acceptance.rate for regime, acceptance in self._acceptance.items()},
            "acceptance_at": {regime: known.chances for regime, known in self._acceptance.items()},
            "step_times": {placement: asdict(times) for placement, times in self.times.items()},
            "slowdowns": [
                {"strategy": strategy, "placement": placement, "factor": factor}
                for (strategy, placement), factor in self._slowdowns.items()
            ],
            "candidates": [_plan_dict(candidate) for candidate in expected],
            "observed": [
                {"strategy": strategy, "gamma": gamma, "placement": placement, "tokens_per_second": rate}
                for (strategy, gamma, placement), rate in self._observed.items()
            ],
        }

    def _plans(self, candidates: ProgramChoice, regime: str, num_seqs: int = 1) -> list[Plan]:
        times: Mapping[str, StepTimes] = {name: self.times[name] for name in candidates.placements}
        chances = self._acceptance.get(regime, Acceptance()).chances
        if candidates.is_selective:
            chances = [max(chance, SELECTIVE_RATE) for chance in chances]
        return plans(
            times,
            chances,
            strategies=candidates.strategies,
            gammas=candidates.gammas,
            slowdowns=self._slowdowns,
            num_seqs=num_seqs,
        )


def _rungs(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, 24, .. up to `most`: fine where one more sequence changes a lot."""
    found, step = [1, 2, 3], 4
    while step <= most:
        found += [step, step + step // 2]
        step *= 2
    return [rung for rung in found if rung <= most]


def _plan_dict(chosen: Plan) -> Json:
    return {**asdict(chosen), "tokens_per_second": chosen.tokens_per_second}
