"""Random requests, with every parameter that shapes a distribution, and random scripts of models."""

import random
from typing import Any

from scripted import VOCAB

FILTERS = {"top_k": 6, "top_p": 0.93, "min_p": 0.02}
PENALTIES = {
    "repetition_penalty": 1.25,
    "presence_penalty": 0.4,
    "frequency_penalty": 0.3,
    "logit_bias": [(2, 0.8), (5, -0.6)],
}
FIELDS = (*FILTERS, *PENALTIES, "min_tokens")


STOPS: list[dict[str, Any]] = [
    {},
    {"draft_stop": "confidence", "draft_stop_at": 0.25},
    {"draft_stop": "adaedl", "draft_stop_at": 0.45},
    {"draft_stop": "marginal", "draft_stop_at": 0.3},
    {"draft_stop": "marginal", "draft_stop_at": 0.9},
    {"draft_stop": "thompson"},
]


def random_request(rng: random.Random, vocab: int = VOCAB) -> dict[str, Any]:
    """Arguments of _C.Request: each parameter is off about half of the time."""
    request: dict[str, Any] = {
        "prompt_ids": [rng.randrange(vocab) for _ in range(rng.randint(1, 9))],
        "gamma": rng.randint(1, 8),
        "max_tokens": rng.choice([1, 2, 5, 13, 30, 1000]),
        "temperature": rng.choice([0.0, 0.3, 0.8, 1.5]),
        "seed": rng.randrange(2**64),
        "eos_ids": rng.sample(range(vocab), rng.randint(0, 2)),
        "stop_ids": rng.sample(range(vocab), rng.randint(0, 1)),
        "ignore_eos": rng.random() < 0.2,
    }
    choices: dict[str, list[Any]] = {
        "top_k": [1, 2, 5, vocab],
        "top_p": [0.2, 0.7, 0.95],
        "min_p": [0.01, 0.2, 1.0],
        "repetition_penalty": [0.7, 1.3, 3.0],
        "presence_penalty": [-1.0, 0.5, 2.0],
        "frequency_penalty": [-0.5, 0.5, 2.0],
        "logit_bias": [[(rng.randrange(vocab), rng.uniform(-6, 6))], [(0, -100.0), (3, 2.5)]],
        "min_tokens": [1, 4, 12],
    }
    request |= {name: rng.choice(values) for name, values in choices.items() if rng.random() < 0.45}
    return request | rng.choice(STOPS)


def random_models(rng: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scripts of a target and of a draft that agrees with it always, often, seldom or by chance."""
    rule = rng.randrange(1000)
    draft: dict[str, Any] = {"rule": rule, "divergence": rng.choice([0.0, 0.1, 0.5])}
    if rng.random() < 0.2:
        draft = {"rule": rule + 7777}
    return {"rule": rule}, draft | {"vocab_size": rng.choice([VOCAB, VOCAB, VOCAB + 5, VOCAB - 5])}


def random_script(rng: random.Random) -> dict[str, Any]:
    """A target of few tokens, so that what was said is said again."""
    return {"rule": rng.randrange(1000), "vocab_size": rng.choice([2, 3, 6, VOCAB])}
