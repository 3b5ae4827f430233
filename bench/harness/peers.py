"""Hugging Face generate, with and without assistant_model, as rows of the same table.

Equal work: the same checkpoints, prompt ids, number of new tokens, bf16, greedy, and as many threads as we
use. Its tokens may differ from ours all the same, because its bf16 kernels round in another order: how far
they agree is reported and not hidden. Knows nothing of our engine.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from bench.harness.measure import Program, Sample, Workload


class TokenClock:
    """A streamer that notes when ids arrive; the first call hands over the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.seen_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if not self.seen_prompt:
            self.seen_prompt = True
            return
        self.times += [time.perf_counter()] * value.numel()

    def end(self) -> None:
        pass


class HuggingFace:
    """A runner (see measure.Runner) for "hf ar", "hf assisted", and "hf assisted" with a fixed gamma."""

    def __init__(self, target: Path, draft: Path, num_threads: int) -> None:
        """Loads both in bf16. num_threads: torch's, set for every call and put back after it."""
        import transformers

        self.version: str = transformers.__version__
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.adopt(*(load(str(path), dtype=torch.bfloat16).eval() for path in (target, draft)))
        self.num_threads = num_threads

    def adopt(self, target: Any, draft: Any) -> None:
        """Takes two models of transformers, and has them write as many new tokens as we do."""
        self.target, self.draft = target, draft
        self.defaults = (
            draft.generation_config.num_assistant_tokens,
            draft.generation_config.num_assistant_tokens_schedule,
            draft.generation_config.assistant_confidence_threshold,
        )
        for model in (target, draft):
            model.generation_config.eos_token_id = None
            model.generation_config.pad_token_id = 0

    def programs(self, gamma: int) -> list[Program]:
        """Its rows: greedy, assisted as it comes, assisted with our tuned gamma."""
        found = [Program("hf ar", "shared"), Program("hf assisted", "shared")]
        return [*found, Program("hf assisted", "shared", gamma)] if gamma else found

    def set_window(self, gamma: int) -> None:
        """A fixed window of gamma, or 0 for the library's own schedule and confidence threshold."""
        config = self.draft.generation_config
        values = (gamma, "constant", 0.0) if gamma else self.defaults
        (
            config.num_assistant_tokens,
            config.num_assistant_tokens_schedule,
            config.assistant_confidence_threshold,
        ) = values

    def __call__(self, program: Program, workload: Workload, prompt: int) -> list[Sample]:
        ids = torch.tensor([list(workload.prompts[prompt])])
        self.set_window(program.gamma)
        clock = TokenClock()
        options: dict[str, Any] = {"assistant_model": self.draft} if program.strategy == "hf assisted" else {}
        threads = torch.get_num_threads()
        torch.set_num_threads(self.num_threads)
        begin = time.perf_counter()
        try:
            with torch.inference_mode():
                output = self.target.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    max_new_tokens=workload.max_tokens,
                    streamer=clock,
                    **options,
                )
        finally:
            seconds = time.perf_counter() - begin
            torch.set_num_threads(threads)
        new = output[0, ids.shape[1] :].tolist()
        gaps = max(len(clock.times) - 1, 1)
        tpot = (clock.times[-1] - clock.times[0]) / gaps
        return [Sample(prompt, new, seconds, clock.times[0] - begin, tpot, metrics=None)]
