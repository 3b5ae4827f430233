"""Several windows of a sequence beside one another on a device: candidates=k.

A second state, `wide`, has k rows for each slot: row b * k + w is window w of slot b. Its block tables share
the slot's pages up to the one where the windows begin. From there on windows 1..k-1 have pages of their own,
behind the pool's. Steps of a draft and of a score run over the wide state. The window whose first token is
the target's own is then copied into the slot's state and pages, and verify judges it like any other window.

This holds where verify compares tokens: greedy, or judge "coupled". pearl_rt/reference/candidates.py is the
definition. Nothing is read back by the host.
"""

import torch

from pearl_rt.device.logits_processors import LogitsProcessors
from pearl_rt.device.state import DeviceState, StateSizes
from pearl_rt.device.steps import DraftSteps, LaneSteps, TargetSteps, Windows
from pearl_rt.kernels.sampling.sample import sample
from pearl_rt.kernels.sampling.sample import workspace_size as sample_workspace
from pearl_rt.model.kv_cache import PagedKVCache
from pearl_rt.model.llama import Llama
from pearl_rt.reference.noise import Purpose

SAME = ("prompt_len", "max_total_len", "gamma", "temperature", "seed", "token_ids", "committed", "pending")
CHOSEN = ("draft_token_ids", "num_draft_tokens", "num_rows", "target_logits")
Tensor = torch.Tensor


def pages_of_window(gamma_max: int, block_size: int) -> int:
    """Pages that gamma_max + 2 positions in a row may lie in: the last two tokens and the window."""
    return gamma_max // block_size + 2


def pages_beside(num_slots: int, candidates: int, gamma_max: int, block_size: int) -> int:
    """Pages behind the pool's: those of the windows 1..k-1, and one that nothing reads."""
    if candidates == 1:
        return 0
    return num_slots * (candidates - 1) * pages_of_window(gamma_max, block_size) + 1


