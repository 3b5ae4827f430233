"""feed against its definition, in every kind, over sequences in every state; poison behind all of them."""

from typing import Any

import pytest
import torch

from pearl_rt.kernels.forward.feed import (
    DRAFT_FIRST,
    DRAFT_NEXT,
    DRAFT_WINDOW,
    HEAD_FIRST,
    HEAD_NEXT,
    KINDS,
    PREFILL,
    PREFILLS,
    SCORE,
    SCORE_WINDOW,
    Fed,
    Sequences,
)
from pearl_rt.kernels.reference.forward import feed as reference

feed = torch.ops.pearl_rt.feed
CAPACITY, MAX_BLOCKS, BLOCK_SIZE, GAMMA, MASK = 48, 3, 16, 5, 999
POISON_ID, POISON_PAGE, CANARY = -777, 2147480000, -99
RUNNING = 1
OUT = (
    *("input_ids", "positions", "slot_mapping", "cu_seqlens_q", "context_lens", "logit_rows", "num_rows"),
    *("num_draft_tokens", "sample_positions", "ring_rows"),
)


def arguments(kind: int, step: int, num_slots: int, seed: int, device: torch.device) -> dict[str, Any]:
    """A made-up state in which every sequence is somewhere else, with room for what it is fed."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape or (num_slots,), generator=generator, dtype=torch.int32)

    committed, pending = draw(2, 30), draw(0, GAMMA)
    max_total_len = torch.maximum(committed + pending + draw(0, 2 * GAMMA), committed + 1)
    tokens = draw(0, 1000, num_slots, CAPACITY)
    pages = torch.randperm(num_slots * MAX_BLOCKS, generator=generator).to(torch.int32).view(num_slots, -1)
    chunk = torch.zeros(num_slots, 2, dtype=torch.int32)
    for b in range(num_slots):
        base = int(committed[b] + pending[b])
        tokens[b, base:] = POISON_ID
        pages[b, -(-(base + GAMMA) // BLOCK_SIZE) :] = POISON_PAGE
    chunk[num_slots // 2] = torch.tensor([0, int(committed[num_slots // 2]) - (kind != PREFILL)])
    lengths = dict.fromkeys(PREFILLS, 32) | {SCORE: GAMMA, DRAFT_FIRST: 2, HEAD_FIRST: GAMMA + 1}
    max_q_len = (lengths | dict.fromkeys((DRAFT_NEXT, HEAD_NEXT), 1)).get(kind, 2 * GAMMA)
    num_logits = max_q_len if kind in (SCORE, SCORE_WINDOW) else GAMMA if kind == DRAFT_WINDOW else 1
    places = num_slots, num_logits if kind == DRAFT_WINDOW else 1
    num_tokens = max_q_len if kind in PREFILLS else num_slots * max_q_len

    def fresh(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.full(shape, CANARY, dtype=dtype)

    found = {
        "token_ids": tokens,
        "committed": committed,
        "pending": pending,
        "max_total_len": max_total_len,
        "gamma": draw(1, GAMMA + 1),
        "finish_reason": torch.where(draw(0, 4) > 0, RUNNING, draw(0, 5)),
        "prompt_len": torch.maximum(committed - draw(1, 2 * GAMMA), torch.tensor(1, dtype=torch.int32)),
        "window": draw(0, 1000, num_slots, GAMMA),
        "chunk": chunk,
        "block_table": pages,
        "input_ids": fresh(num_tokens),
        "positions": fresh(num_tokens),
        "slot_mapping": fresh(num_tokens, dtype=torch.int64),
        "cu_seqlens_q": fresh(num_slots + 1),
        "context_lens": fresh(num_slots),
        "logit_rows": fresh(num_slots, num_logits),
        "num_rows": fresh(num_slots),
        "num_draft_tokens": torch.minimum(draw(0, GAMMA + 1), max_total_len - committed - pending),
        "sample_positions": fresh(*places, dtype=torch.int64),
        "ring_rows": fresh(*places, dtype=torch.int64),
    }
    tensors = {name: tensor.to(device) for name, tensor in found.items()}
    numbers = {"block_size": BLOCK_SIZE, "max_q_len": max_q_len, "ring_size": 2 * GAMMA, "mask_token": MASK}
    return {"kind": kind, "step": step, **tensors, **numbers}


def grouped(args: dict[str, Any]) -> dict[str, Any]:
    """As the launcher and the definition take them."""
    groups = {"of": Sequences, "fed": Fed}
    tuples = {name: group(*(args[field] for field in group._fields)) for name, group in groups.items()}
    return {name: value for name, value in args.items() if not isinstance(value, torch.Tensor)} | tuples


def copied(args: dict[str, Any]) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in args.items()}


@pytest.mark.parametrize("num_slots", [1, 2, 5])
@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_feed_is_its_definition(kind: int, num_slots: int, device: torch.device) -> None:
    for seed in range(4):
        args = arguments(kind, seed if kind in (DRAFT_NEXT, HEAD_NEXT) else 0, num_slots, seed, device)
        expected = copied(args)
        feed(**args)
        reference.feed(**grouped(expected))
        for name, value in args.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, expected[name]), f"{name}, seed {seed}"
        for ids in (args["input_ids"], args["slot_mapping"]):
            assert (
                int(ids.min()) >= -1 and int(ids.max()) < 10_000
            )  # no poison was fed or turned into an address


def test_the_example_of_the_docstring(device: torch.device) -> None:
    for kind, step, positions, sampled in (
        (SCORE, 0, [4, 5], None),
        (DRAFT_NEXT, 2, [7], [8]),
        (DRAFT_WINDOW, 0, [4, 5, 6, 7], [6, 7, 8]),
    ):
        args = arguments(kind, step, 1, 0, device)
        for name, value in (("committed", 5), ("pending", 1), ("max_total_len", 40), ("num_draft_tokens", 4)):
            args[name].fill_(value)
        args["finish_reason"].fill_(RUNNING)
        if kind == DRAFT_WINDOW:
            args["gamma"].fill_(3)
            args["prompt_len"].fill_(1)
            args |= {name: args[name][:, :3].contiguous() for name in ("logit_rows", "sample_positions")}
            args |= {"ring_rows": args["ring_rows"][:, :3].contiguous(), "max_q_len": 4}
        feed(**args)
        fed = len(positions)
        assert args["positions"][:fed].tolist() == positions and args["cu_seqlens_q"].tolist() == [0, fed]
        if sampled is not None:
            assert args["sample_positions"].tolist() == [sampled]
        if kind == DRAFT_NEXT:
            assert args["input_ids"][0] == args["window"][0, step - 1]
        if kind == DRAFT_WINDOW:
            assert args["input_ids"][:fed].tolist() == [*args["token_ids"][0, 4:6].tolist(), MASK, MASK]
            assert args["logit_rows"].tolist() == [[1, 2, 3]] and args["num_draft_tokens"].tolist() == [3]


@pytest.mark.parametrize(
    ("kind", "step"), [(DRAFT_FIRST, 0), (DRAFT_NEXT, 1), (DRAFT_NEXT, GAMMA - 1), (DRAFT_WINDOW, 0)]
)
def test_a_window_that_ends_early_keeps_the_logits_of_pending_drafts(
    kind: int, step: int, device: torch.device
) -> None:
    """Whatever a step writes behind the end of its window, pending tokens are still to be judged."""
    for pending in range(GAMMA):
        args = arguments(kind, step, 1, 0, device)
        committed = int(args["committed"][0])
        args["pending"].fill_(pending)
        args["max_total_len"].fill_(committed + pending)
        args["num_draft_tokens"].fill_(0)
        args["finish_reason"].fill_(RUNNING)
        feed(**args)
        assert args["context_lens"].tolist() == [0]
        kept = {(committed + i) % (2 * GAMMA) for i in range(pending)}
        assert kept.isdisjoint(args["ring_rows"][0].tolist())


def test_a_window_feeds_no_prompt_that_a_prefill_has_fed(device: torch.device) -> None:
    """Its rows may be other requests' too. Behind it all of the last gamma + 1 tokens are fed."""
    for answer in range(1, 2 * GAMMA):
        args = arguments(DRAFT_WINDOW, 0, 1, 0, device)
        args["pending"].zero_()
        args["prompt_len"].copy_(args["committed"] - answer)
        args["max_total_len"].copy_(args["committed"] + GAMMA)
        args["gamma"].fill_(GAMMA)
        args["finish_reason"].fill_(RUNNING)
        feed(**args)
        base, text_len = int(args["committed"][0]), min(answer + 1, GAMMA + 1)
        assert args["positions"][0] == base - text_len
        assert args["cu_seqlens_q"].tolist() == [0, text_len + GAMMA - 1]


