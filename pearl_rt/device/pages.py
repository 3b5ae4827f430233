"""Which pages of the KV caches each slot has, in both lanes alike, for whoever runs a state from Python.

A request holds pages from before its slot is filled until after its end, as many as it may come to need; the
block table on the device says which. What csrc/coordinator/state.h does for native lanes, with its meaning.
Knows requests and slots; not steps, or who waits.
"""

from collections.abc import Sequence

import torch

from pearl_rt.device.kv_pool import KvPool
from pearl_rt.device.state import UNUSED_PAGE, DeviceState
from pearl_rt.types.request import Request


class DevicePages:
    """The pages of one state's sequences. For one thread at a time but for num_free."""

    def __init__(self, state: DeviceState, pool: KvPool) -> None:
        """pool: the pages of every lane's cache."""
        self.pool = pool
        self._state = state
        self._free = list(range(pool.num_blocks - 1, -1, -1))  # the last is given out first
        self._held: dict[int, list[int]] = {}  # by slot

    @property
    def num_free(self) -> int:
        """Pages that nobody holds. From any thread."""
        return len(self._free)

    def restart(self, requests: Sequence[Request] = ()) -> None:
        """All pages are free again, but for those that request i gets in slot i."""
        for slot in range(self._state.sizes.num_slots):
            self.release(slot)
        self._state.block_table.fill_(UNUSED_PAGE)  # whoever had the slots in between may have written it
        for slot, request in enumerate(requests):
            if not self.reserve(slot, request):
                raise AssertionError("pages are missing: the requests were not checked")

    def reserve(self, slot: int, request: Request) -> bool:
        """Gives a slot that has no pages those of a request; False, and nothing has changed, if too few are
        free.
        """
        needed = self.pool.blocks_for(request)
        if needed > self.num_free:
            return False
        pages = self._held[slot] = [self._free.pop() for _ in range(needed)]
        row = torch.full(self._state.block_table.shape[1:], UNUSED_PAGE, dtype=torch.int32)
        row[: len(pages)] = torch.tensor(pages, dtype=torch.int32)
        self._state.block_table[slot].copy_(row)
        return True

    def release(self, slot: int) -> None:
        """Takes the pages of a slot back, if it has any. What was launched for it before may still run: a new
        owner's launches follow on the same stream.
        """
        self._free.extend(reversed(self._held.pop(slot, [])))
