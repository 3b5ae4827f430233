"""One round as a pure rule: what is fed, what is judged, what becomes final. No torch, devices or threads.

Per sequence there are two integers: `committed`, the number of final tokens, and `pending`, the number of
drafted tokens behind them that no one has judged. With a window of gamma draft tokens:

    pearl  score while the window is drafted; judge the pending tokens and the window's first token
           all accepted -> pending = gamma - 1 (post-verify); a rejection -> pending = 0 (pre-verify)
    sd     draft the window, score it, judge all of it; a bonus token if all stand
    ar     no window: the bonus row alone

No mode flag: PEARL's two modes (arXiv 2408.11850, section 3) are pending == 0 and pending == gamma - 1.
`max_total_len` bounds prompt and answer together: no position at or past it is drafted, scored or judged, so
that near it windows are shorter. `decode` runs the rule over plain functions: the oracle of every backend.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

PLACEHOLDER_TOKEN_ID = -1

Row = TypeVar("Row")  # of logits, of whatever type the judge reads
Row_contra = TypeVar("Row_contra", contravariant=True)
LogitsFn = Callable[[Sequence[int]], Row]  # prefix -> the row behind it


@dataclass(frozen=True)
class Limits:
    """Where a sequence ends. stop_token_ids: EOS (unless ignored) and stop ids."""

    max_total_len: int
    stop_token_ids: Collection[int] = frozenset()


@dataclass(frozen=True)
class RoundState:
    """committed: final tokens, prompt included. pending: drafted tokens behind them, not judged."""

    committed: int
    pending: int = 0


@dataclass(frozen=True)
class RoundPlan:
    """What one round does: `window` tokens are drafted, `num_draft_tokens` candidates judged, in order, from
    position `committed` on; `has_bonus` says that one target row more gives a token if all of them stand."""

    window: int
    num_draft_tokens: int
    has_bonus: bool

    @property
    def num_rows(self) -> int:
        """Target rows that are computed and may be read."""
        return self.num_draft_tokens + self.has_bonus


@dataclass(frozen=True)
class Verdict:
    """accept_len: candidates that stand. next_token: recovered or bonus, or -1 if all stand and there is no
    bonus row. bad_row: -1, or the row whose logits or candidate cannot be used; the rest is void then."""

    accept_len: int
    next_token: int
    bad_row: int = -1


@dataclass(frozen=True)
class RoundResult:
    """What one round committed: verified tokens only, cut at the end of the sequence.

    finish_reason: "", "stop" or "length". Round 0 is the first token, which is the target's alone."""

    token_ids: tuple[int, ...]
    accept_len: int
    num_judged: int
    pending_before: int
    finish_reason: str


class Judge(Protocol[Row_contra]):
    """Sampling and judging, with the randomness inside. A prefix is all tokens before a position, which is
    its length."""

    def draft_token(self, logits: Row_contra, prefix: Sequence[int]) -> int | None:
        """The draft's token after a prefix, from its logits."""

    def verdict(
        self,
        target_logits: Sequence[Row_contra],
        draft_logits: Sequence[Row_contra | None],
        draft_token_ids: Sequence[int],
        prefix: Sequence[int],
    ) -> Verdict:
        """The verdict on candidates after a prefix; one row of target_logits more is the bonus row. None in
        place of a draft's row: it was certain.
        """


def plan(strategy: str, state: RoundState, gamma: int, max_total_len: int) -> RoundPlan:
    """What the next round does. strategy: "ar", "sd" or "pearl"; gamma >= 1 but for ar."""
    room = max_total_len - state.committed
    window = 0 if strategy == "ar" else min(gamma, room - state.pending)
    rows = min(room, state.pending + 1 + (window if strategy == "sd" else 0))
    judged = min(rows, state.pending + window)
    return RoundPlan(window, judged, rows > judged)


def advance(state: RoundState, todo: RoundPlan, accept_len: int) -> RoundState:
    """The state after a verdict: rollback is two integers."""
    if accept_len < todo.num_rows:  # a recovered or a bonus token follows
        return RoundState(state.committed + accept_len + 1, 0)
    return RoundState(state.committed + accept_len, state.pending + todo.window - accept_len)


