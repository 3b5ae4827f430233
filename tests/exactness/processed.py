"""Requests with every parameter that shapes a distribution, over scripted models, and what must hold of them.

Each check takes numbers only and raises AssertionError, so that the same check runs on pearl_rt._C and, in a
process of its own, on a build with a bug put in (mutants.py).
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from chi_square import FALSE_ALARM, p_value
from law import CASES, SLOTS, Case, coordinator_counts
from random_requests import (
    FIELDS,
    FILTERS,
    PENALTIES,
    STOPS,
    lookup_requests,
    random_chain,
    random_costs,
    random_ids,
    random_mask,
    random_models,
    random_passes,
    random_request,
    random_script,
)
from scripted import CAPACITY, Bench, Logits, logits_after, rounds_of, tokens_of, window_rows_after

from pearl_rt import _C, _testing
from pearl_rt.reference.drafters.chain import Chain
from pearl_rt.reference.drafters.diffusion import Diffusion
from pearl_rt.reference.drafters.lookup import ONE, Lookup
from pearl_rt.reference.judge import ReferenceJudge
from pearl_rt.reference.processors import Transform
from pearl_rt.reference.round import Limits, decode
from pearl_rt.reference.step_costs import StepCosts
from pearl_rt.reference.stops import Stop
from pearl_rt.strategy.program import PLACEMENTS, STRATEGIES, program


def limits_of(request: dict[str, Any]) -> Limits:
    stops = {*request["stop_ids"], *(() if request["ignore_eos"] else request["eos_ids"])}
    return Limits(min(len(request["prompt_ids"]) + request["max_tokens"], CAPACITY), stops)


def judge_of(request: dict[str, Any], kind: str) -> ReferenceJudge:
    """The definition's judge of a request."""
    transform = Transform(
        **{name: request[name] for name in FIELDS if name in request},
        temperature=request["temperature"],
        masked_ids=[*request["eos_ids"], *request["stop_ids"]],
        prompt_len=len(request["prompt_ids"]),
    )
    return ReferenceJudge(kind, request["temperature"], request["seed"], transform=transform)


def chain_of(request: dict[str, Any], kind: str, chain: dict[str, Any]) -> Chain | None:
    """The definition's lookup in front of a model, from the arguments of Bench.build."""
    if not chain:
        return None
    cost, passes = chain["chain_cost"], chain["passes"] or int(chain["mask_token"] is not None)
    is_free = request["temperature"] == 0 or kind == "coupled"
    times, follows = costs_of(chain), "head_ids" in chain
    no_rules = ("none", *(() if times.scores else ("auto",)))
    ends_early = chain["passes"] is None and request.get("draft_stop", "none") not in no_rules
    return Chain(round(cost * ONE), is_free, passes, ends_early, times, follows)


def costs_of(chain: dict[str, Any]) -> StepCosts:
    """Of the arguments of Bench.build."""
    return StepCosts(chain.get("costs", ()), chain.get("window_costs", ()))


def stop_of(
    request: dict[str, Any], judge: ReferenceJudge, at_once: bool = False, costs: StepCosts | None = None
) -> Stop | None:
    """The definition's end of a request's windows. at_once: one pass has all rows of each. costs: of
    "auto", which is no rule without.
    """
    rule, costs = request.get("draft_stop", "none"), costs or StepCosts()
    if rule == "none" or (rule == "auto" and not costs.scores):
        return None
    shape = rule, request.get("draft_stop_at", 0.0), request["temperature"], judge.row, request["seed"]
    return Stop(*shape, at_once=at_once, costs=costs)


def lookup_tokens_are_those_of_ar(first: int, runs: int, drafter: str = "lookup") -> None:
    """Coupled and greedy, with earlier answers: in a batch a request says what `ar` says alone. drafter:
    "lookup", or "chain" before a model, "eagle3 chain" of a head, "diffusion chain" of a diffusion draft.
    """
    for number in range(first, first + runs):
        rng = random.Random(number)
        shared: dict[str, Any] = {"shares": True, "adapts": True}
        shared |= {"draft_stop": "auto"} if number % 3 == 0 and drafter != "lookup" else {}
        target = random_script(rng)
        alone = Bench.build("shared", target=target)
        chain = random_chain(rng, drafter, target)
        own = chain or {"costs": random_costs(rng)}
        batch = Bench.build("shared", target=target, lookup_pool=64, num_slots=5, **own)
        for _ in range(2):  # the second time there are earlier answers
            requests = lookup_requests(rng, target["vocab_size"], 5, drafter)
            strategy = "sd" if "head_ids" in chain else rng.choice(["sd", "pearl"])
            results = batch.run(strategy, *(_C.Request(**r | shared) for r in requests))
            for slot, request in enumerate(requests):
                want = tokens_of(alone.run("ar", _C.Request(**request | {"gamma": 0})))
                assert tokens_of(results, slot) == want, (number, slot, request)


