"""Peers on a device: Hugging Face on the very weights that our engine runs, and whole engines if installed.

Rows: greedy `hf ar`, `hf assisted` with the library's own schedule and with our tuned window, and
`hf compiled`, a static cache with torch.compile as the library does it. A call is timed as a whole, without a
streamer, which would make the library wait for every token; the time to the first token is that of a call for
one token. vLLM, SGLang and gpt-fast load checkpoints by themselves, so they run with --target only; a row
says why one did not run. Knows nothing of our engine but its weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from bench.harness.measure import Program, Sample, Workload
from bench.harness.peers import HuggingFace

ENGINES = {"vllm": "vllm", "sglang": "sglang", "gpt-fast": "gpt_fast"}  # row -> package
MEMORY_SHARE = 0.5  # of what is free, for a peer that takes its memory at once


class DeviceHuggingFace(HuggingFace):
    """A runner (see measure.Runner) over two models that are on the device already."""

    def __init__(
        self,
        target: Any,
        draft: Any,
        *,
        compiled: bool,
        may_compile: bool = True,
        draft_steps: bool = True,
    ) -> None:
        """target, draft: of transformers. may_compile=False: the static cache alone, for tests."""
        import transformers

        self.version = transformers.__version__
        self.adopt(target, draft)
        self.compiled, self.may_compile, self.with_draft = compiled, may_compile, draft_steps
        self.device = next(target.parameters()).device
        self.warmed: set[tuple[str, int]] = set()

    def programs(self, gamma: int) -> list[Program]:
        """Its rows."""
        found = [Program("hf ar", "eager")]
        if self.with_draft:
            found += [Program("hf assisted", "eager"), Program("hf assisted", "eager", gamma)]
        return [*found, Program("hf compiled", "static")] if self.compiled else found

    def generate(self, program: Program, ids: torch.Tensor, count: int, length: int) -> list[int]:
        """`count` new tokens with a cache for `length` positions."""
        options: dict[str, Any] = {}
        if program.strategy == "hf assisted":
            options["assistant_model"] = self.draft
        elif program.strategy == "hf compiled":
            options["cache_implementation"] = "static"
            options["max_cache_len"] = length
            options["disable_compile"] = not self.may_compile
        with torch.no_grad():
            output = self.target.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=count,
                max_new_tokens=count,
                **options,
            )
        return [int(token) for token in output[0, ids.shape[1] :].tolist()]

    def __call__(self, program: Program, workload: Workload, prompt: int) -> list[Sample]:
        ids = torch.tensor([list(workload.prompts[prompt])], device=self.device)
        length = ids.shape[1] + workload.max_tokens
        self.set_window(program.gamma)
        shape = (program.strategy, length)
        if shape not in self.warmed:  # compiled for these sizes, kernels loaded
            self.generate(program, ids, workload.max_tokens, length)
            self.warmed.add(shape)
        _, ttft = self.timed(lambda: self.generate(program, ids, 1, length))
        new, seconds = self.timed(lambda: self.generate(program, ids, workload.max_tokens, length))
        tpot = max(seconds - ttft, 0.0) / max(len(new) - 1, 1)
        return [Sample(prompt, new, seconds, ttft, tpot, metrics=None)]

    def timed(self, call: Callable[[], list[int]]) -> tuple[list[int], float]:
        """What it returns, and its seconds; its ids are on the host then, so all work is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        begin = time.perf_counter()
        value = call()
        return value, time.perf_counter() - begin


class Vllm:
    """vLLM's LLM on a checkpoint: greedy, one sequence at a time."""

    program = Program("vllm", "own graphs")

    def __init__(self, target: Path) -> None:
        import vllm

        self.vllm = vllm
        self.version: str = vllm.__version__
        free, total = torch.cuda.mem_get_info() if torch.cuda.is_available() else (1, 1)
        self.engine = vllm.LLM(
            model=str(target),
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_num_seqs=1,
            enable_prefix_caching=False,
            gpu_memory_utilization=MEMORY_SHARE * free / total,
        )

    def ids(self, prompt: list[int], count: int) -> list[int]:
        params = self.vllm.SamplingParams(
            temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False
        )
        [output] = self.engine.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
        return list(output.outputs[0].token_ids)


class Sglang:
    """SGLang's Engine on a checkpoint: greedy, one sequence at a time."""

    program = Program("sglang", "own graphs")

    def __init__(self, target: Path) -> None:
        import sglang

        self.version: str = sglang.__version__
        self.engine = sglang.Engine(
            model_path=str(target),
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_running_requests=1,
            disable_radix_cache=True,
            mem_fraction_static=MEMORY_SHARE,
        )

    def ids(self, prompt: list[int], count: int) -> list[int]:
        params = {"temperature": 0.0, "max_new_tokens": count, "ignore_eos": True}
        return list(self.engine.generate(input_ids=prompt, sampling_params=params)["output_ids"])


LOADERS: dict[str, Callable[[Path], Any]] = {"vllm": Vllm, "sglang": Sglang}


class EngineRunner:
    """A runner over one of these engines."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.version = engine, engine.version

    def programs(self, gamma: int) -> list[Program]:
        return [self.engine.program]

    def __call__(self, program: Program, workload: Workload, prompt: int) -> list[Sample]:
        ids = list(workload.prompts[prompt])
        _, ttft = timed_call(lambda: self.engine.ids(ids, 1))
        new, seconds = timed_call(lambda: self.engine.ids(ids, workload.max_tokens))
        tpot = max(seconds - ttft, 0.0) / max(len(new) - 1, 1)
        return [Sample(prompt, new, seconds, ttft, tpot, metrics=None)]


def timed_call(call: Callable[[], list[int]]) -> tuple[list[int], float]:
    begin = time.perf_counter()
    value = call()
    return value, time.perf_counter() - begin


def engine_peers(target: Path | None) -> tuple[list[EngineRunner], dict[str, str]]:
    """The engines that run, and why the others don't, by row."""
    runners: list[EngineRunner] = []
    absent: dict[str, str] = {}
    for name, package in ENGINES.items():
        if find_spec(package) is None:
            absent[name] = "not installed"
        elif name not in LOADERS:
            absent[name] = "installed, but no package that can be called"
        elif target is None:
            absent[name] = "loads checkpoints only: pass --target"
        else:
            try:
                runners.append(EngineRunner(LOADERS[name](target)))
            except Exception as error:  # a peer's fault is no fault of this run
                absent[name] = f"does not start: {(str(error).splitlines() or [repr(error)])[0]}"
    return runners, absent