def cut(token_ids: Sequence[int], start: int, limits: Limits) -> tuple[int, str]:
    """How many of the newly committed tokens are kept, and why the sequence ends there ("" if it goes on).

    start: position of the first of them. A stop token is kept; at the limit it is "stop", not "length".

        cut([5, 2, 7], 10, Limits(12, {7})) -> (2, "length")
    """
    for kept, token in enumerate(token_ids, 1):
        if token in limits.stop_token_ids:
            return kept, "stop"
        if start + kept >= limits.max_total_len:
            return kept, "length"
    return len(token_ids), ""


class CertainDrafter(Protocol[Row_contra]):
    """Drafts windows without rows: each draft is all of its distribution."""

    def window(self, committed: Sequence[int], pending: Sequence[int], most: int) -> list[int]:
        """At most so many drafts behind the pending ones."""

    def told(self, committed: Sequence[int], next_token: int, rows: Sequence[Row_contra]) -> None:
        """What a verdict left: final tokens, the last of which is `next_token`, and the target's rows behind
        it, as if the rejected drafts stood.
        """


class FirstDrafter(CertainDrafter[Row_contra], Protocol[Row_contra]):
    """In front of a model, which drafts where this one leaves a window empty: chain.py."""

    rests: bool  # whether the last window is left empty by the model too

    def model_drafted(self, drafts: Sequence[tuple[int, int]], is_final: bool, is_refused: bool) -> None:
        """The model's (position, token), but for forced ones. is_final: they follow final tokens. is_refused:
        a rule ended the window before its first row."""


class WindowStop(Protocol[Row_contra]):
    """What ends the windows of a model before gamma: pearl_rt/reference/stops.py."""

    has_refused: bool  # the last window, before its first row, which was computed

    def begin(self, committed: Sequence[int], num_pending: int, room: int = 0) -> None:
        """Before a window of at most `room` drafts."""

    def goes_on(self) -> bool:
        """Whether one more row is worth a pass."""

    def takes(self, logits: Row_contra, prefix: Sequence[int]) -> bool:
        """Whether the window has a token of this row."""

    def add(self, position: int, token: int) -> None:
        """That token."""


Window = tuple[list[int], list[Row | None]]  # drafts, and what each was drawn from


class Candidates(Protocol[Row]):
    """Several windows for one place, which begin with different drafts: candidates.py."""

    def windows(
        self, draft_fn: LogitsFn[Row], window: Window[Row], tokens: Sequence[int]
    ) -> list[Window[Row]]:
        """A window behind final tokens, and those beside it."""

    def verdict(
        self, target_fn: LogitsFn[Row], windows: list[Window[Row]], todo: RoundPlan, tokens: Sequence[int]
    ) -> tuple[Window[Row], Verdict]:
        """The window that is taken, and the verdict on it."""


