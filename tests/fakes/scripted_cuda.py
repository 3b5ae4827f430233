"""Scripted lanes on the fake CUDA driver behind the real issuer and coordinator: scripted.Bench, on a GPU."""

from __future__ import annotations

import ctypes
import functools
import gc
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import fake_cuda
import numpy as np
from scripted import CAPACITY, VOCAB, Bench

from pearl_rt import _C, _testing

NAMES = (  # ArrayAddresses of csrc/cuda/memory/array_table.h
    "prompt_len",
    "max_total_len",
    "gamma",
    "temperature",
    "seed",
    "stop_token_ids",
    "token_ids",
    "committed",
    "pending",
    "finish_reason",
    "round",
    "ring",
    "draft_token_ids",
    "num_draft_tokens",
    "draft_logits",
    "num_rows",
    "target_logits",
    "chunk",
    "joining",
    *(OF_LOGPROBS := ("num_logprobs", "logprob_ring")),  # the target's
    "block_table",
    *(PROCESSOR_FLOATS := ("repetition_penalty", "frequency_penalty", "presence_penalty", "top_p", "min_p")),
    "top_k",
    "min_tokens",
    "masked_ids",
    "bias_ids",
    "bias",
    "kept_thresholds",
)
SIZES = ("num_slots", "gamma_max", "capacity", "vocab_size", "draft_vocab_size", "num_stop_ids", "ring_size")
BLOCKS = ("block_size", "num_blocks")
NUM_BIASED = 3
MAX_LOGPROBS = 5
RING_HEADER = 6
JUDGES = ("rejection", "coupled")
PLACEMENTS = ("shared", "devices", "host")
FORMS = ("events", "graph")
TARGET, HALF_RIGHT = {"rule": 1}, {"rule": 1, "divergence": 0.4}


class Config(ctypes.Structure):
    """ScriptedConfig of scripted_device.cpp."""

    _fields_ = (
        ("addresses", ctypes.c_uint64 * len(NAMES)),
        *((name, ctypes.c_int32) for name in (*SIZES, *BLOCKS, "num_biased", "max_logprobs", "is_target")),
        ("rule", ctypes.c_uint64),
        ("divergence", ctypes.c_double),
        ("executor_vocab", ctypes.c_int32),
        ("nan_at", ctypes.c_int64),
    )


@functools.cache
def device_library(sanitize: str = "") -> Any:
    """The kernels, for this process."""
    library = ctypes.CDLL(str(fake_cuda.build_scripted(sanitize)))
    for name in ("scripted_lane_create", "scripted_step_create"):
        getattr(library, name).restype = ctypes.c_void_p
    library.scripted_errors.restype = ctypes.c_size_t
    library.scripted_max_position.restype = ctypes.c_int64
    return library


@dataclass
class ScriptedLane:
    """One lane's executor and captured steps on a fake device."""

    fake: Any
    library: Any
    handle: int
    steps: list[int] = field(default_factory=list)

    def close_gate(self, op: str, nth: int) -> None:
        """Holds the stream in the nth launch of that step from now, until open_gate()."""
        self.library.scripted_gate_close(ctypes.c_void_p(self.handle), op.encode(), nth)

    def wait_for_gate(self, timeout_ms: int = 20_000) -> None:
        held = self.library.scripted_gate_wait(ctypes.c_void_p(self.handle), timeout_ms)
        assert held, "no step came to the gate"

    def open_gate(self) -> None:
        self.library.scripted_gate_open(ctypes.c_void_p(self.handle))

    @property
    def errors(self) -> list[str]:
        size = self.library.scripted_errors(ctypes.c_void_p(self.handle), None, ctypes.c_size_t(0))
        buffer = ctypes.create_string_buffer(size)
        self.library.scripted_errors(ctypes.c_void_p(self.handle), buffer, ctypes.c_size_t(size))
        return buffer.value.decode().splitlines()

    @property
    def max_position(self) -> int:
        return int(self.library.scripted_max_position(ctypes.c_void_p(self.handle)))

    def add_step(self, lane: Any, device: int, op: str, **key: Any) -> None:
        """Captures a step: a graph of one kernel."""
        step = self.library.scripted_step_create(
            ctypes.c_void_p(self.handle),
            op.encode(),
            key.get("gamma", 0),
            key.get("judge") == "coupled",
            key.get("keep_logits", False),
            key.get("slot", 0),
            key.get("processed", False),
            key.get("logprobs", False),
        )
        self.steps.append(step)
        run = ctypes.cast(self.library.scripted_step_run, ctypes.c_void_p).value
        graph = self.fake.native_graph(run, step, device)
        lane.add_step(op, **key, graph=graph.graph, exec=graph.exec)

    def __del__(self) -> None:
        for step in self.steps:
            self.library.scripted_step_destroy(ctypes.c_void_p(step))
        self.library.scripted_lane_destroy(ctypes.c_void_p(self.handle))


