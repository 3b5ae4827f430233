"""Several windows of a sequence beside one another, over scripted models, and what must hold of them.

Checks as those of processed.py, by the same means.
"""

import random
from typing import Any

from processed import judge_of, limits_of
from random_requests import random_models, random_request
from scripted import Bench, logits_after, rounds_of, tokens_of

from pearl_rt import _C
from pearl_rt.reference.candidates import Candidates, Ranks
from pearl_rt.reference.round import decode
from pearl_rt.reference.step_costs import StepCosts
from pearl_rt.strategy.program import CORE_PLACEMENTS


def random_branches(rng: random.Random) -> dict[str, Any]:
    """Windows of a sequence, and blocks of which their rows fill one or more."""
    own = {"candidates": rng.choice([2, 3, 4, 8]), "block_size": rng.choice([16, 32, 64])}
    if rng.random() < 0.5:
        return own
    slope = rng.randint(1, 40)  # a window more is worth it, or not, by what has stood
    costs = [1000 + slope * row + rng.randint(0, 5) for row in range(rng.choice([1, 20, 80]))]
    windows = [rng.randint(1, 60) for _ in range(rng.randint(1, 9))]
    return own | {"costs": costs, "window_costs": windows}


def without_stop(request: dict[str, Any]) -> dict[str, Any]:
    """All windows of a sequence are as long."""
    return {name: value for name, value in request.items() if not name.startswith("draft_stop")}


def candidates_say_what_ar_says(first: int, runs: int) -> None:
    """Coupled and greedy, several windows of each sequence, in a batch, also behind a prompt that was fed
    before.
    """
    for number in range(first, first + runs):
        rng = random.Random(number)
        target, draft = random_models(rng)
        delay = {"delay_us": (0, rng.choice([0, 0, 20])), "delay_seed": number}
        alone = Bench.build("shared", target=target)
        scripts = {"target": {**target, **delay}, "draft": {**draft, **delay}}
        batch = Bench.build(
            rng.choice(CORE_PLACEMENTS),
            **scripts,
            num_slots=5,
            prefix_caching=rng.random() < 0.5,
            **random_branches(rng),
        )
        for _ in range(2):
            adapts = {"adapts": rng.random() < 0.7}
            requests = [without_stop(random_request(rng)) | adapts for _ in range(rng.randint(1, 5))]
            results = batch.run("sd", *(_C.Request(**request) for request in requests))
            for slot, request in enumerate(requests):
                want = tokens_of(alone.run("ar", _C.Request(**request | {"gamma": 0})))
                assert tokens_of(results, slot) == want, (number, slot, request)


def candidates_are_the_rules(first: int, runs: int) -> None:
    """Both judges: verdict for verdict what the definition decodes, and others than the first are taken."""
    copied = 0
    for number in range(first, first + runs):
        rng = random.Random(number)
        target, draft = random_models(rng)
        requests = [without_stop(random_request(rng)) for _ in range(rng.randint(1, 3))]
        kind, own = rng.choice(["rejection", "coupled"]), random_branches(rng)
        if "costs" in own:  # of one slot alone, as the definition has them
            requests = [requests[0] | {"adapts": True, "max_tokens": 90}]
        bench = Bench.build(rng.choice(CORE_PLACEMENTS), target=target, draft=draft, num_slots=3, **own)
        results = bench.run("sd", *(_C.Request(**request) for request in requests), judge=kind)
        rules = logits_after(**target), logits_after(**draft)
        for slot, request in enumerate(requests):
            limits, judge = limits_of(request), judge_of(request, kind)
            ranks = Ranks(StepCosts(own["costs"], own["window_costs"])) if "costs" in own else None
            several = Candidates(judge, own["candidates"], ranks)
            shape = request["prompt_ids"], "sd", request["gamma"], limits, judge
            want = decode(*rules, *shape, several=several)
            assert rounds_of(results, slot) == want, (number, kind, slot, request, own)
        copied += bench.target.num_copied
    assert copied > runs
