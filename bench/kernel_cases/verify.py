"""Cases of sampling, of judging, and of verify, which judges and commits: what a step does with its logits.

Logits are what has to be cold: each rotated copy has its own. Draft and target agree as a good pair does, so
that a window usually ends with a rejection, whose recovered token has to be drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import product
from typing import Any

import torch

from bench.kernel_cases import judge_peers, peers, traffic
from bench.kernel_cases.case import NOTHING, Job, Spec, Variant, job_of
from bench.kernel_cases.linear import random, workspace

BATCHES, GAMMAS, VOCABS = (1, 8, 32), (4, 8), (32000, 128256)
QUICK_BATCHES = (1, 8)
SPREAD, NOISE = 2.0, 0.2  # deviations of logits: over the vocabulary, and of a row from what rows share
TEMPERATURE = 0.8
TOP_K, TOP_P = 50, 0.9
TARGET = 4  # the purpose of noise that draft and target share
POSITION = 1000
CAPACITY = 1 << 15  # tokens of a slot: more than it can commit while it is timed
RUNNING = 1  # finish_reason


def filled(size: int, value: float, dtype: torch.dtype) -> torch.Tensor:
    return torch.full((size,), value, dtype=dtype)


def on_reference(room: str, op: str, *arguments: object) -> None:
    """The operator's definition, on the same tensors."""
    getattr(import_module(f"pearl_rt.kernels.reference.{room}.{op}"), op)(*arguments)


def against_reference(
    op: Callable[..., object],
    arguments: Callable[[int, torch.Tensor], tuple[object, ...]],
    outs: Sequence[torch.Tensor],
    others: Mapping[str, Variant],
) -> Job:
    """arguments: of a call, by copy and output. The exact output is the definition's."""

    def exact(i: int) -> torch.Tensor:
        out = torch.empty_like(outs[i])
        on_reference(op.__module__.split(".")[2], op.__name__, *arguments(i, out))
        return out

    ready = [arguments(i, out) for i, out in enumerate(outs)]
    return job_of(lambda i: op(*ready[i]), outs, exact, others)


def sample_job(copies: int, rows: int, vocab: int) -> Job:
    op = import_module("pearl_rt.kernels.sampling.sample")
    logits = [random(rows, vocab, dtype=torch.float32, scale=SPREAD) for _ in range(copies)]
    temperature = filled(rows, TEMPERATURE, torch.float32)
    seed, positions = torch.arange(rows, dtype=torch.int64), filled(rows, POSITION, torch.int64)
    space = workspace(op.workspace_size(rows, vocab))
    others = {"torch": Variant(peers.torch_call(peers.sample, [(row, TEMPERATURE) for row in logits]).calls)}

    def arguments(i: int, out: torch.Tensor) -> tuple[object, ...]:
        return logits[i], temperature, seed, positions, TARGET, out, None, space

    outs = [filled(rows, NOTHING, torch.int32) for _ in range(copies)]
    return against_reference(op.sample, arguments, outs, others)


def filters_job(copies: int, rows: int, vocab: int) -> Job:
    op = import_module("pearl_rt.kernels.sampling.filters")
    logits = [random(rows, vocab, dtype=torch.float32, scale=SPREAD) for _ in range(copies)]
    temperature = filled(rows, TEMPERATURE, torch.float32)
    top_k, top_p = filled(rows, TOP_K, torch.int32), filled(rows, TOP_P, torch.float32)
    space = workspace(op.workspace_size(rows, vocab))
    given = [(row, TEMPERATURE, TOP_K, TOP_P) for row in logits]
    others = {"torch": peers.torch_call(peers.filter_thresholds, given)}

    def arguments(i: int, out: torch.Tensor) -> tuple[object, ...]:
        return logits[i], temperature, top_k, top_p, None, out, space

    outs = [filled(rows, NOTHING, torch.float32) for _ in range(copies)]
    return against_reference(op.filters, arguments, outs, others)


class Windows:
    """B windows of gamma draft tokens, with the logits of both models; the target has one row more.

    All rows of a sequence are nearly the same, so that they agree wherever a window begins.
    """

    def __init__(self, batch: int, gamma: int, vocab: int) -> None:
        self.batch, self.gamma, self.vocab = batch, gamma, vocab
        row = random(batch, 1, vocab, dtype=torch.float32, scale=SPREAD)
        self.target = row + random(batch, gamma + 1, vocab, dtype=torch.float32, scale=NOISE)
        self.draft = row + random(batch, gamma, vocab, dtype=torch.float32, scale=NOISE)
        law = (self.draft.flatten(0, 1) / TEMPERATURE).softmax(-1)
        self.tokens = torch.multinomial(law, 1).view(batch, gamma).int()


