"""Nothing that Python can call in pearl_rt._C ends the process: it returns, or raises with the value."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import native_calls
import numpy as np
import pytest
from fake_cuda import has_compiler
from scripted import Bench, tokens_of

from pearl_rt import _C, _testing
from pearl_rt.errors import RequestError
from pearl_rt.strategy.program import LaneProgram, Op, Program, parse_ops, program

ROW = np.zeros(8, np.float32)
SIZES = {
    **dict.fromkeys(("num_slots", "gamma_max", "num_stop_ids", "prefill_chunk"), 1),
    "capacity": 8,
    "draft_vocab_size": 4,
    "block_size": 16,
}


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler, for the fake CUDA driver")
def test_random_calls(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """6,000 calls, with --long 24,000 of each of four seeds. A crash shows the call that it came from."""
    is_long = request.config.getoption("--long")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for seed in range(4 if is_long else 1):
        log = tmp_path / "call"
        command = [sys.executable, native_calls.__file__, str(seed), "24000" if is_long else "6000", str(log)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=env)
        call = log.read_text() if log.exists() else "no call was made"
        assert result.returncode == 0, f"{call}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"


def test_all_that_is_bound_is_found() -> None:
    found = {bound.path: bound.names for bound in native_calls.everything()}
    assert found["judge"][:3] == ["target_logits", "draft_logits", "draft_token_ids"]
    assert found["BlockPool"] == ["num_blocks", "block_size"]
    assert found["Coordinator.next"] == ["timeout_ms", "min_results"]
    assert found["CudaIssuer.form="] == ["form"]
    assert found["DeviceArrays.staging_bytes"][-1] == "host_logits"
    public = {name for name in dir(_C) + dir(_testing) if not name.startswith("_")}
    assert {path.partition(".")[0] for path in found} | set(native_calls.ON_TRUST) == public


def test_an_unknown_argument_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is bound anew gets an entry in MAKERS."""
    world = native_calls.World.__new__(native_calls.World)
    with pytest.raises(KeyError, match="BlockPool has an argument 'unheard_of'"):
        world.argument("BlockPool", "unheard_of")


@pytest.mark.parametrize("kind", sorted(k for k, v in vars(_C).items() if isinstance(v, type)))
def test_what_is_no_object_of_a_class_is_refused(kind: str) -> None:
    """None, and an object that __new__ made alone."""
    cls = getattr(_C, kind)
    bounds = [b for b in native_calls.everything() if b.receiver == kind]
    for receiver in (None, 5, cls.__new__(cls)):
        for bound in bounds:
            with pytest.raises((TypeError, RuntimeError)):  # RuntimeError: pybind11's, of its holders
                bound.call(receiver, *([None] * len(bound.names)))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"masked_ids": [-(2**28)]}, r"masked_ids\[0\] is -268435456"),
        ({"logit_bias": [(-(2**28), 1.0)]}, "logit_bias has -268435456"),
        ({"logit_bias": [(1, float("nan"))]}, "logit_bias is nan"),
        ({"temperature": float("inf"), "min_p": 1.0}, "temperature is inf"),
        ({"min_tokens": -1}, "min_tokens is -1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0"),
    ],
)
def test_transforms_are_checked(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(RequestError, match=text):
        _testing.Transform(**changes)


def test_rows_and_ids_are_checked() -> None:
    transform = _testing.Transform(presence_penalty=1.0)
    for tokens in ([-(2**28)], [2**31 - 1], [8]):
        with pytest.raises(RequestError, match=r"tokens\[0\] is -?\d+; the vocabulary has ids 0 to 7"):
            transform.row(ROW, tokens)
    with pytest.raises(RequestError, match="prompt_len is 2; it must be at most 1"):
        transform.row(ROW, [1], 2)
    for row in (ROW.reshape(2, 4), ROW[:0], np.float32(1)):
        with pytest.raises(RequestError, match="vocab >= 1"):
            transform.row(row, [])
    with pytest.raises(RequestError, match="hold NaN"):
        _testing.logprobs(np.full(4, np.nan, np.float32), 1, 2)
    with pytest.raises(RequestError, match="position is 9223372036854775807"):
        _testing.judge(ROW.reshape(1, 8), None, np.zeros(0, np.int32), 2**63 - 1, 0.0, 0, "coupled")
    with pytest.raises(RequestError, match="count is 4294967295"):
        _testing.philox(0, 0, 0, 2**32 - 1)


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (_testing.exponential, 0.0),
        (_testing.exponential, 1.5),
        (_testing.log, 0.0),
        (_testing.log, 1e-45),
        (_testing.exp, 1.0),
        (_testing.exp, np.nan),
    ],
)
def test_functions_refuse_values_outside_their_domain(function: Any, value: float) -> None:
    with pytest.raises(RequestError, match="it must be"):
        function(np.array([value], np.float32))


