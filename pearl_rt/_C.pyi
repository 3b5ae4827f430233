# Written by `make stubs`.
"""
Native half of pearl_rt: the CPU executor, lanes and the coordinator. Links neither torch nor CUDA.
"""

from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import typing

__all__: list[str] = [
    "ChainDrafter",
    "Coordinator",
    "CoreSet",
    "CpuLane",
    "CudaDeviceInfo",
    "CudaDriver",
    "CudaIssuer",
    "CudaLane",
    "CudaStream",
    "Device",
    "DeviceArrays",
    "DiffusionDrafter",
    "Drafter",
    "EagleDrafter",
    "EngineLock",
    "Executor",
    "Lane",
    "LlamaExecutor",
    "LlamaWeights",
    "LookupDrafter",
    "ModelDrafter",
    "Request",
    "RoundResult",
    "available_bytes",
    "available_isas",
    "detect_isa",
    "measure_bandwidth",
    "never_destroy",
]

class EngineLock:
    """
    The lock of an engine: see pearl_rt.scheduling.engine_lock.
    """
    def __enter__(self) -> None:
        """
        One caller takes it; while another has it, _taken() raises.
        """
    def __exit__(self, *args: object) -> None: ...
    def __init__(self) -> None: ...
    def end_for_queue(self) -> None:
        """
        Nothing if the queue has it not.
        """
    def take_for_queue(self) -> None:
        """
        The queue takes it; nothing happens if it has it.
        """
    @property
    def is_home(self) -> bool:
        """
        Whether this is the process that made it, and no fork.
        """

class Executor:
    """
    A model and its KV cache, behind one call.
    """
    def forward(
        self,
        slot: int,
        token_ids: collections.abc.Sequence[int],
        start: int,
        num_logits: int,
        num_open: int = 0,
    ) -> numpy.typing.NDArray[numpy.float32]:
        """
        -> [num_logits, logits_size] fp32. num_open: of the last tokens, how many see each other.
        """
    def forward_head(
        self,
        slot: int,
        token_ids: collections.abc.Sequence[int],
        start: int,
        features: typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None = None,
    ) -> numpy.typing.NDArray[numpy.float32]:
        """
        -> [logits_size] fp32, behind the last token. features: [num_tokens, tap_size] the taps that each
        is fed with; None: one token, fed with what the head gave at the last token of the slot.
        """
    def forward_taps(
        self, slot: int, token_ids: collections.abc.Sequence[int], start: int
    ) -> numpy.typing.NDArray[numpy.float32]:
        """
        -> [num_tokens, tap_size] fp32.
        """
    @property
    def block_size(self) -> int: ...
    @property
    def logits_size(self) -> int: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def num_slots(self) -> int: ...
    @property
    def tap_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...

class Device:
    """
    A set of cores and its one persistent thread, which keeps to them (none: it runs where it may).
    """
    def __init__(self, cpus: collections.abc.Sequence[int] = [], spin_us: int = 2000) -> None: ...
    @property
    def cpus(self) -> list[int]: ...

class Lane:
    """
    A queue of ops on some device.
    """
    @property
    def name(self) -> str: ...

class Drafter:
    """
    What fills the windows of a round.
    """

class LookupDrafter(Drafter):
    """
    Drafts what followed the last tokens when they stood before.
    """
    def __init__(self, *, pool_tokens: int = 0) -> None:
        """
        pool_tokens: of earlier answers that are kept; 0: none.
        """
    def set_costs(self, costs: collections.abc.Sequence[int]) -> None:
        """
        Between runs. costs: [n - 1] the time of a score over n rows in all, 1 to 1e9 in any unit; one over
        more rows takes as long as the last. Requests that adapt then have the windows whose tokens are the
        most for their time, none too. Empty: windows are as long as they are likely to stand.
        """
    def set_fills(self, fills: bool) -> None:
        """
        For measurements, between runs: whether every window is filled, with whatever token.
        """
    @property
    def bytes(self) -> int:
        """
        Of all indices; between runs.
        """

