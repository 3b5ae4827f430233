"""judge: the numpy definition's verdicts, ragged batches of every kind of row, and the law of what is
committed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from chi_square import FALSE_ALARM, p_value
from logit_rows import SHAPES, row_of
from rows import Canary, poisoned

from pearl_rt.kernels.reference.verify import judge as reference
from pearl_rt.kernels.sampling import sample as sampling
from pearl_rt.kernels.verify import judge as kernel
from pearl_rt.kernels.verify.phases import KINDS
from pearl_rt.reference import judge as definition
from pearl_rt.reference.noise import Purpose
from pearl_rt.reference.round import Verdict

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")

TEMPERATURES = (0.0, 1e-5, 0.3, 1.0, 7.0)


@dataclass
class Batch:
    """Sequences, one by one; `run` makes them ragged tensors in a shuffled slot order."""

    vocab: int
    draft_vocab: int
    most: int  # the longest window
    target: list[np.ndarray] = field(default_factory=list)
    draft: list[np.ndarray] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    temperature: list[float] = field(default_factory=list)
    seed: list[int] = field(default_factory=list)

    def add(
        self, target: Any, draft: Any, ids: list[int], position: int, temperature: float, seed: int
    ) -> None:
        self.target.append(np.asarray(target, dtype=np.float32).reshape(-1, self.vocab))
        self.draft.append(np.asarray(draft, dtype=np.float32).reshape(-1, self.draft_vocab))
        self.ids.append([int(i) for i in ids])
        self.position.append(position)
        self.temperature.append(temperature)
        self.seed.append(seed)

    def want(self, b: int, kind: str) -> Verdict:
        return definition.judge(
            self.target[b],
            self.draft[b],
            self.ids[b],
            self.position[b],
            self.temperature[b],
            self.seed[b],
            kind,
        )

    def arguments(self, device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        """Everything but kind, outputs and workspace. What may not be read is NaN, or an id far outside."""
        sequences = len(self.ids)
        slot = np.random.default_rng(sequences).permutation(sequences + 2)[:sequences]
        draft = np.full((sequences + 2, self.most, self.draft_vocab), np.nan, dtype=np.float32)
        ids = np.full((sequences, self.most), 2147480000, dtype=np.int32)
        temperature, seed = np.full(sequences + 2, np.nan, np.float32), np.zeros(sequences + 2, np.int64)
        for b in range(sequences):
            draft[slot[b], : len(self.draft[b])] = self.draft[b]
            ids[b, : len(self.ids[b])] = self.ids[b]
            temperature[slot[b]], seed[slot[b]] = self.temperature[b], self.seed[b]
        rows = [len(t) for t in self.target]
        positions = [p + i for p, n in zip(self.position, rows, strict=True) for i in range(n)]
        tensors = {
            "target_logits": np.concatenate(self.target),
            "draft_logits": draft,
            "draft_token_ids": ids,
            "num_draft_tokens": np.array([len(i) for i in self.ids], dtype=np.int32),
            "cu_num_logits": np.cumsum([0, *rows], dtype=np.int32),
            "positions": np.array(positions, dtype=np.int64),
            "temperature": temperature,
            "seed": seed,
            "idx_mapping": slot.astype(np.int32),
        }
        moved = {name: torch.from_numpy(array).to(device) for name, array in tensors.items()}
        for name in ("target_logits", "draft_logits"):
            moved[name] = moved[name].to(dtype)
        return moved


def run(kind: str, **args: Any) -> list[Verdict]:
    """Through the operator, into guarded tensors, with a workspace of NaN."""
    device = args["target_logits"].device
    sequences, most = args["draft_token_ids"].shape
    outputs = [Canary(sequences, device=device) for _ in range(3)]
    size = kernel.workspace_size(sequences, most, args["target_logits"].shape[1], kind)
    torch.ops.pearl_rt.judge(
        **args,
        kind=kind,
        accept_len=outputs[0].tensor,
        next_token=outputs[1].tensor,
        bad_row=outputs[2].tensor,
        workspace=poisoned(size, device),
    )
    for output in outputs:
        output.check()
    return [Verdict(*row) for row in zip(*(output.tensor.tolist() for output in outputs), strict=True)]


def random_batch(vocab: int, draft_vocab: int, sequences: int, most: int, seed: int, kind: str) -> Batch:
    """Windows of 0 to `most`, with and without bonus; drafts from equal to opposite; all shapes of rows."""
    rng = np.random.default_rng(seed)
    batch = Batch(vocab, draft_vocab, most)
    both = min(vocab, draft_vocab)
    for b in range(sequences):
        num_draft = int(rng.integers(0, most + 1))
        bonus = bool(rng.integers(2)) or num_draft == 0
        shape, temperature = str(rng.choice(SHAPES)), float(rng.choice(TEMPERATURES))
        target = np.stack([row_of(shape, vocab, rng) for _ in range(num_draft + bonus)])
        drafted = np.full((num_draft, draft_vocab), np.nan, dtype=np.float32)
        drafted[:, :both] = target[:num_draft, :both]
        if b % 4 == 1:
            drafted += rng.normal(0, 1, drafted.shape).astype(np.float32)
        elif b % 4 == 2:
            drafted = np.where(np.isfinite(drafted), -drafted, np.where(np.isnan(drafted), np.nan, 0))
        elif b % 4 == 3:
            drafted *= 0.9
        drafted[:, :both] = np.nan_to_num(drafted[:, :both], nan=0.0, neginf=-np.inf, posinf=3e38)
        drafted[:, 0] = np.where(np.isfinite(drafted[:, :both]).any(1), drafted[:, 0], 0.0)
        position, key = int(rng.integers(0, 2**33)), int(rng.integers(-(2**62), 2**62))
        purpose = Purpose.DRAFT if kind == "rejection" else Purpose.TARGET
        ids = [
            definition.sample(row[:both].astype(np.float32), temperature, key, position + i, purpose)
            for i, row in enumerate(drafted)
        ]
        batch.add(target, drafted, ids, position, temperature, key)
    return batch


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab, draft_vocab", [(1, 1), (16, 16), (111, 128), (128, 100), (5000, 4500)])
def test_ragged_batches(kind: str, vocab: int, draft_vocab: int, device: torch.device) -> None:
    batch = random_batch(vocab, draft_vocab, 60 if vocab < 1000 else 10, 4, vocab, kind)
    got = run(kind, **batch.arguments(device))
    for b, verdict in enumerate(got):
        assert verdict == batch.want(b, kind), (b, batch.temperature[b])
    assert vocab == 1 or len({verdict.accept_len for verdict in got}) > 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [8, 15, 16])
def test_long_ragged_windows(kind: str, most: int, device: torch.device) -> None:
    """Drafts that are the target's, so that long windows stand whole, beside others that do not."""
    batch = random_batch(40, 40, 24, most, most, kind)
    got = run(kind, **batch.arguments(device))
    assert got == [batch.want(b, kind) for b in range(24)]
    assert max(verdict.accept_len for verdict in got) >= most - 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab", [8193, 32000, 128256, 151936])