def test_an_array_may_lie_anywhere() -> None:
    """Misaligned, strided or of the other byte order: as its copy."""
    values = np.arange(6, dtype=np.float32)
    odd = np.frombuffer(b"x" + values.tobytes(), np.uint8)[1:].view(np.float32)
    wide = np.repeat(values, 2)[::2]
    for row in (odd, wide, values.astype(">f4")):
        assert _testing.sample(row, 1.0, 3, 4, 0) == _testing.sample(values, 1.0, 3, 4, 0)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"prefill_chunk": 0}, "prefill_chunk is 0; it must be at least 1"),
        ({"num_slots": -1}, "num_slots is -1"),
        ({"block_size": 0}, "block_size is 0"),
        ({"num_stop_ids": 2**31 - 1}, "num_stop_ids is 2147483647"),
        ({"max_logprobs": 2**31 - 1}, "max_logprobs is 2147483647"),
        ({"num_slots": 2**20, "gamma_max": 2**16, "draft_vocab_size": 2**24}, "the size of all arrays"),
    ],
)
def test_sizes_of_arrays_are_checked(change: dict[str, int], text: str) -> None:
    with pytest.raises(RequestError, match=text):
        _C.DeviceArrays.staging_bytes(**SIZES | change)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"eos_ids": [-1], "min_tokens": 2}, r"eos_ids\[0\] is -1; ids begin with 0"),
        ({"stop_ids": [3, -(2**29)]}, r"stop_ids\[1\] is -536870912"),
        ({"min_tokens": -4}, "min_tokens is -4"),
        ({"num_logprobs": -2}, "num_logprobs is -2"),
    ],
)
def test_requests_are_checked(change: dict[str, Any], text: str) -> None:
    bench = Bench.build()
    with pytest.raises(RequestError, match=text):
        bench.start("ar", _C.Request([1], **change))
    with pytest.raises(RequestError, match=text):
        bench.coordinator.has_place(_C.Request([1], **change))
        bench.coordinator.submit(_C.Request([1], **change))


def test_a_request_is_described_by_name() -> None:
    with pytest.raises(TypeError, match="incompatible constructor arguments"):
        _C.Request([1], 3)


def changed(lane: int, **lists: str) -> Program:
    """`pearl` with other lists of one lane."""
    base = program("pearl", "split")
    lanes = list(base.lanes)
    lanes[lane] = replace(lanes[lane], **{name: parse_ops(text) for name, text in lists.items()})
    return replace(base, lanes=tuple(lanes))


