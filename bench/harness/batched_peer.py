"""Hugging Face generate over batches: the same prompts, tokens and cores, greedy, padded to the left.

Knows nothing of our engine. It has no batches beside an assistant, so that there is one row a size.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

PAD = 0  # masked


class BatchedHuggingFace:
    """One model of transformers in bf16. num_threads: torch's, set for every call and put back after it."""

    def __init__(self, target: Path, num_threads: int) -> None:
        import transformers

        self.version: str = transformers.__version__
        load = transformers.AutoModelForCausalLM.from_pretrained
        self._model = load(str(target), dtype=torch.bfloat16).eval()
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = PAD
        self._num_threads = num_threads

    def generate(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, batch: int
    ) -> tuple[list[list[int]], float]:
        """All prompts in batches of this size -> (new ids of each, seconds)."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self._num_threads)
        found: list[list[int]] = []
        begin = time.perf_counter()
        try:
            for first in range(0, len(prompts), batch):
                found += self._one(prompts[first : first + batch], max_tokens)
        finally:
            torch.set_num_threads(threads)
        return found, time.perf_counter() - begin

    def _one(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), PAD)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
            mask[row, longest - len(prompt) :] = 1
        with torch.inference_mode():
            output = self._model.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=max_tokens
            )
        return [row[longest:].tolist() for row in output]
