"""The lanes of an engine, and the run that goes on there: which jobs are in it, and by which program.

Knows back ends, the chooser and jobs; not what a round does. A run has one program and one judge; a job that
does not go with it waits until the run has ended. Lanes are used by one thread at a time, the figures by any.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import pearl_rt._C as _C
from pearl_rt.backends.base import Backend, Lanes, PackedModel
from pearl_rt.device.kv_pool import KvPool
from pearl_rt.errors import NumericsError, RequestError
from pearl_rt.scheduling.engine_lock import EngineLock
from pearl_rt.scheduling.job import Job
from pearl_rt.scheduling.scheduler import News
from pearl_rt.strategy.chooser import Chooser
from pearl_rt.strategy.planner import Plan
from pearl_rt.strategy.program_choice import ProgramChoice
from pearl_rt.strategy.step_timing import POLL_MS
from pearl_rt.types.json import Json
from pearl_rt.types.metrics import TraceRow
from pearl_rt.types.outputs import RequestOutput
from pearl_rt.types.request import Request
from pearl_rt.types.totals import Totals


class Batch:
    """pearl_rt.scheduling.scheduler.Slots over the lanes of an engine."""

    def __init__(
        self,
        backend: Backend,
        target: PackedModel,
        draft: PackedModel | None,
        *,
        pool: KvPool,
        engine_lock: EngineLock,
    ) -> None:
        """target, draft: models as the back end packed them. pool: the KV blocks of all sequences.
        engine_lock: of the engine, which may be closed.
        """
        self.num_slots = backend.num_slots
        self.lanes: dict[str, Lanes] = {}  # placement -> its lanes, once it was used
        self._backend, self._draft = backend, draft
        self._target: PackedModel | None = target  # None: closed
        self._pool = pool
        self._engine_lock = engine_lock
        self._never_destroy = _C.never_destroy  # when the interpreter ends, a module's names may be gone
        self._chooser = Chooser()
        self._totals = Totals()
        self._figures = threading.RLock()  # held to read or change the chooser or the totals
        self._run: Lanes | None = None  # the lanes of the run that goes on
        self._plan: Plan | None = None  # its program
        self._judge = ""
        self._has_windows = True  # whether the run feeds a draft: then requests with a gamma can join
        self._running: dict[int, Job] = {}  # by the coordinator's id
        self._news: list[News] = []  # found while something else was done

    def place(self, placement: str) -> Lanes:
        """The lanes of a placement, built and measured when they are first needed."""
        if placement not in self.lanes:
            self._engine_lock.check_open()
            assert self._target is not None
            lanes = self._backend.lanes(placement, self._target, self._draft, self._pool)
            times = lanes.measure()
            with self._figures:
                self._chooser.times[placement] = times
            self._engine_lock.check_open()  # it may have been closed meanwhile
            self.lanes[placement] = lanes
        return self.lanes[placement]

    @property
    def is_busy(self) -> bool:
        """Whether anything runs, or has news."""
        return bool(self._running or self._news)

    def can_start(self, job: Job) -> bool:
        """Whether a slot is free, and what runs has a place for this job too."""
        if not self._running:
            return True
        assert self._plan is not None and self._run is not None
        return (
            len(self._running) < self.num_slots
            and job.judge == self._judge
            and (self._has_windows or len(job.choice.windows(self._plan.strategy)) > 1)
            and self._plan.strategy in job.choice.strategies
            and self._plan.placement in job.choice.placements
            and self._run.has_place(replace(job.request, gamma=self._plan_beside(job).gamma))
        )

    def start(self, request_id: int, job: Job, num_waiting: int = 0) -> None:
        """Begins a job that can start. num_waiting: those behind it. Raises what keeps it from running."""
        job.begin()
        job.request_id = request_id
        if self._running and self._join(job):
            return
        self._drain()
        num_seqs = min(self.num_slots, 1 + num_waiting)
        plan = self._chosen(job, num_seqs)
        lanes = self.place(plan.placement)
        lanes.stop()  # a second Ctrl-C may have left it at work
        self._plan, self._judge, self._run = plan, job.judge, lanes
        request, windows = self._request(lanes, job, plan)
        self._has_windows = not windows or any(windows)
        number = lanes.start(plan.strategy, request, job.judge, windows)
        job.plan, job.is_alone = plan, num_seqs == 1
        self._running[number] = job

    def _join(self, job: Job) -> bool:
        """Puts a job in the run that goes on -> False if that has ended."""
        plan, lanes = self._plan_beside(job), self._run
        assert lanes is not None
        request, windows = self._request(lanes, job, plan)
        number = lanes.submit(request)
        if windows:
            lanes.set_windows(windows)  # what was learned since the run began
        if number is None:
            return False
        for other in self._running.values():
            other.is_alone = False
        job.plan, job.is_alone = plan, False
        self._running[number] = job
        return True

    def _chosen(self, job: Job, num_seqs: int) -> Plan:
        """The program with the best expected tokens per second for so many sequences."""
        for name in job.choice.placements:
            self.place(name)
        with self._figures:
            return self._chooser.choose(job.choice, job.regime, num_seqs)

    def _plan_beside(self, job: Job) -> Plan:
        """The plan of the run that goes on, for one more job: with its own window if one is given."""
        plan = self._plan
        assert plan is not None
        if plan.gamma in (0, *job.choice.gammas):
            return plan
        return Plan(plan.strategy, job.choice.gammas[0], plan.placement, 0.0, 0.0)

    def _request(self, lanes: Lanes, job: Job, plan: Plan) -> tuple[Request, list[int]]:
        """A job for the run of a plan, and the best windows beside 0, 1, .. sequences: none where the lanes
        cannot change them, or the job leaves no choice.
        """
        windows: list[int] = []
        if lanes.adapts:
            with self._figures:
                windows = self._chooser.windows(plan, job.choice, job.regime, self.num_slots)
        gamma = max(job.choice.gammas) if windows else plan.gamma
        return replace(job.request, gamma=gamma, adapts=bool(windows)), windows

    def poll(self, min_results: int = 1) -> list[News]:
        """News of what runs, waiting for min_results rounds or POLL_MS. Raises what ended the run. The run of
        an engine that was closed ends, whenever it was started.
        """
        self._engine_lock.check_process()
        if self._run is not None and not self._news:
            if self._engine_lock.is_closed:
                self._run.stop()
            try:
                results = self._run.next(POLL_MS, min_results)
            except Exception:
                self._end_run()
                self._news = []  # the error is theirs
                raise
            if results is None:
                self._end_run()
            else:
                self._news += self._reported(results)
        news, self._news = self._news, []
        return news

    def cancel(self, request_id: int) -> RequestOutput:
        """Ends a running job within a round -> what it got. It has no trace: reading a long one would keep
        the slot for many rounds.
        """
        number = next(n for n, job in self._running.items() if job.request_id == request_id)
        return self._leave(number, is_traced=False)

    def clear(self) -> None:
        """Ends whatever runs within a round. Verified tokens are in the answers; other news is dropped.
        Called at both ends of a turn: a second Ctrl-C may cut short the call at its end.
        In the child of a fork nothing runs.
        """
        if self._engine_lock.is_home:
            if self._run is not None:
                self._run.stop()
                with suppress(Exception):  # of a run that was given up
                    self._drain()
            self._run = None
        self._running = {}
        self._news = []

    def _reported(self, results: Sequence[_C.RoundResult]) -> list[News]:
        """What rounds say, request by request."""
        own: dict[int, list[_C.RoundResult]] = {}
        for result in results:
            own.setdefault(result.request_id, []).append(result)
        return [item for number, rounds in own.items() for item in self._told_one(number, rounds)]

    def _told_one(self, number: int, rounds: list[_C.RoundResult]) -> Iterator[News]:
        job = self._running.get(number)
        if job is None:  # it was cancelled, or a stop string ended it
            return
        last = rounds[-1]
        if last.finish_reason == "error":
            if rounds[:-1]:
                yield job.request_id, job.add(rounds[:-1])
            self._leave(number, has_slot=False)
            has_no_form = last.error.startswith("structured_outputs")
            yield job.request_id, (RequestError if has_no_form else NumericsError)(last.error)
            return
        yield job.request_id, job.add(rounds)
        if job.is_ended:
            yield job.request_id, self._leave(number, has_slot=not last.finish_reason)

    def _leave(self, number: int, *, has_slot: bool = True, is_traced: bool = True) -> RequestOutput:
        """Takes a job out of the run -> its output. has_slot: the coordinator still works on it.
        is_traced: its output has a trace, if it ran alone.
        """
        job, lanes = self._running.pop(number), self._run
        assert lanes is not None
        trace: Sequence[TraceRow] = ()
        if not self._running:
            lanes.stop()
            while (results := lanes.next(0)) is not None:
                mine = [result for result in results if result.request_id == number]
                if mine:
                    job.add(mine)
            self._run = None
            trace = lanes.trace() if job.is_alone and is_traced else ()
        elif has_slot:
            lanes.cancel(number)
        with self._figures:
            plain = self._chooser.plain_tpot(job.plan, job.rounds, trace) if job.is_alone else None
            output = job.finish(trace, plain)
            looks_up = job.choice.looks_up
            self._chooser.learn(
                job.plan, job.regime, output.metrics, is_alone=job.is_alone, looks_up=looks_up
            )
            self._totals.add(output)
        return output

    def _drain(self) -> None:
        """Reads a run that ends, or was stopped, to its end."""
        while self._run is not None:
            results = self._run.next(POLL_MS)
            if results is None:
                self._end_run()
            else:
                self._news += self._reported(results)

    def _end_run(self) -> None:
        """The run is over: the jobs that are left were cut short."""
        for number, job in list(self._running.items()):
            self._news.append((job.request_id, self._leave(number)))
        self._run = None

    def figures(self, choice: ProgramChoice) -> Json:
        """What ran last and what would run next, and why; and sums over all answers."""
        with self._figures:
            return {**self._chooser.described(choice), "totals": self._totals.described()}

    def described(self) -> Json:
        """What runs where. From any thread: another may build lanes, or close them."""
        return self._backend.described(dict(self.lanes), self._pool)

    def close(self) -> None:
        """Ends what runs and gives the memory back. Calling it again does nothing."""
        while self.lanes:
            _, lanes = self.lanes.popitem()
            lanes.close()
        self._target = self._draft = None

    def __del__(self) -> None:
        """In the child of a fork nothing is destroyed: lanes would wait for threads of the parent."""
        if not self._engine_lock.is_home:
            self._never_destroy((self.lanes, self._backend, self._target, self._draft))