def test_large_vocabularies(kind: str, vocab: int, device: torch.device) -> None:
    """One draft row and one bonus row, fp16."""
    rng = np.random.default_rng(vocab)
    batch = Batch(vocab, vocab, 1)
    target = (rng.normal(0, 2, (2, vocab))).astype(np.float16).astype(np.float32)
    draft = (target[:1] + rng.normal(0, 1, (1, vocab))).astype(np.float16).astype(np.float32)
    purpose = Purpose.DRAFT if kind == "rejection" else Purpose.TARGET
    batch.add(target, draft, [definition.sample(draft[0], 0.7, 5, 77, purpose)], 77, 0.7, 5)
    assert run(kind, **batch.arguments(device, torch.float16)) == [batch.want(0, kind)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_definition(kind: str, device: torch.device) -> None:
    batch = random_batch(33, 40, 40, 3, 5, kind)
    out = torch.zeros(3, 40, dtype=torch.int32, device=device)
    args = batch.arguments(device)
    reference.judge(**args, kind=kind, accept_len=out[0], next_token=out[1], bad_row=out[2], workspace=out)
    assert [Verdict(*row) for row in out.t().tolist()] == [batch.want(b, kind) for b in range(40)]


@pytest.mark.parametrize("kind", KINDS)
def test_against_the_reference_with_thresholds_certain_drafts_and_scaled_targets(
    kind: str, device: torch.device
) -> None:
    batch = random_batch(111, 111, 24, 4, 8, kind)
    batch.target = [np.where(np.abs(t) < 1e30, t, np.sign(t) * 9) for t in batch.target]
    args = batch.arguments(device)
    top = args["target_logits"].float().amax(1)
    extra = {"target_thresholds": top - 3, "draft_thresholds": args["draft_logits"].nan_to_num(0).amax(2) - 2}
    for more in (extra, {"target_is_scaled": True}, {"draft_logits": None}):
        given = {**args, **more}
        out = torch.zeros(3, 24, dtype=torch.int32, device=device)
        reference.judge(
            **given, kind=kind, accept_len=out[0], next_token=out[1], bad_row=out[2], workspace=out
        )
        got = run(kind, **given)
        assert got == [Verdict(*row) for row in out.t().tolist()], more.keys()
        assert len({verdict.accept_len for verdict in got}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("others", [1, 4, 15, 63])
def test_a_sequence_does_not_depend_on_its_company(kind: str, others: int, device: torch.device) -> None:
    def batch_of(count: int) -> Batch:
        rng = np.random.default_rng(3)
        batch = Batch(300, 300, 3)
        rows = [(rng.normal(0, 1, (4, 300)), rng.normal(0, 1, (3, 300))) for _ in range(64)]
        for i in range(count - 1, -1, -1):
            ids = [int(np.argmax(row)) for row in rows[i][1]]
            batch.add(rows[i][0] + 4 * (rows[i][1] > 2.5).any(), rows[i][1], ids, i, 2.0, i + 9)
        return batch

    alone = run(kind, **batch_of(1).arguments(device))
    assert run(kind, **batch_of(others + 1).arguments(device))[-1:] == alone


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf], ids=["nan", "-nan", "inf"])
def test_what_cannot_be_used_is_named(kind: str, bad: float, device: torch.device) -> None:
    """A bad target row, draft row or candidate, a row of nothing; at temperature 0 and 1, in each place."""
    batch = Batch(40, 40, 3)
    for temperature in (0.0, 1.0):
        for row in range(4):
            for place in (0, 20, 39):
                target, draft = np.zeros((4, 40)), np.zeros((3, 40))
                target[:, 7] = draft[:, 7] = 60
                target[row, place] = bad
                batch.add(target, draft, [7, 7, 7], 5, temperature, 1)
        target, draft = np.zeros((4, 40)), np.zeros((3, 40))
        target[:, 7] = draft[:, 7] = 60
        nothing = target.copy()
        nothing[2] = -np.inf
        batch.add(nothing, draft, [7, 7, 7], 5, temperature, 1)
        spoilt = draft.copy()
        spoilt[1, 3] = bad
        batch.add(target, spoilt, [7, 7, 7], 5, temperature, 1)
        for candidate in (-1, 40, 2147480000):
            batch.add(target, draft, [7, candidate, 7], 5, temperature, 1)
    got = run(kind, **batch.arguments(device))
    assert got == [batch.want(b, kind) for b in range(len(got))]
    assert {verdict.bad_row for verdict in got} == {-1, 0, 1, 2, 3}


