"""The queue in front of slots that are played: order, bounds, cancels, faults and closing, with one slot and
three.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import pytest

from pearl_rt.errors import EngineClosedError, NumericsError, QueueFullError, RequestError
from pearl_rt.scheduling.handle import RequestHandle
from pearl_rt.scheduling.scheduler import News, Scheduler
from pearl_rt.types.metrics import measure
from pearl_rt.types.outputs import RequestOutput, StreamChunk


@dataclass
class Job:
    """So many tokens, one in each poll; waits for `gate` before the first."""

    num_tokens: int
    fault: Exception | None = None
    gate: threading.Event | None = None
    got: list[int] = field(default_factory=list)

    def output(self, reason: str) -> RequestOutput:
        figures = measure([], start_ns=0, num_prompt_tokens=1, strategy="ar", gamma=0, placement="shared")
        return RequestOutput(None, [1], list(self.got), "x" * len(self.got), reason, figures)

    def finish(self) -> RequestOutput:
        return self.output("abort")


class PlayedSlots:
    """Slots that play their jobs' scripts, and note what was asked of them."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.order: list[int] = []
        self.most = 0
        self.fault: Exception | None = None  # raised by the next poll, of no job in particular
        self._jobs: dict[int, Job] = {}

    def clear(self) -> None:
        self._jobs = {}

    def can_start(self, job: Job) -> bool:
        return len(self._jobs) < self.num_slots

    def start(self, request_id: int, job: Job, num_waiting: int) -> None:
        if job.num_tokens < 0:
            raise RequestError("refused at the slot")
        self.order.append(request_id)
        self._jobs[request_id] = job
        self.most = max(self.most, len(self._jobs))

    def poll(self) -> list[News]:
        if self.fault is not None:
            fault, self.fault = self.fault, None
            self._jobs = {}
            raise fault
        time.sleep(0.0005)
        news: list[News] = []
        for request_id, job in list(self._jobs.items()):
            if job.gate is not None and not job.gate.is_set():
                continue
            if job.fault is not None and len(job.got) == 2:
                del self._jobs[request_id]
                news.append((request_id, job.fault))
            elif len(job.got) == job.num_tokens:
                del self._jobs[request_id]
                news.append((request_id, job.output("length")))
            else:
                job.got.append(len(job.got))
                last = len(job.got) == job.num_tokens
                news.append((request_id, StreamChunk([job.got[-1]], "x", "length" if last else None)))
        return news

    def cancel(self, request_id: int) -> RequestOutput:
        return self._jobs.pop(request_id).output("abort")


class EngineLock:
    """Whether the queue has the slots, and how often it has taken them."""

    is_home = True

    def __init__(self) -> None:
        self.taken = 0
        self.is_held = False
        self.refused: Exception | None = None

    def check_process(self) -> None:
        pass

    def take_for_queue(self) -> None:
        if self.refused is not None:
            raise self.refused
        self.taken += not self.is_held
        self.is_held = True

    def end_for_queue(self) -> None:
        self.is_held = False


@dataclass
class Stage:
    slots: PlayedSlots
    engine_lock: EngineLock
    scheduler: Scheduler


def stage(num_slots: int, max_waiting: int = 1000) -> Stage:
    slots, engine_lock = PlayedSlots(num_slots), EngineLock()
    return Stage(
        slots, engine_lock, Scheduler(slots, engine_lock=engine_lock, ids=count(), max_waiting=max_waiting)
    )


@pytest.fixture(params=(1, 3), ids=("one slot", "three slots"))
def played(request: pytest.FixtureRequest) -> Iterator[Stage]:
    found = stage(request.param)
    yield found
    found.scheduler.close()


def test_first_come_first_served_on_all_slots(played: Stage) -> None:
    handles = [played.scheduler.submit(Job(n % 5)) for n in range(40)]
    for n, handle in enumerate(handles):
        assert handle.result(10).token_ids == list(range(n % 5))
    assert played.slots.order == list(range(40))
    assert played.slots.most == played.slots.num_slots
    assert not played.engine_lock.is_held
    assert played.scheduler.counts() == {"running": 0, "waiting": 0}


def test_chunks_are_the_output_for_every_reader(played: Stage) -> None:
    handle = played.scheduler.submit(Job(7))
    for _ in range(2):
        chunks = list(handle)
        assert [i for chunk in chunks for i in chunk.token_ids] == list(range(7))
        assert [chunk.finish_reason for chunk in chunks] == [None] * 6 + ["length"]
    assert handle.done


def test_a_full_queue_refuses_and_takes_more_once_it_has_room() -> None:
    for num_slots, max_waiting in ((1, 0), (1, 2), (3, 0), (3, 4)):
        played = stage(num_slots, max_waiting)
        gate = threading.Event()
        handles = [played.scheduler.submit(Job(1, gate=gate)) for _ in range(num_slots + max_waiting)]
        with pytest.raises(QueueFullError, match=f"max_waiting is {max_waiting}"):
            played.scheduler.submit(Job(1))
        gate.set()
        for handle in handles:
            handle.result(10)
        assert played.scheduler.submit(Job(2)).result(10).token_ids == [0, 1]
        played.scheduler.close()


