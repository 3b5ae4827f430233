"""verify: the rounds of pearl_rt.reference.round.decode, for many slots at once, each in a state of its
own."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from rows import poisoned

from pearl_rt.kernels.reference.verify import verify as reference
from pearl_rt.kernels.verify import verify as kernel
from pearl_rt.reference import round as definition
from pearl_rt.reference.judge import ReferenceJudge
from pearl_rt.reference.round import Limits, RoundState
from pearl_rt.state import BAD_LOGITS, IDLE, LENGTH, RING_HEADER, RUNNING, STOP, State

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")

REASONS = {"": RUNNING, "stop": STOP, "length": LENGTH}
RING = 3


@dataclass(frozen=True)
class Request:
    """One generation, its two models and its end."""

    prompt: tuple[int, ...]
    gamma: int
    max_total_len: int
    stop: tuple[int, ...]
    temperature: float
    seed: int
    vocab: int
    draft_vocab: int
    alike: float  # how near the draft is to the target

    def target(self, prefix: Any) -> np.ndarray:
        key = [self.seed, *(int(t) for t in prefix)]
        return np.random.default_rng(key).normal(0, 2, self.vocab).astype(np.float32)

    def draft(self, prefix: Any) -> np.ndarray:
        """The target's logits, disturbed; entries that the target lacks are NaN and never read."""
        noise = np.random.default_rng([1, self.seed, *(int(t) for t in prefix)]).normal(0, 2, self.vocab)
        row = np.full(self.draft_vocab, np.nan, dtype=np.float32)
        both = min(self.vocab, self.draft_vocab)
        row[:both] = (self.target(prefix) * self.alike + noise * (1 - self.alike))[:both]
        return row

    def drafted(self, prefix: Any) -> np.ndarray:
        return self.draft(prefix)[: self.vocab]

    def rounds(self, strategy: str, kind: str) -> list[definition.RoundResult]:
        judge = ReferenceJudge(kind, self.temperature, self.seed)
        limits = Limits(self.max_total_len, frozenset(self.stop))
        return definition.decode(self.target, self.drafted, self.prompt, strategy, self.gamma, limits, judge)


def requests(vocab: int, draft_vocab: int, gamma: int, count: int) -> list[Request]:
    rng = np.random.default_rng([vocab, gamma])
    out = []
    for i in range(count):
        prompt = tuple(int(t) for t in rng.integers(0, vocab, int(rng.choice([1, 2, 5]))))
        out.append(
            Request(
                prompt=prompt,
                gamma=int(rng.integers(1, gamma + 1)),
                max_total_len=len(prompt) + int(rng.choice([1, 2, 7, 12])),
                stop=tuple(int(t) for t in rng.integers(0, vocab, i % 3)),
                temperature=float(rng.choice([0.0, 0.5, 1.0])),
                seed=i,
                vocab=vocab,
                draft_vocab=draft_vocab,
                alike=float(rng.choice([0.0, 0.7, 1.0])),
            )
        )
    return out