def test_rows_behind_a_rejection_are_not_read(device: torch.device) -> None:
    for kind in KINDS:
        batch = Batch(8, 8, 2)
        for temperature in (0.0, 1.0):
            target = np.full((3, 8), np.nan)
            target[0] = 0
            target[0, 5] = 60
            batch.add(target, np.zeros((2, 8)), [2, 2], 5, temperature, 1)
        assert run(kind, **batch.arguments(device)) == [Verdict(0, 5)] * 2


def test_nothing_left_of_the_residual_still_gives_a_token(device: torch.device) -> None:
    """Equal rows, and a candidate that the target cannot say: max(p - q, 0) is 0 everywhere."""
    row = [1.0, -np.inf, 0.5, 0.0]
    batch = Batch(4, 4, 1)
    for seed in range(300):
        batch.add([row], [row], [1], 9, 1.0, seed)
    got = run("rejection", **batch.arguments(device))
    assert got == [batch.want(b, "rejection") for b in range(300)]
    assert {verdict.next_token for verdict in got} == {0, 2, 3}


def fixed_rows(
    target: np.ndarray, draft: np.ndarray, k: int, runs: int, device: torch.device
) -> dict[str, Any]:
    """`runs` sequences of k draft tokens and a bonus row over the same two distributions, seeds from 0 on,
    drafts sampled by the kernel with their own purpose. Target rows lie at stride 0."""
    seeds = torch.arange(runs, device=device)
    rows = torch.from_numpy(draft).float().to(device).expand(runs * k, len(draft))
    positions = torch.arange(k + 1, device=device).repeat(runs) + 1
    drafted = positions.view(runs, k + 1)[:, :k].reshape(-1)
    ids = torch.zeros(runs * k, dtype=torch.int32, device=device)
    space = poisoned(sampling.workspace_size(runs * k, len(draft)), device)
    ones = torch.ones(runs * k, device=device)
    sampling.sample(rows, ones, seeds.repeat_interleave(k), drafted.contiguous(), 0, ids, None, space)
    return {
        "target_logits": torch.from_numpy(target).float().to(device).expand(runs * (k + 1), len(target)),
        "draft_logits": torch.from_numpy(draft).float().to(device).expand(runs, k, len(draft)),
        "draft_token_ids": ids.view(runs, k),
        "num_draft_tokens": torch.full((runs,), k, dtype=torch.int32, device=device),
        "cu_num_logits": torch.arange(runs + 1, dtype=torch.int32, device=device) * (k + 1),
        "positions": positions,
        "temperature": torch.ones(runs, device=device),
        "seed": seeds,
    }


