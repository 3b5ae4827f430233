"""Sums over the requests of an engine: how many ended how, tokens, rounds, acceptance, waiting and busy time.

Knows outputs; not engines. Everything is a sum or a count, so that rates over any time can be taken from two
readings.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from pearl_rt.types.json import Json
from pearl_rt.types.metrics import Drafted
from pearl_rt.types.outputs import RequestOutput

SECONDS = (
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    5.0,
    10.0,
    20.0,
    50.0,
)  # bounds of ttft
MEMBERS = ("looked_up", "sampled")  # of a chain, as RequestMetrics has them
SECONDS_A_TOKEN = tuple(bound / 10 for bound in SECONDS[:12])


class Histogram:
    """Counts of values by the first bound that is not below them, with their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)  # the last: above all bounds
        self.sum = 0.0

    def add(self, value: float) -> None:
        """One value more."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def described(self) -> Json:
        """bounds [n], counts [n + 1] and sum."""
        return {"bounds": list(self.bounds), "counts": list(self.counts), "sum": self.sum}


class Totals:
    """What all requests together cost. Not for several threads at once."""

    def __init__(self) -> None:
        self._finished: Counter[str] = Counter()  # by finish reason
        self._sums: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()
        self._judged_at: list[int] = []
        self._accepted_at: list[int] = []
        self._ttft = Histogram(SECONDS)
        self._tpot = Histogram(SECONDS_A_TOKEN)

    def add(self, output: RequestOutput) -> None:
        """Takes in one request, however it ended."""
        m = output.metrics
        self._finished[output.finish_reason] += 1
        self._sums.update(
            prompt_tokens=m.num_prompt_tokens,
            generated_tokens=len(output.token_ids),
            rounds=m.rounds,
            judged=m.judged,
            accepted=m.accepted,
            prefix_cache_queries=0 if m.num_cached_tokens is None else m.num_prompt_tokens,
            prefix_cache_hits=m.num_cached_tokens or 0,
        )
        for name in MEMBERS:
            own = asdict(getattr(m, name))
            self._sums.update({f"{name}_{figure}": count for figure, count in own.items()})
        for place, (judged, accepted) in enumerate(zip(m.judged_at, m.accepted_at, strict=True)):
            while len(self._judged_at) <= place:
                self._judged_at.append(0)
                self._accepted_at.append(0)
            self._judged_at[place] += judged
            self._accepted_at[place] += accepted
        self._seconds["queue"] += m.queue_time  # type: ignore[assignment]
        if m.token_times:
            self._ttft.add(m.ttft)
        if len(m.token_times) > 1 and m.tpot > 0:
            decoding = m.token_times[-1] - m.token_times[0]
            self._tpot.add(m.tpot)
            self._seconds.update(  # type: ignore[call-overload]
                decode=decoding, draft_busy=m.draft_busy * decoding, target_busy=m.target_busy * decoding
            )

    def described(self) -> Json:
        """Counts, and times in seconds; `ttft` and `tpot` are histograms."""
        names = ["prompt_tokens", "generated_tokens", "rounds", "judged", "accepted"]
        names += ["prefix_cache_queries", "prefix_cache_hits"]
        spent = ("queue", "decode", "draft_busy", "target_busy")
        return {
            "finished": dict(self._finished),
            **{name: self._sums[name] for name in names},
            **{n: {figure: self._sums[f"{n}_{figure}"] for figure in asdict(Drafted())} for n in MEMBERS},
            "judged_at": list(self._judged_at),
            "accepted_at": list(self._accepted_at),
            "seconds": {name: float(self._seconds[name]) for name in spent},
            "ttft": self._ttft.described(),
            "tpot": self._tpot.described(),
        }


def hit_rate(totals: Json) -> float | None:
    """Of the tokens of prompts that were looked for in the KV cache, the share that was found; None before
    there is any.
    """
    queries = totals["prefix_cache_queries"]
    return totals["prefix_cache_hits"] / queries if queries else None


def worth(totals: Json) -> Json:
    """What drafts were worth, of Totals.described(): tokens a round behind the first token of each answer,
    and the share of judged drafts that stood; None before there is any.
    """
    later = totals["generated_tokens"] - sum(totals["ttft"]["counts"])
    return {
        "tokens_per_round": later / totals["rounds"] if totals["rounds"] else None,
        "acceptance": totals["accepted"] / totals["judged"] if totals["judged"] else None,
    }


def members(totals: Json, model: str) -> Json:
    """What each drafter of a chain was worth, of Totals.described(): windows whose first draft was judged,
    and the share of its judged drafts that stood; None before there is any. model: the kind behind the
    lookup.
    """
    return {
        kind: {
            "windows": totals[name]["windows"],
            "acceptance": totals[name]["accepted"] / totals[name]["judged"]
            if totals[name]["judged"]
            else None,
        }
        for kind, name in zip(("lookup", model), MEMBERS, strict=True)
    }
