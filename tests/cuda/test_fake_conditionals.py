"""Conditional nodes of the fake CUDA driver: what runs, what is told to be illegal; and the kernels of the
loop, of which the fake runs a copy in C++, held against their PTX.
"""

from __future__ import annotations

import ctypes
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_cuda
import numpy as np
import pytest
from fake_cuda import FakeCuda, FakeDevice
from ptx import Ptx, loop_ptx

pytestmark = pytest.mark.skipif(not fake_cuda.has_compiler(), reason="no C++ compiler here")
INVALID_VALUE, INVALID_PTX, INVALID_HANDLE, NOT_FOUND, NOT_SUPPORTED = 1, 218, 400, 500, 801
RUNNING, STOP = 1, 2


class KernelParameters(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2."""

    _fields_ = (
        ("func", ctypes.c_uint64),
        *((f"{what}_{axis}", ctypes.c_uint32) for what in ("grid", "block") for axis in "xyz"),
        ("shared", ctypes.c_uint32),
        ("values", ctypes.c_void_p),
        ("extra", ctypes.c_void_p),
        ("kern", ctypes.c_void_p),
        ("ctx", ctypes.c_void_p),
    )


class NodeParameters(ctypes.Structure):
    """CUgraphNodeParams, of a conditional node."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("reserved0", ctypes.c_int32 * 3),
        ("handle", ctypes.c_uint64),
        ("kind", ctypes.c_int32),
        ("size", ctypes.c_uint32),
        ("bodies", ctypes.POINTER(ctypes.c_uint64)),
        ("ctx", ctypes.c_uint64),
        ("rest", ctypes.c_uint64 * 25),
        ("reserved2", ctypes.c_uint64),
    )


class Rounds:
    """A loop as csrc/cuda/loop_graph.cpp makes it, around kernels in Python."""

    def __init__(self, device: FakeDevice, num_slots: int = 3) -> None:
        fake = device.fake
        self.device, self.fake, self.num_slots = device, fake, num_slots
        self.words = fake.array((4,), np.int32, device.ordinal)
        self.host = fake.array((96,), np.int32, -1)
        self.reasons = fake.array((num_slots,), np.int32, device.ordinal)
        for array in (self.words, self.host):
            array[:] = 0
        self.reasons[:] = RUNNING
        self.module = device.made("cuModuleLoadData", loop_ptx().encode())
        self.peek, self.turn = (
            device.made("cuModuleGetFunction", self.module, name)
            for name in (b"pearl_loop_peek", b"pearl_loop_turn")
        )
        self.graph = device.made("cuGraphCreate", 0)
        self.handle = device.made("cuGraphConditionalHandleCreate", self.graph, device.context, 0, 1)

    def kernel(
        self, graph: int, function: int, values: list[Any], after: tuple[int, ...] = (), threads: int = 1
    ) -> tuple[int, int]:
        """-> code, node."""
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        parameters = KernelParameters(function, 1, 1, 1, threads, 1, 1, 0, ctypes.addressof(pointers))
        node, nodes = ctypes.c_uint64(), (ctypes.c_uint64 * len(after))(*after)
        code = self.fake.call(
            "cuGraphAddKernelNode", ctypes.byref(node), graph, nodes, len(after), ctypes.byref(parameters)
        )
        return code, node.value

    def add_peek(self, graph: int) -> int:
        code, node = self.kernel(graph, self.peek, pointers(self.host, self.words))
        assert code == 0
        return node

    def turn_values(self, is_round: int) -> list[Any]:
        told = ctypes.c_uint64(self.host.ctypes.data + 4 * 32)
        numbers = ctypes.c_uint32(self.num_slots), ctypes.c_uint32(is_round)
        [words, reasons] = pointers(self.words, self.reasons)
        return [ctypes.c_uint64(self.handle), words, told, reasons, *numbers]

    def add_turn(self, graph: int, is_round: int, *after: int) -> int:
        code, node = self.kernel(graph, self.turn, self.turn_values(is_round), after, 32)
        assert code == 0
        return node

    def loop(self, *after: int, graph: int | None = None, **changed: Any) -> tuple[int, int]:
        """Adds the WHILE node -> code, its body."""
        parameters = NodeParameters(13, handle=self.handle, kind=1, size=1, ctx=self.device.context)
        for name, value in changed.items():
            setattr(parameters, name, value)
        node = ctypes.byref(ctypes.c_uint64())
        nodes = (ctypes.c_uint64 * len(after))(*after)
        given = (graph or self.graph, nodes, len(after), ctypes.byref(parameters))
        code = self.fake.call("cuGraphAddNode", node, *given)
        return code, parameters.bodies[0] if code == 0 else 0

    def exec(self, body: Callable[[], None]) -> int:
        """The whole graph: peek, turn, and around `body` the loop."""
        _, inner = self.loop(self.add_turn(self.graph, 0, self.add_peek(self.graph)))
        self.add_turn(inner, 1, self.add_child(inner, body), self.add_peek(inner))
        return self.device.made("cuGraphInstantiateWithFlags", self.graph, 0)

    def add_child(self, graph: int, body: Callable[[], None]) -> int:
        own = self.fake.graph(body, self.device.ordinal).graph
        return self.device.made("cuGraphAddChildGraphNode", graph, None, 0, own)