class Host:
    """The other steps of a round, in numpy: start, draft and score for every running slot."""

    def __init__(
        self, jobs: list[Request], strategy: str, kind: str, gamma: int, device: torch.device
    ) -> None:
        self.jobs, self.strategy, self.kind = jobs, strategy, kind
        size = max(job.max_total_len for job in jobs) + 2 * gamma + 1
        vocab, draft_vocab = jobs[0].vocab, jobs[0].draft_vocab
        self.state = s = State.allocate(len(jobs), gamma, size, vocab, draft_vocab, 2, RING, device)
        for tensor in (s.token_ids, s.draft_token_ids):
            tensor.fill_(2147480000)
        for tensor in (s.target_logits, s.draft_logits):
            tensor.fill_(float("nan"))
        self.workspace = poisoned(kernel.workspace_size(len(jobs), gamma, vocab, kind), device)

    def start(self, b: int) -> None:
        s, job = self.state, self.jobs[b]
        s.token_ids[b, : len(job.prompt)] = torch.tensor(job.prompt, dtype=torch.int32)
        s.prompt_len[b] = s.committed[b] = len(job.prompt)
        s.max_total_len[b], s.gamma[b] = job.max_total_len, job.gamma
        s.temperature[b], s.seed[b] = job.temperature, job.seed
        s.stop_token_ids[b, : len(job.stop)] = torch.tensor(job.stop, dtype=torch.int32)
        s.finish_reason[b] = RUNNING

    def fill(self) -> None:
        """What draft and score leave behind. In the first round there is no window, but one from long ago."""
        s = self.state
        for b in (s.finish_reason == RUNNING).nonzero()[:, 0].tolist():
            job, number = self.jobs[b], int(s.round[b])
            state = RoundState(int(s.committed[b]), int(s.pending[b]))
            todo = definition.plan(self.strategy, state, job.gamma, job.max_total_len)
            if number == 0:
                todo = definition.RoundPlan(0, 0, True)
            judge = ReferenceJudge(self.kind, job.temperature, job.seed)
            tokens = s.token_ids[b, : state.committed + state.pending].tolist()
            for j in range(todo.window):
                row = job.draft(tokens)
                s.draft_logits[b, len(tokens) % s.draft_logits.shape[1]] = torch.from_numpy(row)
                tokens.append(judge.draft_token(row[: job.vocab], tokens))
                s.draft_token_ids[b, j] = tokens[-1]
            s.num_draft_tokens[b] = todo.window if number else 2
            s.num_rows[b] = todo.num_rows
            for r in range(todo.num_rows):
                s.target_logits[b, r] = torch.from_numpy(job.target(tokens[: state.committed + r]))

    def entry(self, b: int, number: int) -> dict[str, Any]:
        row = self.state.ring[number % RING, b].tolist()
        names = ("round", "accept_len", "num_judged", "pending_before", "finish_reason", "num_new")
        entry: dict[str, Any] = dict(zip(names, row, strict=False))
        entry["token_ids"] = tuple(row[RING_HEADER : RING_HEADER + entry["num_new"]])
        return entry


def snapshot(state: State) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in vars(state).items()}


def check_rounds(jobs: list[Request], strategy: str, kind: str, gamma: int, device: torch.device) -> Host:
    """Every round of every job is what the definition's decoder gives, entry and state."""
    host = Host(jobs, strategy, kind, gamma, device)
    want = [job.rounds(strategy, kind) for job in jobs]
    s = host.state
    starts = [b % 3 for b in range(len(jobs))]  # slots start one after another
    for turn in range(max(map(len, want)) + 2):
        for b, at in enumerate(starts):
            if at == turn:
                host.start(b)
        host.fill()
        numbers, running = s.round.tolist(), (s.finish_reason == RUNNING).tolist()
        before = snapshot(s)
        torch.ops.pearl_rt.verify(*s.verify_arguments(), kind, host.workspace)
        for b, number in enumerate(numbers):
            if not running[b]:
                for name, tensor in vars(s).items():
                    at = (slice(None), b) if name == "ring" else b
                    assert torch.equal(tensor[at].nan_to_num(), before[name][at].nan_to_num()), name
                continue
            result, got = want[b][number], host.entry(b, number)
            assert got["round"] == number
            assert REASONS[result.finish_reason] == got.pop("finish_reason") == int(s.finish_reason[b])
            for name in ("accept_len", "num_judged", "pending_before", "token_ids"):
                assert got[name] == getattr(result, name), (b, number, name)
            committed = len(jobs[b].prompt) + sum(len(r.token_ids) for r in want[b][: number + 1])
            assert int(s.committed[b]) == committed
            text = jobs[b].prompt + sum((r.token_ids for r in want[b][: number + 1]), ())
            assert tuple(s.token_ids[b, :committed].tolist()) == text
            assert int(s.round[b]) == number + 1
    assert [len(w) for w in want] == s.round.tolist() and (s.finish_reason > RUNNING).all()
    return host


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rejection", "coupled"])
@pytest.mark.parametrize(
    "strategy, gamma, vocab, draft_vocab",
    [
        ("ar", 3, 12, 16),  # which has no window
        *((name, *sizes) for name in ("sd", "pearl") for sizes in ((1, 7, 7), (3, 12, 16), (4, 12, 9))),
    ],
)
def test_rounds_are_the_decoders(
    strategy: str, kind: str, gamma: int, vocab: int, draft_vocab: int, device: torch.device
) -> None:
    host = check_rounds(requests(vocab, draft_vocab, gamma, 8), strategy, kind, gamma, device)
    assert len(set(host.state.finish_reason.tolist())) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rejection", "coupled"])
