"""Sampling and the two ways to judge, in numpy: the definition that csrc/sampling/sampling.h and judge.h
match bit for bit. It knows nothing of pending, windows or strategies.

rejection  accept x with min(1, p(x) / q(x)); recover from norm(max(p - q, 0))  (Leviathan et al., 2023)
coupled    draft and target sample a position with the same noise; accept while they pick the same token
           (Daliri et al., 2024, coupling without communication)

p and q are softmax(logits / temperature) of target and draft, both as the request transforms them
(pearl_rt/reference/processors.py); the draft samples from its first min(vocab, draft_vocab) entries only,
and q is over those.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pearl_rt.reference import noise
from pearl_rt.reference.noise import Floats, Purpose, Words
from pearl_rt.reference.processors import Transform, inverse_temperature, scaled, total, usable
from pearl_rt.reference.round import PLACEHOLDER_TOKEN_ID, Verdict

WordsFn = Callable[
    [int, int, int, int], Words
]  # (seed, position, purpose, count); pearl_rt.reference.noise.words


def sample(
    logits: Floats,
    temperature: float,
    seed: int,
    position: int,
    purpose: Purpose,
    words: WordsFn = noise.words,
) -> int:
    """The token of one row, [vocab] fp32, or -1 if the row is not usable.

    Greedy unless temperature > 0 (the lowest index wins ties); else argmax(logits / temperature + Gumbel).
    """
    if not usable(logits):
        return PLACEHOLDER_TOKEN_ID
    if not np.float32(temperature) > 0:
        return int(np.argmax(logits))
    variates = noise.gumbel(noise.uniform(words(seed, position, purpose, len(logits))))
    keys = scaled(logits, inverse_temperature(temperature)) + variates
    best = int(np.argmax(keys))
    return best if keys[best] > -np.inf else int(np.argmax(logits))


def residual_token(target: Floats, draft: Floats, variates: Floats) -> int:
    """A token from norm(max(target - draft, 0)), both [vocab] probabilities, or -1 if nothing is left.

    The exponential race: argmax(max(target - draft, 0) / Exp(1)).
    """
    with np.errstate(under="ignore"):
        keys = np.maximum(target - draft, np.float32(0.0)) / variates
    best = int(np.argmax(keys))
    return best if keys[best] > 0 else PLACEHOLDER_TOKEN_ID


def judge(
    target_logits: npt.NDArray[np.float32],
    draft_logits: npt.NDArray[np.float32] | Sequence[Floats | None] | None,
    draft_token_ids: Sequence[int],
    position: int,
    temperature: float,
    seed: int,
    kind: str,
    words: WordsFn = noise.words,
) -> Verdict:
    """The verdict on draft tokens at positions position .. position + num_draft - 1.

    target_logits: [num_draft or num_draft + 1, vocab] fp32; the row more is the bonus row
    draft_logits: [num_draft] rows of [draft_vocab] fp32, read by rejection at temperature > 0 only; None in
    place of a row: that draft was certain, all of q is on it
    Rows are read in order, up to the first rejection.
    """
    vocab = target_logits.shape[1]
    num_draft = len(draft_token_ids)
    by_ratio = kind == "rejection" and np.float32(temperature) > 0
    own = Purpose.TARGET if kind == "coupled" else Purpose.BONUS
    for row, logits in enumerate(target_logits):
        if not usable(logits):
            return Verdict(row, PLACEHOLDER_TOKEN_ID, row)
        if row == num_draft:
            return Verdict(row, sample(logits, temperature, seed, position + row, own, words))
        candidate = draft_token_ids[row]
        if not 0 <= candidate < vocab:
            return Verdict(row, PLACEHOLDER_TOKEN_ID, row)
        if not by_ratio:
            token = sample(logits, temperature, seed, position + row, own, words)
            if token != candidate:
                return Verdict(row, token)
            continue

        assert draft_logits is not None, "rejection at temperature > 0 reads draft_logits"
        drafted = draft_logits[row]
        inverse = inverse_temperature(temperature)
        draft_weights = np.zeros(vocab, dtype=np.float32)
        if drafted is None:
            draft_weights[candidate] = 1.0
        elif not usable(drafted[:vocab]):
            return Verdict(row, PLACEHOLDER_TOKEN_ID, row)
        else:
            draft_weights[: len(drafted)] = noise.exp(scaled(drafted[:vocab], inverse))
        target_weights = noise.exp(scaled(logits, inverse))
        target_sum, draft_sum = total(target_weights), total(draft_weights)
        u = noise.uniform(words(seed, position + row, Purpose.ACCEPT, 1))[0]
        p, q = np.float64(target_weights[candidate]), np.float64(draft_weights[candidate])
        if p > 0 and np.float64(u) * q * target_sum <= p * draft_sum:
            continue

        with np.errstate(under="ignore"):
            target_probs = target_weights * np.float32(1.0 / target_sum)
            draft_probs = draft_weights * np.float32(1.0 / draft_sum)
        variates = noise.exponential(noise.uniform(words(seed, position + row, Purpose.RESIDUAL, vocab)))
        token = residual_token(target_probs, draft_probs, variates)
        if token == PLACEHOLDER_TOKEN_ID:
            token = sample(logits, temperature, seed, position + row, Purpose.RESIDUAL, words)
        return Verdict(row, token)
    return Verdict(num_draft, PLACEHOLDER_TOKEN_ID)


@dataclass(frozen=True)
class ReferenceJudge:
    """`judge` and `sample` with their settings, as `pearl_rt.reference.round.decode` asks for them."""

    kind: str
    temperature: float
    seed: int
    words: WordsFn = noise.words
    transform: Transform | None = None  # of the same temperature; None: rows as they are

    def draft_token(self, logits: Floats, prefix: Sequence[int]) -> int | None:
        """The draft's token after a prefix; None: the form of the answer, or the request where the draft has
        not all tokens, allows none of the draft's.
        """
        purpose = Purpose.TARGET if self.kind == "coupled" else Purpose.DRAFT
        row = self.row(logits, prefix)
        has_form = self.transform is not None and self.transform.allowed is not None
        may_lack_tokens = has_form or bool(np.isneginf(logits).any())
        if may_lack_tokens and usable(logits) and not usable(row):
            return None
        return sample(row, self.temperature, self.seed, len(prefix), purpose, self.words)

    def verdict(
        self,
        target_logits: Sequence[Floats],
        draft_logits: Sequence[Floats | None],
        draft_token_ids: Sequence[int],
        prefix: Sequence[int],
    ) -> Verdict:
        """The verdict on a window after a prefix; rows as in `judge`, before their transform."""
        known = [[*prefix, *draft_token_ids[:row]] for row in range(len(target_logits))]
        target = [self.row(logits, seen) for logits, seen in zip(target_logits, known, strict=True)]
        draft = [
            None if logits is None else self.row(logits, seen)
            for logits, seen in zip(draft_logits, known, strict=False)
        ]
        return judge(
            np.stack(target),
            draft,
            draft_token_ids,
            len(prefix),
            self.temperature,
            self.seed,
            self.kind,
            self.words,
        )

    def row(self, logits: Floats, prefix: Sequence[int]) -> Floats:
        """Logits as they are sampled and judged."""
        return logits if self.transform is None else self.transform.row(logits, prefix)
