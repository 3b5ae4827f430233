"""The planner against closed forms, the round's rule played out, and plain choices."""

import math
import random
from itertools import pairwise

import pytest

from pearl_rt.reference import round as rule
from pearl_rt.strategy import planner
from pearl_rt.strategy.chooser import Chooser
from pearl_rt.strategy.planner import STRATEGIES, Acceptance, Chances, StepTimes, plan, plans
from pearl_rt.strategy.program_choice import ProgramChoice
from pearl_rt.strategy.step_timing import bounded
from pearl_rt.types.metrics import RequestMetrics

ACCEPTANCES = (0.0, 0.3, 0.7, 0.95, 1.0)


def simulate(strategy: str, acceptance: Chances, gamma: int, rounds: int) -> tuple[float, float]:
    """(tokens per round, share of rounds that begin with drafts pending) of the rule, played out."""
    rng = random.Random(f"{strategy} {acceptance} {gamma}")
    chances = [acceptance] * gamma if isinstance(acceptance, float) else acceptance
    state = rule.RoundState(committed=1)
    post = 0
    for _ in range(rounds):
        todo = rule.plan(strategy, state, gamma, max_total_len=10**9)
        post += state.pending > 0
        accepted = 0
        order = [*range(1, state.pending + 1), *range(todo.num_draft_tokens - state.pending)]
        while accepted < todo.num_draft_tokens and rng.random() < chances[order[accepted]]:
            accepted += 1
        state = rule.advance(state, todo, accepted)
    return (state.committed - 1) / rounds, post / rounds


@pytest.mark.parametrize("gamma", (1, 2, 5, 8))
@pytest.mark.parametrize("acceptance", ACCEPTANCES)
def test_sd_tokens_are_the_closed_form_and_what_happens(acceptance: float, gamma: int) -> None:
    expected = planner.sd_tokens(acceptance, gamma)
    if acceptance < 1:
        assert expected == pytest.approx((1 - acceptance ** (gamma + 1)) / (1 - acceptance))
    # 40000 rounds: the mean's standard error is below gamma / 2 / 200, fixed seeds.
    assert simulate("sd", acceptance, gamma, 40_000)[0] == pytest.approx(expected, abs=4 * gamma / 400 + 1e-9)


@pytest.mark.parametrize("gamma", (1, 2, 5, 8))
@pytest.mark.parametrize("acceptance", ACCEPTANCES)
def test_pearl_chain_is_what_happens(acceptance: float, gamma: int) -> None:
    tokens, post = simulate("pearl", acceptance, gamma, 40_000)
    assert tokens == pytest.approx(planner.pearl_tokens(acceptance, gamma), abs=8 * gamma / 400 + 1e-3)
    if gamma > 1:
        assert post == pytest.approx(planner.pearl_post_share(acceptance, gamma), abs=0.03)


@pytest.mark.parametrize("gamma", (1, 2, 5, 8))
@pytest.mark.parametrize(
    "chances", [[0.9, 0.1] * 4, [0.25, *[0.8] * 7], [0.95 - 0.1 * i for i in range(8)]], ids=str
)
def test_places_have_chances_of_their_own(chances: list[float], gamma: int) -> None:
    """As above, of drafts whose first place is easy or hard."""
    tokens, _ = simulate("sd", chances, gamma, 40_000)
    assert tokens == pytest.approx(planner.sd_tokens(chances, gamma), abs=4 * gamma / 400)
    tokens, post = simulate("pearl", chances, gamma, 40_000)
    assert tokens == pytest.approx(planner.pearl_tokens(chances, gamma), abs=8 * gamma / 400)
    if gamma > 1:
        assert post == pytest.approx(planner.pearl_post_share(chances, gamma), abs=0.03)


def test_a_place_without_a_chance_has_the_last_ones() -> None:
    assert planner.sd_tokens([0.5, 0.25], 4) == pytest.approx(1 + 0.5 + 0.5 / 4 + 0.5 / 16 + 0.5 / 64)
    assert planner.chances_of((3, 0), (4, 0), 0.6) == [0.75, 0.6]
    assert planner.chances_of((), (), 0.6) == 0.6


def test_windows_end_where_drafts_begin_to_fall() -> None:
    """Two programs of one rate, whose drafts fall at the first place or behind the second."""
    times = {"shared": StepTimes({1: 10.0, 17: 11.0}, {1: 2.0, 15: 30.0})}
    found = {}
    for name, chances in (("late", [0.98, 0.98, 0.1, 0.1]), ("early", [0.3, *[0.97] * 14])):
        best = plans(times, chances, strategies=("sd",))[0]
        found[name] = best.gamma
    assert found["late"] == 2 and found["early"] > 5