def test_a_running_request_is_cancelled_with_what_it_has(played: Stage) -> None:
    handle = played.scheduler.submit(Job(10**6))
    other = played.scheduler.submit(Job(3))
    stream = iter(handle)
    seen = [next(stream) for _ in range(3)]
    handle.cancel()
    handle.cancel()
    output = handle.result(10)
    assert output.finish_reason == "abort"
    seen += list(stream)
    assert [i for chunk in seen for i in chunk.token_ids] == output.token_ids
    assert seen[-1].finish_reason == "abort"
    assert other.result(10).finish_reason == "length"
    handle.cancel()  # too late: nothing happens
    assert handle.result().finish_reason == "abort"


def test_waiting_requests_are_cancelled_without_running(played: Stage) -> None:
    gate = threading.Event()
    running = [played.scheduler.submit(Job(1, gate=gate)) for _ in range(played.slots.num_slots)]
    waiting = [played.scheduler.submit(Job(5)) for _ in range(4)]
    for handle in waiting[1:]:
        handle.cancel()
    for handle in waiting[1:]:
        assert handle.result(10).token_ids == []
        assert [chunk.finish_reason for chunk in handle] == ["abort"]
    gate.set()
    assert waiting[0].result(10).token_ids == list(range(5))
    assert [handle.result(10).finish_reason for handle in running] == ["length"] * len(running)
    assert len(played.slots.order) == len(running) + 1
    assert not played.engine_lock.is_held


def test_a_fault_ends_its_own_request_only(played: Stage) -> None:
    jobs = [Job(4, fault=NumericsError("bad logits") if n % 3 == 1 else None) for n in range(12)]
    handles = [played.scheduler.submit(job) for job in jobs]
    handles.append(played.scheduler.submit(Job(-1)))
    for n, handle in enumerate(handles[:-1]):
        if n % 3 == 1:
            chunks = iter(handle)
            assert [next(chunks).token_ids for _ in range(2)] == [[0], [1]]
            with pytest.raises(NumericsError, match="bad logits"):
                next(chunks)
            with pytest.raises(NumericsError, match="bad logits"):
                handle.result(10)
        else:
            assert handle.result(10).token_ids == [0, 1, 2, 3]
    with pytest.raises(RequestError, match="refused at the slot"):
        handles[-1].result(10)
    assert not played.engine_lock.is_held


def test_a_fault_of_the_slots_ends_what_runs_and_the_rest_goes_on(played: Stage) -> None:
    gate = threading.Event()
    running = [played.scheduler.submit(Job(1, gate=gate)) for _ in range(played.slots.num_slots)]
    rest = [played.scheduler.submit(Job(2)) for _ in range(3)]
    while len(played.slots.order) < len(running):
        time.sleep(0.001)
    played.slots.fault = MemoryError("the slots are broken")
    for handle in running:
        with pytest.raises(MemoryError, match="broken"):
            handle.result(10)
    assert [handle.result(10).token_ids for handle in rest] == [[0, 1]] * 3


def test_closing_ends_what_is_in_flight_with_an_error(played: Stage) -> None:
    gate = threading.Event()
    handles = [played.scheduler.submit(Job(1, gate=gate)) for _ in range(6)]
    time.sleep(0.01)
    played.scheduler.close()
    played.scheduler.close()
    for handle in handles:
        with pytest.raises(EngineClosedError, match=r"closed while this request (ran|waited)"):
            handle.result(0)
    with pytest.raises(EngineClosedError):
        played.scheduler.submit(Job(1))
    assert not played.engine_lock.is_held


def test_waiting_for_a_result_can_time_out(played: Stage) -> None:
    handle = played.scheduler.submit(Job(1, gate=threading.Event()))
    with pytest.raises(TimeoutError, match=r"0\.01 s"):
        handle.result(0.01)


def test_the_turn_is_refused_to_a_submission_while_another_has_it(played: Stage) -> None:
    played.engine_lock.refused = RequestError("in use")
    with pytest.raises(RequestError, match="in use"):
        played.scheduler.submit(Job(1))
    played.engine_lock.refused = None
    assert played.scheduler.submit(Job(1)).result(10).token_ids == [0]


def test_submissions_and_cancels_from_many_threads(played: Stage) -> None:
    handles: list[tuple[RequestHandle, int]] = []

    def work(seed: int) -> None:
        for n in range(20):
            handle = played.scheduler.submit(Job((seed + n) % 7))
            handles.append((handle, (seed + n) % 7))
            if (seed + n) % 4 == 0:
                handle.cancel()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for handle, num_tokens in handles:
        output = handle.result(30)
        assert output.finish_reason == "abort" or output.token_ids == list(range(num_tokens))
        assert [i for chunk in handle for i in chunk.token_ids] == output.token_ids
    assert not played.engine_lock.is_held


def test_an_idle_scheduler_has_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pearl_rt.scheduling.scheduler.LINGER_S", 0.01)
    played = stage(1)
    for _ in range(3):
        played.scheduler.submit(Job(1)).result(10)
        deadline = time.monotonic() + 10
        while played.scheduler._thread is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert played.scheduler._thread is None
    assert played.engine_lock.taken == 3
