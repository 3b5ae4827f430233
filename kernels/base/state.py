"""The tensors of a running batch: one set, at fixed addresses, one writer each. csrc/coordinator/state.h on a
device.

    ring[n % RING, b] = round n of slot b:
        round, accept_len, num_judged, pending_before, finish_reason, num_new, tokens

After bad logits tokens[accept_len] is the candidate of the row that cannot be used: -1 if the draft could not
sample it, or if it is the bonus row's.
A reader knows that an entry is there when its first field is the round that it waits for: that field is
written last. Rounds count from 0 (the first token) in each slot, so that slots may start at different
times and no two programs share a counter. The host queues at most RING rounds more than it has read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

IDLE, RUNNING, STOP, LENGTH, BAD_LOGITS = range(5)  # finish_reason
RING_HEADER = 6  # fields before the tokens


@dataclass(frozen=True)
class State:
    """B slots, windows of at most G, capacity C, vocabularies V and Vd, NS stop ids, S = 2 * max(G, 1) rows
    of draft logits. int32 unless said."""

    # Set by start.
    prompt_len: torch.Tensor  # [B] 0 in an idle slot
    max_total_len: torch.Tensor  # [B] <= C; no position at or past it is fed or judged
    gamma: torch.Tensor  # [B] the longest window wanted
    temperature: torch.Tensor  # [B] fp32; 0 = greedy
    seed: torch.Tensor  # [B] int64
    stop_token_ids: torch.Tensor  # [B, NS] EOS ids (unless ignored) and stop ids, then -1

    # Set by start, then by verify. token_ids[b, :committed + pending] holds both kinds.
    token_ids: torch.Tensor  # [B, C]
    committed: torch.Tensor  # [B] final tokens
    pending: torch.Tensor  # [B] drafted after them, not judged yet
    finish_reason: torch.Tensor  # [B]
    round: torch.Tensor  # [B] that is judged next
    ring: torch.Tensor  # [RING, B, RING_HEADER + G + 1]; -1 before the first round; perhaps pinned

    # Set by draft. The window follows token committed + pending; the row of position p is p % S.
    draft_token_ids: torch.Tensor  # [B, G]
    num_draft_tokens: torch.Tensor  # [B] length of the window, 0..gamma
    draft_logits: torch.Tensor  # [B, S, Vd]

    # Set by prefill and score. Row r is for position committed + r.
    num_rows: torch.Tensor  # [B]
    target_logits: torch.Tensor  # [B, G + 1, V]

    @classmethod
    def allocate(
        cls,
        num_slots: int,
        gamma_max: int,
        capacity: int,
        vocab_size: int,
        draft_vocab_size: int,
        num_stop_ids: int,
        ring_size: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> State:
        """Every slot idle. dtype: of the logits."""

        def ints(*shape: int, fill: int = 0) -> torch.Tensor:
            return torch.full(shape, fill, dtype=torch.int32, device=device)

        slots, steps = num_slots, 2 * max(gamma_max, 1)
        return cls(
            prompt_len=ints(slots),
            max_total_len=ints(slots),
            gamma=ints(slots),
            temperature=torch.zeros(slots, device=device),
            seed=torch.zeros(slots, dtype=torch.int64, device=device),
            stop_token_ids=ints(slots, num_stop_ids, fill=-1),
            token_ids=ints(slots, capacity),
            committed=ints(slots),
            pending=ints(slots),
            finish_reason=ints(slots, fill=IDLE),
            round=ints(slots),
            ring=ints(ring_size, slots, RING_HEADER + gamma_max + 1, fill=-1),
            draft_token_ids=ints(slots, gamma_max),
            num_draft_tokens=ints(slots),
            draft_logits=torch.zeros(slots, steps, draft_vocab_size, dtype=dtype, device=device),
            num_rows=ints(slots),
            target_logits=torch.zeros(slots, gamma_max + 1, vocab_size, dtype=dtype, device=device),
        )

    def verify_arguments(self) -> tuple[torch.Tensor, ...]:
        """The tensors that `verify` takes before `kind`, in its order."""
        return (
            self.target_logits,
            self.draft_logits,
            self.token_ids,
            self.committed,
            self.pending,
            self.finish_reason,
            self.round,
            self.ring,
            self.draft_token_ids,
            self.num_draft_tokens,
            self.num_rows,
            self.max_total_len,
            self.stop_token_ids,
            self.temperature,
            self.seed,
        )
