"""publish_logprobs: what slots in every state committed, against the definition of logprobs, among poison."""

from typing import Any

import numpy as np
import pytest
import torch
from rows import Canary, poisoned

from pearl_rt.kernels.reference.verify import publish_logprobs as reference
from pearl_rt.kernels.verify import publish_logprobs as kernel
from pearl_rt.reference import logprobs as definition

POISON = 2147480000
CAPACITY, ROWS, RING, SPARE = 30, 3, 4, 2  # SPARE: rows of an entry that windows of this size leave free
# Of each slot: tokens before the round, tokens it committed, likeliest wanted, rounds judged with this one.
SLOTS = (
    (1, 3, 2, 1),  # all rows, in its first round
    (9, 2, -1, 3),  # asks for nothing
    (5, 0, 4, 2),  # did not run, or its logits could not be used
    (7, 1, 0, 9),  # wants the token's own alone; the ring is at its third turn
    (20, 2, 4, 6),
)


class Batch:
    """Rows of slots that publish, among rows of NaN; tokens among poison."""

    def __init__(self, vocab: int, device: torch.device) -> None:
        rng = np.random.default_rng(vocab)
        rows = np.full((len(SLOTS), ROWS, vocab), np.nan, np.float32)
        tokens = np.full((len(SLOTS), CAPACITY), POISON)
        for b, (before, new, wanted, _) in enumerate(SLOTS):
            tokens[b, :before] = -5  # of no row
            tokens[b, before : before + new] = rng.integers(0, vocab, new)
            if wanted >= 0:
                rows[b, :new] = rng.normal(0, 3, (new, vocab))
        self.rows, self.tokens = rows, tokens
        before, new, wanted, rounds = (list(column) for column in zip(*SLOTS, strict=True))

        def ints(values: Any) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        ends = [a + b for a, b in zip(before, new, strict=True)]
        self.logits = torch.from_numpy(rows).to(device)
        self.where = [ints(tokens), ints(before), ints(ends), ints(rounds), ints(wanted)]

    def run(self, module: Any, k: int) -> torch.Tensor:
        """The ring, which was poison, after one call with a workspace of NaN."""
        ring = Canary(RING, len(SLOTS), kernel.entry_size(ROWS + SPARE, k), device=self.logits.device)
        space = poisoned(kernel.workspace_size(*self.logits.shape, k), self.logits.device)
        given = [tensor.clone() for tensor in self.where]
        module.publish_logprobs(self.logits, *given, k, ring.tensor, space)
        ring.check()
        assert all(torch.equal(*pair) for pair in zip(given, self.where, strict=True))
        return ring.tensor


@pytest.mark.parametrize(("vocab", "k"), [(5, 4), (70, 20), (2049, 6)], ids=str)
def test_entries_are_the_definitions(vocab: int, k: int, device: torch.device) -> None:
    batch = Batch(vocab, device)
    ring = batch.run(kernel, k)
    assert torch.equal(ring, batch.run(reference, k))
    for b, (before, new, wanted, rounds) in enumerate(SLOTS):
        entry = ring[(rounds - 1) % RING, b].tolist()
        others = [ring[i, b] for i in range(RING) if i != (rounds - 1) % RING]
        assert all((other == Canary.VALUE).all() for other in others)
        publishes = wanted >= 0 and new > 0
        assert entry[0] == (rounds - 1 if publishes else Canary.VALUE)
        fields = np.array(entry[1:], np.int32).reshape(ROWS + SPARE, 1 + k, 3)
        for r in range(ROWS + SPARE):
            width = 1 + wanted if publishes and r < new else 0
            assert (fields[r, width:] == Canary.VALUE).all()
            if width == 0:
                continue
            token = int(batch.tokens[b, before + r])
            told = definition.logprobs(batch.rows[b, r], token, wanted)
            ids = fields[r, :width, 0].tolist()
            assert ids == [token, *np.argsort(-batch.rows[b, r], kind="stable")[:wanted].tolist()]
            values = fields[r, :width, 1].copy().view(np.float32).tolist()
            assert values == [told[i].logprob for i in ids]
            assert fields[r, :width, 2].tolist() == [told[i].rank for i in ids]


def test_opcheck_and_wrong_arguments(device: torch.device) -> None:
    batch = Batch(40, device)
    size = kernel.entry_size(ROWS, 4)
    ring = torch.full((RING, len(SLOTS), size), -1, dtype=torch.int32, device=device)
    space = poisoned(kernel.workspace_size(*batch.logits.shape, 4), device)
    good = [batch.logits, *batch.where, 4, ring, space]
    torch.library.opcheck(torch.ops.pearl_rt.publish_logprobs.default, tuple(good))
    for place, wrong, said in (
        (0, batch.logits.double(), "target_logits is torch.float64"),
        (0, batch.logits.transpose(1, 2), "target_logits"),
        (1, batch.where[0].long(), "token_ids is torch.int64"),
        (2, batch.where[1][1:], r"before has shape \[4\], expected \[5\]"),
        (6, 5, rf"4 rounds of {size} int32 for a slot, expected at least 1 of {size + 9} for 3 rows of k 5"),
        (7, ring[:, 1:], r"ring has shape"),
        (8, space[:32], "workspace has 32 bytes"),
    ):
        args = list(good)
        args[place] = wrong
        with pytest.raises(ValueError, match=said):
            kernel.publish_logprobs(*args)