def test_a_window_may_be_strided(device: torch.device) -> None:
    args = arguments(DRAFT_NEXT, 2, 3, 1, device)
    expected = copied(args)
    args["window"] = args["window"].t().contiguous().t()
    feed(**args)
    feed(**expected)
    assert torch.equal(args["input_ids"], expected["input_ids"])


def test_refusals_name_the_argument(device: torch.device) -> None:
    args = arguments(SCORE, 0, 2, 0, device)
    for change, message in (
        ({"kind": 9}, r"kind 9 is not one of 0 to 8 \(PREFILL"),
        ({"max_q_len": 6}, r"input_ids has 10 rows, 2 sequences of 6 may need 12"),
        ({"committed": args["committed"].long()}, r"committed is torch.int64"),
        ({"block_table": args["block_table"][:1]}, r"block_table has shape \[1, 3\]"),
        ({"window": args["window"].long()}, r"window is torch.int64"),
    ):
        with pytest.raises(ValueError, match=message):
            feed(**args | change)
    args = arguments(DRAFT_WINDOW, 0, 2, 0, device)
    with pytest.raises(ValueError, match=r"5 logit rows and 1 sample positions of a window, max_q_len 10"):
        feed(**args | {name: args[name][:, :1].contiguous() for name in ("sample_positions", "ring_rows")})
    with pytest.raises(ValueError, match=r"5 logit rows and 5 sample positions of a window, max_q_len 4"):
        feed(**args | {"max_q_len": 4})