def pointers(*arrays: np.ndarray) -> list[Any]:
    return [ctypes.c_uint64(array.ctypes.data) for array in arrays]


@pytest.fixture
def fake() -> Iterator[FakeCuda]:
    yield from fake_cuda.world()


@pytest.fixture
def device(fake: FakeCuda) -> FakeDevice:
    return FakeDevice(fake)


@pytest.fixture
def rounds(device: FakeDevice) -> Rounds:
    return Rounds(device)


# What runs.


def test_rounds_repeat_while_somebody_runs_and_more_are_allowed(fake: FakeCuda, device: FakeDevice) -> None:
    fake.reset(seed=4, max_delay_us=20)
    device = FakeDevice(fake)
    rounds = Rounds(device)
    ran: list[int] = []

    def one_round() -> None:
        ran.append(len(ran) + 1)
        if len(ran) == 9:
            rounds.reasons[:] = STOP

    loop = rounds.exec(one_round)
    # allowed: 0, then 5 in all, then as many as there are; the second slot ends the rest.
    for allowed, num_ran, num_ended in ((0, 0, 1), (5, 5, 2), (1000, 9, 3), (1000, 9, 4)):
        rounds.host[0] = allowed
        device.call("cuGraphLaunch", loop, device.stream)
        device.call("cuStreamSynchronize", device.stream)
        assert (len(ran), *rounds.host[32:34]) == (num_ran, num_ran, num_ended)
        assert list(rounds.words[:3]) == [allowed, num_ran, num_ended]
    assert fake.violations() == []


def test_what_the_host_allows_is_seen_while_it_runs(device: FakeDevice) -> None:
    rounds, ran = Rounds(device), []

    def one_round() -> None:
        ran.append(1)
        if len(ran) == 3:
            rounds.host[0] = 4  # somebody else's thread: the peek beside this round may come before or after
        if len(ran) > 10:
            rounds.reasons[:] = STOP

    rounds.host[0] = 1000
    device.call("cuGraphLaunch", rounds.exec(one_round), device.stream)
    device.call("cuStreamSynchronize", device.stream)
    assert len(ran) == 4 and rounds.host[32] == 4 and device.fake.violations() == []


def test_a_fault_ends_a_loop(device: FakeDevice) -> None:
    rounds = Rounds(device)
    rounds.host[0] = 1000
    loop = rounds.exec(lambda: device.fake.raise_in_kernel(700) if rounds.words[1] == 2 else None)
    device.call("cuGraphLaunch", loop, device.stream)
    assert device.fake.call("cuStreamSynchronize", device.stream) == 700
    assert rounds.words[1] == 2


# What is illegal.


def foreign_context(rounds: Rounds) -> int:
    second = FakeDevice(rounds.fake, 1).context
    rounds.device.call("cuCtxSetCurrent", rounds.device.context)
    return second


def child(rounds: Rounds, graph: int) -> int:
    """The code of a graph added to the loop's body."""
    _, body = rounds.loop()
    return rounds.fake.call("cuGraphAddChildGraphNode", ctypes.byref(ctypes.c_uint64()), body, None, 0, graph)


def with_event(rounds: Rounds) -> int:
    graph = rounds.fake.graph(lambda: None).graph
    rounds.fake.add_event(graph)
    return graph


def nested(rounds: Rounds) -> int:
    inner = Rounds(rounds.device)
    inner.loop()
    return inner.graph


def unloaded(rounds: Rounds) -> int:
    loop = rounds.exec(lambda: None)
    rounds.device.call("cuModuleUnload", rounds.module)
    return rounds.fake.call("cuGraphLaunch", loop, rounds.device.stream)


