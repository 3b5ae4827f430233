"""Submitted requests on a tiny pair: the tokens of generate(), as they come, from threads and from
asyncio.
"""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_pairs import Pair

from pearl_rt import (
    Engine,
    EngineClosedError,
    NumericsError,
    QueueFullError,
    RequestError,
    RequestHandle,
    SamplingParams,
)

LENGTH = 32768  # so that no answer ends by itself while a test looks away
ENDLESS = SamplingParams(max_tokens=32000, ignore_eos=True)
PROMPTS = ["naïve", "b", "hello world", "x" * 40]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    pair = Pair.make("half-right", max_position_embeddings=LENGTH)
    target, draft = pair.save(tmp_path_factory.mktemp("pair"))
    with Engine.from_pretrained(target, draft, max_model_len=LENGTH, max_waiting=8) as built:
        yield built


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One sequence at a time: the second request waits."""
    pair = Pair.make("half-right", max_position_embeddings=LENGTH)
    target, draft = pair.save(tmp_path_factory.mktemp("narrow"))
    with Engine.from_pretrained(target, draft, max_model_len=LENGTH, max_waiting=8, max_num_seqs=1) as built:
        yield built


def test_submitted_requests_are_those_of_generate(engine: Engine) -> None:
    params = [SamplingParams(max_tokens=20 + n, temperature=0.8 * (n % 2), seed=n) for n in range(4)]
    options = {"strategy": "pearl", "gamma": 3, "judge": "coupled"}
    alone = [engine.generate(p, q, **options)[0] for p, q in zip(PROMPTS, params, strict=True)]
    handles = [engine.submit(p, q, **options) for p, q in zip(PROMPTS, params, strict=True)]
    for handle, expected in zip(handles, alone, strict=True):
        chunks = list(handle)
        output = handle.result()
        assert (output.token_ids, output.text) == (expected.token_ids, expected.text)
        assert "".join(chunk.text for chunk in chunks) == expected.text
        assert [i for chunk in chunks for i in chunk.token_ids] == expected.token_ids
        assert chunks[-1].finish_reason == "length"
        assert output.metrics.ttft >= output.metrics.queue_time >= 0


def test_waiting_is_part_of_the_time_to_the_first_token(narrow: Engine) -> None:
    first = narrow.submit("b", ENDLESS)
    second = narrow.submit("b", SamplingParams(max_tokens=2))
    next(iter(first))
    time.sleep(0.05)
    first.cancel()
    metrics = second.result(30).metrics
    assert metrics.ttft >= metrics.queue_time >= 0.05


@pytest.mark.parametrize("strategy", ("ar", "sd", "pearl"))
def test_stop_strings_cut_exactly_whatever_the_strategy(engine: Engine, strategy: str) -> None:
    [free] = engine.generate("naïve", SamplingParams(max_tokens=80), strategy="ar")
    characters = [c for c in free.text if c != "�"]
    assert len(characters) > 8
    for length in (1, 2, 3):
        for start in range(0, len(free.text) - length, 5):
            stop = free.text[start : start + length]
            if "�" in stop:
                continue
            cut = free.text.index(stop)
            for include in (False, True):
                params = SamplingParams(max_tokens=80, stop=stop, include_stop_str_in_output=include)
                handle = engine.submit("naïve", params, strategy=strategy, gamma=4)
                shown = ""
                for chunk in handle:
                    shown += chunk.text
                    assert free.text[: cut + length * include].startswith(shown)
                output = handle.result()
                assert output.text == shown == free.text[: cut + length * include]
                assert (output.finish_reason, output.stop_reason) == ("stop", stop)
                [again] = engine.generate("naïve", params, strategy="ar")
                assert again.token_ids == output.token_ids == free.token_ids[: len(output.token_ids)]
                assert len(output.metrics.token_times) == len(output.token_ids)
                assert stop in engine.tokenizer.decode(output.token_ids, after=output.prompt_token_ids)


def test_stop_reasons(engine: Engine) -> None:
    [free] = engine.generate("b", SamplingParams(max_tokens=8))
    [output] = engine.generate("b", SamplingParams(max_tokens=8, stop_token_ids=(free.token_ids[2],)))
    assert (output.finish_reason, output.stop_reason) == ("stop", free.token_ids[2])
    assert free.stop_reason is None


def test_stop_strings_need_a_tokenizer() -> None:
    with (
        Pair.make("equal").engine(max_model_len=64) as bare,
        pytest.raises(RequestError, match="no tokenizer to find stop 'END'"),
    ):
        bare.submit([1], SamplingParams(stop="END"))


def test_cancel_is_heard_within_a_round_and_the_next_request_runs(engine: Engine) -> None:
    long = engine.submit("b", ENDLESS, strategy="pearl", gamma=4)
    after = engine.submit("b", SamplingParams(max_tokens=5))
    for _ in zip(range(3), long, strict=False):
        pass
    long.cancel()
    output = long.result(30)
    assert output.finish_reason == "abort"
    assert 0 < len(output.token_ids) < 32000
    assert "".join(chunk.text for chunk in long) == output.text
    assert after.result(30).token_ids[: len(output.token_ids)] == output.token_ids[:5]


def test_async_for_and_await(engine: Engine) -> None:
    params = SamplingParams(max_tokens=30)
    expected = [engine.generate(prompt, params)[0].text for prompt in PROMPTS]

    async def read(prompt: str) -> str:
        handle = engine.submit(prompt, params)
        text = "".join([chunk.text async for chunk in handle])
        assert (await handle).text == text
        assert "".join([chunk.text async for chunk in handle]) == text  # from the first chunk on again
        return text

    async def main() -> None:
        assert await asyncio.gather(*(read(prompt) for prompt in PROMPTS)) == expected
        handle = engine.submit("b", ENDLESS)
        waiting = asyncio.ensure_future(handle)
        for _ in range(5):
            await asyncio.sleep(0.001)  # the loop goes on meanwhile
        assert not waiting.done()
        handle.cancel()
        assert (await waiting).finish_reason == "abort"
        handle = engine.submit("b", ENDLESS)
        async for _ in handle:
            handle.cancel()
        assert (await handle).finish_reason == "abort"

    asyncio.run(main())


def test_a_loop_that_is_gone_disturbs_nobody(engine: Engine) -> None:
    async def leave() -> object:
        handle = engine.submit("b", ENDLESS)
        async for _ in handle:
            return handle
        return None

    handle = asyncio.run(leave())
    handle.cancel()  # type: ignore[attr-defined]
    assert handle.result(30).finish_reason == "abort"  # type: ignore[attr-defined]
    assert engine.submit("b", SamplingParams(max_tokens=2)).result(30).finish_reason == "length"


def test_a_cancelled_task_ends_its_request(engine: Engine) -> None:
    async def read_on(handle: RequestHandle) -> None:
        async for _ in handle:
            pass

    async def sleep_over_a_chunk(handle: RequestHandle) -> None:
        async for _ in handle:
            await asyncio.sleep(1000)

    async def wait(handle: RequestHandle) -> None:
        await handle

    async def main() -> None:
        for use in (wait, read_on, sleep_over_a_chunk):
            handle = engine.submit("b", ENDLESS)
            task = asyncio.create_task(use(handle))
            async for _ in handle:
                break
            await asyncio.sleep(0.01)  # so that the loop's body has been reached
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await handle).finish_reason == "abort"
        handle = engine.submit("b", ENDLESS)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(handle, 0.01)
        assert (await handle).finish_reason == "abort"
        handle = engine.submit("b", SamplingParams(max_tokens=20))
        async for _ in handle:
            break  # no request was cancelled
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(engine.submit("b", ENDLESS)), 0.01)
        assert (await handle).finish_reason == "length"
        assert engine.stats()["queue"]["running"] == 1  # that which was shielded

    asyncio.run(main())  # cancels what is left
    deadline = time.monotonic() + 60
    while sum(engine.stats()["queue"].values()) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not sum(engine.stats()["queue"].values())


def test_direct_and_submitted_requests_exclude_each_other(engine: Engine) -> None:
    handle = engine.submit("b", ENDLESS)
    for use in (lambda: engine.generate("b"), lambda: next(engine.stream("b"))):
        with pytest.raises(RequestError, match="in use"):
            use()
    handle.cancel()
    handle.result(30)
    assert engine.generate("b", SamplingParams(max_tokens=3))[0].finish_reason == "length"
    stream = engine.stream("b", ENDLESS)
    next(stream)
    with pytest.raises(RequestError, match="in use"):
        engine.submit("b")
    stream.close()
    assert engine.submit("b", SamplingParams(max_tokens=3)).result(30).finish_reason == "length"


def test_the_queue_is_bounded(narrow: Engine) -> None:
    handles = [narrow.submit("b", ENDLESS) for _ in range(9)]
    with pytest.raises(QueueFullError, match="max_waiting is 8"):
        narrow.submit("b")
    assert narrow.stats()["queue"]["waiting"] >= 7
    for handle in reversed(handles):
        handle.cancel()
    assert {handle.result(30).finish_reason for handle in handles} == {"abort"}


def test_what_cannot_run_is_refused_at_once(engine: Engine) -> None:
    for bad in ("", ["a", "b"], [999]):
        with pytest.raises(RequestError):
            engine.submit(bad)
    with pytest.raises(RequestError, match="strategy 'magic'"):
        engine.submit("a", strategy="magic")


def test_a_fault_in_one_request_leaves_the_others() -> None:
    pair = Pair.make("equal")
    pair.target["model.embed_tokens.weight"][200] = float("nan")
    with Engine(pair.config, pair.target, max_model_len=64) as engine:
        few = SamplingParams(max_tokens=4)
        expected = engine.generate([5, 6], few)[0].token_ids
        handles = [engine.submit(prompt, few) for prompt in ([5, 6], [1, 200, 2], [5, 6])]
        assert handles[0].result(30).token_ids == handles[2].result(30).token_ids == expected
        with pytest.raises(NumericsError, match="NaN"):
            handles[1].result(30)
        with pytest.raises(NumericsError, match="NaN"):
            list(handles[1])


def test_closing_with_requests_in_flight() -> None:
    engine = Pair.make("half-right", max_position_embeddings=LENGTH).engine(max_model_len=LENGTH)
    handles = [engine.submit([7], ENDLESS) for _ in range(3)]
    next(iter(handles[0]))
    engine.close()
    for handle in handles:
        with pytest.raises(EngineClosedError, match="engine was closed while"):
            handle.result(0)
    with pytest.raises(EngineClosedError):
        engine.submit([7])


def test_an_engine_that_was_not_closed_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pearl_rt.scheduling.scheduler.LINGER_S", 0.01)
    engine = Pair.make("equal").engine(max_model_len=64)
    engine.submit([7], SamplingParams(max_tokens=3)).result(30)
    gone = weakref.ref(engine)
    del engine
    deadline = time.monotonic() + 10
    while gone() is not None and time.monotonic() < deadline:
        time.sleep(0.02)
        gc.collect()
    assert gone() is None


def test_sums_over_requests() -> None:
    with Pair.make("equal").engine(max_model_len=256, max_num_seqs=1) as engine:
        before = engine.stats()["totals"]
        assert before["finished"] == {}
        outputs = engine.generate([[1], [2, 3]], SamplingParams(max_tokens=21), strategy="sd", gamma=4)
        cut = engine.submit([7], SamplingParams(max_tokens=200), strategy="pearl", gamma=3)
        cut.cancel()
        outputs.append(cut.result(30))
        totals = engine.stats()["totals"]
        ran = [output for output in outputs if output.token_ids]
        assert totals["finished"]["length"] == 2
        assert totals["generated_tokens"] == sum(len(output.token_ids) for output in outputs)
        assert totals["rounds"] == sum(output.metrics.rounds for output in outputs)
        assert totals["accepted_at"][0] == sum(output.metrics.accepted_at[0] for output in ran)
        assert sum(totals["judged_at"]) == totals["judged"]
        assert sum(totals["ttft"]["counts"]) == len(ran)
        assert totals["seconds"]["target_busy"] > 0
        assert outputs[0].metrics.accepted_per_position == (1, 1, 1, 1)


@pytest.mark.slow
def test_figures_can_be_read_while_requests_run(engine: Engine) -> None:
    failed: list[Exception] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                engine.stats()
            except Exception as error:
                failed.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for n in range(30):
        handle = engine.submit("b", SamplingParams(max_tokens=20), strategy=("ar", "sd", "pearl")[n % 3])
        handle.result(30)
    stop.set()
    thread.join()
    assert not failed


def test_submit_from_a_checkpoint_without_a_draft(tmp_path: Path) -> None:
    target, _ = Pair.make("equal").save(tmp_path)
    with Engine.from_pretrained(target, "none", max_model_len=64) as engine:
        output = engine.submit("a", SamplingParams(max_tokens=4)).result(30)
        assert output.metrics.strategy == "ar"
        assert output.metrics.accepted_per_position == ()
