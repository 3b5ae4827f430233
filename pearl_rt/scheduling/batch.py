"""Requests that run together, as the scheduler sees them: they join and leave one run of a coordinator.

Knows jobs, answers and lanes; not what a round does. A run has one program and one judge; a job that does not
go with it waits until the run has ended.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pearl_rt.errors import NumericsError
from pearl_rt.scheduling.job import Job
from pearl_rt.scheduling.runs import Runs
from pearl_rt.scheduling.scheduler import News
from pearl_rt.strategy.planner import Plan
from pearl_rt.strategy.step_timing import POLL_MS
from pearl_rt.types.outputs import RequestOutput


@dataclass
class _Sequence:
    """A job in a slot."""

    request_id: int  # the scheduler's
    job: Job
    plan: Plan
    is_alone: bool  # no other has run beside it, nor was expected to


class Batch:
    """pearl_rt.scheduling.scheduler.Slots over the lanes of an engine. For one thread at a time."""

    def __init__(self, runs: Runs) -> None:
        self.num_slots = runs.num_slots
        self._runs = runs
        self._turn = runs.turn
        self._lanes: Any = None  # of the run that goes on
        self._plan: Plan | None = None
        self._judge = ""
        self._running: dict[int, _Sequence] = {}  # by the coordinator's id
        self._news: list[News] = []  # found while something else was done

    @property
    def is_busy(self) -> bool:
        """Whether anything runs, or has news."""
        return bool(self._running or self._news)

    def can_start(self, job: Job) -> bool:
        """Whether a slot is free, and what runs has a place for this job too."""
        if not self._running:
            return True
        assert self._plan is not None
        return (
            len(self._running) < self.num_slots
            and job.judge == self._judge
            and self._plan.strategy in job.candidates.strategies
            and self._plan.placement in job.candidates.placements
            and self._runs.has_place(self._lanes, job, self._plan_beside(job))
        )

    def start(self, request_id: int, job: Job, num_waiting: int = 0) -> None:
        """Begins a job that can start. num_waiting: those behind it. Raises what keeps it from running."""
        job.answer.begin()
        if self._running:
            plan = self._plan_beside(job)
            number = self._runs.submit(self._lanes, job, plan)
            if number is not None:
                for sequence in self._running.values():
                    sequence.is_alone = False
                self._running[number] = _Sequence(request_id, job, plan, False)
                return
        self._drain()
        num_seqs = min(self.num_slots, 1 + num_waiting)
        plan, lanes = self._runs.choose(job, num_seqs)
        lanes.coordinator.stop()  # a second Ctrl-C may have left it at work
        self._plan, self._judge, self._lanes = plan, job.judge, lanes
        self._running[self._runs.start(lanes, job, plan)] = _Sequence(request_id, job, plan, num_seqs == 1)

    def _plan_beside(self, job: Job) -> Plan:
        """The plan of the run that goes on, for one more job: with its own window if it is told one."""
        plan = self._plan
        assert plan is not None
        if plan.gamma in (0, *job.candidates.gammas):
            return plan
        return Plan(plan.strategy, job.candidates.gammas[0], plan.placement, 0.0, 0.0)

    def poll(self, min_results: int = 1) -> list[News]:
        """News of what runs, waiting for min_results rounds or POLL_MS. Raises what ended the run. The run of
        an engine that was closed ends, whenever it was started.
        """
        self._turn.check_process()
        if self._lanes is not None and not self._news:
            if self._turn.is_closed:
                self._lanes.coordinator.stop()
            try:
                results = self._lanes.coordinator.next(POLL_MS, min_results)
            except Exception:
                self._end_run()
                self._news = []  # the error is theirs
                raise
            if results is None:
                self._end_run()
            else:
                self._news += self._told(results)
        news, self._news = self._news, []
        return news

    def cancel(self, request_id: int) -> RequestOutput:
        """Ends a running job within a round -> what it got. It has no trace: reading a long one would keep
        the slot for many rounds.
        """
        number = next(n for n, sequence in self._running.items() if sequence.request_id == request_id)
        return self._leave(number, is_traced=False)

    def skip(self, job: Job) -> RequestOutput:
        """An answer without tokens."""
        return job.answer.finish()

    def clear(self) -> None:
        """Ends whatever runs within a round; what was verified is in the answers, and what else there was to
        say concerns nobody. Called at both ends of a turn: a second Ctrl-C may cut short the call at its end.
        In the child of a fork nothing runs.
        """
        if self._turn.is_home:
            if self._lanes is not None:
                self._lanes.coordinator.stop()
                with suppress(Exception):  # of a run that was given up
                    self._drain()
            self._lanes = None
        self._running = {}
        self._news = []

    def _told(self, results: Sequence[Any]) -> list[News]:
        """What rounds say, request by request."""
        own: dict[int, list[Any]] = {}
        for result in results:
            own.setdefault(result.request_id, []).append(result)
        return [item for number, rounds in own.items() for item in self._told_one(number, rounds)]

    def _told_one(self, number: int, rounds: list[Any]) -> Iterable[News]:
        sequence = self._running.get(number)
        if sequence is None:  # it was cancelled, or a stop string ended it
            return
        answer, last = sequence.job.answer, rounds[-1]
        if last.finish_reason == "error":
            if rounds[:-1]:
                yield News(sequence.request_id, answer.add(rounds[:-1]))
            self._leave(number, has_slot=False)
            yield News(sequence.request_id, outcome=NumericsError(last.error))
            return
        yield News(sequence.request_id, answer.add(rounds))
        if answer.is_ended:
            outcome = self._leave(number, has_slot=not last.finish_reason)
            yield News(sequence.request_id, outcome=outcome)

    def _leave(self, number: int, *, has_slot: bool = True, is_traced: bool = True) -> RequestOutput:
        """Takes a sequence out of the run -> its output. has_slot: the coordinator still works on it.
        is_traced: its output has a trace, if it ran alone.
        """
        sequence = self._running.pop(number)
        job, lanes = sequence.job, self._lanes
        trace: Any = ()
        if not self._running:
            lanes.coordinator.stop()
            while (results := lanes.coordinator.next(0)) is not None:
                mine = [result for result in results if result.request_id == number]
                if mine:
                    job.answer.add(mine)
            self._lanes = None
            trace = lanes.trace() if sequence.is_alone and is_traced else ()
        elif has_slot:
            lanes.coordinator.cancel(number)
        output = job.answer.finish(sequence.plan, trace)
        self._runs.learn(job, sequence.plan, sequence.is_alone)
        return output

    def _drain(self) -> None:
        """Reads a run that ends, or was stopped, to its end."""
        while self._lanes is not None:
            results = self._lanes.coordinator.next(POLL_MS)
            if results is None:
                self._end_run()
            else:
                self._news += self._told(results)

    def _end_run(self) -> None:
        """The run is over: whoever is left was cut short."""
        for number in list(self._running):
            sequence = self._running[number]
            self._news.append(News(sequence.request_id, outcome=self._leave(number)))
        self._lanes = None