def turn(rounds: Rounds, at: int, value: Any, threads: int = 32) -> int:
    """The code of a turn with another parameter."""
    values = rounds.turn_values(1)
    values[at] = value
    return rounds.kernel(rounds.graph, rounds.turn, values, threads=threads)[0]


def out() -> Any:
    return ctypes.byref(ctypes.c_uint64())


Attempt = Callable[[Rounds], int]
ILLEGAL: dict[str, tuple[Attempt, int, str]] = {
    "a handle of another graph": (
        lambda r: r.loop(graph=r.device.made("cuGraphCreate", 0))[0],
        INVALID_VALUE,
        "cuGraphAddNode: a conditional handle of another graph",
    ),
    "a handle set in another graph": (
        lambda r: r.kernel(r.device.made("cuGraphCreate", 0), r.turn, r.turn_values(0), (), 32)[0],
        INVALID_VALUE,
        "cuGraphAddKernelNode: a conditional handle of another graph",
    ),
    "a handle of two nodes": (
        lambda r: (r.loop(), r.loop()[0])[1],
        INVALID_VALUE,
        "cuGraphAddNode: a conditional handle that another node has",
    ),
    "a handle without a node": (
        lambda r: r.fake.call("cuGraphInstantiateWithFlags", out(), r.graph, 0),
        INVALID_VALUE,
        "cuGraphInstantiateWithFlags: a conditional handle that no node has",
    ),
    "a handle without a default": (
        lambda r: r.fake.call("cuGraphConditionalHandleCreate", out(), r.graph, r.device.context, 0, 0),
        INVALID_VALUE,
        "cuGraphConditionalHandleCreate: without a default",
    ),
    "another context than the handle's": (
        lambda r: r.loop(ctx=foreign_context(r))[0],
        INVALID_VALUE,
        "cuGraphAddNode: a context that is not the conditional handle's",
    ),
    "two bodies": (lambda r: r.loop(size=2)[0], INVALID_VALUE, "cuGraphAddNode: a WHILE node has one body"),
    "bytes behind the parameters": (
        lambda r: r.loop(reserved2=1)[0],
        INVALID_VALUE,
        "cuGraphAddNode: unused bytes of the parameters are not zero",
    ),
    "a node of another kind": (lambda r: r.loop(type=7)[0], NOT_SUPPORTED, "the fake knows WHILE nodes here"),
    "another device in a body": (
        lambda r: child(r, r.fake.graph(lambda: None, 1).graph),
        INVALID_VALUE,
        "cuGraphAddChildGraphNode: work of device 1 in the body of a conditional node of device 0",
    ),
    "an event in a body": (
        lambda r: child(r, with_event(r)),
        NOT_SUPPORTED,
        "cuGraphAddChildGraphNode: an event node in the body of a conditional node",
    ),
    "a loop in a child graph": (
        lambda r: child(r, nested(r)),
        NOT_SUPPORTED,
        "cuGraphAddChildGraphNode: a child graph with a conditional node",
    ),
    "a body on its own": (
        lambda r: r.fake.call("cuGraphInstantiateWithFlags", out(), r.loop()[1], 0),
        INVALID_VALUE,
        "cuGraphInstantiateWithFlags: the body of a conditional node is no graph of its own",
    ),
    "a body destroyed": (
        lambda r: r.fake.call("cuGraphDestroy", r.loop()[1]),
        INVALID_VALUE,
        "cuGraphDestroy: the body of a conditional node goes with its node",
    ),
    "a module unloaded under its kernels": (
        unloaded,
        INVALID_HANDLE,
        "cuGraphLaunch: a kernel of a module that was unloaded",
    ),
    "no PTX": (
        lambda r: r.fake.call("cuModuleLoadData", out(), b"\x7fELF"),
        INVALID_PTX,
        "cuModuleLoadData: no PTX with a kernel",
    ),
    "no such kernel": (
        lambda r: r.fake.call("cuModuleGetFunction", out(), r.module, b"pearl_loop"),
        NOT_FOUND,
        "cuModuleGetFunction: no kernel is called pearl_loop",
    ),
    "words that are not the device's": (
        lambda r: turn(r, 1, pointers(r.host)[0]),
        INVALID_VALUE,
        "parameter 1 of pearl_loop_turn is no memory of its device",
    ),
    "a record that is not pinned": (
        lambda r: turn(r, 2, pointers(r.words)[0]),
        INVALID_VALUE,
        "parameter 2 of pearl_loop_turn is no memory that is pinned",
    ),
    "more slots than there are": (
        lambda r: turn(r, 4, ctypes.c_uint32(4)),
        INVALID_VALUE,
        "parameter 3 of pearl_loop_turn is no memory of its device",
    ),
    "half a warp": (
        lambda r: turn(r, 5, ctypes.c_uint32(1), threads=16),
        INVALID_VALUE,
        "cuGraphAddKernelNode: the kernel is written for 32 threads",
    ),
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_what_is_not_legal_is_told(rounds: Rounds, name: str) -> None:
    attempt, code, said = ILLEGAL[name]
    assert rounds.fake.violations() == []
    assert attempt(rounds) == code
    assert rounds.fake.violations() and said in rounds.fake.violations()[0]


def test_what_a_graph_has_goes_with_it(rounds: Rounds) -> None:
    loop = rounds.exec(lambda: None)
    for call, handle in (
        ("cuGraphExecDestroy", loop),
        ("cuGraphDestroy", rounds.graph),
        ("cuModuleUnload", rounds.module),
        ("cuDevicePrimaryCtxRelease", 0),
    ):
        rounds.device.call(call, handle)
    assert rounds.fake.live_handles() == [] and rounds.fake.violations() == []


# The kernels as they are written.


def ptxas() -> Path | None:
    """Triton's own, where it is installed."""
    try:
        import triton
    except ModuleNotFoundError:
        return None
    found = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    return found if found.exists() else None


def assembled(text: str, arch: str, folder: Path) -> int:
    compiler = ptxas()
    if compiler is None:
        pytest.skip("no ptxas here")
    (folder / "loop.ptx").write_text(text)
    command = [compiler, "-c", f"-arch={arch}", folder / "loop.ptx", "-o", folder / "loop.o"]
    return subprocess.run(command, capture_output=True).returncode


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_the_assembler_takes_the_kernels(arch: str, tmp_path: Path) -> None:
    assert assembled(loop_ptx(), arch, tmp_path) == 0
    assert assembled(loop_ptx().replace(".extern .func cuda", ".extern .func other"), arch, tmp_path) != 0


def test_the_fakes_kernels_do_what_the_text_says(rounds: Rounds) -> None:
    """Random words, and slots on both sides of a warp's width: the same words, and the same condition."""
    rng = random.Random(8)
    kernels = Ptx(loop_ptx()).kernels
    fake, device = rounds.fake, rounds.device
    for _ in range(60):
        one = Rounds(device, rng.choice([1, 2, 31, 32, 33, 70]))
        one.reasons[:] = [rng.choice([0, STOP, 3, 4]) for _ in one.reasons]
        if rng.random() < 0.7:
            one.reasons[rng.randrange(one.num_slots)] = RUNNING
        one.words[:3] = [rng.randrange(4), rng.randrange(4), rng.randrange(9)]
        one.host[:] = [rng.randrange(5) for _ in one.host]
        is_round = rng.randrange(2)
        arrays = one.words, one.host, one.reasons
        memory = {a.ctypes.data + 4 * i: int(v) for a in arrays for i, v in enumerate(a)}
        kernels["pearl_loop_peek"].run([one.host.ctypes.data, one.words.ctypes.data], memory, 1)
        values = [value.value for value in one.turn_values(is_round)]
        calls = kernels["pearl_loop_turn"].run(values, memory, 32)
        # The fake's: a body that only says that it was entered, and ends the loop.
        seen: list[list[int]] = []

        def enter(one: Rounds = one, seen: list[list[int]] = seen) -> None:
            seen.append([*map(int, one.words[:3]), *map(int, one.host)])
            one.reasons[:] = STOP

        _, body = one.loop(one.add_turn(one.graph, is_round, one.add_peek(one.graph)))
        one.add_turn(body, 0, one.add_child(body, enter))
        loop = device.made("cuGraphInstantiateWithFlags", one.graph, 0)
        device.call("cuGraphLaunch", loop, device.stream)
        device.call("cuStreamSynchronize", device.stream)
        found = seen[0] if seen else [*map(int, one.words[:3]), *map(int, one.host)]
        expected = [memory[one.words.ctypes.data + 4 * i] for i in range(3)]
        expected += [memory[one.host.ctypes.data + 4 * i] for i in range(96)]
        assert found == expected
        assert calls == [(one.handle, len(seen))]
    assert fake.violations() == []
