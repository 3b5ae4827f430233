"""Random requests, with every parameter that shapes a distribution, and random scripts of models."""

import random
from collections.abc import Sequence
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


def lookup_requests(rng: random.Random, vocab: int, most: int, drafter: str) -> list[dict[str, Any]]:
    """Requests for a vocabulary of any size, whose processors name its tokens only."""
    requests = [random_request(rng, vocab) for _ in range(rng.randint(1, most))]
    for request in requests:
        request |= {"draft_stop": "none"} if drafter == "diffusion chain" else {}
        request["logit_bias"] = [
            (token, bias) for token, bias in request.get("logit_bias", []) if token < vocab
        ]
        if len({*request["eos_ids"], *request["stop_ids"]}) == vocab:  # min_tokens would forbid everything
            request["min_tokens"] = 0
    return requests


def random_costs(rng: random.Random) -> list[int]:
    """Of scores over 1, 2, .. rows: none, or a step for some of them."""
    if rng.random() < 0.7:
        return []
    steps = [rng.choice([0, 0, 30, 300, 600]) for _ in range(rng.randint(0, 9))]
    return [1000 + sum(steps[:rows]) for rows in range(len(steps) + 1)]


def random_chain(rng: random.Random, drafter: str, target: dict[str, Any]) -> dict[str, Any]:
    """What Bench.build makes a chain of: a draft that agrees with the target often, seldom or by chance."""
    if not drafter.endswith("chain"):
        return {}
    draft: dict[str, Any] = target | {"divergence": rng.choice([0.1, 0.5, 1.0])}
    masks = [None, None, rng.randrange(draft["vocab_size"])]
    masks = masks[2:] if drafter == "diffusion chain" else masks
    of_head: dict[str, Any] = {}
    if drafter == "eagle3 chain":
        size = target["vocab_size"]
        masks, of_head = [None], {"head_ids": rng.sample(range(size), rng.choice([1, size]))}
    costs = random_costs(rng)
    longest = rng.choice([100, 2000])
    windows = [rng.randint(1, longest) for _ in range(rng.randint(1, 9))] if costs else []
    return of_head | {
        "draft": draft,
        "mask_token": rng.choice(masks),
        "passes": random_passes(rng, drafter),
        "chain_cost": rng.choice([0.0, 0.05, 0.3]),
        "costs": costs,
        "window_costs": windows,
    }


def random_mask(rng: random.Random, drafter: str, draft: dict[str, Any]) -> int | None:
    """Any token of a draft with masks, also one that a text has, or that the target has not."""
    return rng.randrange(draft["vocab_size"]) if drafter in ("parallel", "diffusion") else None


def random_passes(rng: random.Random, drafter: str, requests: Sequence[dict[str, Any]] = ()) -> int | None:
    """Of a draft whose windows no rule ends: those of the requests are dropped."""
    if not drafter.startswith("diffusion"):
        return None
    for request in requests:
        request["draft_stop"] = "none"
    return rng.choice([1, 2, 3, 8])


def random_ids(rng: random.Random, drafter: str, draft: dict[str, Any]) -> list[int] | None:
    """Of a head: some of the target's ids, in any order; and its script is of the target's vocabulary."""
    if drafter != "eagle3":
        return None
    draft["vocab_size"] = VOCAB
    return rng.sample(range(VOCAB), rng.choice([1, 4, VOCAB - 1, VOCAB]))