class BesideState(DeviceState):
    """The state of the slots, with that of their windows.

    `spread` and `take` allocate nothing. Both lanes use the same scratch tensors: no two of these calls run
    at a time, as a draft waits for the verdict on the last one.
    """

    def __init__(self, sizes: StateSizes, candidates: int, num_pages: int, device: torch.device) -> None:
        """num_pages: of the pool, behind which are those of windows."""
        super().__init__(sizes, device)
        slots, self.candidates = sizes.num_slots, candidates
        wide = {**vars(sizes), "num_slots": slots * candidates, "ring_size": 1}
        self.wide = DeviceState(StateSizes(**wide), device)
        num_own = pages_of_window(sizes.gamma_max, sizes.block_size)
        own = torch.arange(slots * (candidates - 1) * num_own, device=device, dtype=torch.int32) + num_pages
        self._unread = num_pages + own.numel()
        self.own_pages = own.view(slots, candidates - 1, num_own)
        self.chosen = torch.zeros(slots, dtype=torch.int64, device=device)  # the window of each slot
        self._caches: list[tuple[PagedKVCache, Tensor]] = []  # of all lanes, each with room for pages
        self._scratch = Scratch(self, num_own)

    def serve(self, cache: PagedKVCache) -> None:
        """Has pages of one more cache copied."""
        slots, beside, num_own = self.own_pages.shape
        page = cache.keys[0]
        self._caches.append((cache, page.new_empty(slots * max(beside, num_own), *page.shape[1:])))

    def _find_first(self) -> None:
        """The place in a slot's table of the page that its windows begin in, into scratch."""
        first = self._scratch.first
        first.copy_(self.whole.committed)
        first.sub_(2).clamp_(min=0).div_(self.sizes.block_size, rounding_mode="floor")

    def spread(self, cache: PagedKVCache) -> None:
        """Gives each window what its slot has, and the rows that lie before it in its first page."""
        shape, use = (self.sizes.num_slots, self.candidates), self._scratch
        for name in (*SAME, "finish_reason"):
            own, wide = getattr(self.whole, name), getattr(self.wide.whole, name)
            wide.view(*shape, *own.shape[1:]).copy_(own[:, None].expand(*shape, *own.shape[1:]))
        self._find_first()
        table, beside = self.block_table, self.candidates - 1
        torch.sub(use.entries, use.first[:, None], out=use.place)
        torch.clamp(use.place, 0, self.own_pages.shape[2] - 1, out=use.own_place)
        torch.eq(use.place, use.own_place, out=use.is_own)
        torch.gather(self.own_pages, 2, use.own_place[:, None].expand(-1, beside, -1), out=use.pages)
        wide = self.wide.block_table.view(*shape, -1)
        wide[:, 0].copy_(table)
        wide[:, 1:].copy_(table[:, None].expand(-1, beside, -1))
        torch.where(use.is_own[:, None], use.pages, wide[:, 1:], out=use.pages)
        wide[:, 1:].copy_(use.pages)
        torch.gather(table, 1, use.first.clamp_(max=table.shape[1] - 1)[:, None], out=use.first_page)
        use.source.copy_(use.first_page.expand(-1, beside))
        room = next(room for one, room in self._caches if one is cache)
        _copy_pages(cache, room, use.source.view(-1), use.own_first.view(-1))

    def take(self, gamma: int) -> None:
        """Copies window chosen[b] into slot b and its pages, in all caches."""
        own, wide, use = self.windowed(gamma), self.wide.windowed(gamma), self._scratch
        torch.add(use.first_rows, self.chosen, out=use.rows)
        for name in CHOSEN:
            torch.index_select(getattr(wide, name), 0, use.rows, out=getattr(own, name))
        self._find_first()
        num_own = self.own_pages.shape[2]
        torch.add(use.first[:, None], use.entries_of_window, out=use.places)
        torch.clamp(use.places, max=self.block_table.shape[1] - 1, out=use.table_places)
        torch.gather(self.block_table, 1, use.table_places, out=use.slot_pages)
        use.to.copy_(use.slot_pages)
        use.places.mul_(self.sizes.block_size)
        torch.ge(use.places, self.whole.max_total_len[:, None], out=use.is_out)
        torch.eq(self.chosen, 0, out=use.is_first)
        use.to.masked_fill_(use.is_out.logical_or_(use.is_first[:, None]), self._unread)
        torch.sub(self.chosen, 1, out=use.rows)
        at = use.rows.clamp_(min=0)[:, None, None].expand(-1, 1, num_own)
        torch.gather(self.own_pages, 1, at, out=use.window_pages)
        use.taken.copy_(use.window_pages[:, 0])
        for cache, room in self._caches:
            _copy_pages(cache, room, use.taken.view(-1), use.to.view(-1))


