"""Ctrl-C anywhere in the calls of an engine and its handles, and again while the first one is cleaned up."""

import ast
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from interrupts import interrupts
from test_scheduler import Job, Stage, stage
from tiny_pairs import Pair

import pearl_rt
from pearl_rt import Engine, EngineClosedError, RequestError, SamplingParams

ROOM = Path(pearl_rt.__file__).parent
FILES = {
    str(path)
    for name in ("engine", "engine_lock", "batch", "runs", "scheduler", "handle", "bell")
    for path in ROOM.rglob(f"{name}.py")
}
LONG = SamplingParams(max_tokens=4000, ignore_eos=True)
SHORT = SamplingParams(max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Pair.make("half-right").engine(max_model_len=4096, strategy="sd", gamma=2, num_threads=1) as built:
        yield built


def read(engine: Engine) -> list[int]:
    return [token_id for chunk in engine.stream([3], SHORT) for token_id in chunk.token_ids]


def generate(engine: Engine) -> None:
    engine.generate([[5], [6]], SHORT)


def generate_and_be_interrupted(engine: Engine) -> None:
    """The first Ctrl-C is heard behind a poll; the one of the test comes in the cleaning up, or before."""
    batch = engine._batch
    poll = type(batch).poll

    def interrupted(*args: int) -> object:
        poll(batch, *args)
        raise KeyboardInterrupt

    batch.poll = interrupted  # type: ignore[method-assign]
    try:
        with suppress(KeyboardInterrupt):
            engine.generate([[5], [6]], LONG)
    finally:
        del batch.poll


def stream(engine: Engine) -> None:
    with closing(engine.stream([5], SHORT)) as chunks:
        for _ in chunks:
            pass


def leave_a_stream(engine: Engine) -> None:
    with suppress(ZeroDivisionError), closing(engine.stream([5], LONG)) as chunks:
        for _ in chunks:
            raise ZeroDivisionError


@pytest.mark.slow
@pytest.mark.parametrize("use", (generate, generate_and_be_interrupted, stream, leave_a_stream))
def test_an_interrupt_anywhere_leaves_an_engine_that_works(
    engine: Engine, use: Callable[[Engine], None]
) -> None:
    expected = read(engine)
    places = []
    for place in interrupts(FILES, lambda: use(engine)):
        places.append(place)
        assert read(engine) == expected, place  # not "in use", and no token of the request before
    assert len(set(places)) > 20


def test_an_interrupt_anywhere_in_submit_gives_the_turn_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pearl_rt.scheduling.scheduler.LINGER_S", 0.001)
    expected = read(engine)
    for place in interrupts(FILES, lambda: engine.submit([5], SHORT)):
        deadline = time.monotonic() + 60
        while True:  # what was submitted runs to its end, or the thread finds that nothing was
            try:
                assert read(engine) == expected, place
                break
            except RequestError as error:
                assert "in use" in str(error) and time.monotonic() < deadline, (place, error)
        assert engine.submit([3], SHORT).result(60).token_ids == expected, place
        while engine._scheduler._thread is not None and time.monotonic() < deadline:
            time.sleep(0.0005)


def wait(handle: pearl_rt.RequestHandle) -> None:
    with suppress(TimeoutError):
        handle.result(0.0005)
    next(iter(handle))


def cancel(handle: pearl_rt.RequestHandle) -> None:
    handle.cancel()
    handle.result(60)


@pytest.mark.parametrize("use", (wait, cancel))
def test_an_interrupt_anywhere_in_a_handle_leaves_the_others(
    use: Callable[[pearl_rt.RequestHandle], None],
) -> None:
    played = stage(3)
    handles = []

    def start_and_use() -> None:
        handles.append(played.scheduler.submit(Job(10**6)))
        use(handles[-1])

    for place in interrupts(FILES, start_and_use):
        assert played.scheduler.submit(Job(5)).result(60).token_ids == list(range(5)), place
        for handle in handles:
            handle.cancel()
            assert handle.result(60).finish_reason == "abort", place
        handles.clear()
        played.scheduler.counts()
    for handle in handles:
        handle.cancel()
    played.scheduler.close()
    assert not played.engine_lock.is_held


def test_an_interrupt_anywhere_in_close_can_be_followed_by_another_close() -> None:
    def begun() -> tuple[Stage, list[pearl_rt.RequestHandle]]:
        played = stage(1)
        return played, [played.scheduler.submit(Job(10**6)) for _ in range(3)]

    stages = [begun()]
    for place in interrupts(FILES, lambda: stages[-1][0].scheduler.close()):
        played, handles = stages[-1]
        played.scheduler.close()
        for handle in handles:
            with pytest.raises(EngineClosedError):
                handle.result(0)
        assert not played.engine_lock.is_held, place
        stages.append(begun())


class PythonLock:
    """What a lock must not be: its `with` begins and ends in Python."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.acquire = self._lock.acquire

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def is_taken(lock: Any) -> bool:
    """Whether another thread would wait for it."""
    got: list[bool] = []
    other = threading.Thread(target=lambda: got.append(lock.acquire(blocking=False)))
    other.start()
    other.join()
    return not got[0]


@pytest.mark.parametrize("kind", (PythonLock, threading.Condition, threading.Lock, threading.RLock))
def test_the_enumeration_finds_the_locks_that_can_be_lost(kind: Callable[[], Any]) -> None:
    locks = []

    def use() -> None:
        locks[:] = [kind()]
        with locks[0]:
            len("")

    lost = [
        place for place in interrupts({__file__, threading.__file__}, use) if locks and is_taken(locks[0])
    ]
    assert bool(lost) == (kind in (PythonLock, threading.Condition))


@pytest.mark.parametrize("path", sorted(ROOM.rglob("*.py")), ids=lambda path: path.stem)
def test_no_lock_is_written_in_python(path: Path) -> None:
    """Only Lock and RLock are taken and given back in one piece; Thread.start() waits for an Event."""
    found = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("threading", "queue")
    }
    assert not found & {"Condition", "Event", "Semaphore", "BoundedSemaphore", "Barrier", "Queue", "Thread"}
