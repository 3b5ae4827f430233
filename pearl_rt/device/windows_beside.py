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
    """The state of the slots, with that of their windows."""

    def __init__(self, sizes: StateSizes, candidates: int, num_pages: int, device: torch.device) -> None:
        """num_pages: of the pool, behind which are those of windows."""
        super().__init__(sizes, device)
        slots, self.candidates = sizes.num_slots, candidates
        wide = {**vars(sizes), "num_slots": slots * candidates, "ring_size": 1}
        self.wide = DeviceState(StateSizes(**wide), device)
        self.caches: list[PagedKVCache] = []  # of all lanes over this state
        self.num_own = pages_of_window(sizes.gamma_max, sizes.block_size)
        own = torch.arange(slots * (candidates - 1) * self.num_own, device=device) + num_pages
        self._unread = num_pages + own.numel()
        self.own_pages = own.view(slots, candidates - 1, self.num_own)

    def first_page(self) -> Tensor:
        """[B] int64: the place in a slot's table of the page that its windows begin in."""
        return (self.whole.committed.long() - 2).clamp(min=0) // self.sizes.block_size

    def spread(self, cache: PagedKVCache) -> None:
        """Gives each window what its slot has, and the rows that lie before it in its first page."""
        shape = self.sizes.num_slots, self.candidates
        for name in (*SAME, "finish_reason"):
            own, wide = getattr(self.whole, name), getattr(self.wide.whole, name)
            wide.view(*shape, *own.shape[1:]).copy_(own[:, None].expand(*shape, *own.shape[1:]))
        first, table = self.first_page(), self.block_table
        place = torch.arange(table.shape[1], device=table.device) - first[:, None]
        is_own = (place >= 0) & (place < self.num_own)
        at = place.clamp(0, self.num_own - 1)[:, None].expand(-1, self.candidates - 1, -1)
        wide = self.wide.block_table.view(*shape, -1)
        wide[:, 0].copy_(table)
        wide[:, 1:].copy_(torch.where(is_own[:, None], self.own_pages.gather(2, at).int(), table[:, None]))
        source = table.gather(1, first.clamp(max=table.shape[1] - 1)[:, None]).expand(-1, self.candidates - 1)
        self._copy_pages(cache, source, self.own_pages[:, :, 0])

    def take(self, gamma: int, chosen: Tensor) -> None:
        """Copies window chosen[b], [B] int64, into slot b and its pages, in all caches."""
        own, wide = self.windowed(gamma), self.wide.windowed(gamma)
        rows = torch.arange(len(chosen), device=chosen.device) * self.candidates + chosen
        for name in CHOSEN:
            getattr(own, name).copy_(getattr(wide, name).index_select(0, rows))
        places = self.first_page()[:, None] + torch.arange(self.num_own, device=chosen.device)
        table = self.block_table.gather(1, places.clamp(max=self.block_table.shape[1] - 1)).long()
        fits = places * self.sizes.block_size < self.whole.max_total_len[:, None]
        to = torch.where((chosen > 0)[:, None] & fits, table, self._unread)
        at = (chosen - 1).clamp(min=0)[:, None, None].expand(-1, 1, self.num_own)
        for cache in self.caches:
            self._copy_pages(cache, self.own_pages.gather(1, at)[:, 0], to)

    @staticmethod
    def _copy_pages(cache: PagedKVCache, source: Tensor, to: Tensor) -> None:
        source, to = source.flatten().long(), to.flatten().long()
        for pages in (*cache.keys, *cache.values):
            pages.index_copy_(0, to, pages.index_select(0, source))


def beside(steps: LaneSteps) -> BesideState:
    """The state of steps that were made for several windows."""
    assert isinstance(steps.state, BesideState)
    return steps.state


class BesideTargetSteps(TargetSteps):
    """The target's lane, which scores all windows and takes one."""

    def __init__(self, model: Llama, state: DeviceState) -> None:
        super().__init__(model, state)
        own = beside(self)
        own.caches.append(model.kv_cache)
        self._windows = TargetSteps(model, own.wide)
        slots, vocab, device = state.sizes.num_slots, state.sizes.vocab_size, model.weights.device
        self._token = torch.zeros(slots, dtype=torch.int32, device=device)
        self._room = torch.empty(sample_workspace(slots, vocab), dtype=torch.uint8, device=device)

    def score(self, gamma: int, include_window: bool) -> None:
        """See TargetSteps. With windows the slot's rows are then those of the one that is taken."""
        if not include_window or gamma == 0:
            super().score(gamma, include_window)
            return
        own = beside(self)
        own.spread(self.model.kv_cache)
        self._windows.score(gamma, include_window)
        own.take(gamma, self._chosen(gamma))

    def _chosen(self, gamma: int) -> Tensor:
        """[B] int64: the window whose first draft is the target's own token; 0 where there is none."""
        own = beside(self)
        wide, slots, state = own.wide.windowed(gamma), own.sizes.num_slots, own.whole
        rows = wide.target_logits.view(slots, own.candidates, gamma + 1, -1)[:, 0, 0]
        positions, purpose = state.committed.long(), int(Purpose.TARGET)
        settings = state.temperature, state.seed, positions, purpose, self._token, None, self._room
        sample(rows, *settings, pdl=self.model.pdl)
        drafts = wide.draft_token_ids[:, 0].view(slots, own.candidates)
        drafted = wide.num_draft_tokens.view(slots, own.candidates) > 0
        return ((drafts == self._token[:, None]) & drafted).int().argmax(1)


class BesideDraftSteps(DraftSteps):
    """The draft's lane, which fills all windows, token by token."""

    def __init__(self, model: Llama, state: DeviceState) -> None:
        super().__init__(model, state)
        own = beside(self)
        own.caches.append(model.kv_cache)
        self._windows = BranchingDraftSteps(model, own.wide)
        self._windows.candidates = own.candidates

    def draft(
        self, gamma: int, judge: str, keep_logits: bool, processors: LogitsProcessors | None = None
    ) -> None:
        """See DraftSteps. No rows are kept, and none are processed."""
        assert not keep_logits and processors is None, "refused where a run starts"
        beside(self).spread(self.model.kv_cache)
        self._windows.draft(gamma, judge, keep_logits)


class BranchingDraftSteps(DraftSteps):
    """Over a wide state: rows of a slot begin with different tokens."""

    candidates = 1

    def _sample_step(
        self, asked: Windows, step: int, logits: Tensor, positions: Tensor, ring_rows: Tensor
    ) -> None:
        """See DraftSteps. Token w of the first row is the likeliest, noise included, without those before it:
        it is drawn from row w, where these have no chance.
        """
        super()._sample_step(asked, step, logits, positions, ring_rows)
        if step > 0:
            return
        rows = logits.view(-1, self.candidates, logits.shape[-1])
        drawn = asked.state.draft_token_ids[:, 0].view(-1, self.candidates)
        for window in range(1, self.candidates):
            before = drawn[:, window - 1].long().clamp(min=0)[:, None, None]
            rows[:, window:].scatter_(2, before.expand(-1, self.candidates - window, 1), -float("inf"))
            super()._sample_step(asked, step, logits, positions, ring_rows)
