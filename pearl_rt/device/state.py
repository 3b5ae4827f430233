"""What a round reads and writes, on a device: the tensors of pearl_rt/state.py, as the host sees them.

Knows requests and sizes; not models, programs or how a round works. A run has one window for all of its
requests, and sees the same memory with exactly as many rows as that window needs: `windowed`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from pearl_rt.state import BAD_LOGITS, IDLE, RING_HEADER, RUNNING, State
from pearl_rt.types.request import Request

__all__ = ["BAD_LOGITS", "IDLE", "RUNNING", "DeviceState", "RoundRow", "StateSizes"]
UNUSED_PAGE = 0  # entries of a block table behind a slot's pages; any page number would do


@dataclass(frozen=True)
class StateSizes:
    """What a state has room for."""

    num_slots: int  # B
    gamma_max: int  # G; 0: there is no draft
    capacity: int  # C: tokens of a sequence, prompt included
    vocab_size: int  # V
    draft_vocab_size: int  # Vd: the draft samples ids below min(V, Vd) only; 0: drafts are certain, no rows
    max_stop_ids: int = 32
    ring_size: int = 64  # rounds of results that may wait for the host
    block_size: int = 16  # positions of a page, in both models' KV caches


@dataclass(frozen=True)
class RoundRow:
    """An entry of the result ring: what one round committed for one slot."""

    round: int
    accept_len: int
    num_judged: int
    pending_before: int
    finish_reason: int
    token_ids: list[int]

    @property
    def is_last(self) -> bool:
        """Whether the slot's answer ends here, or with logits that cannot be used."""
        return self.finish_reason != RUNNING


class DeviceState:
    """The tensors, each at a fixed address for as long as this lives.

    The ring of a GPU lies in the host's memory, pinned, where verify stores verdicts and the host reads them
    without a copy. The address is the same for both.
    """

    def __init__(self, sizes: StateSizes, device: torch.device) -> None:
        self.sizes = sizes
        self.whole = State.allocate(
            sizes.num_slots,
            sizes.gamma_max,
            sizes.capacity,
            sizes.vocab_size,
            sizes.draft_vocab_size,
            sizes.max_stop_ids,
            sizes.ring_size,
            device,
        )
        if device.type == "cuda":
            ring = torch.full_like(self.whole.ring, -1, device="cpu", pin_memory=True)
            self.whole = replace(self.whole, ring=ring)
        # finish_reason of the slots whose first row is judged by itself, beside others' rounds: [B].
        self.joining = torch.full((sizes.num_slots,), IDLE, dtype=torch.int32, device=device)
        # The pages of each slot, in order, in the caches of all lanes over this state: [B, MB].
        max_blocks = -(-sizes.capacity // sizes.block_size)
        self.block_table = torch.full(
            (sizes.num_slots, max_blocks), UNUSED_PAGE, dtype=torch.int32, device=device
        )

    def windowed(self, gamma: int, *, joining: bool = False) -> State:
        """The state for windows of gamma: the same memory, in tensors of its shape.

        joining: of the slots that join alone, for verify.
        """
        sizes, whole = self.sizes, self.whole
        if not 0 <= gamma <= sizes.gamma_max:
            raise ValueError(f"gamma is {gamma}, this state has room for 0 to {sizes.gamma_max}")

        def first(tensor: torch.Tensor, *shape: int) -> torch.Tensor:
            size = 1
            for length in shape:
                size *= length
            return tensor.flatten()[:size].view(shape)

        slots = sizes.num_slots
        return replace(
            whole,
            finish_reason=self.joining if joining else whole.finish_reason,
            ring=first(whole.ring, sizes.ring_size, slots, RING_HEADER + gamma + 1),
            draft_token_ids=first(whole.draft_token_ids, slots, gamma),
            draft_logits=first(whole.draft_logits, slots, 2 * max(gamma, 1), sizes.draft_vocab_size),
            target_logits=first(whole.target_logits, slots, gamma + 1, sizes.vocab_size),
        )

    def start(self, requests: Sequence[Request]) -> None:
        """Request i takes slot i; the others are idle. The host writes only while nothing runs."""
        state = self.whole
        for tensor in (state.prompt_len, state.pending, state.num_draft_tokens, state.num_rows, state.round):
            tensor.zero_()
        state.finish_reason.fill_(IDLE)
        state.ring.fill_(-1)
        for slot, request in enumerate(requests):
            self._fill(slot, request)

    def _fill(self, slot: int, request: Request) -> None:
        sizes, state = self.sizes, self.whole
        prompt = torch.tensor(request.prompt_ids, dtype=torch.int32)
        stops = [*request.stop_ids, *(() if request.ignore_eos else request.eos_ids)]
        row = torch.full((sizes.max_stop_ids,), -1, dtype=torch.int32)
        row[: len(stops)] = torch.tensor(stops, dtype=torch.int32)
        state.token_ids[slot, : len(prompt)].copy_(prompt)
        state.stop_token_ids[slot].copy_(row)
        state.prompt_len[slot] = len(prompt)
        state.max_total_len[slot] = request.total_len(sizes.capacity)
        state.gamma[slot] = request.gamma
        state.temperature[slot] = request.temperature
        state.seed[slot] = request.seed - (1 << 64 if request.seed >= 1 << 63 else 0)
        state.committed[slot] = len(prompt)
        state.finish_reason[slot] = RUNNING

    def give_pages(self, counts: Sequence[int]) -> None:
        """Slot i gets the next counts[i] pages of the KV caches, the first slot from page 0 on."""
        table, first = torch.full_like(self.block_table, UNUSED_PAGE, device="cpu"), 0
        for slot, count in enumerate(counts):
            table[slot, :count] = torch.arange(first, first + count)
            first += count
        self.block_table.copy_(table)

    def read(self, gamma: int, number: int, slot: int) -> RoundRow | None:
        """Round `number` of a slot, or None if it is not there (yet)."""
        entry = self.windowed(gamma).ring[number % self.sizes.ring_size, slot].tolist()
        found, accept_len, num_judged, pending_before, finish_reason, num_new, *tokens = entry
        if found != number:
            return None
        return RoundRow(number, accept_len, num_judged, pending_before, finish_reason, tokens[:num_new])
