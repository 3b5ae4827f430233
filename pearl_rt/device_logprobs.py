"""Log-probabilities of a round's tokens on a device, for callers that look at every verdict at once.

    keep(gamma)          before rows are changed in place for a request: what is told is of the target's own
    told(gamma, tokens)  of the tokens that a round committed

Knows the state of a round; not models, lanes or order.
"""

from collections.abc import Mapping, Sequence

import torch

from pearl_rt.device_state import DeviceState
from pearl_rt.kernels.sampling.logprobs import logprobs, workspace_size
from pearl_rt.request import Request
from pearl_rt.sampling_params import MAX_LOGPROBS

Told = list[list[tuple[int, float, int]]]  # [tokens][1 + k] of (id, logprob, rank): the token's own first


class DeviceLogprobs:
    """How many each slot asks for, and memory for the rows of a round."""

    def __init__(self, state: DeviceState) -> None:
        self.state = state
        sizes, device = state.sizes, state.whole.temperature.device
        self._most = min(MAX_LOGPROBS, sizes.vocab_size)
        self._asked = [-1] * sizes.num_slots  # as Request.num_logprobs
        num_rows = sizes.num_slots * (sizes.gamma_max + 1)
        num_entries = num_rows * (1 + self._most)
        self._tokens = torch.zeros(num_rows, dtype=torch.int32, device=device)
        self._ids, self._ranks = (
            torch.zeros(num_entries, dtype=torch.int32, device=device) for _ in range(2)
        )
        self._values = torch.zeros(num_entries, device=device)
        num_bytes = workspace_size(num_rows, sizes.vocab_size, self._most)
        self._workspace = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        self._rows: torch.Tensor | None = None  # a copy of target_logits, once one was needed
        self._is_kept = False  # for the round that is judged

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors, with the copy of rows that penalties make necessary."""
        own = (self._tokens, self._ids, self._ranks, self._values, self._workspace)
        return sum(tensor.nbytes for tensor in (*own, self.state.whole.target_logits))

    @property
    def is_on(self) -> bool:
        """Whether a request that runs asks for any."""
        return max(self._asked) >= 0

    def fill(self, slot: int, request: Request) -> None:
        """A request takes a slot."""
        self._asked[slot] = min(request.num_logprobs, self._most)

    def clear(self, slot: int) -> None:
        """Nobody has the slot any more."""
        self._asked[slot] = -1

    def keep(self, gamma: int) -> None:
        """Copies the rows of this round, which are about to be changed."""
        logits = self.state.windowed(gamma).target_logits
        if self._rows is None:
            self._rows = torch.empty_like(self.state.whole.target_logits)
        self._kept(gamma).copy_(logits)
        self._is_kept = True

    def told(self, gamma: int, tokens: Mapping[int, Sequence[int]]) -> dict[int, Told]:
        """tokens: by slot, what the round committed. For slots that ask. Waits for the device."""
        wanted = {slot: ids for slot, ids in tokens.items() if self._asked[slot] >= 0 and ids}
        logits = self._kept(gamma) if self._is_kept else self.state.windowed(gamma).target_logits
        self._is_kept = False
        if not wanted:
            return {}
        num_rows, most = self.state.sizes.num_slots * (gamma + 1), max(self._asked[slot] for slot in wanted)
        asked = torch.full((num_rows,), -1, dtype=torch.int32)
        for slot, committed in wanted.items():
            first = slot * (gamma + 1)
            asked[first : first + len(committed)] = torch.tensor(committed, dtype=torch.int32)
        self._tokens[:num_rows].copy_(asked)
        ids, values, ranks = (
            tensor[: num_rows * (1 + most)].view(num_rows, 1 + most)
            for tensor in (self._ids, self._values, self._ranks)
        )
        rows = logits.view(num_rows, -1)
        logprobs(rows, self._tokens[:num_rows], most, ids, values, ranks, self._workspace)
        entries = list(zip(ids.tolist(), values.tolist(), ranks.tolist(), strict=True))
        found = {}
        for slot, committed in wanted.items():
            first, width = slot * (gamma + 1), 1 + self._asked[slot]
            own = entries[first : first + len(committed)]
            found[slot] = [list(zip(i[:width], v[:width], r[:width], strict=True)) for i, v, r in own]
        return found

    def _kept(self, gamma: int) -> torch.Tensor:
        assert self._rows is not None
        sizes = self.state.sizes
        shape = sizes.num_slots, gamma + 1, sizes.vocab_size
        return self._rows.flatten()[: shape[0] * shape[1] * shape[2]].view(shape)