class ModelDrafter(Drafter):
    """
    Drafts by a model, with a KV cache of its own.
    """
    def __init__(
        self,
        executor: Executor,
        *,
        mask_token: int | None = None,
        target_ids: collections.abc.Sequence[int] = [],
        draft_ids: collections.abc.Sequence[int] = [],
    ) -> None:
        """
        mask_token: of a model that fills a window in one pass; None: token by token. target_ids: the
        target's id of each row of the model's head, -1 for one that the target has not got. draft_ids:
        what the model is fed for each id of the target. Both: none where ids are the same.
        """
    def set_branch_costs(
        self, scores: collections.abc.Sequence[int], windows: collections.abc.Sequence[int]
    ) -> None:
        """
        Between runs, for several candidates: of a request that adapts as many windows lie beside one
        another as have the most tokens for their time. scores, windows: see ChainDrafter.set_costs.
        """
    def set_branches(self, branches: bool) -> None:
        """
        For measurements, between runs: whether a sequence may have more than one window.
        """

class ChainDrafter(Drafter):
    """
    Drafts by lookup where that is worth more than a window of the model, else by it.
    """
    def __init__(
        self, model: ModelDrafter, *, pool_tokens: int = 0, cost: float = 0.0, for_all: bool = True
    ) -> None:
        """
        pool_tokens: see LookupDrafter. cost: of a pass of the model, in steps of the target. for_all:
        whether the lookup is asked for each request, and not only for those whose windows are weighed.
        """
    def set_costs(
        self, scores: collections.abc.Sequence[int], windows: collections.abc.Sequence[int]
    ) -> None:
        """
        Between runs: a request that adapts then has what is worth most for its time, a window of the
        lookup, one of the model, or none. scores: see LookupDrafter.set_costs. windows: [n - 1] the time of
        a window of n drafts of the model, in the same unit; a longer one takes as long as the last. Both
        empty: by the weights that are read.
        """
    def set_looks_up(self, looks_up: bool) -> None:
        """
        For measurements, between runs: whether the lookup is asked.
        """
    @property
    def bytes(self) -> int:
        """
        Of the lookup's indices; between runs.
        """

class DiffusionDrafter(ModelDrafter):
    """
    Drafts by a model that fills a window of masks in a few passes.
    """
    def __init__(self, executor: Executor, *, mask_token: int, num_passes: int) -> None:
        """
        num_passes: of a window, at most.
        """

class EagleDrafter(ModelDrafter):
    """
    Drafts by a head that is fed the taps of the target (EAGLE-3).
    """
    def __init__(self, head: Executor, *, target_ids: collections.abc.Sequence[int] = []) -> None:
        """
        target_ids: the target's id of each of the head's; none: they are the same.
        """

class CpuLane(Lane):
    """
    A lane on CPU cores.
    """
    def __init__(
        self, name: str, executor: Executor | Drafter, device: Device, taps: EagleDrafter | None = None
    ) -> None:
        """
        executor: a model, or for the draft's lane a Drafter that is none. Lanes that share a device
        take turns on its thread. taps: of a target, the drafter of its draft's lane that is fed them.
        """

class RoundResult:
    """
    What one round committed for one sequence.
    """
    def prompt_logprobs(self, prompt_len: int) -> list[list[tuple[int, float, int]]] | None:
        """
        As logprobs, of each token of the prompt but the first. Round 0 has them.
        """
    @property
    def accept_len(self) -> int: ...
    @property
    def certain(self) -> list[int]: ...
    @property
    def error(self) -> str: ...
    @property
    def finish_reason(self) -> str: ...
    @property
    def forced(self) -> list[int]: ...
    @property
    def is_refused(self) -> bool: ...
    @property
    def logprobs(self) -> list[list[tuple[int, float, int]]] | None:
        """
        For each token its own and the k likeliest, as (id, logprob, rank); None unless asked for.
        """
    @property
    def num_cached_tokens(self) -> int: ...
    @property
    def num_judged(self) -> int: ...
    @property
    def pending_before(self) -> int: ...
    @property
    def request_id(self) -> int: ...
    @property
    def round(self) -> int: ...
    @property
    def slot(self) -> int: ...
    @property
    def t_ns(self) -> int: ...
    @property
    def token_ids(self) -> list[int]: ...

