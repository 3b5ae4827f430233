"""Where a pair runs: cores and memory, packed weights, and the native lanes of each placement with their step
times.

Knows core sets, executors and the coordinator; not prompts, text, or which program is wanted. A placement is

  shared   both lanes on all cores, taking turns
  split    disjoint cores, so that draft and target are two devices: one core for the draft, the rest for the
           target
"""

import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pearl_rt._C as _C
from pearl_rt.config import Environment, ModelConfig
from pearl_rt.errors import ConfigError, PearlError, ResourceError
from pearl_rt.loader import loading_bar
from pearl_rt.metrics import TraceRow
from pearl_rt.models.rope import rope_tables
from pearl_rt.models.shapes import tensor_shapes
from pearl_rt.options import own_dtype
from pearl_rt.planner import MAX_GAMMA, StepTimes, seconds
from pearl_rt.program import program
from pearl_rt.request import Request

if TYPE_CHECKING:
    import torch

ITEM_BYTES = {"bfloat16": 2, "float32": 4}
MEASURED_GAMMAS = (1, 4, 8, 15)
POLL_MS = 50  # how long a wait may keep Python from seeing Ctrl-C


@contextmanager
def native_errors() -> Iterator[None]:
    """What the executor refuses, as our errors: memory that cannot be had, sizes that do not fit."""
    try:
        yield
    except MemoryError as error:
        raise ResourceError(f"{error}: lower max_model_len, or take smaller models") from None
    except PearlError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None


@dataclass(frozen=True)
class Model:
    """A model ready to run: packed weights, shared by the executors of all placements, and rotary tables."""

    config: ModelConfig
    dtype: str
    weights: Any  # _C.LlamaWeights
    cos: "torch.Tensor"  # [max_model_len, head_dim / 2] fp32
    sin: "torch.Tensor"  # [max_model_len, head_dim / 2] fp32

    @property
    def isa(self) -> str:
        """The instruction set that the weights are packed for."""
        return str(self.weights.isa)

    @classmethod
    def pack(
        cls,
        config: ModelConfig,
        tensors: Mapping[str, "torch.Tensor"],
        *,
        dtype: str,
        isa: str | None,
        max_model_len: int,
        name: str = "model",
    ) -> "Model":
        """Packs `tensors` (HF names) once; they may be dropped afterwards. `name` labels the progress bar."""
        held = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        views = {
            key: (tensor.data_ptr(), str(tensor.dtype).removeprefix("torch."), list(tensor.shape))
            for key, tensor in held.items()
        }
        size = weight_bytes(config, dtype)
        with native_errors(), loading_bar(f"packing the {name}", size) as advance:
            weights = _C.LlamaWeights(
                native_config(config), views, dtype, isa, lambda _, layers: advance(size // layers)
            )
        cos, sin = rope_tables(config, max_model_len)
        return cls(config, dtype, weights, cos.contiguous(), sin.contiguous())

    def executor(self, cores: Any) -> Any:
        """A _C.LlamaExecutor with its own KV cache on these cores: numbers, or a _C.CoreSet.

        Executors that take turns on the same cores share one CoreSet: the helpers of two would poll against
        each other, and `sd` take twice as long (measured on two cores).
        """
        core_set = cores if isinstance(cores, _C.CoreSet) else _C.CoreSet(list(cores))
        length = self.cos.shape[0]
        with native_errors():
            return _C.LlamaExecutor(
                self.weights, core_set, 1, length, self.cos.data_ptr(), self.sin.data_ptr()
            )


def native_config(config: ModelConfig) -> dict[str, Any]:
    """The part of a configuration that the executor reads."""
    names = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *(
            "num_key_value_heads",
            "head_dim",
            "rms_norm_eps",
            "attention_bias",
            "qk_norm",
            "tie_word_embeddings",
        ),
    )
    return {name: getattr(config, name) for name in names}


def choose_cores(num_threads: int | None) -> list[int]:
    """The first `num_threads` cores that this process may use, or all. Raises ResourceError if there are
    fewer.
    """
    cores = sorted(os.sched_getaffinity(0))
    if num_threads is None:
        return cores
    if num_threads > len(cores):
        raise ResourceError(
            f"num_threads {num_threads} asked for, but this process may use {len(cores)} cores: "
            f"pass num_threads={len(cores)} or less"
        )
    return cores[:num_threads]


