"""What one request cost: when each token came, what was accepted, and how busy each lane was.

Knows rounds and trace rows only by their fields. Times are seconds from the request's start unless a name
says ns.

Two figures that look alike and are not to be compared: `mean_acceptance_length` counts per verify step
(serial speculation's usual figure, 1 to gamma + 1), `mean_accepted_tokens` counts from one rejection to the
next (the MAT of PEARL, arXiv 2408.11850, which may pass gamma).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from pearl_rt.types.rounds import Origin, RoundRecord, origins


class TraceRow(NamedTuple):
    """One step of a lane ("draft" or "target"), or one of its waits (op "wait"); monotonic ns."""

    lane: str
    op: str
    round: int
    begin_ns: int
    end_ns: int


@dataclass(frozen=True)
class Drafted:
    """What one drafter of a request did: its windows whose first draft was judged, and drafts as below.
    Tokens that the form of an answer forced are left out.
    """

    windows: int = 0
    judged: int = 0
    accepted: int = 0
    refused: int = 0  # windows that ended before their first draft, by a rule that found it doubtful


@dataclass(frozen=True)
class RequestMetrics:
    """Figures of one request. Everything derived is a property, so that they cannot disagree.

    `judged` counts the drafts that were looked at: those accepted, and the first one rejected in a round.
    Drafts behind a rejection are discarded unjudged, so `acceptance_rate` compares across gamma and
    strategies. `trace` is () for a request that ran beside others or was cancelled: reading it would keep the
    slot for many rounds. draft_busy and target_busy are then 0. `plain_tpot` is what plain decoding would
    have taken: the measured step of one token, times how much longer the request's own steps took
    than measured. None for a request that ran beside others, or without measurements.
    """

    strategy: str
    gamma: int  # drafts per window, 0 for ar
    placement: str
    num_prompt_tokens: int
    start_ns: int
    token_times: tuple[float, ...]  # [generated], when each was verified; tokens of one round share a time
    rounds: int  # verify steps; the first token comes from prefill and needs none
    accepted: int
    judged: int
    rejections: int
    judged_at: tuple[int, ...] = ()  # [window position]: drafts of that place in their window, of `judged`
    accepted_at: tuple[int, ...] = ()  # [window position]: of `accepted`
    num_cached_tokens: int | None = None  # of the prompt, found in the KV cache; None: not looked for
    queue_time: float = 0.0  # seconds that a submitted request waited for a slot; part of ttft
    trace: tuple[TraceRow, ...] = ()
    origins: tuple[Origin, ...] = ()  # [generated] how each token came
    plain_tpot: float | None = None
    looked_up: Drafted = Drafted()  # by a lookup
    sampled: Drafted = Drafted()  # from rows of a model

    @property
    def ttft(self) -> float:
        """Seconds to the first token; NaN if there is none."""
        return self.token_times[0] if self.token_times else float("nan")

    @property
    def tpot(self) -> float:
        """Mean seconds a token after the first; NaN with fewer than two."""
        if len(self.token_times) < 2:
            return float("nan")
        return (self.token_times[-1] - self.token_times[0]) / (len(self.token_times) - 1)

    @property
    def tokens_per_second(self) -> float:
        """1 / tpot: decoding only, the prompt's time left out."""
        return 1 / self.tpot if self.tpot > 0 else float("nan")

    @property
    def acceptance_rate(self) -> float:
        """Accepted over judged drafts; NaN if nothing was judged."""
        return self.accepted / self.judged if self.judged else float("nan")

    @property
    def accepted_per_position(self) -> tuple[float, ...]:
        """[window position] accepted over judged, from the window's first draft on; () if nothing was
        judged.
        """
        return tuple(
            a / n if n else float("nan") for a, n in zip(self.accepted_at, self.judged_at, strict=True)
        )

    @property
    def mean_acceptance_length(self) -> float:
        """1 + accepted drafts per verify step; 1 for ar."""
        return 1 + self.accepted / self.rounds if self.rounds else float("nan")

    @property
    def tokens_per_round(self) -> float:
        """Tokens made final per verify step, the first token left out."""
        return (len(self.token_times) - 1) / self.rounds if self.rounds else float("nan")

    @property
    def mean_accepted_tokens(self) -> float:
        """PEARL's MAT: accepted drafts in a row, mean over the runs that a rejection ended, with the token
        that replaced the rejected one. Without any rejection the only run is the whole request.
        """
        return self.accepted / max(self.rejections, 1) + 1 if self.judged else float("nan")

    @property
    def draft_busy(self) -> float:
        """Share of the decoding time in which the draft lane worked."""
        return self._busy("draft")

    @property
    def target_busy(self) -> float:
        """Share of the decoding time in which the target lane worked."""
        return self._busy("target")

    def _busy(self, lane: str) -> float:
        if len(self.token_times) < 2:
            return float("nan")
        begin, end = (self.start_ns + round(t * 1e9) for t in (self.token_times[0], self.token_times[-1]))
        if end <= begin:
            return float("nan")
        steps = (row for row in self.trace if row.lane == lane and row.op != "wait")
        inside = sum(max(0, min(row.end_ns, end) - max(row.begin_ns, begin)) for row in steps)
        return inside / (end - begin)