class Request:
    """
    One sequence to generate.
    """
    def __init__(
        self,
        prompt_ids: collections.abc.Sequence[int],
        *,
        gamma: int = 0,
        temperature: float = 0.0,
        seed: int = 0,
        max_tokens: int = 128,
        eos_ids: collections.abc.Sequence[int] = [],
        stop_ids: collections.abc.Sequence[int] = [],
        ignore_eos: bool = False,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: collections.abc.Sequence[tuple[int, float]] = [],
        min_tokens: int = 0,
        num_logprobs: int = -1,
        num_prompt_logprobs: int = -1,
        adapts: bool = False,
        shares: bool = True,
        grammar: object = None,
        draft_stop: str = "none",
        draft_stop_at: float = 0.0,
    ) -> None:
        """
        grammar: of the answer, as pearl_rt.grammar.matcher.Form; lanes call its matcher. draft_stop: auto, thompson, or confidence, adaedl or marginal with its number: pearl_rt/reference/stops.py.
        """

class Coordinator:
    """
    Runs a program over a target's lane and a draft's, natively.
    """
    @staticmethod
    def branch_blocks(*, num_slots: int, gamma_max: int, block_size: int, candidates: int) -> int:
        """
        KV blocks of the windows beside the first, behind those of the sequences.
        """
    def __init__(
        self,
        lanes: collections.abc.Sequence[Lane],
        *,
        num_slots: int = 1,
        gamma_max: int = 8,
        capacity: int,
        vocab_size: int,
        draft_vocab_size: int | None = None,
        ring_capacity: int = 1024,
        num_blocks: int | None = None,
        block_size: int | None = None,
        draft_capacity: int | None = None,
        prefix_caching: bool = False,
        candidates: int = 1,
    ) -> None:
        """
        lanes: the target's, and the draft's if there is one; each is one coordinator's at a time.
        num_blocks: KV blocks of all sequences together; None: every slot has its own. block_size: the
        lanes' own, or None. draft_capacity: tokens of a sequence that the draft can be fed; None: all.
        prefix_caching: prompts begin in blocks that hold their tokens, where all lanes can: finds_prefixes. candidates: windows of a sequence, which begin with different tokens, 1 to 8; for
        more than 1 executors have num_slots times as many slots, and branch_blocks() more blocks.
        """
    def cancel(self, id: int) -> bool:
        """
        Ends a request within a round -> True if it had no slot yet, and nothing follows. Any thread.
        """
    def forget_prefixes(self) -> None:
        """
        Others have written to the KV caches: no prompt begins in what was there before. RequestError
        while a run goes on.
        """
    def has_place(self, request: Request) -> bool:
        """
        Whether a request would get its KV blocks now, behind those that wait, and the run that goes
        on, if one does, was made for it. Any thread.
        """
    def next(self, timeout_ms: int = -1, min_results: int = 1) -> list[RoundResult] | None:
        """
        Waits for min_results (or the end, or the time) -> what there is; None once all was handed out.
        Raises the run's error once, after the results before it.
        """
    def set_windows(self, windows: collections.abc.Sequence[int]) -> None:
        """
        Other windows from the next round on. Any thread.
        """
    def start(
        self,
        program: object,
        requests: collections.abc.Sequence[Request],
        judge: str = "rejection",
        windows: collections.abc.Sequence[int] = [],
        *,
        is_ordered: bool = True,
    ) -> list[int]:
        """
        Request i runs in slot i. Returns at once, with the ids of the requests; RequestError if one
        cannot be run, or another run goes on. windows: [num_slots + 1] the longest window while so
        many slots are busy; none: each request's own gamma. Lanes on host cores take them.
        is_ordered: False for tests of programs whose lanes race; what these do is not defined.
        """
    def stop(self) -> None:
        """
        Ends the run within a round. What was verified before can still be had from next().
        """
    def submit(self, request: Request) -> int | None:
        """
        One more request for the run that goes on -> its id, or None if there is no run. Any thread.
        """
    def take_waiting(self) -> list[int]:
        """
        Ids of requests that never got a slot, once the run has ended.
        """
    def trace(self) -> list[tuple[str, str, int, int, int]]:
        """
        Rows (lane, op, round, begin_ns, end_ns) of the last request.
        """
    @property
    def block_size(self) -> int: ...
    @property
    def finds_prefixes(self) -> bool: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def num_free_blocks(self) -> int:
        """
        KV blocks that no slot holds; all of them while no run goes on. Any thread.
        """
    @property
    def running(self) -> bool: ...

