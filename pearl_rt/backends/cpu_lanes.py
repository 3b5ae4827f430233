"""The native lanes of a pair on CPU cores: executors, their threads, and what drafts.

Knows core sets, executors and drafters; not how models are packed, and not which placement is wanted.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pearl_rt._C as _C
from pearl_rt.backends.base import Lanes
from pearl_rt.checkpoint.views.draft_ids import DraftIds
from pearl_rt.device.kv_pool import KvPool
from pearl_rt.errors import ResourceError
from pearl_rt.reference.drafters.diffusion import DEFAULT_PASSES
from pearl_rt.strategy.planner import StepTimes, seconds
from pearl_rt.strategy.program import MAX_GAMMA
from pearl_rt.types import draft_stop
from pearl_rt.types.request import Request

if TYPE_CHECKING:
    from pearl_rt.backends.cpu import Model

COST_OF_ONE = 4096  # of a score over one row
TOO_FEW_CORES = (
    "placement 'split' needs 2 cores, one for the draft and the rest for the target; there is {}: pass "
    "placement='shared', or more threads"
)


def split_cores(cores: Sequence[int]) -> tuple[list[int], list[int]]:
    """(target's cores, draft's core), disjoint. Raises ResourceError with fewer than two."""
    if len(cores) < 2:
        raise ResourceError(TOO_FEW_CORES.format(len(cores)))
    return list(cores[:-1]), [cores[-1]]


def costs_of(table: Mapping[int, float], times: StepTimes, most: int) -> list[int]:
    """[most] what steps of 1, 2, .. take by a table of StepTimes, in units of which a score over one row has
    COST_OF_ONE; a longer step never takes less.
    """
    unit, costs = seconds(times.target, 1) / COST_OF_ONE, [1]
    for count in range(1, most + 1):
        costs.append(max(costs[-1], round(seconds(table, count) / unit)))
    return costs[1:]


class CpuLanes(Lanes):
    """Executors on their cores, and the coordinator that drives them."""

    adapts = True

    def __init__(
        self,
        placement: str,
        cores: Sequence[int],
        target: "Model",
        draft: "Model | None",
        num_slots: int,
        pool: KvPool,
        lookup_tokens: int | None = None,
        looks_up_for_all: bool = True,
        stop: str = "none",
        candidates: int = 1,
    ) -> None:
        """pool: the KV blocks of all sequences. lookup_tokens: of earlier answers, for a lookup, which is
        asked before the draft if there is one; None: nothing is looked up. looks_up_for_all: before a draft,
        and not only for requests whose windows adapt. stop: of a draft model's windows, draft_stop of
        EngineOptions, where a request has none of its own. candidates: windows of a sequence.
        """
        super().__init__(placement, target.config, draft.config if draft is not None else None, pool)
        self._lookup: _C.LookupDrafter | None = None
        self._chain: _C.ChainDrafter | None = None
        self._branching: _C.ModelDrafter | None = None  # what has several windows of a sequence
        self._stop = stop
        # Counted in weights that are read and never in seconds, so that a seed stays a text.
        read = 0 if draft is None else draft.weights.weight_bytes
        self._draft_cost = read / target.weights.weight_bytes
        self._measures = False  # whole windows
        self._most_rows = num_slots * candidates * (MAX_GAMMA + 1)  # of a score
        self.overlaps = placement == "split"
        self.target_cores, self.draft_cores = list(cores), list(cores)
        if placement == "split":
            self.target_cores, self.draft_cores = split_cores(cores)
        # On shared cores threads run where the system puts them: a pinned one waits behind a neighbour.
        is_split = placement == "split"
        target_set = draft_set = _C.CoreSet(self.target_cores, is_pinned=is_split)
        target_device = draft_device = _C.Device(self.target_cores if is_split else [])
        if is_split:
            draft_set, draft_device = (
                _C.CoreSet(self.draft_cores, is_pinned=True),
                _C.Device(self.draft_cores),
            )
        head = None if draft is None else draft.head
        taps = () if head is None else head.taps
        own_target = target.executor(target_set, num_slots, pool, taps, candidates)
        lanes = [_C.CpuLane("target", own_target, target_device)]
        model: _C.ModelDrafter | None = None
        drafter: _C.Drafter | None = None
        if draft is not None and head is not None:
            own = draft.executor(draft_set, num_slots, pool)
            model = drafter = taps_reader = _C.EagleDrafter(own, target_ids=list(head.target_ids))
            lanes = [_C.CpuLane("target", own_target, target_device, taps=taps_reader)]
        elif draft is not None:
            own = draft.executor(draft_set, num_slots, pool, candidates=candidates)
            mask, filled = draft.config.pard_token, draft.config.diffusion_mask_token
            self.drafts_at_once = mask is not None or filled is not None
            ids = draft.ids or DraftIds(())
            drafter = model = _C.ModelDrafter(
                own, mask_token=mask, target_ids=list(ids.target_of), draft_ids=list(ids.draft_of)
            )
            if filled is not None:
                passes = draft.config.diffusion_passes or DEFAULT_PASSES
                drafter = model = _C.DiffusionDrafter(own, mask_token=filled, num_passes=passes)
        self._branching = model if candidates > 1 and isinstance(model, _C.ModelDrafter) else None
        if lookup_tokens is not None and model is not None:
            drafter = self._chain = _C.ChainDrafter(
                model, pool_tokens=lookup_tokens, cost=self._draft_cost, for_all=looks_up_for_all
            )
        elif lookup_tokens is not None:
            drafter = self._lookup = _C.LookupDrafter(pool_tokens=lookup_tokens)
            self.has_draft = True
        if drafter is not None:
            lanes.append(_C.CpuLane("draft", drafter, draft_device))
        drafting = target if self._lookup is not None else draft
        draft_size = drafting.config.vocab_size if drafting is not None else None
        if draft is not None and draft.ids is not None:
            draft_size = target.config.vocab_size
        draft_capacity = draft.cos.shape[0] if draft is not None else None
        self.max_model_len = min(self.max_model_len, draft_capacity or self.max_model_len)
        self.coordinator = self.coordinator_of(
            lanes, num_slots, pool, target.config.vocab_size, draft_size, draft_capacity, candidates
        )

    @property
    def drafter_bytes(self) -> int:
        """Of a drafter without weights: the indices of a lookup. Between runs."""
        looks_up = self._lookup or self._chain
        return looks_up.bytes if looks_up is not None else 0

    def native(self, request: Request) -> _C.Request:
        """With what ends its windows."""
        rule = "none" if self._measures else request.draft_stop or self._stop
        name, at = draft_stop.native(rule, self._draft_cost)
        return _C.Request(**vars(request) | {"draft_stop": name, "draft_stop_at": at})

    def measure(self) -> StepTimes:
        """With whole windows, of a model if there is one, so that scores of many rows are timed."""
        self._measures = True
        if self._chain is not None:
            self._chain.set_looks_up(False)
        if self._lookup is not None:
            self._lookup.set_fills(True)
        if self._branching is not None:
            self._branching.set_branches(False)
        try:
            times = super().measure()
        finally:
            self._measures = False
            if self._chain is not None:
                self._chain.set_looks_up(True)
            if self._lookup is not None:
                self._lookup.set_fills(False)
            if self._branching is not None:
                self._branching.set_branches(True)
        if self._lookup is not None:
            self._lookup.set_costs(costs_of(times.target, times, self._most_rows))
        if (
            times.window is not None and not self.overlaps
        ):  # beside the target a window has no time of its own
            costs = costs_of(times.target, times, self._most_rows), costs_of(times.window, times, MAX_GAMMA)
            if self._chain is not None:
                self._chain.set_costs(*costs)
            if self._branching is not None:
                self._branching.set_branch_costs(*costs)
        return times