def tokens_at(args: dict[str, Any], verdicts: list[Verdict], place: int) -> list[int]:
    """What was committed at a place, in the sequences that came so far."""
    ids = args["draft_token_ids"].tolist()
    return [
        ids[b][place] if place < v.accept_len else v.next_token
        for b, v in enumerate(verdicts)
        if place <= v.accept_len
    ]


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("draft", ["opposite", "near"])
def test_the_law_at_every_position(
    k: int, draft: str, device: torch.device, trials: Callable[[int], int]
) -> None:
    """V = 16; drafting from the opposite of the target's logits exposes noise that draft and residual share.
    False alarm 1e-4 for each position, had the seeds not been fixed."""
    rng = np.random.default_rng(k)
    target = rng.normal(0, 1, 16)
    drafted = -target if draft == "opposite" else target + rng.normal(0, 0.5, 16)
    runs = trials(12_000)
    args = fixed_rows(target, drafted, k, runs, device)
    verdicts = run("rejection", **args)
    law = np.exp(target) / np.exp(target).sum()
    for place in range(k + 1):
        got = tokens_at(args, verdicts, place)
        if len(got) < 300 and runs < 12_000:  # behind rejections, where few are tried
            continue
        assert p_value(np.bincount(got, minlength=16), law * len(got)) > FALSE_ALARM, place
    q = np.exp(drafted) / np.exp(drafted).sum()
    rate = np.minimum(law, q).sum()
    stood = sum(v.accept_len > 0 for v in verdicts)
    assert p_value([stood, runs - stood], [rate * runs, (1 - rate) * runs]) > FALSE_ALARM