def lookup_rounds_are_the_rules(first: int, runs: int, drafter: str = "lookup") -> None:
    """Both judges: verdict for verdict what the definition decodes with the definition's lookup. drafter:
    as above; then both draft.
    """
    judged = looked_up = 0
    for number in range(first, first + runs):
        rng = random.Random(number)
        target = random_script(rng)
        requests = lookup_requests(rng, target["vocab_size"], 3, drafter)
        strategy, kind = rng.choice(["sd", "pearl"]), rng.choice(["rejection", "coupled"])
        strategy = "sd" if drafter == "eagle3 chain" else strategy
        chain = random_chain(rng, drafter, target)
        shape_of = chain or {"costs": random_costs(rng)}
        if shape_of["costs"]:  # of one slot alone, as the definition has them
            auto = {"draft_stop": "auto"} if chain and rng.random() < 0.8 else {}
            requests = [requests[0] | {"adapts": True} | auto]
        bench = Bench.build("shared", target=target, lookup_pool=0, num_slots=3, **shape_of)
        results = bench.run(strategy, *(_C.Request(**request) for request in requests), judge=kind)
        rule, mask = logits_after(**target), chain.get("mask_token")
        for slot, request in enumerate(requests):
            limits, judge = limits_of(request), judge_of(request, kind)
            shape = request["prompt_ids"], strategy, request["gamma"], limits, judge
            own: dict[str, Any] = {"first": chain_of(request, kind, chain)}
            drafts: Any = Lookup(costs=shape_of["costs"])
            if chain:
                drafts = draft_of(
                    chain["draft"], chain.get("head_ids"), mask, chain["passes"], request, judge
                )
                stop = stop_of(request, judge, mask is not None, costs_of(chain))
                own |= {"stop": stop if chain["passes"] is None else None}
            want = decode(rule, drafts, *shape, mask_token=mask, **own)
            assert rounds_of(results, slot) == want, (number, strategy, kind, slot, request)
            judged += sum(one.num_judged for one in want)
        looked_up += sum(len(one.certain) for one in results)
    assert judged > runs and looked_up > runs / 2
    assert drafter == "lookup" or judged - looked_up > runs / 2


def rows_of_head(draft: Logits, ids: list[int] | None) -> Logits:
    """What a head of these ids says, as rows of the target's vocabulary."""
    if ids is None:
        return draft

    def row(prefix: Sequence[int]) -> np.ndarray:
        said = draft(prefix)
        known = np.full(len(said), -np.inf, np.float32)
        known[ids] = said[ids]
        return known

    return row


def draft_of(
    draft: dict[str, Any],
    ids: list[int] | None,
    mask: int | None,
    passes: int | None,
    request: dict[str, Any],
    judge: ReferenceJudge,
) -> Any:
    """What the definition drafts a request by: rows of a model or a head, or windows of a diffusion draft."""
    if passes is None:
        return rows_of_head(logits_after(**draft), ids)
    return Diffusion(window_rows_after(**draft), mask, passes, request["temperature"], judge.row)


def tokens_are_those_of_ar(first: int, runs: int, drafter: str = "model") -> None:
    """Coupled: in a batch, at any slot, by any strategy and window, a request says what `ar` says alone."""
    for number in range(first, first + runs):
        rng = random.Random(number)
        target, draft = random_models(rng)
        requests = [random_request(rng) for _ in range(rng.randint(1, 5))]
        strategy, placement = rng.choice(["sd", "pearl"]), rng.choice(PLACEMENTS)
        ids = random_ids(rng, drafter, draft)
        strategy = strategy if ids is None else "sd"
        delay = {"delay_us": (0, rng.choice([0, 0, 20])), "delay_seed": number}
        mask, passes = random_mask(rng, drafter, draft), random_passes(rng, drafter, requests)
        alone = Bench.build("shared", target=target)
        scripts = {"target": {**target, **delay}, "draft": {**draft, **delay}}
        shape = {"num_slots": 5, "mask_token": mask, "passes": passes, "head_ids": ids}
        batch = Bench.build(placement, **scripts, **shape)
        results = batch.run(strategy, *(_C.Request(**request) for request in requests))
        for slot, request in enumerate(requests):
            want = tokens_of(alone.run("ar", _C.Request(**request | {"gamma": 0})))
            assert tokens_of(results, slot) == want, (number, strategy, slot, request)


