"""What a request does to a row of logits before it is sampled or judged, in numpy: bias, penalties, filters.

The definition that csrc/sampling/transform.h and filters.h match bit for bit.

A pure function of (parameters, tokens before the row's position, row). Draft and target rows go through the
same one, so that q is always the distribution that was sampled, and a row inside a window sees the
candidates before it. In vLLM's order, each step in fp32 and rounded once:

    min_tokens          end-of-text and stop ids -> -inf while fewer than min_tokens tokens were generated
    logit_bias          x + bias
    repetition_penalty  of tokens in prompt or answer: x / penalty if x > 0, else x * penalty
    frequency_penalty   of tokens in the answer: x - penalty * times
    presence_penalty    of tokens in the answer: x - penalty
    then, at temperature > 0, what lies below any of three thresholds -> -inf:
    min_p               max + log(min_p) * temperature
    top_k               the k-th largest
    top_p               the largest value at and above which min_p and top_k left top_p of their mass

What ties with a threshold is kept. A penalised logit stays within fp32's range, and -inf stays -inf. It knows
nothing of noise, windows or strategies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pearl_rt.reference import noise
from pearl_rt.reference.noise import Floats

BLOCK = 256  # partial sums of a row, by index mod 256
DIGITS = ((21, 11), (10, 11), (0, 10))  # (shift, bits) of a rank, highest first
LIMITS = np.finfo(np.float32)


def usable(logits: Floats) -> bool:
    """No NaN, no +inf, and not all -inf."""
    return bool(np.all(logits < np.inf) and logits.max() > -np.inf)


def inverse_temperature(temperature: float) -> np.float32:
    """1 / temperature in fp32, kept finite and normal. temperature > 0."""
    with np.errstate(over="ignore", divide="ignore"):
        return np.clip(np.float32(1.0) / np.float32(temperature), LIMITS.tiny, LIMITS.max)


def scaled(logits: Floats, inverse: np.float32) -> Floats:
    """(logits - max) * inverse: at most 0, and 0 at the argmax."""
    with np.errstate(over="ignore", under="ignore"):
        found: Floats = (logits - logits.max()) * inverse
    return found


def total(weights: Floats) -> np.float64:
    """Their sum in fp64: partial sums by index mod 256, then added by halves."""
    padded = np.zeros(-(-len(weights) // BLOCK) * BLOCK, dtype=np.float64)
    padded[: len(weights)] = weights
    partial = np.add.accumulate(padded.reshape(-1, BLOCK), axis=0)[-1]
    while len(partial) > 1:
        partial = partial[: len(partial) // 2] + partial[len(partial) // 2 :]
    return np.float64(partial[0])


def nucleus(logits: Floats, weights: Floats, goal: np.float64) -> np.float32:
    """The largest value at and above which the weights reach goal, or the smallest of any weight.

    logits, weights: [vocab], weights of equal logits equal, goal > 0. Found digit by digit of a rank that
    orders as the logits do. Masses are fp64: of one digit in order of index, of digits from the top down.
    """
    bits = (logits + np.float32(0.0)).view(np.int32).astype(np.int64)
    rank = (bits ^ (bits >> 31 & 0x7FFFFFFF)) + 2**31
    among = np.flatnonzero(weights > 0)
    above = np.float64(0.0)
    for shift, width in DIGITS:
        digit = rank[among] >> shift & (1 << width) - 1
        mass = np.bincount(digit, weights=weights[among].astype(np.float64), minlength=1 << width)
        reached = np.add.accumulate(np.concatenate([[above], mass[::-1]]))  # from the top, [1 + digits]
        enough = np.flatnonzero((mass[::-1] > 0) & (reached[1:] >= goal))
        place = enough[0] if len(enough) else np.flatnonzero(mass[::-1] > 0)[-1]
        above = reached[place]
        among = among[digit == (1 << width) - 1 - place]
    return np.float32(logits[among[0]])


@dataclass(frozen=True)
class Transform:
    """The parameters of one request, as in SamplingParams; off as they stand here."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Sequence[tuple[int, float]] = ()
    min_tokens: int = 0
    masked_ids: Sequence[int] = ()  # end of text and stop ids: not before min_tokens
    prompt_len: int = 0
    # Of an answer that has a form: which ids may follow what was generated. None: they are no beginning of an
    # answer, or have its end, and no position behind them counts.
    allowed: Callable[[Sequence[int]], Sequence[int] | None] | None = None

    def row(self, logits: Floats, prefix: Sequence[int]) -> Floats:
        """The row as it is sampled and judged: [vocab] fp32. prefix: all tokens before its position.

        A row that is not usable comes back as it is.
        """
        if not usable(logits):
            return logits
        row = logits.copy()
        generated = prefix[self.prompt_len :]
        allowed = None if self.allowed is None else self.allowed(generated)
        if allowed is not None:
            kept = np.zeros(len(row), dtype=bool)
            kept[[token for token in allowed if token < len(row)]] = True
            row[~kept] = -np.inf
        if len(generated) < self.min_tokens:
            without = row.copy()
            without[[token for token in self.masked_ids if token < len(row)]] = -np.inf
            if allowed is None or without.max() > -np.inf:  # else the form leaves nothing but an end
                row = without
        for token, bias in self.logit_bias:
            if token < len(row):
                row[token] += np.float32(bias)
        if (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0):
            self._penalise(row, prefix, generated)
        if np.float32(self.temperature) > 0 and row.max() > -np.inf:
            row[row < self.threshold(row)] = -np.inf
        return row

    def _penalise(self, row: Floats, prefix: Sequence[int], generated: Sequence[int]) -> None:
        seen = np.unique([token for token in prefix if token < len(row)]).astype(np.int64)
        times = np.bincount([token for token in generated if token < len(row)], minlength=len(row))[seen]
        repetition, frequency, presence = (
            np.float32(penalty)
            for penalty in (self.repetition_penalty, self.frequency_penalty, self.presence_penalty)
        )
        x = row[seen]
        with np.errstate(over="ignore", under="ignore"):
            y = np.where(x > 0, x / repetition, x * repetition)
            y = y - frequency * times.astype(np.float32)
            y = y - np.where(times > 0, presence, np.float32(0.0))
            row[seen] = np.where(x == -np.inf, x, np.clip(y, LIMITS.min, LIMITS.max))

    def threshold(self, row: Floats) -> np.float32:
        """Below it nothing is kept; -inf if no filter is on. temperature > 0."""
        floor, vocab = np.float32(-np.inf), len(row)
        min_p, top_p = np.float32(self.min_p), np.float32(self.top_p)
        if min_p > 0:
            with np.errstate(over="ignore"):
                share = noise.log(np.maximum(min_p, LIMITS.tiny).reshape(1))[0]
                floor = np.minimum(row.max() + share * np.float32(self.temperature), row.max())
        if 0 < self.top_k < vocab:
            floor = np.maximum(floor, np.partition(row, vocab - self.top_k)[vocab - self.top_k])
        if top_p < 1:
            weights = noise.exp(scaled(row, inverse_temperature(self.temperature)))
            weights = np.where(row >= floor, weights, np.float32(0.0))
            floor = np.maximum(floor, nucleus(row, weights, np.float64(top_p) * total(weights)))
        return floor