class CoreSet:
    def __init__(self, cpus: collections.abc.Sequence[int], is_pinned: bool = False) -> None:
        """
        One thread for each CPU, the caller's among them. is_pinned: they keep to these CPUs.
        """
    def __len__(self) -> int: ...
    @property
    def cpus(self) -> list[int]: ...

class LlamaWeights:
    def __init__(
        self,
        config: dict[str, object],
        tensors: collections.abc.Mapping[
            str,
            tuple[object, str, collections.abc.Sequence[int]]
            | tuple[int, str, int, str, collections.abc.Sequence[int]]
            | tuple[object, object, object, int, int, collections.abc.Sequence[int]]
            | tuple[int, str, int, str, collections.abc.Sequence[int], str, int, bool]
            | tuple[
                collections.abc.Callable[[], object],
                collections.abc.Sequence[int],
                tuple[int, int, bool] | None,
            ],
        ],
        dtype: str,
        isa: str | None = None,
        progress: collections.abc.Callable[[int, int], None] | None = None,
        bits: int = 0,
    ) -> None:
        """
        tensors: name -> (memory, dtype, shape), or (descriptor, path, offset, dtype, shape) of an open
        file, or (codes, scales, minimums or None, bits, group, shape) of Groups; memory: its bytes,
        row-major, with the buffer protocol. Or (descriptor, path, offset, type, shape, name, head_rows,
        keeps_codes) of a GGUF file's blocks, or (function, shape, (bits, group, has_minimums) or None):
        the function gives the tensor in memory when its turn comes.
        bits: 8 or 4, to which wider matrices are rounded; 0: none.
        """
    def head(
        self,
        config: dict[str, object],
        tensors: collections.abc.Mapping[
            str,
            tuple[object, str, collections.abc.Sequence[int]]
            | tuple[int, str, int, str, collections.abc.Sequence[int]]
            | tuple[object, object, object, int, int, collections.abc.Sequence[int]]
            | tuple[int, str, int, str, collections.abc.Sequence[int], str, int, bool]
            | tuple[
                collections.abc.Callable[[], object],
                collections.abc.Sequence[int],
                tuple[int, int, bool] | None,
            ],
        ],
        *,
        bits: int = 0,
    ) -> LlamaWeights:
        """
        A head for this model (EAGLE-3): one layer that is fed a token and tap_size numbers of the row
        before it. config: a model's, and tap_size, num_tap_norms, logits_size, norm_before_residual,
        norm_output and attention_window, positions that a row attends to (0: all); the embedding is this model's where tensors have none.
        """
    def view(
        self,
        layers: collections.abc.Sequence[int],
        *,
        num_own: int = 0,
        intermediate_size: int | None = None,
        tensors: collections.abc.Mapping[
            str,
            tuple[object, str, collections.abc.Sequence[int]]
            | tuple[int, str, int, str, collections.abc.Sequence[int]]
            | tuple[object, object, object, int, int, collections.abc.Sequence[int]]
            | tuple[int, str, int, str, collections.abc.Sequence[int], str, int, bool]
            | tuple[
                collections.abc.Callable[[], object],
                collections.abc.Sequence[int],
                tuple[int, int, bool] | None,
            ],
        ] = {},
        bits: int = 0,
    ) -> LlamaWeights:
        """
        A model of these layers of this one, not copied, then num_own layers of `tensors`, by the numbers
        behind them, of an intermediate size of their own, with a final norm.
        """
    @property
    def isa(self) -> str: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...