def split_cores(cores: Sequence[int]) -> tuple[list[int], list[int]]:
    """(target's cores, draft's core), disjoint. Raises ResourceError with fewer than two."""
    if len(cores) < 2:
        raise ResourceError(
            f"placement 'split' needs 2 cores, one for the draft and the rest for the target; there "
            f"is {len(cores)}: pass placement='shared', or more threads"
        )
    return list(cores[:-1]), [cores[-1]]


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping: MemAvailable, or less where a cgroup allows less. None:
    unknown.
    """
    limits = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
        group = Path("/sys/fs/cgroup")
        limits.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        pass
    return min(limits, default=None)


def weight_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of a model's packed weights; a tied head and embedding are one."""
    return sum(math.prod(shape) for shape in tensor_shapes(config).values()) * ITEM_BYTES[dtype]


def kv_bytes(config: ModelConfig, dtype: str, max_model_len: int) -> int:
    """Bytes of one sequence's keys and values."""
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return per_token * max_model_len * ITEM_BYTES[dtype]


def check_memory(
    models: Sequence[tuple[str, ModelConfig, str]], *, max_model_len: int, num_placements: int
) -> None:
    """Raises ResourceError before anything is allocated if weights and KV caches cannot fit.

    models: (name, configuration, dtype) of each; every placement has its own KV caches and logits.
    """
    available = available_memory()
    weights = {name: weight_bytes(config, dtype) for name, config, dtype in models}
    caches = num_placements * sum(kv_bytes(config, dtype, max_model_len) for _, config, dtype in models)
    logits = num_placements * (3 * MAX_GAMMA + 1) * 4 * max(config.vocab_size for _, config, _ in models)
    needed = sum(weights.values()) + caches + logits
    if available is None or needed <= available:
        return
    parts = [f"{_gib(size)} for the {name}'s weights" for name, size in weights.items()]
    parts.append(f"{_gib(caches)} for {max_model_len} tokens of KV cache")
    remedies = "lower max_model_len"
    if any(dtype == "float32" for _, _, dtype in models):
        remedies += ", pass dtype='bfloat16'"
    if num_placements > 1:
        remedies += ", fix the placement so that only one is built"
    raise ResourceError(
        f"not enough memory: {_gib(needed)} needed ({', '.join(parts)}), {_gib(available)} available: "
        f"{remedies}, or take smaller models"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


class Lanes:
    """The native side of one placement: executors on their cores and the coordinator that drives them."""

    def __init__(self, placement: str, cores: Sequence[int], target: Model, draft: Model | None) -> None:
        self.placement = placement
        self.has_draft = draft is not None
        self.target_cores, self.draft_cores = list(cores), list(cores)
        if placement == "split":
            self.target_cores, self.draft_cores = split_cores(cores)
        self.vocab_size = min(m.config.vocab_size for m in (target, draft) if m is not None)
        self.max_model_len = target.cos.shape[0]
        target_set, target_device = _C.CoreSet(self.target_cores), _C.Device(self.target_cores)
        draft_set, draft_device = target_set, target_device
        if placement == "split":
            draft_set, draft_device = _C.CoreSet(self.draft_cores), _C.Device(self.draft_cores)
        self.coordinator = _C.Coordinator(
            target.executor(target_set),
            target_device,
            draft.executor(draft_set) if draft is not None else None,
            draft_device if draft is not None else None,
            num_slots=1,
            gamma_max=MAX_GAMMA if draft is not None else 0,
            capacity=self.max_model_len,
        )

    def start(self, strategy: str, request: Request, judge: str) -> None:
        """Starts a program for one request. Returns at once."""
        self.coordinator.start(program(strategy, self.placement), [_C.Request(**vars(request))], judge)

    def trace(self) -> list[TraceRow]:
        """What each lane did in the last request, once it has ended."""
        return [TraceRow(*row) for row in self.coordinator.trace()]

    def measure(self) -> StepTimes:
        """Runs a few rounds of each program on a made-up prompt and reads the step times from the trace."""
        target = dict(self._sample("ar", 0, 4).target)
        rounds = min(12, max(3, int(0.05 / target[1])))
        target |= self._sample("ar", 0, rounds).target
        if not self.has_draft:
            return StepTimes(target)
        window: dict[int, float] = {}
        for gamma in MEASURED_GAMMAS:
            sample = self._sample("sd", gamma, rounds)
            target = sample.target | target
            window[gamma] = sample.window
        target = dict(sorted(target.items()))
        if self.placement == "shared":
            return StepTimes(target, window)
        beside_target: dict[int, float] = {}
        beside_window: dict[int, float] = {}
        for gamma in MEASURED_GAMMAS:
            sample = self._sample("pearl", gamma, rounds)
            beside_target |= sample.target
            beside_window[gamma] = sample.window
        # A draft that is never right shows only scores of one token: the others slow down alike.
        slowdown = statistics.median(t / seconds(target, rows) for rows, t in beside_target.items())
        beside_target = {rows: t * slowdown for rows, t in target.items()} | beside_target
        return StepTimes(target, window, beside_target, beside_window)

    def _sample(self, strategy: str, gamma: int, rounds: int) -> "_Sample":
        prompt = [(7 * i + 1) % self.vocab_size for i in range(min(16, self.max_model_len // 4 or 1))]
        limit = self.max_model_len - len(prompt)
        self.start(strategy, Request(prompt, gamma=gamma, max_tokens=limit, ignore_eos=True), "rejection")
        results: list[Any] = []
        while len(results) <= rounds:
            more = self.coordinator.next(POLL_MS, rounds + 1)
            if more is None:
                break
            results += more
        self.coordinator.stop()
        while self.coordinator.next(0) is not None:
            pass
        return _Sample.read(strategy, results, self.trace())


@dataclass(frozen=True)
class _Sample:
    """Median step times of one short run."""

    target: dict[int, float]  # tokens in the forward -> seconds of score and verify
    window: float  # seconds of a window; NaN without a draft

    @classmethod
    def read(cls, strategy: str, results: Sequence[Any], trace: Sequence[TraceRow]) -> "_Sample":
        rows: dict[int, int] = {}  # round -> tokens that its score fed
        for result in results:
            if result.round > 0:
                rows[result.round] = result.num_judged + 1 if strategy == "sd" else result.pending_before + 1
        spent: dict[int, float] = dict.fromkeys(rows, 0.0)
        windows: list[float] = []
        for row in trace:
            duration = (row.end_ns - row.begin_ns) * 1e-9
            if row.round not in rows:
                continue
            if row.op in ("score", "verify"):
                spent[row.round] += duration
            elif row.op == "draft":
                windows.append(duration)
        by_rows: dict[int, list[float]] = {}
        for number, count in rows.items():
            by_rows.setdefault(count, []).append(spent[number])
        # The first round of a run still warms caches up.
        target = {count: statistics.median(times[1:] or times) for count, times in by_rows.items()}
        return cls(target, statistics.median(windows[1:] or windows) if windows else math.nan)


class CpuBackend:
    """What an engine asks of device="cpu": models packed for an instruction set, and lanes on cores."""

    def __init__(self, cores: Sequence[int], isa: str | None) -> None:
        self._cores = cores
        self._isa = isa

    def dtype(self, name: str, dtype: str, config: ModelConfig) -> str:
        """What a model computes in. Raises ConfigError for what the executor does not compute in."""
        return own_dtype(name, dtype, config)

    def pack(
        self,
        config: ModelConfig,
        tensors: Mapping[str, "torch.Tensor"],
        *,
        name: str,
        dtype: str,
        max_model_len: int,
    ) -> Model:
        """A model's weights; the tensors may be dropped afterwards."""
        return Model.pack(config, tensors, name=name, dtype=dtype, isa=self._isa, max_model_len=max_model_len)

    def lanes(self, placement: str, target: Model, draft: Model | None) -> Lanes:
        """The lanes of one placement."""
        return Lanes(placement, self._cores, target, draft)


def backend(device: str, cores: Sequence[int], isa: str | None) -> Any:
    """The back end of a device: `dtype`, `pack` and `lanes`, as CpuBackend has them."""
    if device in ("auto", "cpu"):
        return CpuBackend(cores, isa)
    Environment.interpret_kernels()
    try:
        from pearl_rt.interpret_lane import InterpretBackend
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"device {device!r} needs {error.name}, which is not installed: `pip install 'pearl_rt[gpu]'`, "
            "or pass "
            "device='cpu'"
        ) from None
    return InterpretBackend()
