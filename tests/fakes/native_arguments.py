"""Arguments for random calls (native_calls.py): right ones, odd ones, and values of another type.

MAKERS has an entry for each name of an argument. Handles and addresses of a device are a fake driver's, or 0:
others cannot be told from right ones.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import fake_cuda
import numpy as np
from native_tensors import OF_HEADS, tensors
from scripted import AnyToken, Bench
from scripted_cuda import NAMES, CudaBench

from pearl_rt import _C, _testing
from pearl_rt.scheduling.engine_lock import EngineLock
from pearl_rt.strategy.program import LaneProgram, Op, Program, program

POOL = 4  # objects of each class
VOCAB, LENGTH, SLOTS = 12, 64, 2
CONFIG = {
    "vocab_size": VOCAB,
    **dict.fromkeys(("hidden_size", "intermediate_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_key_value_heads"), 1),
    "num_attention_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    **dict.fromkeys(("attention_bias", "qk_norm"), False),
    "tie_word_embeddings": True,
}
SIZES = {"num_slots": SLOTS, "gamma_max": 3, "capacity": LENGTH, "vocab_size": VOCAB}
BUFFERS = {"draft_vocab_size": VOCAB, "num_stop_ids": 4, "ring_size": 8, "prefill_chunk": 4}
BLOCKS = {"block_size": 16, "num_blocks": 8}
SCRIPT = {"vocab_size": VOCAB, "max_model_len": LENGTH, "num_slots": SLOTS, **BLOCKS}

NUMBERS = (-1, 0, 1, 2, 3, 15, 16, 17, 2**31 - 1, 2**31, -(2**31), 2**32, 2**63 - 1, 2**63, -(2**63), 2**64)
ODD_IDS = (-1, -(2**28), -(2**31), 2**31 - 1, 2**24, VOCAB, 300)
FLOATS = (0.0, -0.0, 0.5, 1.0, 2.0, -1.0, 1e-45, 1e38, 1e300, float("nan"), float("inf"), float("-inf"))


class Stubborn:
    """A number that cannot be had."""

    def __index__(self) -> int:
        raise ValueError("no index")

    def __float__(self) -> float:
        raise ValueError("no float")


def wrong_values() -> list[Any]:
    """Of every kind, whatever was asked for."""
    endless: list[Any] = []
    endless.append(endless)
    row = np.arange(24, dtype=np.float32)
    odd = np.frombuffer(bytes(4 * 9 + 1), np.uint8)[1:].view(np.float32)  # at an odd address
    arrays = [row, row[::2], row[::-1], row.reshape(4, 6), row.reshape(4, 6).T, row[:0], row[0], odd]
    arrays += [row.astype(dtype) for dtype in (np.float64, np.int32, np.int64, np.uint8, ">f4", "S3", object)]
    arrays += [np.zeros((0, 3), np.float32), np.zeros((3, 0), np.float32), np.full(5, np.nan, np.float32)]
    arrays += [np.full(4, -np.inf, np.float32), np.array([2**31 - 1, -(2**31), -1], np.int32)]
    texts = ["", "x", "\0", "\ud800", "y" * 10_000, b"bytes", bytearray(3), memoryview(bytes(8))[::2]]
    lists = [
        [],
        [1],
        [1, 2, 3],
        [-1],
        [2**31 - 1],
        [2**40],
        [None],
        ["1"],
        [1.5],
        [[1]],
        [(0, 1.0)],
        [(-1, 1.0)],
    ]
    return [
        *(None, True, False, object(), Stubborn(), [Stubborn()], endless, {}, {"a": 1}, {1: 2}, set(), len),
        *NUMBERS,
        *FLOATS,
        *arrays,
        *texts,
        *lists,
    ]


def mutated(rng: random.Random) -> Any:
    """A program with ops that are missing, doubled, swapped, or of another lane."""
    base = program(rng.choice(["ar", "sd", "pearl"]), rng.choice(["shared", "split", "devices"]))
    if rng.random() < 0.5:
        return base
    lanes = [[list(lane.prologue), list(lane.body)] for lane in base.lanes]
    for _ in range(rng.randint(1, 3)):
        ops, others = (rng.choice(rng.choice(lanes)) for _ in range(2))
        change = rng.randrange(4)
        if change == 0 and ops:
            del ops[rng.randrange(len(ops))]
        elif change == 1 and others:
            ops.insert(rng.randint(0, len(ops)), rng.choice(others))
        elif change == 2:
            rng.shuffle(ops)
        else:
            ops.insert(rng.randint(0, len(ops)), Op(rng.choice(["wait", "record"]), rng.choice("dvx")))
    return Program("mutated", tuple(LaneProgram(tuple(a), tuple(b)) for a, b in lanes))


@dataclass
class World:
    """What calls are made of: random numbers, and a few objects of each class."""

    rng: random.Random
    oddness: float = 0.0  # the share of values that are of the right type, and no more
    pool: dict[str, list[Any]] = field(default_factory=dict)
    cuda: Any = None  # a CudaBench

    def __post_init__(self) -> None:
        self.wrong = wrong_values()
        bench = Bench.build("split", num_slots=SLOTS, gamma_max=3)
        fake_cuda.load().reset()
        self.cuda = CudaBench.build("shared", num_slots=SLOTS, gamma_max=3)
        fake = self.cuda.fake
        self.graph = fake.graph(lambda: None)
        self.addresses = {name: fake.array((4096,), np.uint8, -1).ctypes.data for name in (*NAMES, "chunk")}
        rng = np.random.default_rng(0)
        hidden, q, kv = 32, 16, 8
        layer = "model.layers.0."
        shapes = {"model.embed_tokens.weight": (VOCAB, hidden), "model.norm.weight": (hidden,)}
        shapes |= {f"{layer}{n}_layernorm.weight": (hidden,) for n in ("input", "post_attention")}
        projections = {"q": (q, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, q)}
        shapes |= {f"{layer}self_attn.{n}_proj.weight": shape for n, shape in projections.items()}
        shapes |= {f"{layer}mlp.{n}_proj.weight": (32, 32) for n in ("gate", "up", "down")}
        self.tensors = {
            name: (rng.standard_normal(shape, np.float32), "float32", list(shape))
            for name, shape in shapes.items()
        }
        self.keep(bench.coordinator, bench.target, self.cuda.coordinator, self.cuda.issuer)
        self.keep(_C.CoreSet(CPUS[:2]), _C.Device(), _testing.BlockPool(8, 16), _C.ModelDrafter(bench.draft))
        self.keep(_C.ChainDrafter(self.one("ModelDrafter")))
        self.keep(_C.LlamaWeights(CONFIG, self.tensors, "float32"), _C.Request([1, 2], gamma=2, max_tokens=9))
        self.keep(*(_C.CudaStream(_C.CudaDriver(str(fake.path)), ordinal) for ordinal in (0, 1)))
        self.keep(_C.CudaDriver(str(fake.path)), _testing.Transform(presence_penalty=1.0), _C.LookupDrafter())
        self.keep(_C.CpuLane("target", bench.target, self.one("Device")), self.cuda.lane())
        self.keep(*bench.run("sd", self.one("Request")), _C.CudaDriver(str(fake.path)).device(0))
        tables = (np.ones((LENGTH, 4), np.float32),) * 2
        arrays = {**SIZES, **BUFFERS, **BLOCKS, "num_biased": 3, "max_logprobs": 5}
        self.keep(_C.DeviceArrays(self.addresses, **arrays, staging=bytearray(1 << 16)))
        self.keep(_C.LlamaExecutor(self.one("LlamaWeights"), self.one("CoreSet"), SLOTS, LENGTH, *tables))
        self.keep(self.drafter_by_head())

    def keep(self, *values: Any) -> None:
        """Objects of ours among them are used from now on, instead of others where there are too many."""
        for value in values:
            if isinstance(value, list):
                self.keep(*value[:2])
            elif type(value).__module__ in (_C.__name__, _testing.__name__):
                for kind in type(value).__mro__[:-2]:
                    known = self.pool.setdefault(kind.__name__, [])
                    known.append(value)
                    if len(known) > POOL:
                        del known[self.rng.randrange(POOL)]

    def one(self, kind: str) -> Any:
        return self.rng.choice(self.pool[kind])

    def receiver(self, kind: str) -> Any:
        """Of the class, and now and then what is no such object."""
        if kind == "EngineLock":  # the native class calls methods of the Python class
            return EngineLock()
        if kind in self.pool and self.rng.random() < 0.95:
            return self.one(kind)
        cls = getattr(_C, kind, None) or getattr(_testing, kind)
        return self.rng.choice([None, 1, "x", cls, cls.__new__(cls), *(self.one(k) for k in self.pool)])

    def ids(self) -> list[int]:
        return [self.one_id() for _ in range(self.rng.randint(0, 6))]

    def one_id(self) -> int:
        odd = self.rng.random() < self.oddness / 2
        return self.rng.choice(ODD_IDS) if odd else self.rng.randrange(VOCAB)

    def config(self) -> dict[str, Any]:
        odd = {self.rng.choice(list(CONFIG)): self.rng.choice(self.wrong)}
        return CONFIG | (odd if self.rng.random() < self.oddness else {})

    def row(self, *shape: int) -> np.ndarray:
        values = np.array([self.rng.gauss(0, 3) for _ in range(int(np.prod(shape)))], np.float32)
        if self.rng.random() < 0.3 and values.size:
            values[self.rng.randrange(values.size)] = self.rng.choice([np.nan, np.inf, -np.inf, 3e38, 1e-45])
        return values.reshape(shape)

    def argument(self, kind: str, name: str) -> Any:
        """A value that may be right, of a class's methods, or of one ("Class.method"), or of a function."""
        if name not in MAKERS:
            raise KeyError(f"{kind} has an argument {name!r} that MAKERS of {__file__} does not know")
        of_class = MAKERS.get(f"{kind.partition('.')[0]}.{name}", MAKERS[name])
        return MAKERS.get(f"{kind}.{name}", of_class)(self)

    def arguments(self, kind: str, names: Sequence[str]) -> dict[str, Any]:
        """Right ones, or odd ones, or with one or all of a wrong type. kind: a class or a function."""
        self.oddness = self.rng.choice([0.0, 0.0, 0.1, 0.5])
        values = {name: self.argument(kind, name) for name in names}
        chance, doubtful = self.rng.random(), [name for name in names if name not in TRUSTED]
        if chance > 0.95:
            values |= {name: self.rng.choice(self.wrong) for name in doubtful}
        elif chance > 0.65 and doubtful:
            values[self.rng.choice(doubtful)] = self.rng.choice(self.wrong)
        if values and self.rng.random() < 0.03:
            values.pop(self.rng.choice(list(values)))
        if self.rng.random() < 0.02:
            values["unheard_of"] = None
        return values

    def drafter_by_head(self) -> Any:
        return _C.EagleDrafter(_testing.ScriptedExecutor(**SCRIPT, head_ids=[3, 1]), target_ids=[3, 1])

    def fresh_lanes(self) -> list[Any]:
        """For one more coordinator: on the CPU, with executors that fail now and then, or on the fake GPU."""
        if self.rng.random() < 0.1:
            return [self.cuda.lane()]
        if self.rng.random() < 0.2:
            target, drafts = _testing.ScriptedExecutor(**SCRIPT, has_taps=True), self.drafter_by_head()
            device = self.one("Device")
            return [_C.CpuLane("target", target, device, taps=drafts), _C.CpuLane("draft", drafts, device)]
        lanes = []
        for name in ("target", "draft")[: self.rng.choice([1, 2, 2])]:
            fails = {self.rng.choice(["nan_at", "throw_at"]): self.rng.choice([-1, -1, 9])}
            lanes.append(_C.CpuLane(name, _testing.ScriptedExecutor(**SCRIPT, **fails), self.one("Device")))
        return lanes