def rounds_are_the_rules(first: int, runs: int, drafter: str = "model") -> None:
    """Both judges, every strategy: verdict for verdict what the definition decodes."""
    for number in range(first, first + runs):
        rng = random.Random(number)
        target, draft = random_models(rng)
        requests = [random_request(rng) for _ in range(rng.randint(1, 3))]
        strategy, kind = rng.choice(STRATEGIES), rng.choice(["rejection", "coupled"])
        placement, mask = rng.choice(PLACEMENTS), random_mask(rng, drafter, draft)
        ids, passes = random_ids(rng, drafter, draft), random_passes(rng, drafter, requests)
        strategy = strategy if ids is None or strategy == "ar" else "sd"
        shape = {"num_slots": 3, "mask_token": mask, "passes": passes, "head_ids": ids}
        bench = Bench.build(placement, target=target, draft=draft, **shape)
        results = bench.run(strategy, *(_C.Request(**request) for request in requests), judge=kind)
        rule = logits_after(**target)
        for slot, request in enumerate(requests):
            limits, judge = limits_of(request), judge_of(request, kind)
            gamma, own = request["gamma"], {"stop": stop_of(request, judge, mask is not None)}
            drafts, shape_of = draft_of(draft, ids, mask, passes, request, judge), (gamma, limits, judge)
            want = decode(rule, drafts, request["prompt_ids"], strategy, *shape_of, mask_token=mask, **own)
            assert rounds_of(results, slot) == want, (number, strategy, kind, slot, request)


def nothing_outlives_a_request(first: int, runs: int) -> None:
    """One slot, request after request: each is what it is in an engine of its own."""
    rng = random.Random(first)
    target, draft = {"rule": 5}, {"rule": 5, "divergence": 0.3}
    used = Bench.build("shared", target=target, draft=draft)
    for number in range(runs):
        request, strategy = random_request(rng), rng.choice(STRATEGIES)
        if rng.random() < 0.3:
            request |= {"num_logprobs": 2}
        for name in FIELDS:
            if number % 2:
                request.pop(name, None)
        fresh = Bench.build("shared", target=target, draft=draft)
        got, want = (bench.run(strategy, _C.Request(**request)) for bench in (used, fresh))
        assert rounds_of(got) == rounds_of(want), (number, request)
        assert [r.logprobs for r in got] == [r.logprobs for r in want], (number, request)


CHAIN_COST = 0.5  # with windows of 1 to 3 tokens both of a chain draft in law_is_kept
# Of a chain of 32 slots whose windows are weighed: some are refused, some are the model's.
CHAIN_TIMES = [time for time in (10, 14, 15, 16) for _ in range(32)], [1, 2, 3]

# Of one slot with windows of three, whose number is weighed: one, until a second candidate has stood.
BRANCH_TIMES = [1000] * 4 + [1140] * 4 + [1200] * 64, [1]

# The law of three tokens over eight, filters and penalties on.


def processed_case(temperature: float, **fields: Any) -> Case:
    """Two models that disagree, whose law is known; filters cut some tokens at every position, not most."""
    processors = fields or {**FILTERS, **PENALTIES}
    return replace(
        Case(target_rule=6, target_scale=1.0, draft_scale=1.0), temperature=temperature, processors=processors
    )