def judge_job(copies: int, batch: int, gamma: int, vocab: int, kind: str) -> Job:
    op = import_module("pearl_rt.kernels.verify.judge")
    windows = [Windows(batch, gamma, vocab) for _ in range(copies)]
    with_draft = kind == "rejection"
    rows = batch * (gamma + 1)
    lengths = filled(batch, gamma, torch.int32)
    starts = torch.arange(batch + 1, dtype=torch.int32) * (gamma + 1)
    positions = POSITION + torch.arange(rows, dtype=torch.int64) % (gamma + 1)
    temperature, seed = filled(batch, TEMPERATURE, torch.float32), torch.arange(batch, dtype=torch.int64)
    outs = [torch.full((3, batch), NOTHING, dtype=torch.int32) for _ in range(copies)]
    space = workspace(op.workspace_size(batch, gamma, vocab, kind))

    def arguments(i: int, out: torch.Tensor) -> tuple[object, ...]:
        own = windows[i]
        draft = own.draft if with_draft else None
        target = own.target.view(rows, vocab)
        inputs = (target, draft, own.tokens, lengths, starts, positions, temperature, seed, kind)
        return (*inputs, out[0], out[1], out[2], space)

    others = judge_peers.judges(windows, positions, temperature, seed) if with_draft else {}
    return against_reference(op.judge, arguments, outs, others)


def make_state(windows: Windows) -> Any:
    """The state of slots that are about to judge these windows, as serial speculation does."""
    states = import_module("pearl_rt.state")
    batch, gamma, vocab = windows.batch, windows.gamma, windows.vocab
    state = states.State.allocate(batch, gamma, CAPACITY, vocab, vocab, 2, 8, device=windows.target.device)
    state.target_logits.copy_(windows.target)
    ring = state.draft_logits.shape[1]  # the row of a position is position % ring
    state.draft_logits.copy_(windows.draft[:, (torch.arange(ring) - POSITION) % ring % gamma])
    state.draft_token_ids.copy_(windows.tokens)
    state.num_draft_tokens.fill_(gamma)
    state.num_rows.fill_(gamma + 1)
    state.max_total_len.fill_(CAPACITY)
    state.temperature.fill_(TEMPERATURE)
    state.seed.copy_(torch.arange(batch))
    begin(state)
    return state


def begin(state: Any) -> None:
    """Puts back what verify has changed."""
    state.token_ids.zero_()
    state.committed.fill_(POSITION)
    state.pending.zero_()
    state.finish_reason.fill_(RUNNING)
    state.round.fill_(1)


def committed(state: Any) -> torch.Tensor:
    """What verify decided: lengths, finish, round, and the tokens from POSITION on that count."""
    end = (state.committed + state.pending)[:, None]
    place = torch.arange(POSITION, POSITION + state.target_logits.shape[1], device=end.device)[None, :]
    tokens = torch.where(place < end, state.token_ids.gather(1, place.expand(end.shape[0], -1)), 0)
    numbers = torch.stack((state.committed, state.pending, state.finish_reason, state.round), dim=1)
    return torch.cat((numbers, tokens), dim=1)


def verify_job(copies: int, batch: int, gamma: int, vocab: int, kind: str) -> Job:
    """Every call commits, so that slots move on while they are timed; they never end."""
    op = import_module("pearl_rt.kernels.verify.verify")
    states = [make_state(Windows(batch, gamma, vocab)) for _ in range(copies)]
    space = workspace(op.workspace_size(batch, gamma, vocab, kind))

    def arguments(state: Any) -> tuple[object, ...]:
        return (*state.verify_arguments(), kind, space)

    ready = [arguments(state) for state in states]

    def reset() -> None:
        for state in states:
            if bool((state.finish_reason != RUNNING).any()):
                raise RuntimeError("slots ended while they were timed: fewer repeats, or a larger CAPACITY")
            begin(state)

    def exact(i: int) -> torch.Tensor:
        small = {name: tensor.clone() for name, tensor in vars(states[i]).items() if "logits" not in name}
        own = replace(states[i], **small)
        begin(own)
        on_reference("verify", "verify", *arguments(own))
        return committed(own)

    outs = [state.token_ids for state in states]
    return job_of(
        lambda i: op.verify(*ready[i]),
        outs,
        exact,
        output=lambda i: committed(states[i]),
        reset=reset,
        repeatable=False,
    )


def window_specs() -> Iterator[Spec]:
    """Judging alone by rejection, which is what peers do, and whole rounds of both kinds."""
    forms = (judge_job, "rejection"), (verify_job, "rejection"), (verify_job, "coupled")
    for (job, kind), batch, gamma, vocab in product(forms, BATCHES, GAMMAS, VOCABS):
        op = "judge" if job is judge_job else "verify"
        yield Spec(
            op,
            f"{op} {kind} B{batch} gamma{gamma} V{vocab}",
            traffic.verify(batch, gamma, vocab, draft=kind == "rejection"),
            partial(job, batch=batch, gamma=gamma, vocab=vocab, kind=kind),
            {"batch": batch, "gamma": gamma, "vocab": vocab, "kind": kind},
            quick=batch in QUICK_BATCHES and gamma == 8 and vocab == 128256,
        )


def row_specs() -> Iterator[Spec]:
    forms = ("sample", sample_job, ""), ("filters", filters_job, f" top_k {TOP_K} top_p {TOP_P}")
    for (op, job, words), rows, vocab in product(forms, (1, 8), VOCABS):
        yield Spec(
            op,
            f"{op} R{rows} V{vocab}{words}",
            traffic.sample(rows, vocab),
            partial(job, rows=rows, vocab=vocab),
            {"rows": rows, "vocab": vocab},
            quick=vocab == 128256,
        )


def specs() -> list[Spec]:
    return [*window_specs(), *row_specs()]
