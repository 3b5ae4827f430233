"""penalties: bit for bit the reference and pearl_rt.reference.processors, at every row of a window and
draft's step."""

from typing import Any

import numpy as np
import pytest
import torch
from logit_rows import row_of
from rows import Canary, poisoned

from pearl_rt.kernels.reference.sampling import penalties as reference
from pearl_rt.kernels.sampling import penalties as kernel
from pearl_rt.reference.processors import Transform

POISON = 2147480000
IDLE, RUNNING = 0, 1
CAPACITY, WINDOW = 300, 4  # more tokens than one counting program takes


class Batch:
    """Slots in every state: one idle, one plain, one with all on, one with each thing alone."""

    def __init__(self, vocab: int, device: torch.device, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.vocab = vocab
        self.fields: list[dict[str, Any]] = [
            {"repetition_penalty": 3.0},
            {},
            {
                "repetition_penalty": 1.3,
                "frequency_penalty": 0.4,
                "presence_penalty": -0.7,
                "logit_bias": ((1, 2.5), (vocab - 1, -3.0)),
                "min_tokens": 7,
                "masked_ids": (0, 2),
            },
            {"frequency_penalty": 1.5},
            {"min_tokens": 2, "masked_ids": (vocab - 1,)},
            {"logit_bias": ((0, -100.0),)},
        ]
        slots = self.slots = len(self.fields)
        self.prompt_len = rng.integers(1, 9, slots)
        self.prompt_len[3] = 250
        self.committed = self.prompt_len + rng.integers(1, 6, slots)
        self.pending = rng.integers(0, WINDOW, slots)
        self.tokens = np.full((slots, CAPACITY), POISON)
        self.window = rng.integers(0, vocab, (slots, WINDOW))
        for b, length in enumerate(self.committed + self.pending):
            self.tokens[b, :length] = rng.integers(0, min(vocab, 12), length)  # many of them several times
        self.num_rows = np.minimum(self.pending + 1 + rng.integers(0, WINDOW, slots), WINDOW + 1)

        def ints(values: Any) -> torch.Tensor:
            return torch.tensor(np.asarray(values), dtype=torch.int32, device=device)

        def column(name: str, off: float) -> torch.Tensor:
            return torch.tensor([f.get(name, off) for f in self.fields], dtype=torch.float32, device=device)

        ids = np.full((slots, 3), -1)
        bias_ids, bias = np.full((slots, 2), -1), np.zeros((slots, 2), np.float32)
        for b, own in enumerate(self.fields):
            ids[b, : len(own.get("masked_ids", ()))] = own.get("masked_ids", ())
            for i, (token, amount) in enumerate(own.get("logit_bias", ())):
                bias_ids[b, i], bias[b, i] = token, amount
        state = [IDLE, *[RUNNING] * (slots - 1)]
        window = ints(self.window).t().contiguous().t()  # strides are the caller's
        self.where = [ints(self.tokens), window, ints(self.committed), ints(self.pending), ints(state)]
        self.where.append(ints(self.prompt_len))
        self.rows = ints(self.num_rows)
        self.amounts = [column(f"{name}_penalty", off) for name, off in PENALTIES]
        self.amounts += [ints([f.get("min_tokens", 0) for f in self.fields]), ints(ids), ints(bias_ids)]
        self.amounts.append(torch.from_numpy(bias).to(device))

    def run(self, module: Any, logits: torch.Tensor, step: int) -> torch.Tensor:
        """A copy of the rows, transformed, from a workspace of NaN."""
        out = logits.clone()
        space = poisoned(kernel.workspace_size(self.slots, self.vocab), logits.device)
        rows = self.rows if step < 0 else None
        before, asked = kernel.Before(*self.where, rows), kernel.Parameters(*self.amounts)
        module.penalties(out, before, step, asked, space)
        return out

    def definition(self, logits: np.ndarray, step: int) -> np.ndarray:
        out = logits.copy()
        rows = len(logits) // self.slots
        for b in range(1, self.slots):
            known = int(self.committed[b] + self.pending[b])
            everything = [*self.tokens[b, :known].tolist(), *self.window[b].tolist()]
            transform = Transform(**self.fields[b], prompt_len=int(self.prompt_len[b]))
            for r in range(rows if step >= 0 else int(self.num_rows[b])):
                length = known + step if step >= 0 else int(self.committed[b]) + r
                out[b * rows + r] = transform.row(logits[b * rows + r], everything[:length])
        return out


PENALTIES = (("repetition", 1.0), ("frequency", 0.0), ("presence", 0.0))


def same(got: torch.Tensor, want: "torch.Tensor | np.ndarray") -> bool:
    want = torch.as_tensor(want).to(got.device)
    return torch.equal(got.view(torch.int32), want.view(torch.int32))


@pytest.mark.parametrize("shape", ["normal", "masked", "huge", "flat"])
@pytest.mark.parametrize("step", [-1, 0, 1, 3])
def test_rows_are_the_references_and_the_definitions(step: int, shape: str, device: torch.device) -> None:
    for vocab, seed in ((19, 0), (70, 1)):
        batch = Batch(vocab, device, seed)
        rng = np.random.default_rng(seed)
        count = batch.slots * (WINDOW + 1 if step < 0 else 1)
        rows = np.stack([row_of(shape, vocab, rng) for _ in range(count)])
        logits = torch.from_numpy(rows).to(device)
        got = batch.run(kernel, logits, step)
        assert same(got, batch.run(reference, logits, step))
        assert same(got, batch.definition(rows, step))
        changed = (got != logits).any(dim=1).view(batch.slots, -1).any(dim=1)
        assert not changed[:2].any() and changed[2].all()


def test_several_tiles_and_half_precision(device: torch.device) -> None:
    batch = Batch(2100, device, 5)
    logits = torch.randn(batch.slots, 2100, device=device).half()
    got = batch.run(kernel, logits, 2)
    assert torch.equal(got, batch.run(reference, logits, 2))


def test_rows_that_cannot_be_used_stay_so(device: torch.device) -> None:
    """NaN or +inf at an id that is masked, biased or penalised is still found."""
    for bad in (float("nan"), float("inf")):
        batch = Batch(19, device, 2)
        logits = torch.zeros(batch.slots * (WINDOW + 1), 19, device=device)
        logits[:, :3] = bad
        got = batch.run(kernel, logits, -1)
        assert not (got[:, :3] < torch.inf).any() and torch.isfinite(got[:, 3:]).all()


def test_nothing_is_written_beside_rows(device: torch.device) -> None:
    batch = Batch(19, device, 3)
    wide = Canary(batch.slots, 32, device=device, dtype=torch.float32)
    rows = wide.tensor[:, :19]
    rows.copy_(torch.randn(batch.slots, 19, device=device))
    space = poisoned(kernel.workspace_size(batch.slots, 19), device)
    torch.ops.pearl_rt.penalties(rows, *batch.where, None, 0, *batch.amounts, space)
    wide.check()
    assert (wide.tensor[:, 19:] == wide.VALUE).all()


def test_opcheck_and_wrong_arguments(device: torch.device) -> None:
    batch = Batch(19, device, 4)
    space = poisoned(kernel.workspace_size(batch.slots, 19), device)
    good = [torch.randn(batch.slots, 19, device=device), *batch.where, None, 0, *batch.amounts, space]
    torch.library.opcheck(torch.ops.pearl_rt.penalties.default, tuple(good))
    for place, wrong, said in (
        (0, good[0][:-1], "5 rows of 6 slots"),
        (2, good[2].long(), "window is torch.int64"),
        (8, -2, "step is -2"),
        (9, good[9].double(), "repetition is torch.float64"),
        (13, good[13][:, :0], "no column"),
        (-1, space[:16], "workspace has 16 bytes"),
    ):
        args = list(good)
        args[place] = wrong
        with pytest.raises(ValueError, match=said):
            torch.ops.pearl_rt.penalties(*args)
