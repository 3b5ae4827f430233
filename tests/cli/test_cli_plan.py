"""`plan`: the planner's answer for figures of the user's, as a table and as JSON."""

import json

import pytest

from pearl_rt.cli.commands import main
from pearl_rt.strategy.planner import pearl_tokens, sd_tokens


def plan(target: str, draft: str, alpha: str, *more: str) -> int:
    return main(["plan", "--target-ms", target, "--draft-ms", draft, "--alpha", alpha, *more])


def test_the_answer_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """A round of pearl lasts as long as the longer lane; one of sd as long as both."""
    assert plan("20", "4", "0.8", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    by = {program["strategy"]: program for program in answer["programs"]}
    assert answer["chosen"] == by["pearl"] and (by["pearl"]["gamma"], by["sd"]["gamma"]) == (5, 4)
    assert by["pearl"]["seconds_per_round"] == pytest.approx(0.020)
    assert by["pearl"]["tokens_per_round"] == pytest.approx(pearl_tokens(0.8, 5))
    assert by["sd"]["seconds_per_round"] == pytest.approx(0.036)
    assert by["sd"]["x_ar"] == pytest.approx(sd_tokens(0.8, 4) * 20 / 36)
    assert by["ar"]["x_ar"] == pytest.approx(1)


def test_the_answer_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("20", "4", "0.8") == 0
    heading, *rows, last = capsys.readouterr().out.splitlines()
    assert heading.split()[:2] == ["strategy", "gamma"]
    assert [row.split()[:2] for row in rows] == [["pearl", "5"], ["sd", "4"], ["ar", "-"]]
    assert last.startswith("pearl is 1.22 times the best sd. Expected for one sequence, on two devices")


@pytest.mark.parametrize(("alpha", "best"), [("0", "ar"), ("1", "pearl")])
def test_rates_at_both_ends(alpha: str, best: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("20", "4", alpha, "--json") == 0
    assert json.loads(capsys.readouterr().out)["chosen"]["strategy"] == best


@pytest.mark.parametrize(
    ("figures", "named"),
    [
        (("0", "4", "0.8"), "--target-ms 0 is out of range: pass a number above 0"),
        (("20", "-1", "0.8"), "--draft-ms -1 is out of range: pass a number above 0"),
        (("nan", "4", "0.8"), "--target-ms nan"),
        (("20", "inf", "0.8"), "--draft-ms inf"),
        (("20", "4", "1.01"), "--alpha 1.01 is out of range: pass 0 to 1"),
        (("20", "4", "-0.1"), "--alpha -0.1"),
        (("20", "4", "nan"), "--alpha nan"),
    ],
    ids=lambda value: value[:14] if isinstance(value, str) else "",
)
def test_figures_that_cannot_be(
    figures: tuple[str, str, str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(*figures) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(f"pearl_rt: {named}")
