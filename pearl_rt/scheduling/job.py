"""A request that was checked: what is asked, how it may run, and where its answer grows.

Knows prompts, parameters and programs by name; not lanes, and not who runs it.
"""

from dataclasses import dataclass

from pearl_rt.scheduling.answer import Answer
from pearl_rt.strategy.program_choice import ProgramChoice
from pearl_rt.types.request import Prompt
from pearl_rt.types.sampling_params import SamplingParams


@dataclass(frozen=True)
class Job:
    """One answer to one prompt."""

    prompt: Prompt
    params: SamplingParams
    candidates: ProgramChoice
    judge: str
    answer: Answer

    @property
    def regime(self) -> str:
        """The kind of sampling, as the chooser tells them apart."""
        return self.judge if self.params.temperature > 0 else "greedy"