def test_chances_are_counted_by_place() -> None:
    acceptance = Acceptance()
    assert acceptance.chances == pytest.approx([0.7] * planner.MAX_GAMMA)
    for _ in range(40):
        acceptance.update(95, 150, (90, 5), (100, 50))
    first, second, third, *_ = acceptance.chances
    assert first == pytest.approx(0.9, abs=0.02) and second == pytest.approx(0.1, abs=0.07)
    assert third == second  # nothing was judged there
    before = acceptance.judged_at[0]
    acceptance.update(0, 0)
    assert acceptance.judged_at[0] == pytest.approx(0.9 * before)


def test_pearl_with_a_perfect_draft_gives_a_whole_window_a_round() -> None:
    assert planner.pearl_tokens(1.0, 5) == 5
    assert planner.sd_tokens(1.0, 5) == 6


def test_round_times() -> None:
    target, window = {1: 10.0, 6: 11.0}, {5: 9.0, 10: 18.0}
    times = StepTimes(target, window, {1: 12.0, 6: 12.0}, {5: 10.0, 10: 20.0})
    assert plan("ar", 0, "split", times, 0.5).seconds_per_round == 10
    assert plan("sd", 5, "split", times, 0.5).seconds_per_round == 9 + 11
    # The longer of the two, as they are side by side.
    assert plan("pearl", 5, "split", times, 0.9).seconds_per_round == pytest.approx(12)
    assert plan("pearl", 10, "split", times, 0.9).seconds_per_round == pytest.approx(20)
    # Lanes that take turns: the sum; 5 rows are 10.8 by interpolation.
    shared = StepTimes(target, window)
    assert plan("pearl", 5, "shared", shared, 0.0).seconds_per_round == pytest.approx(9 + 10)
    assert plan("pearl", 5, "shared", shared, 1.0).seconds_per_round == pytest.approx(9 + 10.8)


def test_windows_of_one_pass_in_a_batch() -> None:
    """Its rows are those of all windows together: 3 of 4 tokens have 12, where 3 passes a token have 3."""
    target, window = {1: 10.0, 4: 12.0, 12: 24.0, 15: 30.0}, {4: 6.0}
    at_once, by_token = StepTimes(target, window, drafts_at_once=True), StepTimes(target, window)
    score = planner.seconds(target, 15)
    assert plan("sd", 4, "shared", at_once, 0.5, 3).seconds_per_round == pytest.approx(6 * 24 / 12 + score)
    slower = planner.seconds(target, 3) / 10
    assert plan("sd", 4, "shared", by_token, 0.5, 3).seconds_per_round == pytest.approx(6 * slower + score)
    for times in (at_once, by_token):
        assert plan("sd", 4, "shared", times, 0.5).seconds_per_round == pytest.approx(
            6 + planner.seconds(target, 5)
        )


def test_a_program_that_proved_slower_is_passed_over() -> None:
    times = {"shared": StepTimes({1: 10.0, 17: 10.0}, {1: 1.0, 15: 15.0})}
    assert plans(times, 0.8)[0].strategy == "sd"
    assert plans(times, 0.8, slowdowns={("sd", "shared"): 4.0})[0].strategy != "sd"


def test_times_between_measured_sizes() -> None:
    table = {1: 1.0, 5: 3.0, 9: 3.0}
    assert planner.seconds(table, 3) == pytest.approx(2.0)
    assert planner.seconds(table, 20) == pytest.approx(3.0)
    assert planner.seconds({2: 1.0}, 8) == pytest.approx(4.0)
    assert planner.seconds({2: 1.0}, 1) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("acceptance", "draft", "beside", "wanted"),
    [
        (0.05, 4.0, 1.3, "ar"),  # hardly anything is accepted
        (0.8, 0.1, 1.0, "sd"),  # a draft that is nearly free: no wait to hide, and a bonus token
        (0.95, 2.5, 1.0, "pearl"),  # t_target / t_draft = 4, no contention
        (0.95, 2.5, 2.0, "sd"),  # the same pair on one memory bus
    ],
    ids=("poor-draft", "free-draft", "two-devices", "one-bus"),
)
def test_choice(acceptance: float, draft: float, beside: float, wanted: str) -> None:
    target, window = {1: 10.0, 17: 10.0}, {gamma: draft * gamma for gamma in (1, 15)}
    shared = StepTimes(target, window)
    slowed = [{n: t * beside for n, t in table.items()} for table in (target, window)]
    split = StepTimes(target, window, *slowed)
    found = plans({"shared": shared, "split": split}, acceptance)
    assert found[0].strategy == wanted
    assert found == sorted(found, key=lambda p: -p.tokens_per_second)