@dataclass
class CudaBench(Bench):
    """A coordinator whose target is on a fake GPU. placement: "shared" (one GPU), "devices" (two), "host"
    (the draft on a CPU lane), or "lookup" (a lookup there, with a pool).
    """

    issuer: Any = None
    fake: Any = None
    arrays: dict[str, np.ndarray] = field(default_factory=dict)  # of the target's memory, to look into
    others: list[Any] = field(default_factory=list)  # steps of lanes that a test adds

    @classmethod
    def build(  # type: ignore[override]
        cls,
        placement: str = "shared",
        *,
        target: dict[str, Any] | None = None,
        draft: dict[str, Any] | None = None,
        num_slots: int = 1,
        gamma_max: int = 8,
        gammas: Any = None,
        judges: tuple[str, ...] = JUDGES,
        ring_capacity: int = 1024,
        ring_size: int = 8,
        num_stop_ids: int = 4,
        prefill_chunk: int = 4,
        form: str = "events",
        rounds_ahead: int = 2,
        timed: bool = False,
        spin_us: int = 20,
        issuer: Any = None,
        host_logits: bool = True,
        capacity: int = CAPACITY,
        num_blocks: int | None = None,
        block_size: int = 16,
        coordinator: dict[str, int] | None = None,
    ) -> CudaBench:
        """After fake_cuda.load().reset(...). gammas: windows that steps are captured for; all, by default.
        num_blocks: of each lane's KV cache; None: every slot has its own. coordinator: its other options.
        """
        fake = fake_cuda.load()
        library = device_library(fake.sanitize)
        if issuer is None:
            issuer = _C.CudaIssuer(_C.CudaDriver(str(fake.path)), spin_us=spin_us)
            issuer.form, issuer.rounds_ahead, issuer.timed = form, rounds_ahead, timed
        draft_script = {"vocab_size": VOCAB, **(draft or {})}
        draft_vocab = min(VOCAB, draft_script["vocab_size"]) if placement != "lookup" else 0
        sizes = {
            "num_slots": num_slots,
            "gamma_max": gamma_max,
            "capacity": capacity,
            "vocab_size": VOCAB,
            "draft_vocab_size": draft_vocab,
            "num_stop_ids": num_stop_ids,
            "ring_size": ring_size,
        }
        gammas = range(gamma_max + 1) if gammas is None else gammas
        own_blocks = num_slots * -(-capacity // block_size) if num_blocks is None else num_blocks
        blocks = {"block_size": block_size, "num_blocks": own_blocks}
        make = Maker(fake, library, issuer, sizes, blocks, prefill_chunk, host_logits)
        target_state = make.state(device=0)
        script = {"vocab_size": VOCAB, **(target or {})}
        target_lane, target_steps = make.lane("target", 0, target_state, script)
        for slot in range(num_slots):
            for gamma in gammas:
                target_steps.add_step(target_lane, 0, "prefill logits", gamma=gamma, slot=slot)
        for gamma in gammas:
            for op in ("score", "score window"):
                target_steps.add_step(target_lane, 0, op, gamma=gamma)
            for judge, processed, logprobs in itertools.product(judges, (False, True), (False, True)):
                key = {"gamma": gamma, "judge": judge, "processed": processed, "logprobs": logprobs}
                for op in ("verify", "join") if num_slots > 1 else ("verify",):
                    target_steps.add_step(target_lane, 0, op, **key)
        if placement == "host":
            shape = {"max_model_len": capacity, "num_slots": num_slots}
            draft_steps = _testing.ScriptedExecutor(**shape, **blocks, **draft_script)
            draft_lane = _C.CpuLane("draft", draft_steps, _C.Device([], spin_us))
        elif placement == "lookup":
            draft_steps = _C.LookupDrafter(pool_tokens=512)
            draft_lane = _C.CpuLane("draft", draft_steps, _C.Device([], spin_us))
        else:
            device = 1 if placement == "devices" else 0
            state = make.state(device) if placement == "devices" else target_state
            draft_lane, draft_steps = make.lane("draft", device, state, draft_script, priority=-1)
            for gamma in gammas:
                for judge, processed in itertools.product(judges, (False, True)):
                    for keep in (False, True) if judge == "rejection" else (False,):
                        key = {"gamma": gamma, "judge": judge, "keep_logits": keep, "processed": processed}
                        draft_steps.add_step(draft_lane, device, "draft", **key)
        options = {"num_blocks": own_blocks, **(coordinator or {})}
        made = _C.Coordinator(
            [target_lane, draft_lane],
            num_slots=num_slots,
            gamma_max=gamma_max,
            capacity=capacity,
            vocab_size=VOCAB,
            draft_vocab_size=draft_script["vocab_size"] if placement in ("host", "lookup") else draft_vocab,
            ring_capacity=ring_capacity,
            **options,
        )
        program_placement = "shared" if placement == "shared" else "devices"
        arrays = {"block_table": target_state["block_table"]}
        return cls(made, target_steps, draft_steps, program_placement, issuer, fake, arrays)

    def lane(self) -> Any:
        """Another target's lane on the same issuer, with prefill alone."""
        sizes = {
            "num_slots": 1,
            "gamma_max": 3,
            "capacity": CAPACITY,
            "vocab_size": VOCAB,
            "draft_vocab_size": VOCAB,
            "num_stop_ids": 4,
            "ring_size": 8,
        }
        blocks = {"block_size": 16, "num_blocks": CAPACITY // 16 + 1}
        make = Maker(self.fake, self.target.library, self.issuer, sizes, blocks, 4, False)
        lane, steps = make.lane("target", 0, make.state(0), {"vocab_size": VOCAB})
        self.others.append(steps)
        return lane

    def errors(self) -> list[str]:
        """What went wrong in kernels."""
        lanes = (self.target, self.draft)
        return [error for lane in lanes if isinstance(lane, ScriptedLane) for error in lane.errors]


@dataclass
class Maker:
    """Arrays and lanes of one coordinator."""

    fake: Any
    library: Any
    issuer: Any
    sizes: dict[str, int]
    blocks: dict[str, int]
    prefill_chunk: int
    host_logits: bool

    def state(self, device: int) -> dict[str, np.ndarray]:
        """The arrays of pearl_rt/state.py in a device's memory, poisoned."""
        s = self.sizes
        slots, gamma, ring = s["num_slots"], s["gamma_max"], s["ring_size"]
        shapes: dict[str, tuple[int, ...]] = {
            "stop_token_ids": (slots, s["num_stop_ids"]),
            "token_ids": (slots, s["capacity"]),
            "block_table": (slots, -(-s["capacity"] // self.blocks["block_size"])),
            "ring": (ring, slots, RING_HEADER + gamma + 1),
            "draft_token_ids": (slots, max(gamma, 1)),
            "draft_logits": (slots, 2 * max(gamma, 1), s["draft_vocab_size"]),
            "target_logits": (slots, gamma + 1, s["vocab_size"]),
            "masked_ids": (slots, 2 * s["num_stop_ids"]),
            "bias_ids": (slots, NUM_BIASED),
            "bias": (slots, NUM_BIASED),
            "kept_thresholds": (slots * 2 * max(gamma, 1),),
            "logprob_ring": (ring, slots, 1 + (gamma + 1) * (1 + MAX_LOGPROBS) * 3),
        }
        floats = (
            "temperature",
            "draft_logits",
            "target_logits",
            *PROCESSOR_FLOATS,
            "bias",
            "kept_thresholds",
        )
        dtypes = dict.fromkeys(floats, np.float32)
        dtypes["seed"] = np.int64  # type: ignore[assignment]
        return {
            name: self.fake.array(
                shapes.get(name, (slots,)),
                dtypes.get(name, np.int32),
                -1 if name in ("ring", "logprob_ring") else device,
            )
            for name in NAMES
            if name != "chunk"
        }

    def lane(
        self, name: str, device: int, state: dict[str, np.ndarray], script: dict[str, Any], priority: int = 0
    ) -> tuple[Any, ScriptedLane]:
        """A CUDA lane over these arrays, and its steps, of which prefill is captured."""
        s = self.sizes
        chunk = self.fake.array((s["num_slots"], 2), np.int32, device)
        addresses = {key: array.ctypes.data for key, array in {**state, "chunk": chunk}.items()}
        is_target = name == "target"
        places = (ctypes.c_uint64 * len(NAMES))(*(addresses[key] for key in NAMES))
        config = Config(addresses=places, **s, **self.blocks)
        config.is_target, config.num_biased, config.max_logprobs = is_target, NUM_BIASED, MAX_LOGPROBS
        config.rule, config.divergence = script.get("rule", 0), script.get("divergence", 0.0)
        config.executor_vocab, config.nan_at = script["vocab_size"], script.get("nan_at", -1)
        wanted = {
            key: s[key] for key in ("num_slots", "gamma_max", "capacity", "draft_vocab_size", "num_stop_ids")
        }
        wanted |= {"prefill_chunk": self.prefill_chunk, "num_biased": NUM_BIASED}
        wanted |= {"max_logprobs": MAX_LOGPROBS if is_target else -1}
        wanted["block_size"] = self.blocks["block_size"]
        num_bytes = _C.DeviceArrays.staging_bytes(**wanted, host_logits=self.host_logits and is_target)
        known = {key: at for key, at in addresses.items() if is_target or key not in OF_LOGPROBS}
        arrays = _C.DeviceArrays(
            known,
            **s,
            max_logprobs=wanted["max_logprobs"],
            **self.blocks,
            prefill_chunk=self.prefill_chunk,
            num_biased=NUM_BIASED,
            staging=self.fake.array((num_bytes,), np.uint8, -1),
        )
        steps = ScriptedLane(self.fake, self.library, self.library.scripted_lane_create(ctypes.byref(config)))
        stream = _C.CudaStream(_C.CudaDriver(str(self.fake.path)), device, priority)
        lane = _C.CudaLane(name, self.issuer, stream, arrays)
        steps.add_step(lane, device, "prefill chunk")
        return lane, steps


def clean(bench: CudaBench) -> None:
    """Nothing went wrong in kernels, and no call was illegal."""
    found = bench.errors(), bench.fake.violations()
    assert found == ([], []), found


def clean_world() -> Iterator[Any]:
    """Two devices without delays; at the end nothing may have been illegal, and nothing be left."""
    fake = fake_cuda.load()
    fake.reset()
    yield fake
    gc.collect()
    left = fake.violations(), fake.live_handles()
    assert left == ([], []), left
    fake.reset()


def settled(count: Callable[[], int], least: int = 0, quiet_s: float = 0.05) -> int:
    """The value that a counter has come to rest at, once it has come to `least`."""
    deadline = time.monotonic() + 20
    while count() < least and time.monotonic() < deadline:
        time.sleep(0.002)
    value, since = count(), time.monotonic()
    while time.monotonic() - since < quiet_s:
        time.sleep(0.002)
        if (now := count()) != value:
            value, since = now, time.monotonic()
    return value