Maker = Callable[[World], Any]


def choice(*usual: Any, odd: Sequence[Any] = ()) -> Maker:
    """One of the usual ones, mostly."""
    return lambda w: w.rng.choice(odd if odd and w.rng.random() < w.oddness else usual)


def number(*usual: int) -> Maker:
    return choice(*usual, odd=NUMBERS)


def real(*usual: float) -> Maker:
    return choice(*usual, odd=FLOATS)


def of(kind: str) -> Maker:
    return lambda w: w.one(kind)


def row(*lengths: int) -> Maker:
    return lambda w: w.row(choice(*lengths, odd=(0, 1))(w))


def lanes(w: World) -> Any:
    return (
        w.fresh_lanes()
        if w.rng.random() >= w.oddness
        else [w.one("Lane") for _ in range(w.rng.randint(0, 3))]
    )


def requests(w: World) -> Any:
    return [w.one("Request") for _ in range(choice(1, 2, odd=(0, 3))(w))]


def addresses(w: World) -> Any:
    left_out = w.rng.choice(NAMES) if w.rng.random() < w.oddness else ""
    return {name: choice(at, odd=(at, at, at, 0))(w) for name, at in w.addresses.items() if name != left_out}


def segments(w: World) -> Any:
    slots = w.rng.sample(range(SLOTS), w.rng.randint(0, SLOTS)) + choice([], odd=([-1], [0], [2]))(w)
    return [(slot, [1, *w.ids()], number(0, 3, 50)(w), number(0, 1)(w)) for slot in slots]


