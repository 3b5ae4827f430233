"""Log-probabilities of captured steps: how many each slot wants, and the ring that the host reads them in.

    begin(gamma)    ahead of verify, and of what changes rows in place
    publish(gamma)  behind it, of what it has committed

Both only launch. Knows the state of a round; not requests, models or order. csrc/cuda/memory/logprob_ring.h
reads it.
"""

import torch

from pearl_rt.device.state import DeviceState
from pearl_rt.kernels.verify.publish_logprobs import entry_size, publish_logprobs, workspace_size
from pearl_rt.types.sampling_params import MAX_LOGPROBS


class LogprobRing:
    """One of a target's lane; a GPU's ring is pinned memory of the host, as that of verdicts is."""

    def __init__(self, state: DeviceState, pdl: bool = False) -> None:
        """pdl: as of the target's model."""
        self.state, self._pdl = state, pdl
        sizes, device = state.sizes, state.whole.temperature.device
        slots, rows, vocab = sizes.num_slots, sizes.gamma_max + 1, sizes.vocab_size
        self.most = min(MAX_LOGPROBS, vocab)  # likeliest tokens reported with each
        # Set by native lanes: as Request.num_logprobs.
        self.num_logprobs = torch.full((slots,), -1, dtype=torch.int32, device=device)
        # Set by publish.
        width = entry_size(rows, self.most)
        pinned = device.type == "cuda"
        at = torch.device("cpu") if pinned else device
        shape = sizes.ring_size, slots, width
        self.ring = torch.full(shape, -1, dtype=torch.int32, device=at, pin_memory=pinned)
        self._workspace = torch.zeros(
            workspace_size(slots, rows, vocab, self.most), dtype=torch.uint8, device=device
        )
        # Set by begin.
        self._before = torch.zeros(slots, dtype=torch.int32, device=device)
        self._rows = torch.zeros_like(state.whole.target_logits)  # as the target wrote them

    def arrays(self) -> dict[str, torch.Tensor]:
        """What csrc/cuda/memory/device_arrays.h writes and reads, by its names there."""
        return {"num_logprobs": self.num_logprobs, "logprob_ring": self.ring}

    def begin(self, gamma: int, *, keeps: bool) -> None:
        """keeps: rows are about to be changed in place; what is reported is of the target's own."""
        self._before.copy_(self.state.whole.committed)
        if keeps:
            logits = self.state.windowed(gamma).target_logits
            self._kept(logits).copy_(logits)

    def publish(self, gamma: int, *, keeps: bool) -> None:
        """Into the ring, for slots that want any; the others cost nothing. keeps: as in begin."""
        state = self.state.windowed(gamma)
        publish_logprobs(
            self._kept(state.target_logits) if keeps else state.target_logits,
            state.token_ids,
            self._before,
            state.committed,
            state.round,
            self.num_logprobs,
            self.most,
            self.ring,
            self._workspace,
            self._pdl,
        )

    def _kept(self, logits: torch.Tensor) -> torch.Tensor:
        """The copy of these rows: the first of as much memory as they have at most."""
        return self._rows.flatten()[: logits.numel()].view(logits.shape)
