"""A peer whose answers come from a process of its own, which times them itself.

Equal work: the same file, prompt ids, number of new tokens past any end of text, greedy, as many threads.
Knows no library: llama_cpp.py and open_vino.py do.
"""

from __future__ import annotations

import statistics
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from bench.harness.measure import Program, Sample, Workload
from bench.harness.peers import Ids, Peer

TUNING_TOKENS = 32
TUNING_TURNS = 2


class OutsideError(Exception):
    """A process that does not start, does not answer, or answers something else."""


@dataclass(frozen=True)
class Answer:
    """Of one prompt. seconds: prefill included."""

    token_ids: list[int]
    ttft: float
    seconds: float


class Outside(Peer):
    """A runner (see measure.Runner) over processes that answer one prompt at a time."""

    def __init__(self, version: str) -> None:
        super().__init__(version, warms=False)

    @abstractmethod
    def answer(self, program: Program, ids: Sequence[int], count: int) -> Answer:
        """`count` new tokens behind these. Raises OutsideError."""

    def checked(self, program: Program, ids: Sequence[int], count: int) -> Answer:
        """The same, refused if it is not as much work as asked."""
        found = self.answer(program, ids, count)
        if len(found.token_ids) != count:
            raise OutsideError(
                f"{program.strategy} wrote {len(found.token_ids)} tokens where {count} were asked for"
            )
        return found

    def write(self, program: Program, prompts: Ids, count: int, length: int) -> list[list[int]]:
        return [self.checked(program, ids, count).token_ids for ids in prompts]

    def __call__(self, program: Program, workload: Workload, prompt: int) -> list[Sample]:
        samples = []
        for number in workload.together(prompt):
            found = self.checked(program, workload.prompts[number], workload.max_tokens)
            tpot = (found.seconds - found.ttft) / max(workload.max_tokens - 1, 1)
            samples.append(Sample(number, found.token_ids, found.seconds, found.ttft, tpot, None))
        return samples

    def seconds(self, program: Program, prompts: Ids) -> float:
        """What these prompts take, to choose among settings: the sum of medians, after a turn that warms."""
        turns = [
            [self.checked(program, ids, TUNING_TOKENS).seconds for ids in prompts]
            for _ in range(TUNING_TURNS + 1)
        ]
        return sum(statistics.median(times) for times in zip(*turns[1:], strict=True))