class Scratch:
    """What `spread` and `take` compute places in. MB: entries of a block table, n: pages of a window."""

    def __init__(self, state: BesideState, num_own: int) -> None:
        device, (slots, entries), beside = (
            state.block_table.device,
            state.block_table.shape,
            state.candidates - 1,
        )

        def room(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.first = room(slots)
        self.first_rows = torch.arange(slots, device=device) * state.candidates  # in the wide state
        self.rows = room(slots)
        self.entries = torch.arange(entries, device=device)
        self.place, self.own_place = room(slots, entries), room(slots, entries)
        self.is_own = room(slots, entries, dtype=torch.bool)
        self.pages = room(slots, beside, entries, dtype=torch.int32)
        self.first_page = room(slots, 1, dtype=torch.int32)
        self.source = room(slots, beside)
        self.own_first = state.own_pages[:, :, 0].long().contiguous()
        self.entries_of_window = torch.arange(num_own, device=device)
        self.places, self.table_places = room(slots, num_own), room(slots, num_own)
        self.slot_pages = room(slots, num_own, dtype=torch.int32)
        self.window_pages = room(slots, 1, num_own, dtype=torch.int32)
        self.to, self.taken = room(slots, num_own), room(slots, num_own)
        self.is_out, self.is_first = room(slots, num_own, dtype=torch.bool), room(slots, dtype=torch.bool)


def _copy_pages(cache: PagedKVCache, room: Tensor, source: Tensor, to: Tensor) -> None:
    """Pages `source` to pages `to`, [n] int64, of all layers, by way of room."""
    room = room[: len(source)]
    for pages in (*cache.keys, *cache.values):
        torch.index_select(pages, 0, source, out=room)
        pages.index_copy_(0, to, room)


def beside(steps: LaneSteps) -> BesideState:
    """The state of steps that were made for several windows."""
    assert isinstance(steps.state, BesideState)
    return steps.state


class BesideTargetSteps(TargetSteps):
    """The target's lane, which scores all windows and takes one."""

    def __init__(self, model: Llama, state: DeviceState) -> None:
        super().__init__(model, state)
        own = beside(self)
        own.serve(model.kv_cache)
        self._windows = TargetSteps(model, own.wide)
        slots, vocab, device = state.sizes.num_slots, state.sizes.vocab_size, model.weights.device
        self._token = torch.zeros(slots, dtype=torch.int32, device=device)
        self._is_token, self._is_drafted = torch.zeros(
            2, slots, own.candidates, dtype=torch.bool, device=device
        )
        self._matches = torch.zeros(slots, own.candidates, dtype=torch.int32, device=device)
        self._room = torch.empty(sample_workspace(slots, vocab), dtype=torch.uint8, device=device)

    def score(self, gamma: int, include_window: bool) -> None:
        """See TargetSteps. With windows the slot's rows are then those of the one that is taken."""
        if not include_window or gamma == 0:
            super().score(gamma, include_window)
            return
        own = beside(self)
        own.spread(self.model.kv_cache)
        self._windows.score(gamma, include_window)
        self._choose(gamma)
        own.take(gamma)

    def _choose(self, gamma: int) -> None:
        """The window whose first draft is the target's own token, into `chosen`; 0 where there is none."""
        own = beside(self)
        wide, slots, state = own.wide.windowed(gamma), own.sizes.num_slots, own.whole
        rows = wide.target_logits.view(slots, own.candidates, gamma + 1, -1)[:, 0, 0]
        positions, purpose = state.committed.long(), int(Purpose.TARGET)
        settings = state.temperature, state.seed, positions, purpose, self._token, None, self._room
        sample(rows, *settings, pdl=self.model.pdl)
        drafts = wide.draft_token_ids[:, 0].view(slots, own.candidates)
        torch.eq(drafts, self._token[:, None], out=self._is_token)
        torch.gt(wide.num_draft_tokens.view(slots, own.candidates), 0, out=self._is_drafted)
        self._matches.copy_(self._is_token.logical_and_(self._is_drafted))
        torch.argmax(self._matches, 1, out=own.chosen)


class BesideDraftSteps(DraftSteps):
    """The draft's lane, which fills all windows, token by token."""

    def __init__(self, model: Llama, state: DeviceState) -> None:
        super().__init__(model, state)
        own = beside(self)
        own.serve(model.kv_cache)
        self._windows = BranchingDraftSteps(model, own.wide)
        self._windows.set_candidates(own.candidates)

    def draft(
        self, gamma: int, judge: str, keep_logits: bool, processors: LogitsProcessors | None = None
    ) -> None:
        """See DraftSteps. No rows are kept, and none are processed."""
        assert not keep_logits and processors is None, "refused where a run starts"
        beside(self).spread(self.model.kv_cache)
        self._windows.draft(gamma, judge, keep_logits)


class BranchingDraftSteps(DraftSteps):
    """Over a wide state: rows of a slot begin with different tokens."""

    def set_candidates(self, candidates: int) -> None:
        """Rows of a slot, before anything is drafted."""
        self._candidates = candidates
        slots, device = self.state.sizes.num_slots // candidates, self.model.weights.device
        self._before = torch.zeros(slots, dtype=torch.int64, device=device)

    def _sample_step(
        self, asked: Windows, step: int, logits: Tensor, positions: Tensor, ring_rows: Tensor
    ) -> None:
        """See DraftSteps. Token w of the first row is the likeliest, noise included, without those before it:
        it is drawn from row w, where these have no chance.
        """
        super()._sample_step(asked, step, logits, positions, ring_rows)
        if step > 0:
            return
        candidates = self._candidates
        rows = logits.view(-1, candidates, logits.shape[-1])
        drawn = asked.state.draft_token_ids[:, 0].view(-1, candidates)
        for window in range(1, candidates):
            self._before.copy_(drawn[:, window - 1])
            before = self._before.clamp_(min=0)[:, None, None].expand(-1, candidates - window, 1)
            rows[:, window:].scatter_(2, before, -float("inf"))
            super()._sample_step(asked, step, logits, positions, ring_rows)
