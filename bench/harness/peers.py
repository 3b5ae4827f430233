"""Peers that write the same prompts: Hugging Face on the same weights, and whole engines if installed.

Equal work: the same weights, prompt ids, number of new tokens, greedy, and on a CPU as many threads as we
use. Rows: `hf ar`; `hf assisted` with the library's own schedule, and with our tuned window, or without a
draft `hf lookup`, its prompt lookup; on a GPU `hf compiled`, a static cache with torch.compile as the
library does it. A call is timed as a whole, without a streamer, which would make the library wait for every
token; the time to the first token is that of a call for one token. vLLM, SGLang and gpt-fast load
checkpoints by themselves, so they run with --target only; a row says why one did not run. A peer's tokens
may differ from ours, because its kernels round in another order: how far they agree is reported and not
hidden. Knows nothing of our engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from bench.harness.measure import OWN, Measured, Program, Runner, Sample, Workload, measure, timed

ENGINES = {"vllm": "vllm", "sglang": "sglang", "gpt-fast": "gpt_fast"}  # row -> package
MEMORY_SHARE = 0.5  # of what is free, for a peer that takes its memory at once
OUTSIDE = ("llama.cpp", "openvino")  # in processes of their own: bench/outside
PAD = 0  # masked
LOOKUP = 10  # drafts of the library's prompt lookup where we have no tuned window
REST = 0.3  # seconds: OpenMP threads spin on for a while, on the cores of the next program
Ids = Sequence[Sequence[int]]


class Peer:
    """A runner (see measure.Runner) over another library's generate."""

    def __init__(self, version: str, *, warms: bool = True) -> None:
        """warms: the first call of each length is not timed: it compiles, and loads kernels."""
        self.version, self.warms = version, warms
        self.warmed: set[tuple[str, int]] = set()

    def programs(self, gamma: int) -> list[Program]:
        """Its rows. gamma: our tuned window."""
        raise NotImplementedError

    def write(self, program: Program, prompts: Ids, count: int, length: int) -> list[list[int]]:
        """`count` new tokens for each prompt, with room for `length` positions."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends what it started."""

    def __call__(self, program: Program, workload: Workload, prompt: int) -> list[Sample]:
        numbers = workload.together(prompt)
        prompts = [workload.prompts[number] for number in numbers]
        length = max(map(len, prompts)) + workload.max_tokens
        shape = program.strategy, length
        if self.warms and shape not in self.warmed:
            self.write(program, prompts, workload.max_tokens, length)
            self.warmed.add(shape)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        _, ttft = timed(lambda: self.write(program, prompts, 1, length))
        answers, seconds = timed(lambda: self.write(program, prompts, workload.max_tokens, length))
        tpot = max(seconds - ttft, 0.0) / max(workload.max_tokens - 1, 1)
        share = seconds / len(numbers)
        return [Sample(*each, share, ttft, tpot, None) for each in zip(numbers, answers, strict=True)]


@contextmanager
def torch_threads(count: int | None) -> Any:
    """So many threads of torch, and after that as many as before. None: as many as there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class HuggingFace(Peer):
    """Two models of transformers, or one that looks up."""

    def __init__(
        self,
        target: Any,
        draft: Any,
        *,
        num_threads: int | None = None,
        compiled: bool = False,
        may_compile: bool = True,
    ) -> None:
        """num_threads: torch's, on a CPU. may_compile=False: the static cache alone, for tests."""
        import transformers

        super().__init__(transformers.__version__, warms=num_threads is None)
        self.target, self.draft, self.num_threads = target, draft, num_threads
        self.compiled, self.may_compile = compiled, may_compile
        self.device = next(target.parameters()).device
        if draft is not None:
            own = draft.generation_config
            self.schedule = (
                own.num_assistant_tokens,
                own.num_assistant_tokens_schedule,
                own.assistant_confidence_threshold,
            )
        for model in (target, *([draft] if draft is not None else [])):  # as many new tokens as we write
            model.generation_config.eos_token_id = None
            model.generation_config.pad_token_id = PAD

    def programs(self, gamma: int) -> list[Program]:
        place = "eager" if self.num_threads is None else "shared"
        if self.draft is None:
            return [Program("hf ar", place), Program("hf lookup", place, gamma or LOOKUP)]
        found = [Program("hf ar", place), Program("hf assisted", place)]
        found += [Program("hf assisted", place, gamma)] if gamma else []
        return [*found, Program("hf compiled", "static")] if self.compiled else found

    def set_window(self, gamma: int) -> None:
        """A fixed window of gamma, or 0 for the library's own schedule and confidence threshold."""
        config = self.draft.generation_config
        (
            config.num_assistant_tokens,
            config.num_assistant_tokens_schedule,
            config.assistant_confidence_threshold,
        ) = (gamma, "constant", 0.0) if gamma else self.schedule

    def write(self, program: Program, prompts: Ids, count: int, length: int) -> list[list[int]]:
        """Prompts of a batch are padded to the left."""
        options: dict[str, Any] = {}
        if self.draft is not None:
            self.set_window(program.gamma)
        if program.strategy == "hf assisted":
            options["assistant_model"] = self.draft
        elif program.strategy == "hf lookup":
            options["prompt_lookup_num_tokens"] = program.gamma
        elif program.strategy == "hf compiled":
            options["cache_implementation"], options["max_cache_len"] = "static", length
            options["disable_compile"] = not self.may_compile
        longest = max(map(len, prompts))
        rows = [[PAD] * (longest - len(ids)) + list(ids) for ids in prompts]
        masks = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
        with torch_threads(self.num_threads), torch.no_grad():
            output = self.target.generate(
                torch.tensor(rows, device=self.device),
                attention_mask=torch.tensor(masks, device=self.device),
                do_sample=False,
                max_new_tokens=count,
                **options,
            )
        return [row[longest:] for row in output.tolist()]