@pytest.mark.parametrize(
    ("candidate", "text"),
    [
        (changed(1, prologue="prefill context"), "drafts before its first token"),
        (changed(1, prologue="draft; wait v"), "prologue of the draft's lane has the steps .draft."),
        (changed(0, prologue="first; prefill; record v"), r"has the steps \[first, prefill\]"),
        (changed(0, prologue="prefill; record v; first"), "drafts before its first token"),
        (changed(0, body="wait d; verify; record v"), "must have score or score window, then verify"),
        (changed(0, body="score; wait d; verify; verify; record v"), "then verify"),
        (changed(1, body="draft; draft; record d; wait v"), "must have draft alone"),
        (changed(0, body="score; verify; record v"), "races: .* share (token_ids|draft_token_ids)"),
        (changed(1, body="draft; record d"), "races: verify of the target lane .* draft of the draft lane"),
        (changed(1, body="wait d; draft; record d; wait v"), "deadlocks: in round 1 the .* lane waits"),
        (changed(0, body="score; wait d; verify; record v" + "; record x" * 70), "at most 64"),
        (5, "program is 5; it must be a pearl_rt.strategy.program.Program"),
    ],
)
def test_programs_are_checked(candidate: Any, text: str) -> None:
    bench = Bench.build()
    with pytest.raises(RequestError, match=text):
        bench.coordinator.start(candidate, [_C.Request([1], gamma=2)])
    assert len(tokens_of(bench.run("pearl", _C.Request([1], gamma=2, max_tokens=5)))) == 5


def test_a_program_says_what_it_is() -> None:
    class Odd(Program):
        def native(self) -> Any:
            return "no lists"

    bench = Bench.build()
    with pytest.raises(RequestError, match=r"native\(\) of .* must give"):
        bench.coordinator.start(Odd("odd", ()), [_C.Request([1])])
    unknown = LaneProgram((Op("dance"),), ())
    with pytest.raises(RequestError, match="unknown op 'dance'"):
        bench.coordinator.start(Program("odd", (unknown,)), [_C.Request([1])])


def test_an_executor_is_one_threads() -> None:
    """Of two at once, one is told so, and the other goes on."""
    executor = _testing.ScriptedExecutor(delay_us=(100_000, 100_000))
    errors: list[str] = []

    def call() -> None:
        try:
            executor.forward(0, [1], 0, 1)
        except RuntimeError as error:
            errors.append(str(error))

    tries = 0
    while not errors and tries < 100:  # on a busy machine the first may have ended
        tries += 1
        pair = [threading.Thread(target=call) for _ in range(2)]
        for thread in pair:
            thread.start()
        for thread in pair:
            thread.join()
    assert errors == ["two threads called one executor at once"]
    assert executor.forward(0, [1], 0, 1).shape == (1, 16)


def test_a_full_ring_does_not_stop_other_lanes() -> None:
    """Two coordinators share a device, and the results of the first are not read while the second runs."""
    device = _C.Device()
    first, second = (
        _C.Coordinator(
            [_C.CpuLane("target", _testing.ScriptedExecutor(), device)],
            capacity=64,
            vocab_size=16,
            ring_capacity=0,
        )
        for _ in range(2)
    )
    first.start(program("ar"), [_C.Request([1], max_tokens=50)])
    second.start(program("ar"), [_C.Request([1], max_tokens=50)])
    assert len(tokens_of(Bench(second, None, None, "shared").finish())) == 50
    assert first.running
    assert len(tokens_of(Bench(first, None, None, "shared").finish())) == 50


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"capacity": 2**63 - 1}, "capacity is 9223372036854775807; it must be at most"),
        ({"gamma_max": 2**31 - 1}, "gamma_max is 2147483647"),
        ({"num_slots": 0}, "num_slots is 0; it must be at least 1"),
        ({"ring_capacity": 2**63}, "ring_capacity is 16777217"),
        ({"num_blocks": 2**31 - 1}, "num_blocks is 2147483647"),
    ],
)
def test_coordinators_are_checked(change: dict[str, int], text: str) -> None:
    with pytest.raises(RequestError, match=text):
        _C.Coordinator([], **{"capacity": 64, "vocab_size": 16} | change)


def test_memory_that_cannot_be_had_is_not_asked_for() -> None:
    """Linux would hand it out, and end the process when it is written."""
    with pytest.raises(MemoryError, match=r"a coordinator of 1048576 slots needs \d+ MiB, and \d+ MiB"):
        _C.Coordinator([], capacity=2**30, vocab_size=2**24, num_slots=2**20, num_blocks=1, block_size=16)
    with pytest.raises(RequestError, match="max_model_len is 9223372036854775807"):
        _testing.ScriptedExecutor(max_model_len=2**63 - 1)
