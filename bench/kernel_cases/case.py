"""One case of the kernel bench: an operator on some shape, its peers, and the order of checking and timing.

Knows operators only as calls and clocks only as a Timer. Outputs are compared before anything is timed, and
again after it: a case whose output is wrong has no figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch

from bench.harness.command import described
from bench.kernel_cases.timer import Call, Rotation, Timer, medians

OURS = "ours"
RMS_SLACK, MAX_SLACK = 3.0, 4.0  # how far beyond one rounding to the output's dtype
RMS_FLOOR, MAX_FLOOR = 1e-4, 1e-3  # for outputs in fp32, of the output's own size


@dataclass(frozen=True)
class Variant:
    """An implementation: one call for each rotated copy, and what call i has written; None: not compared."""

    calls: Sequence[Call]
    output: Callable[[int], torch.Tensor] | None = None


@dataclass(frozen=True)
class Job:
    """A case with its buffers in memory."""

    ours: Variant
    peers: Mapping[str, Variant]
    wrong: Callable[[torch.Tensor, int], str | None]  # (output, copy) -> how it departs from the reference
    reset: Callable[[], None] = lambda: None  # puts back what calls have changed, and spoils outputs
    repeatable: bool = True  # a call may run again without a reset and writes the same


NOTHING = -7  # what integer outputs are spoilt with


def spoil(tensors: Sequence[torch.Tensor]) -> None:
    """So that an output that no kernel writes is seen."""
    for tensor in tensors:
        tensor.fill_(float("nan") if tensor.is_floating_point() else NOTHING)


def job_of(
    run: Callable[[int], object],
    outs: Sequence[torch.Tensor],
    exact: Callable[[int], torch.Tensor],
    peers: Mapping[str, Variant] | None = None,
    *,
    output: Callable[[int], torch.Tensor] | None = None,
    reset: Callable[[], None] | None = None,
    repeatable: bool = True,
) -> Job:
    """run(i) writes outs[i], or what output(i) reads, which is compared with exact(i), computed once."""
    remembered = cache(exact)
    return Job(
        Variant([partial(run, i) for i in range(len(outs))], output or (lambda i: outs[i])),
        peers or {},
        lambda found, i: disagreement(found, remembered(i)),
        reset or (lambda: spoil(outs)),
        repeatable,
    )


@dataclass(frozen=True)
class Spec:
    """A case before its buffers are made."""

    op: str
    name: str
    num_bytes: int  # of one call: see traffic
    build: Callable[[int], Job]  # copies -> job
    tags: Mapping[str, Any] = field(default_factory=dict)
    quick: bool = False

    @property
    def all_tags(self) -> dict[str, Any]:
        return {"op": self.op, **self.tags}


@dataclass
class Row:
    """What became of a case. Figures are None unless status is "ok"."""

    name: str
    tags: dict[str, Any]
    num_bytes: int
    status: str = "ok"  # ok, wrong, failed
    note: str = ""
    us: float | None = None
    gb_s: float | None = None
    share: float | None = None  # of the copy bandwidth
    x: dict[str, float] = field(default_factory=dict)  # peer -> its time over ours
    peer_us: dict[str, float] = field(default_factory=dict)
    peer_notes: dict[str, str] = field(default_factory=dict)  # peers without a figure, and why
    cold: str = ""  # copies or flush

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def disagreement(found: torch.Tensor, exact: torch.Tensor) -> str | None:
    """How far `found` is from `exact`, if further than a few roundings to found's dtype; None if it isn't.

    exact: fp32 (or integers, which must be equal), of found's shape.
    """
    if found.shape != exact.shape:
        return f"shape {list(found.shape)} instead of {list(exact.shape)}"
    if not exact.is_floating_point():
        wrong = int((found != exact).sum())
        return f"{wrong} of {exact.numel()} values differ" if wrong else None
    if not bool(torch.isfinite(found).all()):
        return "NaN or infinity"
    exact = exact.float()
    error = (found.float() - exact).abs()
    rounding = (exact.to(found.dtype).float() - exact).abs()
    rms_limit = RMS_SLACK * rms(rounding) + RMS_FLOOR * rms(exact)
    max_limit = MAX_SLACK * float(rounding.max()) + MAX_FLOOR * float(exact.abs().max())
    if rms(error) <= rms_limit and float(error.max()) <= max_limit:
        return None
    return (
        f"error {rms(error):.2e} rms (limit {rms_limit:.2e}), {float(error.max()):.2e} at most "
        f"(limit {max_limit:.2e}), values {rms(exact):.2e} rms"
    )


def rms(x: torch.Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def first_wrong(variant: Variant, wrong: Callable[[torch.Tensor, int], str | None]) -> str | None:
    """How the output of the first or the last copy departs from the reference, or None."""
    if variant.output is None:
        return None
    for copy in dict.fromkeys((0, len(variant.calls) - 1)):
        reason = wrong(variant.output(copy), copy)
        if reason:
            return f"copy {copy}: {reason}"
    return None


def check(variant: Variant, job: Job, timer: Timer) -> str | None:
    """Runs the first and the last copy from a fresh state, and compares."""
    job.reset()
    timer.run([variant.calls[i] for i in dict.fromkeys((0, len(variant.calls) - 1))])
    return first_wrong(variant, job.wrong)


def prepare_peers(row: Row, job: Job, timer: Timer, rotation: Rotation) -> dict[str, Any]:
    """The peers that can be captured and write what the reference does; the others get a note."""
    prepared: dict[str, Any] = {}
    for name, variant in job.peers.items():
        try:
            ready = timer.prepare(variant.calls, rotation)
            reason = check(variant, job, timer)
        except Exception as error:  # a fault of a peer is reported, and costs only its figure
            reason = described(error)
        if reason is None:
            prepared[name] = ready
        else:
            row.peer_notes[name] = reason
    return prepared


def run_case(spec: Spec, timer: Timer, l2_bytes: int, bandwidth: float, repeats: int) -> Row:
    """Builds, compares, times in turns with the peers, compares again. bandwidth: bytes/s of a copy."""
    rotation = Rotation.of(spec.num_bytes, l2_bytes)
    row = Row(spec.name, spec.all_tags, spec.num_bytes)
    try:
        with torch.device(timer.device):
            job = spec.build(rotation.copies)
        row.cold = "flush" if rotation.flush else f"{len(job.ours.calls)} copies"
        ours = timer.prepare(job.ours.calls, rotation)
        reason = check(job.ours, job, timer)
        if reason is None:
            prepared = {OURS: ours, **prepare_peers(row, job, timer, rotation)}
            job.reset()
            seconds = medians(timer, prepared, repeats)
            reason = first_wrong(job.ours, job.wrong) if job.repeatable else check(job.ours, job, timer)
    except Exception as error:  # one case must not hide the others
        row.status, row.note = "failed", described(error)
        return row
    if reason is not None:
        row.status, row.note = "wrong", reason
        return row
    mine = seconds[OURS]
    row.us, row.gb_s = mine * 1e6, spec.num_bytes / mine / 1e9
    row.share = spec.num_bytes / mine / bandwidth
    row.peer_us = {name: t * 1e6 for name, t in seconds.items() if name != OURS}
    row.x = {name: t / mine for name, t in seconds.items() if name != OURS}
    return row


COLUMNS = f"{'case':<46} {'us':>9} {'GB/s':>7} {'% copy':>7}  x peer"


def format_row(row: Row) -> str:
    """case | us | GB/s | % of measured copy bandwidth | x peer."""
    if row.status != "ok":
        return f"{row.name:<46} {row.status.upper()}: {row.note}"
    assert row.us is not None and row.gb_s is not None and row.share is not None
    peers = [f"{x:.2f} {name} ({row.peer_us[name]:.1f})" for name, x in row.x.items()]
    peers += [f"{name}: {note}" for name, note in row.peer_notes.items()]
    return f"{row.name:<46} {row.us:>9.2f} {row.gb_s:>7.0f} {row.share:>7.1%}  {', '.join(peers) or '-'}"
