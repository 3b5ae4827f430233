"""The kernel bench without a GPU: bytes counted, wrong kernels refused a speed-up. A fake timer runs the
calls on the CPU and says how long they took by a script.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bench import kernels
from bench.harness import goals
from bench.kernel_cases import attention as attention_cases
from bench.kernel_cases import traffic
from bench.kernel_cases import warmup as kernel_warmup
from bench.kernel_cases.case import Job, Row, Spec, Variant, disagreement, format_row, run_case
from bench.kernel_cases.timer import MAX_COPIES, Call, Rotation, medians
from pearl_rt.kernels.base.shapes import SHAPES

L2 = 50 << 20
BANDWIDTH = 3e12
SHAPE = {shape.name: shape for shape in SHAPES}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# bytes, by hand


@pytest.mark.parametrize(
    ("counted", "expected"),
    [
        (traffic.linear(5, 4096, 14336), 2 * (4096 * 14336 + 5 * 14336 + 5 * 4096)),
        (traffic.linear(1, 128256, 4096, out=4), 2 * (128256 * 4096 + 4096) + 4 * 128256),
        (traffic.linear(8, 64, 32, residual=True), 2 * (64 * 32 + 8 * 32) + 8 * 64 * 8),
        (traffic.gate_up_silu(1, 10, 3), 2 * (2 * 10 * 3 + 3 + 10)),
        (traffic.rms_norm(2, 8), 2 * 8 * (4 + 2) + 8 * 2),
        (traffic.rms_norm(2, 8, x=2, residual=True), 2 * 8 * (2 + 2 + 8) + 8 * 2),
        (traffic.qkv_rope_store(3, 4, 2, 16), 3 * (8 * 16 * 2 + 16 * 4 + 4 + 8 + 8 * 16 * 2)),
        (traffic.attention([8], [4096], 32, 8, 128, 64), 4096 * 8 * 128 * 4 + 2 * 8 * 32 * 128 * 2 + 64 * 4),
        (traffic.attention([1, 2], [65, 64], 1, 1, 2, 64), 129 * 8 + 3 * 8 + 3 * 4),
        (traffic.sample(2, 100), 2 * (400 + 4)),
        (traffic.verify(1, 8, 128256), 17 * 128256 * 4 + 17 * 4),
        (traffic.verify(4, 2, 10, draft=False), 4 * (3 * 10 * 4 + 5 * 4)),
    ],
)
def test_bytes_are_each_input_once_and_each_output_once(counted: int, expected: int) -> None:
    assert counted == expected


# name -> millions of parameters as published, less the embedding where the head is not tied to it
PUBLISHED = {
    "SmolLM-135M": 134.5,
    "Llama-3.2-1B": 1235.8,
    "Llama-2-7B": 6738.4 - 131.1,
    "Llama-3.1-8B": 8030.3 - 525.3,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_step_reads_all_weights_but_an_untied_embedding(name: str) -> None:
    assert traffic.weights(SHAPE[name]) / 2e6 == pytest.approx(PUBLISHED[name], rel=1e-3)


def test_a_step_counts_every_layers_cache() -> None:
    shape = SHAPE["Llama-3.1-8B"]
    more = traffic.decode_step(shape, 2, 1, 4096) - traffic.decode_step(shape, 2, 1, 256)
    assert more == 2 * (4096 - 256) * 131072  # 128 KiB a position


# what keeps a call cold


@pytest.mark.parametrize("num_bytes", [1_000, 200_000, 5_000_000, 120_000_000, 1_100_000_000])
def test_rotated_copies_hold_more_than_the_cache(num_bytes: int) -> None:
    rotation = Rotation.of(num_bytes, L2)
    assert rotation.copies <= MAX_COPIES
    if rotation.flush:
        assert MAX_COPIES * num_bytes < 2 * L2
    else:
        assert rotation.copies * num_bytes >= 2 * L2
        assert rotation.launches % rotation.copies == 0, "every copy is used equally often"


class FakeTimer:
    """Runs calls at once; `seconds` has the time of a prepared list by its first call."""

    device = "cpu"

    def __init__(self, seconds: dict[Call, float]) -> None:
        self.seconds = seconds
        self.sampled: list[Call] = []

    def run(self, calls: Sequence[Call]) -> None:
        for call in calls:
            call()

    def prepare(self, calls: Sequence[Call], rotation: Rotation) -> Sequence[Call]:
        self.run(calls)
        return calls

    def sample(self, prepared: Sequence[Call]) -> float:
        self.sampled.append(prepared[0])
        self.run(prepared)
        return self.seconds[prepared[0]]


def test_samples_are_taken_in_turns() -> None:
    a, b, c = (lambda: None for _ in range(3))
    timer = FakeTimer({a: 1.0, b: 2.0, c: 3.0})
    found = medians(timer, {"a": [a], "b": [b], "c": [c]}, 3)
    assert found == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert timer.sampled == [a, b, c, b, c, a, c, a, b]


# a case, from its buffers to its row


def doubling(ours: Callable[[torch.Tensor, torch.Tensor], object], **peers: Callable[..., object]) -> Job:
    """out = 2 x over two copies, by `ours` and by peers, each of which writes (x, out)."""
    xs = [torch.randn(64) for _ in range(2)]

    def variant(function: Callable[..., object]) -> tuple[Variant, list[torch.Tensor]]:
        outs = [torch.full((64,), float("nan")) for _ in xs]
        calls = [lambda i=i: function(xs[i], outs[i]) for i in range(2)]
        return Variant(calls, lambda i: outs[i]), outs

    mine, outs = variant(ours)
    others = {name: variant(function) for name, function in peers.items()}

    def reset() -> None:
        for tensor in [*outs, *(out for _, made in others.values() for out in made)]:
            tensor.fill_(float("nan"))

    return Job(
        mine,
        {name: made for name, (made, _) in others.items()},
        lambda y, i: disagreement(y, 2 * xs[i]),
        reset,
    )


def double(x: torch.Tensor, out: torch.Tensor) -> None:
    torch.mul(x, 2, out=out)


def double_all_but_one(x: torch.Tensor, out: torch.Tensor) -> None:
    double(x, out)
    out[17] += 0.05


def broken(x: torch.Tensor, out: torch.Tensor) -> None:
    raise RuntimeError("no such kernel\nand a long trace")


def run_job(job: Job, name: str = "linear case", op: str = "linear") -> tuple[Row, FakeTimer]:
    timer = FakeTimer({job.ours.calls[0]: 2e-6, **{peer.calls[0]: 3e-6 for peer in job.peers.values()}})
    spec = Spec(op, name, 3_000_000, lambda copies: job, {"rows": 1, "weight_bytes": 70_000_000})
    return run_case(spec, timer, L2, BANDWIDTH, repeats=3), timer


def test_a_right_kernel_has_figures() -> None:
    row, _ = run_job(doubling(double, torch=double))
    assert (row.status, row.x) == ("ok", {"torch": pytest.approx(1.5)})
    assert (row.us, row.gb_s, row.share) == (pytest.approx(2.0), pytest.approx(1500), pytest.approx(0.5))
    line = format_row(row)
    assert "2.00" in line and "50.0%" in line and "1.50 torch (3.0)" in line


def test_a_wrong_kernel_is_refused_its_speed_up() -> None:
    row, timer = run_job(doubling(double_all_but_one, torch=double))
    assert row.status == "wrong" and "copy 0: error" in row.note
    assert (row.us, row.gb_s, row.share, row.x, row.peer_us) == (None, None, None, {}, {})
    assert not timer.sampled, "it was timed before it was compared"
    assert "WRONG" in format_row(row) and "1.50" not in format_row(row)


def test_an_output_that_is_not_written_is_wrong() -> None:
    row, _ = run_job(doubling(lambda x, out: None, torch=double))
    assert (row.status, row.note) == ("wrong", "copy 0: NaN or infinity")


def test_a_kernel_that_goes_wrong_while_it_is_timed_is_refused_too() -> None:
    calls = 0

    def later(x: torch.Tensor, out: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        (double if calls <= 6 else double_all_but_one)(x, out)

    row, timer = run_job(doubling(later, torch=double))
    assert timer.sampled and row.status == "wrong" and row.x == {}


def test_a_wrong_or_failing_peer_costs_only_its_own_figure() -> None:
    row, _ = run_job(doubling(double, wrong=double_all_but_one, failing=broken, torch=double))
    assert row.status == "ok" and set(row.x) == {"torch"}
    assert "error" in row.peer_notes["wrong"] and row.peer_notes["failing"] == "RuntimeError: no such kernel"


def spec_of(job: Callable[[], Job], name: str) -> Spec:
    tags = {"rows": 1, "weight_bytes": 70_000_000}
    return Spec("linear", name, 3_000_000, lambda copies: job(), tags)


class SteadyTimer(FakeTimer):
    def sample(self, prepared: Sequence[Call]) -> float:
        self.run(prepared)
        return 1.25e-6


def measured(jobs: dict[str, Callable[[], Job]], **options: Any) -> tuple[list[Row], list[Spec], list[str]]:
    lines: list[str] = []
    specs = [spec_of(job, name) for name, job in jobs.items()]
    arguments: dict[str, Any] = {"repeats": 2, "budget": 60.0, **options}
    rows, left = kernels.measure(specs, SteadyTimer({}), L2, BANDWIDTH, emit=lines.append, **arguments)
    return rows, left, lines


def test_a_case_that_fails_hides_no_other_and_makes_the_run_red() -> None:
    def refuse() -> Job:
        raise ValueError("linear: x has shape [1]")

    rows, left, lines = measured(
        {"a": refuse, "b": lambda: doubling(double_all_but_one), "c": lambda: doubling(double)}
    )
    assert [row.status for row in rows] == ["failed", "wrong", "ok"] and not left
    assert "FAILED: ValueError: linear: x has shape [1]" in lines[0]
    verdicts, text = kernels.report(rows, left)
    assert "RED, 2:" in text and "goals, stated for an H200" in text
    matmul = next(v for v in verdicts if v.goal is goals.GOALS[0])
    assert matmul.met is False and matmul.case == "a" and matmul.found is None


def test_what_the_budget_leaves_out_is_named() -> None:
    ticks = iter(range(0, 1000, 10))
    jobs = {name: lambda: doubling(double) for name in "abcd"}
    rows, left, _ = measured(jobs, budget=15.0, clock=lambda: float(next(ticks)))
    assert [row.name for row in rows] == ["a"] and [spec.name for spec in left] == ["b", "c", "d"]
    verdicts, text = kernels.report(rows, left)
    assert "left out for want of time, 3 (names in the JSON): linear 3" in text
    assert verdicts[0].met is not True, "a goal is not met by the cases that happened to run"


def test_every_case_but_whole_steps_is_compiled_by_one_worker() -> None:
    specs = kernels.all_specs()
    shares = [kernel_warmup.share(specs, index, 10) for index in range(10)]
    names = [spec.name for part in shares for spec in part]
    assert sorted(names) == sorted(spec.name for spec in specs if not spec.op.endswith("step"))
    assert max(map(len, shares)) < 3 * min(map(len, shares))
    [heads] = {index for index, part in enumerate(shares) for spec in part if "1B lm_head" in spec.name}
    assert sum("1B lm_head" in spec.name for spec in shares[heads]) == 4, "rows alone make no new kernel"


def test_workers_end_with_their_time(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text("import sys, time\nif '1/2' in sys.argv: time.sleep(60)\n")
    assert kernel_warmup.run_workers(script, [], 2, 1.5) < 10


# comparison


def test_roundings_agree_and_less_than_roundings_do_not() -> None:
    exact = torch.randn(5, 1000)
    assert disagreement(exact.bfloat16(), exact) is None
    assert disagreement(exact.half(), exact) is None
    assert disagreement(exact + 1e-6, exact) is None
    assert disagreement(exact.bfloat16().float(), exact), "a result in fp32 that went through bf16"
    assert disagreement((exact * 1.02).bfloat16(), exact)
    assert disagreement(exact[:4], exact) == "shape [4, 1000] instead of [5, 1000]"
    exact[3, 7] = 1.0
    missing = exact.clone()
    missing[3, 7] = 0
    assert disagreement(missing.bfloat16(), exact)


def test_integers_are_equal_or_wrong() -> None:
    assert disagreement(torch.tensor([1, 2]), torch.tensor([1, 2])) is None
    assert disagreement(torch.tensor([1, 3]), torch.tensor([1, 2])) == "1 of 2 values differ"


@pytest.mark.parametrize(("batch", "q_len"), [(1, 1), (2, 5)])
def test_attention_is_compared_with_attention(batch: int, q_len: int) -> None:
    """The bench's own formula, over pages in random order, against torch's on rows in order."""
    heads, kv_heads, head_dim, context = 4, 2, 16, 256
    q = torch.randn(batch, heads, q_len, head_dim)
    pages = torch.randperm(batch).int().view(batch, 1)
    blocks = batch * attention_cases.PER_PAGE
    caches = torch.randn(2, blocks, attention_cases.BLOCK_SIZE, kv_heads, head_dim)
    k, v = (attention_cases.gathered(cache, pages, context) for cache in caches)
    table = attention_cases.block_table_of(pages)
    row = caches[0][int(table[-1, 2]), 3, 1]
    assert torch.equal(k[-1, 1, 2 * attention_cases.BLOCK_SIZE + 3], row), (
        "the block table tells of the same memory"
    )
    mask = torch.ones(q_len, context, dtype=torch.bool).tril(context - q_len)
    expected = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    found = attention_cases.exact_attention(q, k, v, head_dim**-0.5)
    torch.testing.assert_close(found, expected.transpose(1, 2).reshape(-1, heads, head_dim))