def test_plans_keep_to_what_is_allowed() -> None:
    times = {"shared": StepTimes({1: 10.0}, {1: 1.0})}
    assert {p.strategy for p in plans(times, 0.9, strategies=("sd",))} == {"sd"}
    assert [p.gamma for p in plans(times, 0.9, strategies=("sd",), gammas=(3,))] == [3]
    assert [p.gamma for p in plans(times, 0.9, strategies=("ar",), gammas=(3,))] == [0]


def test_equal_plans_choose_the_simpler() -> None:
    assert plans({"shared": StepTimes({1: 1.0, 2: 1.0}, {1: 0.0})}, 0.0, gammas=(1,))[0].strategy == "ar"


def test_acceptance_learns_forgets_and_hopes_again() -> None:
    acceptance = Acceptance()
    assert acceptance.rate == pytest.approx(0.7)
    for _ in range(20):
        acceptance.update(10, 100)
    assert acceptance.rate == pytest.approx(0.1, abs=0.02)
    for _ in range(20):
        acceptance.update(90, 100)
    assert acceptance.rate == pytest.approx(0.9, abs=0.06)
    for _ in range(20):
        acceptance.update(0, 100)
    poor = acceptance.rate
    for _ in range(60):
        acceptance.update(0, 0)
    assert acceptance.rate > max(0.3, poor)
    assert not math.isnan(acceptance.rate)


def request(tokens_per_second: float, accepted: int, rejected: int) -> RequestMetrics:
    """Figures of 101 tokens at that speed."""
    times = tuple(i / tokens_per_second for i in range(101))
    judged = accepted + rejected
    return RequestMetrics("sd", 4, "shared", 1, 0, times, rejected + 1, accepted, judged, rejected)


def test_chooser_gives_up_a_useless_draft_and_tries_it_again() -> None:
    chooser = Chooser()
    chooser.times["shared"] = StepTimes({1: 10.0, 17: 10.0}, {1: 1.0, 15: 15.0})
    candidates = ProgramChoice(("ar", "sd"), ("shared",), planner.GAMMAS)
    first = chooser.choose(candidates, "greedy")
    assert first.strategy == "sd"
    rate = plan("sd", first.gamma, "shared", chooser.times["shared"], 0.02).tokens_per_second
    for _ in range(5):
        chooser.learn(first, "greedy", request(rate, 2, 98))
    assert chooser.choose(candidates, "greedy").strategy == "ar"
    assert chooser.choose(candidates, "coupled").strategy == "sd"  # of which nothing is known yet
    for _ in range(100):
        chooser.learn(chooser.choose(candidates, "greedy"), "greedy", request(0.1, 0, 0))
        if chooser.choose(candidates, "greedy").strategy == "sd":
            break
    else:
        pytest.fail("the draft was never tried again")
    described = chooser.described(candidates)
    assert described["acceptance"]["greedy"] < 0.7
    assert described["next"]["strategy"] == "sd"


def test_chooser_passes_over_a_program_that_is_slower_than_expected() -> None:
    chooser = Chooser()
    chooser.times["shared"] = StepTimes({1: 10.0, 17: 10.0}, {1: 1.0, 15: 15.0})
    candidates = ProgramChoice(("ar", "sd"), ("shared",), planner.GAMMAS)
    chosen = chooser.choose(candidates, "greedy")
    for _ in range(8):  # half as fast as it should be, though as much is accepted as was hoped
        rate = plan("sd", chosen.gamma, "shared", chooser.times["shared"], 0.7).tokens_per_second
        chooser.learn(chosen, "greedy", request(rate / 2, 70, 30))
    [slowdown] = chooser.described(candidates)["slowdowns"]
    assert slowdown["factor"] == pytest.approx(2, abs=0.15)
    assert chooser.choose(candidates, "greedy").tokens_per_second < chosen.tokens_per_second


