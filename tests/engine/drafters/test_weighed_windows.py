"""Windows of requests that adapt: a lookup's, a model's or none, each by its tokens for its time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from scripted import Bench, tokens_of
from tiny_pairs import Pair

from pearl_rt import _C, Engine, SamplingParams
from pearl_rt.backends.cpu_lanes import COST_OF_ONE, costs_of
from pearl_rt.reference.drafters.lookup import Lookup
from pearl_rt.strategy.chooser import Chooser
from pearl_rt.strategy.planner import Plan, StepTimes
from pearl_rt.strategy.program import program
from pearl_rt.strategy.program_choice import ProgramChoice
from pearl_rt.types.metrics import Drafted, RequestMetrics

FREE = [1000] * 9  # scores of 1 to 9 rows take the same time
DEAR = [1000 * rows for rows in range(1, 10)]  # a draft pays only if it is sure to stand
TEXT = {"rule": 5, "vocab_size": 2}  # repeats itself now and then
MODEL = {"target": TEXT, "draft": TEXT | {"divergence": 0.02}, "lookup_pool": 0, "chain_cost": 0.2}
REQUEST: dict[str, Any] = {"prompt_ids": [0, 1, 1], "gamma": 4, "max_tokens": 60, "adapts": True}
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [11, 12, 13] * 7]


def drafted(bench: Bench, **more: Any) -> tuple[int, int]:
    """Rounds in which the lookup drafted, and in which the model did; the text is that of `ar`."""
    request = _C.Request(**REQUEST | more)
    results = bench.run("sd", request)
    assert tokens_of(results) == tokens_of(Bench.build(target=TEXT).run("ar", request))
    looked_up = sum(bool(one.certain) for one in results)
    return looked_up, sum(one.num_judged > 0 for one in results) - looked_up


def test_windows_that_cost_too_much_are_not_drafted() -> None:
    free, dear = (Bench.build("shared", target=TEXT, lookup_pool=0, costs=costs) for costs in (FREE, DEAR))
    assert drafted(free)[0] > 15 and drafted(dear) == (0, 0)
    assert drafted(dear, adapts=False)[0] > 15  # with a window of its own


def test_what_is_left_out_is_learned_from() -> None:
    """Of a text whose words are followed by others each time, then by the same: no draft was ever tried, and
    when the text repeats itself it is drafted.
    """
    text = [token for number in range(40) for token in (99, number)] + list(range(50, 70)) * 2
    lookup = Lookup(costs=[1000, 1300, *[1400] * 7])
    windows = [lookup.window(text[:end], [], 4) for end in range(1, len(text))]
    assert not any(windows[:97]) and lookup.rates["text", 0].judged > 10
    assert windows[-10:-4] == [text[end : end + 4] for end in range(len(text) - 10, len(text) - 4)]


def test_rows_of_all_that_run_are_counted() -> None:
    """Two rows are free, more are not: one sequence drafts, and four beside one another do not."""
    costs = [1000, 1000, *[1000 * rows for rows in range(3, 40)]]
    bench = Bench.build("shared", target=TEXT, lookup_pool=0, costs=costs, num_slots=4)
    assert drafted(bench)[0] > 10
    requests = [_C.Request(**REQUEST | {"prompt_ids": [0, 1, n % 2, n // 2]}) for n in range(4)]
    together = bench.run("sd", *requests)
    busy = [one for one in together if one.round <= 40]
    assert len(busy) > 100 and not any(one.num_judged for one in busy)


@pytest.mark.parametrize(("window", "model_drafts"), [(100, True), (4000, False)])
def test_a_model_that_costs_too_much_is_left_alone(window: int, model_drafts: bool) -> None:
    costs = {"costs": FREE, "window_costs": [window * n for n in range(1, 9)]}
    bench = Bench.build("shared", **MODEL, **costs)
    by_model = drafted(bench)[1]
    assert by_model > 5 if model_drafts else by_model <= 2


def test_a_run_without_windows_of_the_model_feeds_it_nothing() -> None:
    bench = Bench.build("shared", **MODEL, costs=FREE, window_costs=[2000] * 8)
    want = tokens_of(Bench.build(target=TEXT).run("ar", _C.Request(**REQUEST)))
    for windows, is_fed in (([0, 0], False), ([4, 4], True)):
        before = bench.draft.num_tokens
        bench.coordinator.start(program("sd", "shared"), [_C.Request(**REQUEST)], "coupled", windows=windows)
        results = bench.finish()
        assert tokens_of(results) == want and any(one.certain for one in results)
        assert (bench.draft.num_tokens > before) is is_fed


def test_costs_of_steps_that_were_timed() -> None:
    times = StepTimes({1: 0.5, 2: 0.4, 4: 1.0}, {1: 0.1, 3: 0.25})
    assert COST_OF_ONE == 4096
    assert costs_of(times.target, times, 5) == [4096, 4096, 5734, 8192, 10650]  # more rows never take less
    assert times.window is not None and costs_of(times.window, times, 3) == [819, 1434, 2048]


def test_by_default_only_where_the_planner_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, greedy = Pair.make("half-right", num_hidden_layers=3), SamplingParams(max_tokens=60)
    shape: dict[str, Any] = {"max_model_len": 128, "num_threads": 1, "placement": "shared"}
    monkeypatch.setattr("pearl_rt.backends.cpu_lanes.costs_of", lambda table, times, most: [1000] * most)
    with Engine(pair.config, pair.target, pair.config, pair.draft, **shape) as engine:
        want = [one.token_ids for one in engine.generate(PROMPTS, greedy, strategy="ar")]
        outputs = engine.generate(PROMPTS, greedy)
        assert [one.token_ids for one in outputs] == want
        assert {one.metrics.strategy for one in outputs} == {"sd"}
        assert sum(one.metrics.looked_up.windows for one in outputs) > 10
        fixed = engine.generate(PROMPTS, greedy, strategy="sd", gamma=4)
        assert [one.token_ids for one in fixed] == want
        assert sum(one.metrics.looked_up.windows for one in fixed) == 0 < fixed[0].metrics.sampled.windows
    with Engine(pair.config, pair.target, pair.config, pair.draft, draft_lookup=False, **shape) as engine:
        outputs = engine.generate(PROMPTS, greedy)
        assert sum(one.metrics.looked_up.windows for one in outputs) == 0


def test_a_request_with_a_gamma_waits_for_a_run_that_feeds_the_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planner gives the model no windows; beside such a run there is no draft for one that asks."""
    pair, greedy = Pair.make("equal"), SamplingParams(max_tokens=100)

    def no_windows(self: Chooser, plan: Plan, choice: ProgramChoice, *_: object) -> list[int]:
        return [0, 0, 0] if len(choice.gammas) > 1 else []

    monkeypatch.setattr(Chooser, "windows", no_windows)
    shape: dict[str, Any] = {"max_model_len": 256, "num_threads": 1, "placement": "shared", "max_num_seqs": 2}
    with Engine(pair.config, pair.target, pair.config, pair.draft, **shape) as engine:
        want = [one.token_ids for one in engine.generate(PROMPTS, greedy, strategy="ar")]
        for _ in range(8):  # one or the other time the first still runs when the second comes
            planned = engine.submit(PROMPTS[0], greedy, strategy="sd")
            asked = engine.submit(PROMPTS[1], greedy, strategy="sd", gamma=4)
            found = [planned.result(), asked.result()]
            assert [one.token_ids for one in found] == want
            assert found[0].metrics.sampled.windows == 0 < found[1].metrics.sampled.windows
            assert found[1].metrics.acceptance_rate == 1


