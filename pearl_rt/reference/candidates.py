"""Several drafts for the first place of a window, in numpy: how they are drawn, and which of them stands.

The definition that csrc/sampling/candidates/candidates.h matches bit for bit (Multi-Candidate speculative
decoding, arXiv 2401.06706, at one place). It knows nothing of windows: behind the candidate that stands its
own window is judged like any other (pearl_rt/reference/judge.py).

Candidates are the k largest keys of one row, logits / temperature + Gumbel noise, largest first: tokens drawn
one by one without replacement (Gumbel top-k). Greedy they are the k likeliest. They all differ, so at most
one is the target's own token:

greedy, coupled  the candidate that is the target's own token stands
rejection        candidates are tried in turn: x stands with min(1, p(x) / q(x)); if it falls, p becomes
                 norm(max(p - q, 0)) and q loses x; when all have fallen a token is drawn from what p is then

The law is kept: given those that fell, the next one is drawn from what q is then.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pearl_rt.reference import noise
from pearl_rt.reference.judge import ReferenceJudge, WordsFn, residual_token, sample
from pearl_rt.reference.noise import Floats, Purpose
from pearl_rt.reference.processors import inverse_temperature, scaled, total, usable
from pearl_rt.reference.round import PLACEHOLDER_TOKEN_ID, LogitsFn, RoundPlan, Verdict, Window
from pearl_rt.reference.step_costs import StepCosts


@dataclass(frozen=True)
class Choice:
    """Of the candidates for a place. taken: the one that stands, or -1. next_token: then the token in their
    place; -1 too if logits or a candidate cannot be used."""

    taken: int
    next_token: int


SMALLEST = np.float32(-87.0)  # of what exp() keeps: below it a token has no chance, and is no candidate
NOTHING = np.finfo(np.float32).tiny  # a mass below it has no inverse in fp32


def draw(
    logits: Floats,
    temperature: float,
    seed: int,
    position: int,
    purpose: Purpose,
    count: int,
    words: WordsFn = noise.words,
) -> list[int]:
    """At most `count` different tokens of one row, [vocab] fp32, the first of which is sample()'s; fewer
    where fewer have a chance, none if the row is not usable.
    """
    first = sample(logits, temperature, seed, position, purpose, words)
    if first < 0:
        return []
    keys = logits
    if np.float32(temperature) > 0:
        row = scaled(logits, inverse_temperature(temperature))
        keys = row + noise.gumbel(noise.uniform(words(seed, position, purpose, len(logits))))
        keys[row < SMALLEST] = -np.inf
    order = np.argsort(-keys, kind="stable")[: count + 1]  # the lowest index wins ties
    others = [int(token) for token in order if keys[token] > -np.inf and token != first]
    return [first, *others][:count]


def choose(
    target: Floats,
    draft: Floats,
    token_ids: Sequence[int],
    position: int,
    temperature: float,
    seed: int,
    kind: str,
    words: WordsFn = noise.words,
) -> Choice:
    """Which of the candidates for a position stands, if one does. target, draft: [vocab] and [draft_vocab]
    the rows, as they are judged and as they were drawn from.
    """
    vocab = len(target)
    if not usable(target) or any(not 0 <= token < vocab for token in token_ids):
        return Choice(-1, PLACEHOLDER_TOKEN_ID)
    if kind == "coupled" or not np.float32(temperature) > 0:
        own = Purpose.TARGET if kind == "coupled" else Purpose.BONUS
        token = sample(target, temperature, seed, position, own, words)
        return Choice(list(token_ids).index(token), -1) if token in token_ids else Choice(-1, token)
    if not usable(draft[:vocab]):
        return Choice(-1, PLACEHOLDER_TOKEN_ID)

    inverse = inverse_temperature(temperature)
    p, q = noise.exp(scaled(target, inverse)), np.zeros(vocab, dtype=np.float32)
    q[: len(draft)] = noise.exp(scaled(draft[:vocab], inverse))
    p_sum, q_sum = total(p), total(q)
    uniforms = noise.uniform(words(seed, position, Purpose.ACCEPT, len(token_ids)))
    for place, token in enumerate(token_ids):
        if q_sum < NOTHING:
            break
        u = np.float64(uniforms[place])
        if p[token] > 0 and u * np.float64(q[token]) * p_sum <= np.float64(p[token]) * q_sum:
            return Choice(place, -1)
        with np.errstate(under="ignore"):
            left = np.maximum(p * np.float32(1.0 / p_sum) - q * np.float32(1.0 / q_sum), np.float32(0.0))
        q[token] = 0.0
        p, p_sum, q_sum = left, total(left), total(q)
        if p_sum < NOTHING:  # p was q, but for rounding
            break
    variates = noise.exponential(noise.uniform(words(seed, position, Purpose.RESIDUAL, vocab)))
    token = residual_token(p, np.zeros_like(p), variates)
    if token == PLACEHOLDER_TOKEN_ID:
        token = sample(target, temperature, seed, position, Purpose.RESIDUAL, words)
    return Choice(-1, token)


PRIOR_ROUNDS, PRIOR_STOOD, MOST_ROUNDS = 16, 4, 64  # half of the counts go when there are MOST_ROUNDS
HOPES = (8, 2, 1, 1, 1, 1, 1, 1)  # of PRIOR_ROUNDS: in how many the candidate of each rank stood
ALWAYS, SELDOM = 16, 8  # candidates without a window are looked at in the first rounds, then in each eighth


@dataclass
class Ranks:
    """How many windows lie beside one another: as many as have the most tokens for their time, by counts of
    which candidates of earlier rounds stood, in their order. The definition that
    csrc/sampling/candidates/ranks.h matches, of one request alone.

    The law is kept: the number follows from final tokens, and from candidates for places that are final.
    """

    costs: StepCosts
    asked: int = 0
    rounds: int = 0  # whose candidates were looked at
    hits: list[int] = field(default_factory=lambda: [0] * len(HOPES))  # in how many each rank stood, or would
    stood: int = 0  # windows whose first draft stood
    behind: int = 0  # drafts behind these that did
    last: tuple[int, list[int], list[list[int]]] | None = None  # position, candidates, windows

    def count(self, most: int, length: int) -> int:
        """Of `most` windows of `length` drafts."""
        best, best_tokens, best_time, stands = 1, 0, 1, 0
        rounds = self.rounds + PRIOR_ROUNDS
        for windows in range(1, most + 1):
            stands += self.hits[windows - 1] + HOPES[windows - 1]
            run = self.stood + self.behind + 2 * PRIOR_STOOD
            tokens = rounds * (self.stood + PRIOR_STOOD) + stands * run
            pass_time = self.costs.window(length) * self.costs.score(windows - 1) // self.costs.score(0)
            time = self.costs.score(windows * (length + 1) - 1) + pass_time
            if windows == 1 or tokens * best_time > best_tokens * time:
                best, best_tokens, best_time = windows, tokens, time
        return best

    def looks(self, count: int) -> bool:
        """Whether candidates without a window are looked at, which costs a search of the row."""
        self.asked += 1
        return count > 1 or self.asked <= ALWAYS or (self.asked - 1) % SELDOM == 0

    def learn(self, tokens: Sequence[int]) -> None:
        """From final tokens, behind the verdict on the last windows."""
        if self.last is None:
            return
        (position, candidates, windows), self.last = self.last, None
        text = tokens[position:]
        self.rounds += 1
        if text[0] in candidates:
            rank = candidates.index(text[0])
            self.hits[rank] += 1
            if rank < len(windows):
                drafts = windows[rank]
                length = min(len(drafts), len(text))
                stood = next((i for i in range(1, length) if drafts[i] != text[i]), length)
                self.stood, self.behind = self.stood + 1, self.behind + stood - 1
        if self.rounds == MOST_ROUNDS:
            self.rounds, self.stood, self.behind = self.rounds // 2, self.stood // 2, self.behind // 2
            self.hits = [hits // 2 for hits in self.hits]


@dataclass(frozen=True)
class Candidates:
    """Windows that begin with different drafts, as `pearl_rt.reference.round.decode` asks for them. ranks:
    says how many there are, at most `count`; None: as many.
    """

    judge: ReferenceJudge
    count: int
    ranks: Ranks | None = None

    def windows(
        self, draft_fn: LogitsFn[Floats], window: Window[Floats], tokens: Sequence[int]
    ) -> list[Window[Floats]]:
        """A window behind final tokens, and those beside it: each begins with another candidate of the first
        row, is as long, and goes on by itself.
        """
        found, row, own = [window], window[1][0], self.judge
        assert row is not None
        purpose = Purpose.TARGET if own.kind == "coupled" else Purpose.DRAFT
        settings = own.temperature, own.seed, len(tokens), purpose, self.count, own.words
        count, looks = self.count, True
        if self.ranks is not None:
            self.ranks.learn(tokens)
            count = self.ranks.count(self.count, len(window[0]))
            looks = self.ranks.looks(count)
        candidates = draw(own.row(row, tokens), *settings) if looks else []
        for first in candidates[1:count]:
            ids, rows = [first], [row]
            while len(ids) < len(window[0]):
                seen = [*tokens, *ids]
                rows.append(draft_fn(seen))
                token = own.draft_token(rows[-1], seen)
                assert token is not None
                ids.append(token)
            found.append((ids, [*rows]))
        if self.ranks is not None and looks:
            self.ranks.last = len(tokens), candidates, [ids for ids, _ in found]
        return found

    def verdict(
        self,
        target_fn: LogitsFn[Floats],
        windows: list[Window[Floats]],
        todo: RoundPlan,
        tokens: Sequence[int],
    ) -> tuple[Window[Floats], Verdict]:
        """The window that is taken, and the verdict on it. todo: of each of them."""
        own, row = self.judge, windows[0][1][0]
        assert row is not None
        first = choose(
            own.row(target_fn(tokens), tokens),
            own.row(row, tokens),
            [ids[0] for ids, _ in windows],
            len(tokens),
            own.temperature,
            own.seed,
            own.kind,
            own.words,
        )
        if first.taken < 0:
            return windows[0], Verdict(0, first.next_token, -1 if first.next_token >= 0 else 0)
        window = windows[first.taken]
        ids, drawn_from = window[0][: todo.num_draft_tokens], window[1][: todo.num_draft_tokens]
        rows = [target_fn([*tokens, *ids[:place]]) for place in range(1, todo.num_rows)]
        if not rows:
            return window, Verdict(1, PLACEHOLDER_TOKEN_ID)
        rest = own.verdict(rows, drawn_from[1:], ids[1:], [*tokens, ids[0]])
        bad_row = rest.bad_row + 1 if rest.bad_row >= 0 else -1
        return window, Verdict(1 + rest.accept_len, rest.next_token, bad_row)