def decode(
    target_fn: LogitsFn[Row],
    draft_fn: "LogitsFn[Row] | CertainDrafter[Row] | None",
    prompt: Sequence[int],
    strategy: str,
    gamma: int,
    limits: Limits,
    judge: Judge[Row],
    forced: Callable[[Sequence[int]], Sequence[int]] = lambda prefix: (),
    stop: WindowStop[Row] | None = None,
    longest: int = 0,
    mask_token: int | None = None,
    first: FirstDrafter[Row] | None = None,
    several: Candidates[Row] | None = None,
) -> list[RoundResult]:
    """A whole generation, round by round. draft_fn: a model, or a drafter that is certain; it may be None for
    "ar". prompt: at least one token, shorter than max_total_len. forced: prefix -> tokens that the form of
    the answer has next, which a model need not draft: they come on top of gamma, as long as a window is
    shorter than `longest`. stop: ends a model's windows. mask_token: the model fills a window in one pass;
    each row but the first is behind mask tokens, in place of the tokens that were sampled from the rows
    before it (PARD, arXiv 2504.18583). first: is asked before it. several: of "sd" and a model alone,
    windows that begin with different drafts. Raises ValueError where a judge finds logits that cannot be
    used.
    """
    if not 0 < len(prompt) < limits.max_total_len:
        raise ValueError(f"a prompt of {len(prompt)} tokens leaves nothing below {limits.max_total_len}")
    tokens = list(prompt)
    pending: list[int] = []
    pending_logits: list[Row | None] = []
    certain = None if draft_fn is None or callable(draft_fn) else draft_fn
    told = first or certain
    rounds: list[RoundResult] = []

    def run(windows: list[Window[Row]], todo: RoundPlan) -> Verdict:
        judged = windows[0][0][: todo.num_draft_tokens]
        rows = [target_fn(tokens + judged[:row]) for row in range(todo.num_rows)]
        if several is None or len(windows) == 1:
            verdict = judge.verdict(rows, windows[0][1][: len(judged)], judged, tokens)
        else:
            taken, verdict = several.verdict(target_fn, windows, todo, tokens)
            judged = taken[0][: todo.num_draft_tokens]
        if verdict.bad_row >= 0:
            raise ValueError(f"logits of position {len(tokens) + verdict.bad_row} cannot be used")
        new = judged[: verdict.accept_len]
        if verdict.accept_len < todo.num_rows:
            new.append(verdict.next_token)
        kept, reason = cut(new, len(tokens), limits)
        rounds.append(RoundResult(tuple(new[:kept]), verdict.accept_len, len(judged), len(pending), reason))
        tokens.extend(new[:kept])
        if told is not None and verdict.next_token >= 0:
            told.told(tokens, verdict.next_token, rows[verdict.accept_len + 1 :])
        return verdict

    run([([], [])], RoundPlan(window=0, num_draft_tokens=0, has_bonus=True))
    while not rounds[-1].finish_reason:
        state = RoundState(len(tokens), len(pending))
        candidates, candidate_logits = list(pending), list(pending_logits)
        todo = plan(strategy, state, gamma, limits.max_total_len)
        drawn: list[tuple[int, int]] = []  # by the model, but for forced ones
        window = first.window(tokens, pending, todo.window) if first and strategy != "ar" else []
        by_model = not window and (first is None or not first.rests)
        if certain is not None and by_model and strategy != "ar":
            window = certain.window(tokens, pending, todo.window)
            drawn = list(enumerate(window, len(tokens) + len(pending)))
        candidates += window
        candidate_logits += [None] * len(window)
        if stop is not None:
            stop.begin(tokens, len(pending), todo.window)
        room = limits.max_total_len - len(tokens) - len(pending)
        window_len, most = todo.window, max(todo.window, min(longest - 1, room))
        passed, behind = tokens, 0  # with masks: what a pass feeds before them, and the place behind its rows
        while certain is None and by_model and todo.window > 0:
            seen = tokens + candidates
            if sure := list(forced(seen))[: most - len(candidates) + len(pending)]:
                candidates += sure
                candidate_logits += [None] * len(sure)
                window_len = min(window_len + len(sure), most)
                continue
            if len(candidates) - len(pending) == window_len:
                break
            assert callable(draft_fn), f"{strategy} needs a draft"
            token = None
            if stop is None or stop.goes_on():
                if len(seen) >= behind:
                    passed, behind = seen, len(tokens) + len(pending) + window_len
                masks = [mask_token] * (len(seen) - len(passed)) if mask_token is not None else []
                row = draft_fn([*passed, *masks] if masks else seen)
                if stop is None or stop.takes(row, seen):
                    token = judge.draft_token(row, seen)
            if token is None:  # the window ends
                break
            if stop is not None:
                stop.add(len(seen), token)
            candidate_logits.append(row)
            candidates.append(token)
            drawn.append((len(seen), token))
        if first is not None and by_model:
            first.model_drafted(drawn, not pending, stop is not None and stop.has_refused)
        todo = plan(strategy, state, len(candidates) - len(pending), limits.max_total_len)
        windows = [(candidates, candidate_logits)]
        if several is not None and candidates and callable(draft_fn):
            windows = several.windows(draft_fn, windows[0], tokens)
        verdict = run(windows, todo)
        after = advance(state, todo, verdict.accept_len)
        pending = candidates[len(candidates) - after.pending :]
        pending_logits = candidate_logits[len(candidates) - after.pending :]
    return rounds