@pytest.mark.parametrize("gamma", [8, 15, 16])
def test_long_windows(gamma: int, kind: str, device: torch.device) -> None:
    """Of the whole length, and of less, beside each other; long stretches of them stand."""
    jobs = [
        replace(job, gamma=gamma - i, max_total_len=len(job.prompt) + 2 * gamma + i, stop=(), alike=alike)
        for i, (job, alike) in enumerate(zip(requests(12, 12, gamma, 4), (1.0, 1.0, 0.7, 1.0), strict=True))
    ]
    host = check_rounds(jobs, "pearl", kind, gamma, device)
    accepted = [host.entry(0, int(host.state.round[0]) - 1 - back)["accept_len"] for back in range(2)]
    assert max(accepted) >= gamma - 1


@pytest.mark.parametrize("kind", ["rejection", "coupled"])
def test_against_the_reference(kind: str, device: torch.device) -> None:
    """All state after each round, with thresholds, and with rows that cannot be used."""
    jobs = requests(20, 20, 3, 10)
    host = Host(jobs, "pearl", kind, 3, device)
    for b in range(8):
        host.start(b)
    s = host.state
    for turn in range(6):
        host.fill()
        if turn == 3:
            s.target_logits[0, 0, 5] = float("nan")
            s.target_logits[1, 0] = -float("inf")
            s.target_logits[2, 0, 19] = float("inf")
        other = State(**snapshot(s))
        more = (
            s.target_logits.nan_to_num(0).amax(2) - 2.5,
            s.draft_logits.nan_to_num(0).amax(2) - 2.5,
        )
        kernel.verify(*s.verify_arguments(), kind, host.workspace, *more)
        reference.verify(*other.verify_arguments(), kind, host.workspace, *more)
        for name, tensor in vars(s).items():
            if name == "token_ids":
                for b, n in enumerate((s.committed + s.pending).tolist()):
                    assert torch.equal(tensor[b, :n], other.token_ids[b, :n]), (turn, b)
            elif name == "ring":
                for number in range(RING):
                    for b in range(len(jobs)):
                        size = RING_HEADER + max(int(tensor[number, b, 5]), 0)
                        if tensor[number, b, 4] == BAD_LOGITS:
                            size += int(tensor[number, b, 1]) + 1
                        assert torch.equal(tensor[number, b, :size], other.ring[number, b, :size])
            else:
                assert torch.equal(tensor.nan_to_num(), getattr(other, name).nan_to_num()), (turn, name)
    assert (s.finish_reason == BAD_LOGITS).sum() >= 1
    assert (s.finish_reason[8:] == IDLE).all()


@pytest.mark.slow
def test_a_slot_does_not_depend_on_its_company(device: torch.device) -> None:
    jobs = requests(12, 12, 3, 8)
    for kind in ("rejection", "coupled"):
        together, alone = Host(jobs, "sd", kind, 3, device), Host(jobs[5:6], "sd", kind, 3, device)
        for b in range(8):
            together.start(b)
        alone.start(0)
        for number in range(4):
            for host in (together, alone):
                host.fill()
                kernel.verify(*host.state.verify_arguments(), kind, host.workspace)
            assert together.entry(5, number) == alone.entry(0, number)


def test_opcheck_and_wrong_arguments(device: torch.device) -> None:
    jobs = requests(12, 12, 2, 2)
    host = Host(jobs, "pearl", "rejection", 2, device)
    host.start(0)
    host.fill()
    for tensor in (host.state.target_logits, host.state.draft_logits):
        tensor.nan_to_num_(0)
    good = [*host.state.verify_arguments(), "rejection", host.workspace]
    torch.library.opcheck(torch.ops.pearl_rt.verify.default, tuple(good))
    for place, wrong, said in (
        (0, host.state.target_logits.repeat(1, 2, 1)[:, :3], "rows must lie evenly"),
        (1, host.state.draft_logits[:, :3], "draft_logits has shape"),
        (3, host.state.committed.long(), "committed is torch.int64"),
        (7, host.state.ring[..., :-1].contiguous(), "ring has shape"),
        (7, host.state.ring[:0], "ring has 0 rounds"),
        (15, "greedy", "kind is 'greedy'"),
        (16, host.workspace[:16], "workspace has 16 bytes"),
    ):
        args = list(good)
        args[place] = wrong
        with pytest.raises(ValueError, match=said):
            kernel.verify(*args)