class LlamaExecutor(Executor):
    def __init__(
        self,
        weights: LlamaWeights,
        core_set: CoreSet,
        num_slots: int,
        max_model_len: int,
        cos: typing.Annotated[numpy.typing.ArrayLike, numpy.float32],
        sin: typing.Annotated[numpy.typing.ArrayLike, numpy.float32],
        num_blocks: int | None = None,
        block_size: int | None = None,
        tap_layers: collections.abc.Sequence[int] = [],
    ) -> None:
        """
        cos, sin: [max_model_len, head_dim / 2] fp32, copied. num_blocks: of the KV cache; None:
        every slot has its own. block_size: positions of each; None: up to 256.
        tap_layers: whose inputs are the taps of a token, ascending.
        """
    def forward_batch(
        self,
        segments: collections.abc.Sequence[tuple[int, collections.abc.Sequence[int], int, int]],
        block_tables: collections.abc.Sequence[collections.abc.Sequence[int]] | None = None,
    ) -> list[numpy.typing.NDArray[numpy.float32]]:
        """
        [(slot, token_ids, start, num_logits)] -> [logits [num_logits, logits_size]]
        block_tables: the KV blocks of each segment in order; None: of its slot.
        """
    def time_linears(self, rows: int, repeats: int) -> float:
        """
        Seconds of the linear layers of one step, best of repeats
        """
    @property
    def cache_bytes(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...

class CudaDeviceInfo:
    """
    One GPU.
    """
    @property
    def compute_capability(self) -> tuple[int, int]:
        """
        (major, minor)
        """
    @property
    def name(self) -> str: ...

class CudaDriver:
    """
    libcuda, opened. ResourceError says what is missing: the library, a newer one, or devices.
    """
    @staticmethod
    def of_host() -> CudaDriver:
        """
        For lanes over memory of the host, whose steps are functions.
        """
    def __init__(self, library: str = "libcuda.so.1") -> None: ...
    def device(self, ordinal: int) -> CudaDeviceInfo: ...
    @property
    def num_devices(self) -> int: ...
    @property
    def version(self) -> int:
        """
        13000 for CUDA 13.0
        """

class CudaStream:
    """
    A stream of a GPU, made by the driver, and destroyed with its last owner.
    """
    def __init__(self, driver: CudaDriver, ordinal: int, priority: int = 0) -> None:
        """
        It waits for no other stream. priority: of its kernels; the lower goes first.
        """
    @property
    def handle(self) -> int:
        """
        CUstream, for as long as this lives.
        """

class CudaIssuer:
    """
    The thread that launches work ahead for the CUDA lanes of a coordinator.
    """
    def __init__(self, driver: CudaDriver, spin_us: int = 50) -> None: ...
    @property
    def drafts_at_once(self) -> bool:
        """
        Whether one pass of the draft has all rows of a window: its cache then has rows of mask tokens at
        the end of the text, which others must not find.
        """
    @drafts_at_once.setter
    def drafts_at_once(self, arg1: bool) -> None: ...
    @property
    def form(self) -> str:
        """
        'events': a launch for each op; 'graph': one for each round, where none of it is on the host.
        """
    @form.setter
    def form(self, arg1: str) -> None: ...
    @property
    def host_ns_per_round(self) -> float:
        """
        What the last run cost this thread for each round, its prompt included; not idle looks.
        """
    @property
    def rounds_ahead(self) -> int:
        """
        Rounds queued past the last verdict read: 1 to half of the verdict ring.
        """
    @rounds_ahead.setter
    def rounds_ahead(self, arg1: int) -> None: ...
    @property
    def timed(self) -> bool:
        """
        Whether trace() has rows: ops are then timed on the device.
        """
    @timed.setter
    def timed(self, arg1: bool) -> None: ...

class DeviceArrays:
    """
    The arrays of pearl_rt/state.py and a lane's `chunk` [B, 2], by address.
    """
    @staticmethod
    def staging_bytes(
        *,
        num_slots: int,
        gamma_max: int,
        capacity: int,
        draft_vocab_size: int,
        num_stop_ids: int,
        prefill_chunk: int,
        num_biased: int = 0,
        max_logprobs: int = -1,
        block_size: int,
        host_logits: bool = False,
    ) -> int:
        """
        Bytes of staging. host_logits: beside a draft on the CPU that samples, judged by 'rejection'.
        """
    def __init__(
        self,
        addresses: collections.abc.Mapping[str, int],
        *,
        num_slots: int,
        gamma_max: int,
        capacity: int,
        vocab_size: int,
        draft_vocab_size: int,
        num_stop_ids: int,
        ring_size: int,
        prefill_chunk: int,
        num_biased: int = 0,
        max_logprobs: int = -1,
        block_size: int,
        num_blocks: int,
        staging: object,
        owner: object = None,
    ) -> None:
        """
        addresses: name -> data_ptr(); ring in pinned host memory; with num_biased, the ids of logit_bias that
        there is room for, those of device/logits_processors.py too; with max_logprobs, the likeliest tokens reported with each,
        those of device/logprob_ring.py. block_size, num_blocks: of this lane's KV cache. staging: pinned host memory of
        this lane alone, with the buffer protocol.
        owner: kept alive with these, the tensors for example.
        """

class CudaLane(Lane):
    """
    A lane on a GPU: a stream and its captured steps.
    """
    def __init__(
        self,
        name: str,
        issuer: CudaIssuer,
        stream: CudaStream,
        arrays: DeviceArrays,
        *,
        reads_target: bool = False,
    ) -> None:
        """
        stream: for this lane alone, on whose device it runs. reads_target: its passes read what the
        target's left of the same tokens, and come behind them.
        """
    def add_step(
        self,
        op: str,
        *,
        gamma: int = -1,
        judge: str = "",
        keep_logits: bool | None = None,
        slot: int = -1,
        processed: bool = False,
        logprobs: bool = False,
        graph: int = 0,
        exec: int = 0,
        owner: object = None,
        function: object = None,
    ) -> None:
        """
        A step: prefill chunk; prefill logits (gamma, slot); score, score window (gamma); first,
        verify (gamma, judge, processed, logprobs); draft (gamma, judge, keep_logits, processed). owner: kept alive with it, the graph.
        function: in place of a graph, called with no arguments in the issuer's thread to launch the step on the
        lane's stream. What it raises ends the run, and next() raises it.
        """

def available_bytes(meminfo: str = "/proc/meminfo", group: str = "/sys/fs/cgroup") -> int | None:
    """
    Memory that can still be had without swapping; None: unknown. Tests bring files of their own.
    """

def available_isas() -> list[str]:
    """
    Instruction sets that run here, fastest first
    """

def detect_isa() -> str: ...
def measure_bandwidth(core_set: CoreSet, bytes: int, seconds: float) -> float:
    """
    Bytes per second that the cores read from a buffer of that size
    """

def never_destroy(object: object) -> None:
    """
    Keeps an object until the process is gone, the interpreter's own end included.
    """