def measure(
    rounds: Sequence[RoundRecord],
    *,
    start_ns: int,
    num_prompt_tokens: int,
    strategy: str,
    gamma: int,
    placement: str,
    trace: Iterable[TraceRow] = (),
    num_tokens: int | None = None,
    queue_time: float = 0.0,
    plain_tpot: float | None = None,
) -> RequestMetrics:
    """The figures of one request from its rounds in order, the first of which is prefill (one token, none
    judged).

    num_tokens: how many of the last round's tokens count, as the sum over all rounds; None: all. (A stop
    string ends an answer in the middle of a round.)
    """
    times = [(record.t_ns - start_ns) * 1e-9 for record in rounds for _ in record.token_ids]
    verified = rounds[1:]
    rejections = sum(record.accept_len < record.num_judged for record in verified)
    accepted = sum(record.accept_len for record in verified)
    judged_at, accepted_at = _by_position(verified)
    looked_up, sampled = _by_drafter(verified)
    return RequestMetrics(
        strategy=strategy,
        gamma=gamma,
        placement=placement,
        num_prompt_tokens=num_prompt_tokens,
        start_ns=start_ns,
        token_times=tuple(times[:num_tokens]),
        rounds=len(verified),
        accepted=accepted,
        judged=accepted + rejections,
        rejections=rejections,
        judged_at=judged_at,
        accepted_at=accepted_at,
        num_cached_tokens=rounds[0].num_cached_tokens
        if rounds and rounds[0].num_cached_tokens >= 0
        else None,
        queue_time=queue_time,
        trace=tuple(trace),
        origins=tuple(origins(rounds)[:num_tokens]),
        plain_tpot=plain_tpot,
        looked_up=looked_up,
        sampled=sampled,
    )


def _by_drafter(rounds: Sequence[RoundRecord]) -> tuple[Drafted, Drafted]:
    """Of a lookup, whose drafts are certain, and of a model."""
    found = {True: Drafted(), False: Drafted()}
    is_first = False  # no draft of the window was judged yet, but for forced ones
    for record in rounds:
        for row in range(min(record.accept_len + 1, record.num_judged)):
            is_first = is_first or row == record.pending_before
            if row in record.forced:
                continue
            was = found[row in record.certain]
            found[row in record.certain] = Drafted(
                was.windows + is_first, was.judged + 1, was.accepted + (row < record.accept_len)
            )
            is_first = False
    return found[True], replace(found[False], refused=sum(record.is_refused for record in rounds))


def _by_position(rounds: Sequence[RoundRecord]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(judged, accepted) by the draft's place in its window.

    Drafts pending from the window before have its first place behind them; the rest begin a window.
    """
    judged: list[int] = []
    accepted: list[int] = []
    for record in rounds:
        for row in range(min(record.accept_len + 1, record.num_judged)):
            place = row + 1 if row < record.pending_before else row - record.pending_before
            while len(judged) <= place:
                judged.append(0)
                accepted.append(0)
            judged[place] += 1
            accepted[place] += row < record.accept_len
    return tuple(judged), tuple(accepted)
