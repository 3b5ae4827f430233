"""bench/equality.py without a GPU: what it compares, counts and says, and the whole over the fake driver and
in the interpreter.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import fake_cuda
import pytest
from fake_gpu import FakeWorld, fresh
from tiny_pairs import SMALL, Pair

from bench import equality
from pearl_rt.errors import DeviceError, ResourceError
from pearl_rt.strategy.engine_options import FORMS
from pearl_rt.strategy.step_timing import NOMINAL_TIMES


class FakeEngine:
    """Writes the prompt's first id plus the token's number; `wrong`: (strategy, prompt) -> the token it gets
    wrong.
    """

    def __init__(self, form: str, batch: int, log: list[Any], wrong: dict[tuple[str, int], int]) -> None:
        self.form, self.batch, self.log, self.wrong = form, batch, log, wrong
        log.append(("built", form, batch))

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.log.append(("closed", self.form, self.batch))

    def generate(
        self, prompts: list[list[int]], params: Any, *, strategy: str, gamma: int | None
    ) -> list[Any]:
        self.log.append((self.form, self.batch, strategy, gamma, params.temperature, len(prompts)))
        answers = []
        for number, prompt in enumerate(prompts):
            ids = [prompt[0] + i for i in range(params.max_tokens)]
            if (at := self.wrong.get((strategy, number))) is not None:
                ids[at] += 1
            answers.append(SimpleNamespace(token_ids=ids, metrics=SimpleNamespace(judged=4, accepted=3)))
        return answers


def options_of(*words: str) -> Any:
    return equality.parse_arguments(["--num-prompts", "3", "--max-tokens", "5", *words])


def compared(options: Any, make: Any, **told: Any) -> list[equality.Row]:
    prompts = [[10 * i] for i in range(options.num_prompts)]
    comparison = equality.Comparison(make, prompts, options.max_tokens, options.seed)
    return comparison.run(equality.ways_of(options), **{"deadline": float("inf")} | told)


def test_every_form_program_batch_and_temperature_is_a_way_and_an_engine_is_built_once() -> None:
    log: list[Any] = []
    options = options_of("--batches", "2", "1")
    rows = compared(options, lambda form, batch: FakeEngine(form, batch, log, {}))
    assert len(rows) == len(FORMS) * 2 * 3 * 2 and not any(row.different for row in rows)
    assert rows[0].way == equality.Way(FORMS[0], 1, "ar", 0, 0.0), "the reference: ar alone, first of all"
    assert {row.way.form for row in rows} == set(FORMS)
    built = [line for line in log if line[0] == "built"]
    assert len(set(built)) == len(built) == len(FORMS) * 2
    assert log[1] == ("events", 1, "ar", None, 0.0, 3) and log[3] == ("events", 1, "sd", 4, 0.0, 3)
    alone = [line for line in log if line[:2] == ("eager", 1)]
    assert {line[5] for line in alone} == {equality.EAGER_ALONE[0]}, "op by op from Python: few prompts"


def test_a_token_that_differs_is_counted_named_and_fails_the_goal(capsys: pytest.CaptureFixture[str]) -> None:
    options = options_of("--forms", "events", "graph", "--temperature", "0.8", "--batches", "1")

    def make(form: str, batch: int) -> FakeEngine:
        return FakeEngine(form, batch, [], {("sd", 1): 4, ("sd", 2): 2} if form == "graph" else {})

    rows = compared(options, make)
    wrong = [row for row in rows if row.different]
    assert [str(row.way) for row in wrong] == ["sd gamma 4, graph, 1 at once, T = 0.8"]
    assert (wrong[0].different, wrong[0].prompt, wrong[0].token, wrong[0].prompts) == (2, 2, 2, 3)
    figures = equality.report(options, rows)
    assert figures["outputs_equal"] is False and figures["goals"][0]["met"] is False
    assert figures["rows"][4] | {"different": 2, "token": 2} == figures["rows"][4]
    text = capsys.readouterr().out
    assert "token 2 of prompt 2" in text and "MISSED" in text and ": 2 differ" in text
    assert json.loads(text.splitlines()[-1])["outputs_equal"] is False


def test_a_form_that_fails_hides_no_other_and_meets_no_goal() -> None:
    def make(form: str, batch: int) -> FakeEngine:
        if form == "graph":
            raise ResourceError("not enough memory\nand more")
        engine = FakeEngine(form, batch, [], {})
        if batch == 2:
            engine.generate = lambda *_, **__: (_ for _ in ()).throw(  # type: ignore[method-assign]
                DeviceError("lost", call="c", text="t", place="p")
            )
        return engine

    options = options_of("--forms", "graph", "events", "--temperature", "0", "--batches", "1", "2")
    rows = compared(options, make)
    assert [row.status for row in rows] == ["failed"] * 6 + ["ok"] * 3 + ["failed"] * 3
    assert rows[0].note == "ResourceError: not enough memory" and rows[-1].note == "DeviceError: lost"
    assert equality.report(options, rows)["goals"][0]["met"] is False


def test_what_there_is_no_time_for_is_named_and_keeps_the_goal_open() -> None:
    options = options_of("--forms", "events", "--temperature", "0", "--batches", "1", "2")
    ticks = iter([0.0, 0.0, 9.0, 9.0, 9.0, 9.0])
    rows = compared(
        options, lambda form, batch: FakeEngine(form, batch, [], {}), deadline=5.0, clock=lambda: next(ticks)
    )
    assert [row.status for row in rows] == ["ok", "left out", "left out", *["left out"] * 3]
    figures = equality.report(options, rows)
    assert figures["goals"][0]["met"] is None and figures["outputs_equal"] is True


def test_prompts_are_of_many_lengths() -> None:
    prompts = equality.varied_prompts(32000, 32, 300, 0)
    lengths = list(map(len, prompts))
    assert lengths[0] == 1 and lengths[-1] == 300 and len(set(lengths)) > 25
    assert all(min(prompt) >= 2 for prompt in prompts)


@pytest.mark.parametrize(
    "words", [["--batches", "2"], ["--gamma", "0"], ["--device", "interpret", "--forms", "graph"]]
)
def test_options_that_compare_nothing_are_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        equality.parse_arguments(words)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWorld]:
    monkeypatch.setattr("pearl_rt.backends.cuda_lanes.measure", lambda lanes: NOMINAL_TIMES)
    yield from fresh(fake_cuda.load(), monkeypatch)
    gc.collect()


@pytest.mark.slow
@pytest.mark.skipif(not fake_cuda.has_compiler(), reason="the fake driver needs a compiler")
def test_engines_on_the_fake_driver_write_the_same_tokens(world: FakeWorld) -> None:
    """Real engines in every form; one of them with other weights is found out."""
    pair = Pair.make("half-right", **SMALL)
    other = Pair.make("half-right", seed=5, **SMALL)
    command = "--num-prompts 1 --max-tokens 3 --gamma 2 --batches 1 --temperature 0.8 --strategies pearl"
    options = equality.parse_arguments(command.split())

    def make(form: str, batch: int) -> Any:
        own = other if form == "graph" else pair
        return own.engine(
            device="cuda", form=form, max_model_len=12, max_num_seqs=batch, judge="coupled", gamma=2
        )

    rows = equality.Comparison(make, [[3, 1, 4, 1]], 3, 0).run(
        equality.ways_of(options), deadline=float("inf")
    )
    assert {row.way.form for row in rows if row.different} == {"graph"}
    assert all(row.status == "ok" for row in rows)


@pytest.mark.slow
def test_the_whole_in_the_interpreter(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("triton")
    command = "--device interpret --pair planted:0.01m+0.01m@0.7 --num-prompts 2 --max-tokens 2 --gamma 1"
    words = [*command.split(), "--batches", "1", "2", "--temperature", "0", "--strategies", "ar"]
    assert equality.main(words) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["outputs_equal"] and [row["status"] for row in figures["rows"]] == ["ok"] * 2
    assert figures["goals"][0]["met"] is True