@pytest.mark.parametrize("kind", [SCORE_WINDOW, DRAFT_FIRST, DRAFT_WINDOW], ids=KINDS.__getitem__)
def test_op(kind: int, device: torch.device) -> None:
    torch.library.opcheck(torch.ops.pearl_rt.feed, (), arguments(kind, 0, 2, 3, device))


def test_a_head_is_fed_the_token_behind_its_feature(device: torch.device) -> None:
    """Behind a prompt of 4 tokens: rows of the prompt are not fed again, nor more than max_q_len."""
    for committed, positions in ((5, [3]), (7, [3, 4, 5]), (12, [5, 6, 7, 8, 9, 10])):
        args = arguments(HEAD_FIRST, 0, 1, 0, device)
        args["token_ids"].copy_(torch.arange(100, 100 + CAPACITY)[None])
        for name, value in (("pending", 0), ("prompt_len", 4), ("max_total_len", 40), ("gamma", 3)):
            args[name].fill_(value)
        args["committed"].fill_(committed)
        args["finish_reason"].fill_(RUNNING)
        feed(**args)
        fed = len(positions)
        assert args["positions"][:fed].tolist() == positions and args["cu_seqlens_q"].tolist() == [0, fed]
        assert args["input_ids"][:fed].tolist() == [101 + position for position in positions]
        assert args["sample_positions"].tolist() == [[committed]] and args["num_draft_tokens"].tolist() == [3]