@pytest.mark.slow
def test_shared_noise_would_be_seen(device: torch.device) -> None:
    """The same test with drafts drawn under the purpose of the residual fails, as it must."""
    target = np.random.default_rng(1).normal(0, 1, 16)
    runs = 12_000
    args = fixed_rows(target, -target, 1, runs, device)
    ids = torch.zeros(runs, dtype=torch.int32, device=device)
    space = poisoned(sampling.workspace_size(runs, 16), device)
    rows = args["draft_logits"][:, 0]
    ones = torch.ones(runs, dtype=torch.int64, device=device)
    sampling.sample(rows, args["temperature"], args["seed"], ones, Purpose.RESIDUAL, ids, None, space)
    args["draft_token_ids"] = ids.view(runs, 1)
    got = tokens_at(args, run("rejection", **args), 0)
    law = np.exp(target) / np.exp(target).sum()
    assert p_value(np.bincount(got, minlength=16), law * runs) < 1e-6


@pytest.mark.slow
def test_the_law_over_several_tiles(device: torch.device) -> None:
    """V = 4096, all positions of K = 1; false alarm 1e-4 each, had the seeds not been fixed."""
    rng = np.random.default_rng(2)
    target = rng.normal(0, 2.5, 4096)
    args = fixed_rows(target, target + rng.normal(0, 1, 4096), 1, 250, device)
    verdicts = run("rejection", **args)
    law = np.exp(target) / np.exp(target).sum()
    for place in range(2):
        got = tokens_at(args, verdicts, place)
        assert p_value(np.bincount(got, minlength=4096), law * len(got)) > FALSE_ALARM


def test_coupled_verdicts_do_not_depend_on_the_draft(device: torch.device) -> None:
    target = np.random.default_rng(4).normal(0, 1, 16)
    args = fixed_rows(target, -target, 3, 500, device)
    first = run("coupled", **args)
    args["draft_token_ids"] = (args["draft_token_ids"] + 1) % 16
    second = run("coupled", **args)
    ids = args["draft_token_ids"].tolist()
    for b, (x, y) in enumerate(zip(first, second, strict=True)):
        before, after = (
            [(i - shift) % 16 for i in ids[b][: v.accept_len]] + [v.next_token]
            for v, shift in ((x, 1), (y, 0))
        )
        short = min(len(before), len(after))
        assert before[:short] == after[:short]


def test_opcheck_and_wrong_arguments(device: torch.device) -> None:
    args = random_batch(40, 40, 3, 2, 1, "rejection").arguments(device)
    outputs = {
        name: torch.zeros(3, dtype=torch.int32, device=device)
        for name in ("accept_len", "next_token", "bad_row")
    }
    space = poisoned(kernel.workspace_size(3, 2, 40, "rejection"), device)
    good = {**args, **outputs, "kind": "rejection", "workspace": space}
    torch.library.opcheck(torch.ops.pearl_rt.judge.default, (), good)
    for name, wrong, said in (
        ("kind", "other", "kind is 'other'"),
        ("idx_mapping", None, "pass idx_mapping"),
        ("draft_logits", args["draft_logits"][:, :1], "draft_logits has shape"),
        ("draft_token_ids", torch.zeros(3, 64, dtype=torch.int32, device=device), "the limit is 63"),
        ("cu_num_logits", args["cu_num_logits"][:-1], "cu_num_logits has shape"),
        ("positions", args["positions"].int(), "positions is torch.int32"),
        ("workspace", space[:64], "workspace has 64 bytes"),
    ):
        with pytest.raises(ValueError, match=said):
            kernel.judge(**{**good, name: wrong})
