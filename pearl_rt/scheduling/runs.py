"""How an engine starts what runs: the lanes of each placement, the program that a job gets on them, and what
was learned from those that ran.

Knows back ends, the chooser and jobs; not queues, slots or text. Lanes are used by one thread at a time, the
figures by any.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pearl_rt._C as _C
from pearl_rt.device.kv_pool import KvPool
from pearl_rt.scheduling.engine_lock import Turn
from pearl_rt.scheduling.job import Job
from pearl_rt.scheduling.totals import Totals
from pearl_rt.strategy.chooser import Chooser
from pearl_rt.strategy.planner import Plan
from pearl_rt.strategy.program_choice import ProgramChoice
from pearl_rt.types.request import Request


class Runs:
    """The lanes, and whoever picks among them."""

    def __init__(
        self,
        backend: Any,
        target: Any,
        draft: Any,
        *,
        eos_ids: Sequence[int],
        pool: KvPool,
        turn: Turn,
    ) -> None:
        """target, draft: models as the back end packed them. pool: the KV blocks
        of all sequences. turn: of the engine, which may be closed."""
        self.num_slots: int = backend.num_slots
        self.lanes: dict[str, Any] = {}  # placement -> its lanes, once it was used
        self._backend, self._target, self._draft = backend, target, draft
        self._eos_ids, self._pool = eos_ids, pool
        self.turn = turn
        self._never_destroy = _C.never_destroy  # when the interpreter ends, a module's names may be gone
        self._chooser = Chooser()
        self._totals = Totals()
        self._figures = threading.RLock()  # of who reads or changes what the chooser or the totals hold

    def place(self, placement: str) -> Any:
        """The lanes of a placement, built and measured when they are first needed."""
        if placement not in self.lanes:
            self.turn.check_open()
            lanes = self._backend.lanes(placement, self._target, self._draft, self._pool)
            times = lanes.measure()
            with self._figures:
                self._chooser.times[placement] = times
            self.turn.check_open()  # it may have been closed meanwhile
            self.lanes[placement] = lanes
        return self.lanes[placement]

    def choose(self, job: Job, num_seqs: int) -> tuple[Plan, Any]:
        """The program with the best expected tokens per second for so many sequences, and its lanes."""
        for name in job.candidates.placements:
            self.place(name)
        with self._figures:
            chosen = self._chooser.choose(job.candidates, job.regime, num_seqs)
        return chosen, self.place(chosen.placement)

    def has_place(self, lanes: Any, job: Job, plan: Plan) -> bool:
        """Whether the run of this plan that goes on there was made for such a job, and has room for it."""
        return bool(lanes.has_place(self.request(job, plan.gamma)))

    def start(self, lanes: Any, job: Job, plan: Plan) -> int:
        """A run for a job, on lanes that are idle -> its id there."""
        if windows := self._windows(lanes, job, plan):
            request = replace(self.request(job, max(job.candidates.gammas)), adapts=True)
            return int(lanes.start(plan.strategy, request, job.judge, windows))
        return int(lanes.start(plan.strategy, self.request(job, plan.gamma), job.judge))

    def submit(self, lanes: Any, job: Job, plan: Plan) -> int | None:
        """A job for the run of this plan that goes on there -> its id, or None if it has ended."""
        number: int | None
        if windows := self._windows(lanes, job, plan):
            number = lanes.submit(replace(self.request(job, max(job.candidates.gammas)), adapts=True))
            lanes.coordinator.set_windows(windows)  # what was learned since the run began
        else:
            number = lanes.submit(self.request(job, plan.gamma))
        return number

    def request(self, job: Job, gamma: int) -> Request:
        """A job as coordinators take it."""
        return Request.of(job.prompt.token_ids, gamma, job.params, self._eos_ids, self._pool.max_model_len)

    def learn(self, job: Job, plan: Plan, is_alone: bool) -> None:
        """Takes in one answer. is_alone: no other ran beside it, nor was expected to."""
        assert job.answer.output is not None
        with self._figures:
            self._chooser.learn(plan, job.regime, job.answer.output.metrics, is_alone=is_alone)
            self._totals.add(job.answer.output)

    def figures(self, candidates: ProgramChoice) -> dict[str, Any]:
        """What ran last and what would run next, and why; and sums over all answers."""
        with self._figures:
            return {**self._chooser.described(candidates), "totals": self._totals.described()}

    def described(self) -> Mapping[str, Any]:
        """What runs where."""
        found: Mapping[str, Any] = self._backend.described(self.lanes, self._pool)
        return found

    def close(self) -> None:
        """Ends what runs and gives the memory back. Calling it again does nothing."""
        while self.lanes:
            _, lanes = self.lanes.popitem()
            lanes.close()
        self._target = self._draft = None

    def __del__(self) -> None:
        """In the child of a fork nothing is destroyed: lanes would wait for threads of the parent."""
        if not self.turn.is_home:
            self._never_destroy((self.lanes, self._backend, self._target, self._draft))

    def _windows(self, lanes: Any, job: Job, plan: Plan) -> list[int]:
        """The best windows of a run beside 0, 1, .. sequences, for a job that leaves the choice to us."""
        if not lanes.adapts:
            return []
        with self._figures:
            return self._chooser.windows(plan, job.candidates, job.regime, self.num_slots)