def refusals(bench: Bench, **more: Any) -> tuple[int, int]:
    """Windows that the rule left empty, and drafts of the others; the text is that of `ar`."""
    request = _C.Request(**REQUEST | {"draft_stop": "auto"} | more)
    results = bench.run("sd", request)
    assert tokens_of(results) == tokens_of(Bench.build(target=TEXT).run("ar", request))
    return sum(one.is_refused for one in results), sum(one.num_judged for one in results if not one.certain)


def test_a_row_that_is_not_worth_its_score_is_not_judged() -> None:
    """One more row costs a whole step, and no draft is so sure: each window of the model ends before its
    first row, but for the first of all, behind which a row is free. Soon it begins none. Free rows are all
    judged, and without the rule so are dear ones.
    """
    dear = {"costs": [1000, 2000, 2000], "window_costs": [1, 2, 3, 4]}
    free = {"costs": FREE, "window_costs": [1, 2, 3, 4]}
    assert 0 < refusals(Bench.build("shared", **MODEL, **dear))[0] < 10  # of some 50 rounds
    assert 0 < drafted_by_model(dear, "auto") <= REQUEST["gamma"] < drafted_by_model(dear, "none")
    assert refusals(Bench.build("shared", **MODEL, **free))[0] == 0 < drafted_by_model(free, "auto")


def drafted_by_model(costs: dict[str, Any], rule: str) -> int:
    return refusals(Bench.build("shared", **MODEL, **costs), draft_stop=rule)[1]


def test_the_rule_is_of_windows_that_are_weighed() -> None:
    dear = {"costs": [1000, 2000, 2000], "window_costs": [1, 2, 3, 4]}
    assert refusals(Bench.build("shared", **MODEL, **dear), adapts=False)[0] == 0
    assert refusals(Bench.build("shared", **MODEL))[0] == 0  # nothing was measured


def test_windows_that_were_refused_count_as_drafts_that_fell() -> None:
    shape: dict[str, Any] = {"rounds": 30, "accepted": 2, "judged": 2, "rejections": 0}
    metrics = RequestMetrics("sd", 4, "shared", 8, 0, (0.1,) * 4, **shape)
    plan, known = Plan("sd", 4, "shared", 1.0, 1.0), []
    for refused in (0, 28):
        chooser = Chooser()
        chooser.learn(plan, "greedy", replace(metrics, sampled=Drafted(2, 2, 2, refused)))
        known.append(chooser._acceptance["greedy"].rate)
    assert known[0] > 0.7 > 0.3 > known[1]