def named(maker: Maker, *names: str) -> dict[str, Maker]:
    return dict.fromkeys(names, maker)


CPUS = sorted(os.sched_getaffinity(0))
NAN, INF = float("nan"), float("inf")
MAKERS: dict[str, Maker] = {
    "core_set": of("CoreSet"),
    "weights": of("LlamaWeights"),
    "driver": of("CudaDriver"),
    "issuer": of("CudaIssuer"),
    "device": of("Device"),
    "request": of("Request"),
    **named(of("Executor"), "executor", "head"),
    **named(of("LlamaExecutor"), "poison.executor", "poison_block.executor", "copy_rows.executor"),
    "arrays": of("DeviceArrays"),
    "taps": lambda w: choice(None, w.one("EagleDrafter"), w.drafter_by_head())(w),
    **named(choice([], [3, 1], odd=([-1], [VOCAB], [1] * 99)), "target_ids", "head_ids", "draft_ids"),
    "tap_layers": choice([], [0, 1], odd=([1, 0], [-1], [2**31 - 1])),
    "features": lambda w: choice(None, w.row(1, 3), odd=(w.row(2), w.row(2, 5)))(w),
    "lanes": lanes,
    "requests": requests,
    "program": lambda w: mutated(w.rng),
    **named(World.ids, "tokens", "window", "token_ids", "ids", "eos_ids", "stop_ids", "masked_ids"),
    "ScriptedExecutor.token_ids": lambda w: [1, *w.ids()],
    "prompt_ids": lambda w: [1, *w.ids()],
    **named(choice([], [3], [4, 5, 9], odd=([0], [-1], [2**31 - 1])), "costs", "scores"),
    "windows": choice([], [3, 2, 1], odd=([1], [9, 9, 9], [-1] * 3)),
    "logit_bias": lambda w: [(w.one_id(), real(1.0)(w)) for _ in range(w.rng.randint(0, 3))],
    **named(row(VOCAB, 300), "logits", "target_row", "draft_row"),
    "u": lambda w: choice(np.array([1e-9, 0.5, 1.0], np.float32), odd=(w.row(9),))(w),
    "x": lambda w: choice(np.zeros(3, np.float32), np.ones(3, np.float32), odd=(w.row(9),))(w),
    "words": choice(np.array([0, 1, 2**31, 2**32 - 1], np.uint32)),
    "target_logits": lambda w: w.row(choice(2, 3, odd=(0, 4))(w), VOCAB),
    "draft_logits": lambda w: w.row(2, choice(VOCAB, 5, odd=(0, 20))(w)),
    "draft_token_ids": lambda w: np.array(choice([1, 2], odd=([], [1, 99], [-1, 2]))(w), np.int32),
    **named(lambda w: w.row(LENGTH, 4), "cos", "sin"),
    "addresses": addresses,
    "config": lambda w: w.config(),
    **OF_HEADS,
    "tensors": tensors,
    "segments": segments,
    "block_tables": choice(None, odd=([[0, 1, 2, 3]], [[0], [2]], [[-1]], [[]], [[2**31 - 1]])),
    "progress": choice(None, lambda done, layers: None, odd=(lambda: None,)),
    "staging": choice(np.zeros(1 << 16, np.uint8), odd=(bytearray(100), bytearray(1 << 16), bytes(1 << 16))),
    "counter": choice([0, 1, 2, 2**32 - 1]),
    "key": choice([0, 2**32 - 1]),
    "owner": choice(None, []),
    "function": choice(None, list),
    "object": choice(None),  # never_destroy keeps it for good
    "name": choice("target", "draft", ""),
    "op": choice("verify", "score", "prefill chunk", odd=("join", "x")),
    **named(choice("rejection", "coupled", odd=("x",)), "kind", "judge"),
    "form": choice("events", "graph", odd=("x",)),
    "isa": choice(None, "portable", odd=("avx2", "x")),
    "dtype": choice("float32", "bfloat16", odd=("int8",)),
    "error": choice("memory", "foreign", "broken"),
    "library": lambda w: choice(str(w.cuda.fake.path), odd=("", "libc.so.6", "libnothing.so"))(w),
    "cpus": choice([], CPUS[:1], odd=([10**6], [-1])),
    "CoreSet.cpus": choice(CPUS[:1], CPUS[:2], odd=([], [-1])),
    "spin_us": number(0, 10),
    "step_us": choice(0.0, 20.0, odd=(-1.0, NAN, 2e6)),
    "delay_us": choice((0, 0), (0, 20), odd=((20, 0), (-1, -1), (0, 2**31 - 1))),
    **named(choice(True, False), "ignore_eos", "adapts", "processed", "logprobs", "host_logits", "timed"),
    **named(choice(True, False), "for_all", "looks_up", "branches", "drafts_at_once", "reads_target"),
    **named(choice(True, False), "shares", "fills", "is_certain", "prefix_caching", "is_pinned", "has_taps"),
    "grammar": choice(None, AnyToken()),
    "keep_logits": choice(None, True, False),
    "is_ordered": choice(True),
    "num_slots": number(SLOTS),
    **named(number(3), "gamma_max", "num_biased"),
    **named(number(LENGTH), "capacity", "max_model_len"),
    "draft_capacity": choice(None, LENGTH, 1, odd=(0, -1)),
    "bits": choice(0, 8, 4, odd=(-1, 3, 2**31 - 1)),
    **named(number(VOCAB), "vocab_size", "draft_vocab_size"),
    **named(number(4), "num_stop_ids", "prefill_chunk"),
    "ring_capacity": number(1024, 0),
    "block_size": number(16),
    **named(number(8), "ring_size", "num_blocks"),
    "gamma": number(0, 2),
    **named(number(0, 1), "slot", "num_logits", "num_open", "ordinal", "num_own"),
    "position": number(0, 63),
    **named(number(0), "start", "prompt_len"),
    **named(number(0, 64), "num_tokens", "pool_tokens"),
    "row": number(0, 15),
    "rows": number(1, 16, 128),
    **named(number(1, 2), "repeats", "num_passes"),
    "token": number(0, 5),
    **named(number(0, 3), "k", "count", "id", "block", "top_k", "min_tokens"),
    "purpose": number(0, 4),
    **named(number(1), "rule", "candidates"),
    **named(number(0, 7), "seed", "delay_seed"),
    **named(number(-1, 9), "nan_at", "throw_at"),
    **named(number(-1, 3), "num_logprobs", "num_prompt_logprobs"),
    "max_tokens": number(9, 40),
    "timeout_ms": number(0, 1, 5),
    "max_logprobs": number(5),
    "min_results": number(1, 5),
    "rounds_ahead": number(1, 2, 4),
    "meminfo": choice("/proc/meminfo", odd=("", "/nowhere")),
    "group": choice("/sys/fs/cgroup", odd=("", "/nowhere")),
    **named(choice([], [0], [0, 0], odd=([1], [-1], [2**31 - 1])), "layers"),
    "intermediate_size": choice(None, 32, 8, odd=(0, -1, 2**31 - 1)),
    "draft_stop": choice("none", "confidence", "adaedl", "marginal", "thompson", odd=("x",)),
    **named(real(0.5), "draft_stop_at", "cost"),
    "model": of("ModelDrafter"),
    "mask_token": choice(None, 0, 3, odd=(-1, VOCAB, 2**31 - 1)),
    "bytes": choice(1 << 20, odd=(0, -1, 2**62)),
    "seconds": choice(0.0, odd=(NAN, INF, -1.0)),
    **named(real(0.5, 1.0), "temperature", "top_p", "min_p", "divergence", "repetition_penalty", "scale"),
    **named(real(0.0, 0.5), "presence_penalty", "frequency_penalty"),
    "priority": number(-1, 0),
    "nth": choice(1, 13, 1000),  # the last one is beyond all
    "stream": of("CudaStream"),
    "graph": lambda w: choice(w.graph.graph, odd=(0,))(w),
    "exec": lambda w: choice(w.graph.exec, odd=(0,))(w),
}
# A wrong value of these is a number that nothing can tell from a right one, or asks for a long call.
TRUSTED = ("graph", "exec", "bytes", "seconds", "addresses", "is_ordered")