def load_checkpoint(path: Path) -> Any:
    """A model of transformers in bf16, on the CPU."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.bfloat16).eval()


class Vllm(Peer):
    """vLLM's LLM on a checkpoint: greedy, one sequence at a time."""

    def __init__(self, target: Path) -> None:
        import vllm

        super().__init__(vllm.__version__)
        self.vllm = vllm
        free, total = torch.cuda.mem_get_info() if torch.cuda.is_available() else (1, 1)
        self.engine = vllm.LLM(
            model=str(target),
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_num_seqs=1,
            enable_prefix_caching=False,
            gpu_memory_utilization=MEMORY_SHARE * free / total,
        )

    def programs(self, gamma: int) -> list[Program]:
        return [Program("vllm", "own graphs")]

    def write(self, program: Program, prompts: Ids, count: int, length: int) -> list[list[int]]:
        params = self.vllm.SamplingParams(
            temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False
        )
        asked = [{"prompt_token_ids": list(ids)} for ids in prompts]
        return [list(o.outputs[0].token_ids) for o in self.engine.generate(asked, params, use_tqdm=False)]


class Sglang(Peer):
    """SGLang's Engine on a checkpoint: greedy, one sequence at a time."""

    def __init__(self, target: Path) -> None:
        import sglang

        super().__init__(sglang.__version__)
        self.engine = sglang.Engine(
            model_path=str(target),
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_running_requests=1,
            disable_radix_cache=True,
            mem_fraction_static=MEMORY_SHARE,
        )

    def programs(self, gamma: int) -> list[Program]:
        return [Program("sglang", "own graphs")]

    def write(self, program: Program, prompts: Ids, count: int, length: int) -> list[list[int]]:
        params = {"temperature": 0.0, "max_new_tokens": count, "ignore_eos": True}
        answers = (self.engine.generate(input_ids=list(ids), sampling_params=params) for ids in prompts)
        return [list(answer["output_ids"]) for answer in answers]


LOADERS: dict[str, Callable[[Path], Peer]] = {"vllm": Vllm, "sglang": Sglang}


def first_words(error: BaseException) -> str:
    return (str(error).splitlines() or [repr(error)])[0]


def engine_peers(target: Path | None) -> tuple[list[Peer], dict[str, str]]:
    """The engines that run, and why the others don't, by row."""
    runners: list[Peer] = []
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
                runners.append(LOADERS[name](target))
            except Exception as error:  # a peer's fault is no fault of this run
                absent[name] = f"does not start: {first_words(error)}"
    return runners, absent


@dataclass
class Peers:
    """The peers that run the same prompts, on a device behind ours. The target's own rows are kept: an
    agreement does not change them.
    """

    hugging_face: Any = None
    engines: list[Peer] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    num_prompts: int = 2
    kept: dict[Program, Measured] = field(default_factory=dict)
    group: Any = None  # a PeerGroup: on a CPU they run among our programs

    def measure(self, gamma: int, workload: Workload) -> list[Measured]:
        """Every peer's rows over the first prompts."""
        short = workload.part(self.num_prompts, workload.max_tokens)
        results = []
        runners = ([self.hugging_face] if self.hugging_face is not None else []) + self.engines
        for runner in runners:
            for program in runner.programs(gamma):
                if program not in self.kept:
                    try:
                        [found] = measure(runner, [program], short, warm_tokens=0)
                    except Exception as error:  # a peer's fault is no fault of this run
                        self.absent[str(program)] = f"failed: {first_words(error)}"
                        continue
                    if program.strategy == "hf assisted":
                        results.append(found)
                        continue
                    self.kept[program] = found
                results.append(self.kept[program])
        return results


class PeerGroup:
    """Several peers as one, on a CPU. One that cannot run is left out, and `absent` says why."""

    def __init__(self, peers: dict[str, Peer], absent: dict[str, str]) -> None:
        """peers: by their name in `absent`."""
        self.peers, self.absent = peers, absent
        self.owner: dict[str, Peer] = {}  # of each strategy

    def programs(self, gamma: int) -> list[Program]:
        """All rows; each peer has written two tokens by each."""
        found = []
        for name, peer in self.peers.items():
            try:
                own = peer.programs(gamma)
                for program in own:
                    peer.write(program, [[1, 2, 3]], 2, 5)
            except Exception as error:  # a peer's fault is no fault of this run
                self.absent[name] = f"does not run: {first_words(error)}"
                continue
            self.owner |= {program.strategy: peer for program in own}
            found += own
        return found

    def __call__(self, program: Program, workload: Workload, prompt: int) -> list[Sample]:
        return self.owner[program.strategy](program, workload, prompt)

    @property
    def versions(self) -> dict[str, str]:
        """Of those that run."""
        return {name: peer.version for name, peer in self.peers.items() if peer in self.owner.values()}

    def close(self) -> None:
        """Ends the processes of peers that have one."""
        for peer in self.peers.values():
            peer.close()


class Peered:
    """A runner that hands a peer's programs to the peer, and lets its threads fall asleep after each."""

    def __init__(self, ours: Runner, peer: Runner) -> None:
        self.ours, self.peer = ours, peer

    def __call__(self, program: Program, workload: Workload, prompt: int) -> list[Sample]:
        if program.strategy in OWN:
            return self.ours(program, workload, prompt)
        samples = self.peer(program, workload, prompt)
        time.sleep(REST)
        return samples
