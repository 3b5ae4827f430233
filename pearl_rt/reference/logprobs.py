"""Log-probabilities of one row, in numpy: the definition that csrc/sampling/logprobs.h matches bit for bit.

    logprob(i) = (x[i] - max) - log(sum exp(x - max))

of the model's own logits: before temperature, penalties, bias and filters, as vLLM's raw_logprobs. A token's
rank is 1 + the number of larger logits.
"""

from typing import NamedTuple

import numpy as np

from pearl_rt.reference import noise
from pearl_rt.reference.noise import Floats
from pearl_rt.reference.processors import scaled, total


class Logprob(NamedTuple):
    """One token's."""

    logprob: float
    rank: int


def logprobs(logits: Floats, token: int, k: int) -> dict[int, Logprob]:
    """Of the token, which comes first, and of the k likeliest (the lowest ids among equals). logits: a usable
    [vocab] fp32.
    """
    centred = scaled(logits, np.float32(1.0))
    mass = noise.log(np.float32(total(noise.exp(centred))).reshape(1))[0]
    likeliest = np.argsort(-logits, kind="stable")[:k].tolist()
    return {
        i: Logprob(float(centred[i] - mass), 1 + int((logits > logits[i]).sum())) for i in (token, *likeliest)
    }
