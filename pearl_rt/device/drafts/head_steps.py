"""The draft's lane where an EAGLE-3 head drafts: which rows it is fed, and with which features.

Knows a head, its features and the state; not lanes, events or order. Features of a prompt are there once the
target's lane has fed it, and those of a round's rows behind their score.
"""

import torch

from pearl_rt.device.state import DeviceState
from pearl_rt.device.steps import DraftSteps, Windows
from pearl_rt.kernels.forward.feed import HEAD_FIRST, HEAD_NEXT, HEAD_PREFILL
from pearl_rt.model.eagle_head import EagleHead
from pearl_rt.model.features import Features
from pearl_rt.model.forward_batch import ForwardBatch

Tensor = torch.Tensor


class HeadSteps(DraftSteps):
    """The draft's lane of a head: prefill and draft.

    The first step of a window feeds the last gamma + 1 rows that have features: no round commits more tokens.
    Those that the cache has are written again unchanged. Each later step feeds a row with what the head left
    at the row before.
    """

    prefill_kind = HEAD_PREFILL

    def __init__(self, model: EagleHead, state: DeviceState, features: Features) -> None:
        super().__init__(model, state, features)
        self.head, self._rows = model, features.rows
        self.step_logits.fill_(-torch.inf)  # an id that the head lacks has no chance

    def _pass(self, batch: ForwardBatch, num_live: Tensor | None = None) -> None:
        self.head.feed(batch, num_live, self._rows)

    def _step(self, asked: Windows, step: int) -> tuple[ForwardBatch, Tensor]:
        state, slots = asked.state, self.state.sizes.num_slots
        fed = asked.gamma + 1 if step == 0 else 1
        batch = self.batch.first(slots * fed, fed)
        if step > 0:
            self.head.keep_last(self.logit_rows[:slots])
        kind = HEAD_FIRST if step == 0 else HEAD_NEXT
        rows = self._feed(kind, step, batch, state, state.draft_token_ids, num_logits=1)
        self.head.feed(batch, batch.num_live, self._rows if step == 0 else None)
        return batch, rows
