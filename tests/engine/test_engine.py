"""The engine on tiny random pairs: every program returns the bits of ar, and the overlap is in the trace."""

import gc
import signal
import threading
import time
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from tiny_pairs import DRAFTS, Pair

from pearl_rt import Engine, GenerationInterrupted, RequestError, RequestOutput, SamplingParams
from pearl_rt.types.metrics import TraceRow

GAMMAS = range(1, 9)
DTYPES = ("float32", "bfloat16")
PLACEMENTS = ("shared", "split")
PROMPTS = ([7], [3, 1, 4, 1, 5, 9, 2, 6], list(range(40, 73)))


@cache
def engine_of(draft: str, dtype: str) -> Engine:
    return Pair.make(draft).engine(dtype=dtype, max_model_len=128)


@pytest.fixture(scope="module", autouse=True)
def closed_at_the_end() -> Iterator[None]:
    yield
    for draft in DRAFTS:
        for dtype in DTYPES:
            engine_of(draft, dtype).close()
    engine_of.cache_clear()
    gc.collect()


def is_running(engine: Engine) -> bool:
    return any(lanes.coordinator.running for lanes in engine.lanes.values())


def ids_of(outputs: list[RequestOutput]) -> list[tuple[list[int], str]]:
    return [(output.token_ids, output.finish_reason) for output in outputs]


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("strategy", ("sd", "pearl"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("draft", DRAFTS)
def test_greedy_is_ar_to_the_bit(draft: str, dtype: str, strategy: str, placement: str) -> None:
    engine = engine_of(draft, dtype)
    for limit in (1, 2, 24):
        params = SamplingParams(max_tokens=limit)
        expected = ids_of(engine.generate(list(PROMPTS), params, strategy="ar"))
        for gamma in GAMMAS:
            outputs = engine.generate(
                list(PROMPTS), params, strategy=strategy, gamma=gamma, placement=placement
            )
            assert ids_of(outputs) == expected, f"gamma {gamma}, max_tokens {limit}"


@pytest.mark.parametrize("draft", DRAFTS)
def test_stop_ids_inside_windows(draft: str) -> None:
    engine = engine_of(draft, "float32")
    free = engine.generate(PROMPTS[1], SamplingParams(max_tokens=24), strategy="ar")[0].token_ids
    for place in range(12):
        params = SamplingParams(max_tokens=24, stop_token_ids=(free[place],))
        first = free.index(free[place])
        for strategy in ("ar", "sd", "pearl"):
            for gamma in (1, 3, 8):
                [output] = engine.generate(PROMPTS[1], params, strategy=strategy, gamma=gamma)
                assert output.token_ids == free[: first + 1]
                assert output.finish_reason == "stop"


@pytest.mark.parametrize("draft", ("equal", "half-right"))
def test_end_of_text_inside_windows(draft: str) -> None:
    free = engine_of(draft, "float32").generate(PROMPTS[1], SamplingParams(max_tokens=24), strategy="ar")
    eos = free[0].token_ids[6]
    end = free[0].token_ids.index(eos) + 1
    with Pair.make(draft, eos_token_ids=(eos,)).engine(max_model_len=128) as engine:
        for strategy, placement in (("ar", None), ("sd", "shared"), ("pearl", "shared"), ("pearl", "split")):
            for gamma in GAMMAS:
                options = {"strategy": strategy, "gamma": gamma, "placement": placement}
                [output] = engine.generate(PROMPTS[1], SamplingParams(max_tokens=24), **options)
                assert (output.token_ids, output.finish_reason) == (free[0].token_ids[:end], "stop")
                on = SamplingParams(max_tokens=24, ignore_eos=True)
                assert engine.generate(PROMPTS[1], on, **options)[0].token_ids == free[0].token_ids


@pytest.mark.parametrize("draft", DRAFTS)
def test_max_model_len_inside_windows(draft: str) -> None:
    with Pair.make(draft).engine(max_model_len=24) as engine:
        prompt = list(range(11))
        expected = engine.generate(prompt, SamplingParams(max_tokens=10**9), strategy="ar")[0]
        assert len(expected.token_ids) == 13
        assert expected.finish_reason == "length"
        for strategy in ("sd", "pearl"):
            for gamma in GAMMAS:
                output = engine.generate(
                    prompt, SamplingParams(max_tokens=10**9), strategy=strategy, gamma=gamma
                )
                assert ids_of(output) == ids_of([expected])


@pytest.mark.parametrize("strategy", ("sd", "pearl"))
@pytest.mark.parametrize("draft", DRAFTS)
def test_coupled_sampling_is_ar_token_for_token(draft: str, strategy: str) -> None:
    engine = engine_of(draft, "bfloat16")
    for seed in (0, 1, 2**64 - 1):
        params = SamplingParams(temperature=0.8, seed=seed, max_tokens=30)
        expected = ids_of(engine.generate(list(PROMPTS), params, strategy="ar", judge="coupled"))
        for gamma in (1, 4, 8):
            for placement in PLACEMENTS:
                outputs = engine.generate(
                    list(PROMPTS),
                    params,
                    strategy=strategy,
                    gamma=gamma,
                    placement=placement,
                    judge="coupled",
                )
                assert ids_of(outputs) == expected, f"seed {seed}, gamma {gamma}, {placement}"


def test_rejection_sampling_repeats_with_its_seed() -> None:
    engine = engine_of("half-right", "float32")

    def sampled(seed: int) -> list[int]:
        params = SamplingParams(temperature=0.8, seed=seed, max_tokens=30)
        return engine.generate(PROMPTS[1], params, strategy="pearl", gamma=3)[0].token_ids

    assert sampled(5) == sampled(5)
    assert len({tuple(sampled(seed)) for seed in range(4)}) == 4


def test_threads_do_not_change_results() -> None:
    pair = Pair.make("half-right")
    found = []
    for threads in (1, 2):
        with pair.engine(max_model_len=128, num_threads=threads, dtype="bfloat16") as engine:
            params = SamplingParams(max_tokens=40)
            found.append(ids_of(engine.generate(list(PROMPTS), params, strategy="sd", gamma=4)))
    assert found[0] == found[1]


def test_a_list_of_prompts_is_each_of_them() -> None:
    engine = engine_of("half-right", "float32")
    params = SamplingParams(max_tokens=20)
    together = engine.generate(list(PROMPTS), params)
    alone = [engine.generate(prompt, params)[0] for prompt in PROMPTS]
    assert ids_of(together) == ids_of(alone)
    assert [output.prompt_token_ids for output in together] == [list(p) for p in PROMPTS]


@pytest.mark.parametrize("strategy", ("ar", "sd", "pearl"))
def test_text_streams_in_whole_characters(strategy: str, tmp_path: Path) -> None:
    target, draft = Pair.make("half-right").save(tmp_path)
    with Engine.from_pretrained(target, draft, max_model_len=256) as engine:
        params = SamplingParams(max_tokens=60)
        [whole] = engine.generate("naïve", params, strategy="ar")
        assert whole.prompt == "naïve"
        assert whole.prompt_token_ids == engine.tokenizer.encode("naïve")
        assert whole.text
        for limit in range(1, 20):  # most of these end within a character
            [output] = engine.generate("naïve", SamplingParams(max_tokens=limit), strategy=strategy, gamma=4)
            assert output.text == engine.tokenizer.decode(output.token_ids, after=output.prompt_token_ids)
        chunks = list(engine.stream("naïve", params, strategy=strategy, gamma=4))
        assert "".join(chunk.text for chunk in chunks) == whole.text
        assert [i for chunk in chunks for i in chunk.token_ids] == whole.token_ids
        assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
        assert engine.last_output.text == whole.text


def steps(trace: tuple[TraceRow, ...], lane: str, *ops: str) -> list[TraceRow]:
    return [row for row in trace if row.lane == lane and row.op in ops]


def overlap_ns(trace: tuple[TraceRow, ...]) -> int:
    """Nanoseconds in which a draft step and a step of the target's run at the same time."""
    return sum(
        max(0, min(d.end_ns, t.end_ns) - max(d.begin_ns, t.begin_ns))
        for d in steps(trace, "draft", "draft")
        for t in steps(trace, "target", "score", "verify")
    )


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_draft_and_target_overlap_in_pearl_on_split_cores_and_never_in_sd(placement: str) -> None:
    engine = engine_of("half-right", "float32")
    params = SamplingParams(max_tokens=60)
    for strategy in ("sd", "pearl"):
        overlaps = (strategy, placement) == ("pearl", "split")
        for _ in range(200 if overlaps else 1):  # a busy machine may have one core for us at a time
            [output] = engine.generate(PROMPTS[1], params, strategy=strategy, gamma=4, placement=placement)
            m = output.metrics
            if overlap_ns(m.trace) > 0:
                break
        scores = steps(m.trace, "target", "score")
        assert len(scores) >= m.rounds > 0
        assert all(a.end_ns <= b.begin_ns for a, b in pairwise(scores))
        if overlaps:
            assert overlap_ns(m.trace) > 0
            assert m.draft_busy + m.target_busy > 0
        else:
            assert overlap_ns(m.trace) == 0
            assert 0 < m.draft_busy + m.target_busy <= 1.0001


def test_figures_of_a_perfect_draft() -> None:
    engine = engine_of("equal", "float32")
    [sd] = engine.generate(PROMPTS[1], SamplingParams(max_tokens=41), strategy="sd", gamma=4)
    assert sd.metrics.acceptance_rate == 1
    assert sd.metrics.rounds == 8  # 40 tokens after the first, 5 a round
    assert sd.metrics.mean_acceptance_length == 5
    assert len(sd.metrics.token_times) == 41
    assert list(sd.metrics.token_times) == sorted(sd.metrics.token_times)
    [pearl] = engine.generate(PROMPTS[1], SamplingParams(max_tokens=42), strategy="pearl", gamma=4)
    assert pearl.metrics.rounds == 11  # one token, then 4 a round
    assert pearl.metrics.rejections == 0


def test_auto_measures_chooses_and_says_why() -> None:
    with Pair.make("half-right").engine(max_model_len=256) as engine:
        before = engine.stats()
        assert before["chosen"] is None
        assert set(before["step_times"]) == {"shared", "split"}
        assert before["step_times"]["shared"]["target"][1] > 0
        assert before["step_times"]["split"]["beside_window"][3] > 0
        [output] = engine.generate(PROMPTS[0], SamplingParams(max_tokens=30))
        stats = engine.stats()
        chosen = stats["chosen"]
        assert chosen == before["next"]
        assert (chosen["strategy"], chosen["gamma"]) == (output.metrics.strategy, output.metrics.gamma)
        assert chosen["tokens_per_second"] > 0
        rates = [c["tokens_per_second"] for c in stats["candidates"]]
        assert rates == sorted(rates, reverse=True)
        assert {c["strategy"] for c in stats["candidates"]} == {"ar", "sd", "pearl"}
        assert stats["requests"] == 1
        assert stats["observed"][0]["tokens_per_second"] > 0


def test_acceptance_is_learned_by_kind_of_sampling() -> None:
    with Pair.make("unrelated").engine(max_model_len=256) as engine:
        for _ in range(6):
            engine.generate(PROMPTS[0], SamplingParams(max_tokens=60), strategy="sd", gamma=4)
        params = SamplingParams(max_tokens=60, temperature=0.5)
        engine.generate(PROMPTS[0], params, strategy="sd", judge="coupled")
        acceptance = engine.stats()["acceptance"]
        assert acceptance["greedy"] < 0.2
        assert set(acceptance) == {"greedy", "coupled"}


def test_fixed_options_are_kept() -> None:
    with Pair.make("equal").engine(strategy="sd", gamma=3, placement="shared", max_model_len=64) as engine:
        [output] = engine.generate(PROMPTS[0], SamplingParams(max_tokens=5))
        assert (output.metrics.strategy, output.metrics.gamma) == ("sd", 3)
        [output] = engine.generate(PROMPTS[0], SamplingParams(max_tokens=5), strategy="pearl", gamma=2)
        assert (output.metrics.strategy, output.metrics.gamma) == ("pearl", 2)
        [output] = engine.generate(PROMPTS[0], SamplingParams(max_tokens=5), gamma=5)
        assert (output.metrics.strategy, output.metrics.gamma) == ("sd", 5)


def test_without_a_drafter_there_is_ar() -> None:
    pair = Pair.make("equal")
    with Engine(pair.config, pair.target, drafter="none", max_model_len=64) as engine:
        [output] = engine.generate(PROMPTS[0], SamplingParams(max_tokens=5))
        assert output.metrics.strategy == "ar"
        assert output.text == ""
        assert engine.stats()["dtype"] == {"target": "float32"}


def test_two_engines_and_prompts_in_turn() -> None:
    params = SamplingParams(max_tokens=12)
    with (
        Pair.make("equal").engine(max_model_len=64) as a,
        Pair.make("equal", 9).engine(max_model_len=64) as b,
    ):
        first = a.generate(PROMPTS[0], params)[0].token_ids
        other = b.generate(PROMPTS[0], params)[0].token_ids
        assert first != other
        assert a.generate(PROMPTS[0], params)[0].token_ids == first


def test_an_open_stream_holds_the_engine_and_an_abandoned_one_lets_go() -> None:
    endless = SamplingParams(max_tokens=4000, ignore_eos=True)  # more than the ring of results holds
    with Pair.make("half-right").engine(max_model_len=4096, strategy="ar") as engine:
        expected = engine.generate(PROMPTS[0], SamplingParams(max_tokens=100))[0].token_ids
        stream = engine.stream(PROMPTS[0], endless)
        got = list(next(stream).token_ids)
        with pytest.raises(RequestError, match="in use"):
            engine.generate(PROMPTS[0])
        refused: list[Exception] = []

        def elsewhere() -> None:
            try:
                engine.generate(PROMPTS[0])
            except RequestError as error:
                refused.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert len(refused) == 1
        got += next(stream).token_ids
        stream.close()
        cut = engine.last_output
        assert cut.finish_reason == "abort"
        assert cut.token_ids[: len(got)] == got
        assert cut.token_ids[:100] == expected[: len(cut.token_ids)]
        assert engine.generate(PROMPTS[0], SamplingParams(max_tokens=100))[0].token_ids == expected


def test_closing_under_an_open_stream_ends_it() -> None:
    engine = Pair.make("half-right").engine(max_model_len=4096, strategy="ar")
    stream = engine.stream(PROMPTS[0], SamplingParams(max_tokens=4000, ignore_eos=True))
    got = list(next(stream).token_ids)
    engine.close()
    got += [token_id for chunk in stream for token_id in chunk.token_ids]
    assert engine.last_output.finish_reason == "abort"
    assert engine.last_output.token_ids == got


@pytest.mark.parametrize("strategy", ("ar", "sd", "pearl"))
def test_ctrl_c_stops_within_a_round_and_keeps_what_was_verified(strategy: str) -> None:
    with Pair.make("half-right").engine(max_model_len=4096, strategy=strategy, gamma=4) as engine:
        first = engine.generate(PROMPTS[0], SamplingParams(max_tokens=50))[0]

        def press() -> None:
            while not is_running(engine):
                time.sleep(0.001)
            time.sleep(0.05)
            signal.raise_signal(signal.SIGINT)

        presser = threading.Thread(target=press)
        prompts = [PROMPTS[0]] * 40  # longer than a test can wait
        with pytest.raises(KeyboardInterrupt) as caught:
            presser.start()
            engine.generate(prompts, SamplingParams(max_tokens=4000, ignore_eos=True))
        presser.join()
        assert isinstance(caught.value, GenerationInterrupted)
        cut = caught.value.outputs[-1]
        assert cut is engine.last_output
        assert cut.finish_reason == "abort"
        assert cut.token_ids[:50] == first.token_ids[: len(cut.token_ids)]
        again = engine.generate(PROMPTS[0], SamplingParams(max_tokens=50))
        assert again[0].token_ids == first.token_ids


def test_what_was_verified_but_not_yet_read_is_kept() -> None:
    """The lanes run ahead of a slow reader: closing the stream gives up none of it."""
    engine = engine_of("equal", "float32")
    stream = engine.stream([1, 2, 3], SamplingParams(max_tokens=64, ignore_eos=True), strategy="ar")
    read = next(stream).token_ids
    deadline = time.monotonic() + 60
    while is_running(engine) and time.monotonic() < deadline:
        time.sleep(0.001)
    stream.close()
    assert engine.last_output is not None
    kept = engine.last_output.token_ids
    assert kept[: len(read)] == list(read)
    assert len(kept) == 64


def test_closing_twice_is_fine_and_use_afterwards_is_told() -> None:
    engine = Pair.make("equal").engine(max_model_len=64)
    threads = threading.active_count()
    engine.generate(PROMPTS[0], SamplingParams(max_tokens=3))
    engine.close()
    engine.close()
    assert threading.active_count() <= threads
    for use in (lambda: engine.generate([1]), lambda: engine.stream([1]), engine.stats):
        with pytest.raises(RequestError, match="closed"):
            use()