def coordinator_of(case: Case, slots: int, gamma: int, drafter: str, candidates: int = 1) -> Any:
    """Over both models of a case, or its target with a lookup, or all three. candidates: of the first."""
    device = _C.Device([])
    if candidates > 1:
        sizes: dict[str, Any] = {"num_slots": slots, "gamma_max": gamma}
        extra = _C.Coordinator.branch_blocks(**sizes, block_size=16, candidates=candidates)
        shape = {"num_slots": slots * candidates, "num_blocks": slots + extra, "block_size": 16}
        model = _C.ModelDrafter(case.executor("draft", **shape))
        if drafter == "weighed model":
            model.set_branch_costs(*BRANCH_TIMES)
        target = case.executor("target", **shape)
        lanes = [_C.CpuLane("target", target, device), _C.CpuLane("draft", model, device)]
        sizes |= {"capacity": 16, "vocab_size": case.vocab, "candidates": candidates}
        return _C.Coordinator(lanes, **sizes, num_blocks=slots)
    drafts = _C.LookupDrafter() if drafter == "lookup" else case.executor("draft", slots)
    if drafter in ("parallel", "chain", "weighed chain"):
        drafts = _C.ModelDrafter(drafts, mask_token=case.vocab - 1 if drafter == "parallel" else None)
    if "diffusion" in drafter:
        drafts = _C.DiffusionDrafter(drafts, mask_token=case.vocab - 1, num_passes=2)
    if "chain" in drafter:
        drafts = _C.ChainDrafter(drafts, cost=CHAIN_COST)
        drafts.set_costs(*(CHAIN_TIMES if "weighed" in drafter else ([], [])))
    taps = None
    if drafter == "eagle3":  # of all ids but two, in another order
        ids = list(range(case.vocab))[-3::-1]
        head = case.executor("draft", slots, head_ids=ids)
        drafts = taps = _C.EagleDrafter(head, target_ids=ids)
    lanes = [
        _C.CpuLane("target", case.executor("target", slots, has_taps=taps is not None), device, taps=taps),
        _C.CpuLane("draft", drafts, device),
    ]
    return _C.Coordinator(lanes, num_slots=slots, gamma_max=gamma, capacity=16, vocab_size=case.vocab)


def ragged_answers(
    case: Case,
    strategy: str,
    gamma: int,
    runs: int,
    slots: int,
    judge: str = "rejection",
    first_seed: int = 0,
    drafter: str = "model",
    stop: int = 0,
    candidates: int = 1,
) -> np.ndarray:
    """[runs, length]: slot b has windows of 1 + b % gamma tokens, but the first, which has gamma. stop: of
    STOPS.
    """
    coordinator = coordinator_of(case, slots, gamma, drafter, candidates)
    answers = np.zeros((runs, case.length), dtype=np.int64)
    for first in range(0, runs, slots):
        requests = [
            _C.Request(
                list(case.prompt),
                gamma=1 + (gamma - 1 + slot) % gamma,
                max_tokens=case.length,
                temperature=case.temperature,
                seed=first_seed + first + slot,
                adapts="weighed" in drafter,
                **case.processors,
                **({"draft_stop": "auto"} if "weighed" in drafter else STOPS[stop]),
            )
            for slot in range(min(slots, runs - first))
        ]
        coordinator.start(program(strategy, "shared"), requests, judge)
        written = [0] * len(requests)
        while (results := coordinator.next(20_000, min_results=10**6)) is not None:
            for result in results:
                row, at = first + result.slot, written[result.slot]
                answers[row, at : at + len(result.token_ids)] = result.token_ids
                written[result.slot] += len(result.token_ids)
        assert written == [case.length] * len(requests)
    return answers


def law_is_kept(
    temperature: float,
    strategy: str,
    gamma: int,
    runs: int,
    slots: int = SLOTS,
    first_seed: int = 0,
    drafter: str = "model",
    stop: int = 0,
    candidates: int = 1,
) -> None:
    """Jointly over three positions, and at each alone. A lookup finds every token in its prompt. stop: of
    STOPS. candidates: windows of a sequence.
    """
    case = processed_case(temperature)
    if drafter == "lookup" or "chain" in drafter:
        case = replace(case, prompt=(*range(case.vocab), 0))
    answers = ragged_answers(
        case, strategy, gamma, runs, slots, "rejection", first_seed, drafter, stop, candidates
    )
    law = case.law().reshape((case.vocab,) * case.length)
    counts = np.zeros_like(law)
    np.add.at(counts, tuple(answers.T), 1)
    assert p_value(counts.reshape(-1), law.reshape(-1) * runs) > FALSE_ALARM
    for position in range(case.length):
        others = tuple(axis for axis in range(case.length) if axis != position)
        assert p_value(counts.sum(axis=others), law.sum(axis=others) * runs) > FALSE_ALARM


def plain_law_is_kept(case: str, strategy: str) -> None:
    """With nothing on but a temperature, of a case of law.py."""
    counts = coordinator_counts(CASES[case], strategy, 2, 20_000)
    assert p_value(counts, CASES[case].law() * 20_000) > FALSE_ALARM


def uniforms_lie_above_zero() -> None:
    """Over words that round to the ends: 0 would accept what the target cannot say, and divide by nothing."""
    words = np.array([0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFF0000, 0xFFFFFFFF], dtype=np.uint32)
    u = _testing.uniform(words)
    assert u.min() == np.float32(2.0**-33) and u.max() == 1.0 and (np.diff(u) >= 0).all()