def test_a_pass_over_fewer_rows_takes_no_longer() -> None:
    disturbed = {4: 5.0, 1: 4.0, 16: 9.0, 2: 6.5, 8: 5.5}
    assert bounded(disturbed) == {1: 4.0, 2: 5.0, 4: 5.0, 8: 5.5, 16: 9.0}
    assert list(bounded(disturbed)) == [1, 2, 4, 8, 16]
    assert bounded({}) == {}


@pytest.mark.parametrize("looks_up", [False, True])
def test_lanes_that_are_slower_side_by_side_than_expected_are_left(looks_up: bool) -> None:
    """A lookup in front of the model or not: else the planner would stay on lanes that lose."""
    tables = {1: 10.0, 17: 10.0}, {1: 3.0, 15: 45.0}
    chooser = Chooser()
    chooser.times = {"shared": StepTimes(*tables), "split": StepTimes(*tables, *tables)}
    candidates = ProgramChoice(("ar", "sd", "pearl"), ("shared", "split"), planner.GAMMAS, looks_up=looks_up)
    chosen = chooser.choose(candidates, "greedy")
    assert (chosen.strategy, chosen.placement) == ("pearl", "split")
    for _ in range(8):
        chooser.learn(chosen, "greedy", request(chosen.tokens_per_second / 2, 70, 30), looks_up=looks_up)
    assert chooser.choose(candidates, "greedy").strategy == "sd"


# several sequences


def timed_chooser(target: dict[int, float]) -> Chooser:
    found = Chooser()
    found.times["shared"] = StepTimes(target, {1: 0.2, 4: 0.8, 8: 1.6})
    return found


def test_a_batch_that_is_bound_by_arithmetic_drafts_less() -> None:
    """Rows that cost as much as the first: 4 sequences gain nothing by guesses; rows for nothing: they do."""
    auto = ProgramChoice(STRATEGIES, ("shared",), (1, 2, 4, 8))
    dear = timed_chooser({1: 1.0, 2: 1.05, 3: 1.1, 5: 1.2, 8: 4.0, 9: 5.0})
    chosen = dear.choose(auto, "greedy", 4)
    windows = dear.windows(chosen, auto, "greedy", 4)
    assert chosen.strategy == "sd" and windows[1] == windows[0] >= 2 and windows[4] == 0
    assert all(few >= many for few, many in pairwise(windows))
    cheap = timed_chooser({1: 1.0, 8: 1.01, 16: 1.02})
    assert min(cheap.windows(cheap.choose(auto, "greedy", 4), auto, "greedy", 4)) >= 2


def test_many_slots_are_planned_in_few_steps() -> None:
    """Each number of sequences has the window of the rung at or below it, and every rung its own best one."""
    auto = ProgramChoice(STRATEGIES, ("shared",), (1, 2, 4, 8))
    dear = timed_chooser({1: 1.0, 2: 1.01, 3: 1.02, 5: 1.04, 8: 1.07, 9: 1.2, 16: 2.0})
    whole = dear.windows(dear.choose(auto, "greedy", 50), auto, "greedy", 50)
    assert len(whole) == 51 and len(set(whole)) > 2
    for rung, above in pairwise((1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 51)):
        assert set(whole[rung:above]) == {
            dear.windows(dear.choose(auto, "greedy", rung), auto, "greedy", rung)[-1]
        }


def test_what_was_fixed_stays() -> None:
    dear = timed_chooser({1: 1.0, 8: 8.0})
    fixed = ProgramChoice(("sd",), ("shared",), (4,))
    assert dear.windows(dear.choose(fixed, "greedy", 4), fixed, "greedy", 4) == []
    strategy = ProgramChoice(("sd",), ("shared",), (2, 4))
    assert set(dear.windows(dear.choose(strategy, "greedy"), strategy, "greedy", 4)) == {2}
    plain = ProgramChoice(("ar",), ("shared",), (4,))
    assert dear.windows(dear.choose(plain, "greedy"), plain, "greedy", 4) == []


def test_several_sequences_are_planned_as_more_rows() -> None:
    times = StepTimes({1: 1.0, 4: 1.6, 16: 4.0}, {3: 0.6})
    assert plan("ar", 0, "shared", times, 0.5, 4) == plan("ar", 0, "shared", times, 0.9, 4)
    assert plan("ar", 0, "shared", times, 0.5, 4).tokens_per_second == pytest.approx(4 / 1.6)
    serial = plan("sd", 3, "shared", times, 1.0, 4)
    assert serial.tokens_per_second == pytest.approx(4 * 4 / (0.6 * 1.6 + 4.0))
