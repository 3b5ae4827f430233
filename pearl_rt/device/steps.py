"""The ops of a round on a device: prefill, draft, score and verify as launches on static buffers.

    target's lane   prefill; verify (the first token); then score, verify every round
    draft's lane    prefill; then draft every round

Knows a model and the state; not lanes, events or order. `prefill` takes lengths from the host.
The launches of `prefill_chunk`, `prefill_logits`, `draft`, `score` and `verify` depend on the window (and the
slot) alone, read nothing back and allocate nothing, so that each of them is captured once and launched as
often as is needed: which tokens a chunk feeds stands in `chunk`, on the device.
"""

from dataclasses import dataclass

import torch

from pearl_rt.device.logits_processors import LogitsProcessors
from pearl_rt.device.state import DeviceState
from pearl_rt.errors import ConfigError
from pearl_rt.kernels.forward import feed as feeding
from pearl_rt.kernels.forward.feed import (
    DRAFT_FIRST,
    DRAFT_NEXT,
    DRAFT_WINDOW,
    PREFILL,
    SCORE,
    SCORE_WINDOW,
)
from pearl_rt.kernels.sampling.sample import sample
from pearl_rt.kernels.sampling.sample import workspace_size as sample_workspace
from pearl_rt.kernels.verify.verify import verify
from pearl_rt.kernels.verify.verify import workspace_size as verify_workspace
from pearl_rt.model.features import Features
from pearl_rt.model.forward_batch import ForwardBatch
from pearl_rt.model.llama import Llama
from pearl_rt.reference.noise import Purpose
from pearl_rt.state import State
from pearl_rt.strategy.program import JUDGES

Tensor = torch.Tensor


class LaneSteps:
    """What both lanes do: feed prompts."""

    prefill_kind = PREFILL

    def __init__(self, model: Llama, state: DeviceState, features: Features | None = None) -> None:
        """features: what the target's passes leave for a head, and its own read; None: there is no head."""
        self.model = model
        self.state = state
        self.features = features
        cache, slots, device = model.kv_cache.shape, state.sizes.num_slots, model.weights.device
        if cache.block_size != (expected := state.sizes.block_size):
            raise ConfigError(
                f"the KV cache has blocks of {cache.block_size} tokens, the state's are of {expected}: pass "
                "one block_size for both"
            )
        self.batch = ForwardBatch.empty(model.sizes.max_tokens, 1, state.block_table)
        self.chunk = torch.zeros(slots, 2, dtype=torch.int32, device=device)
        self.logit_rows = torch.zeros(model.sizes.logit_rows, dtype=torch.int32, device=device)
        places = slots * self.window_rows(model, state.sizes.gamma_max)
        self.sample_positions = torch.zeros(places, dtype=torch.int64, device=device)
        self.ring_rows = torch.zeros(places, dtype=torch.int64, device=device)

    @staticmethod
    def window_rows(model: Llama, gamma_max: int) -> int:
        """Rows of a sequence that one pass samples from."""
        return 1

    def prefill_chunks(self, length: int) -> list[tuple[int, int]]:
        """[start, end) of the passes that feed the first `length` tokens: cut at multiples of the chunk."""
        size = self.model.sizes.prefill_chunk
        return [(start, min(start + size, length)) for start in range(0, length, size)]

    def next_chunk(self, slot: int, start: int, end: int) -> None:
        """The host's: has prefill_chunk feed tokens [start, end) of one slot."""
        self.chunk.zero_()
        self.chunk[slot, 0].fill_(start)  # a launch; a copy from the host would wait for the stream
        self.chunk[slot, 1].fill_(end)

    def prefill_chunk(self) -> None:
        """Feeds the tokens chunk[b, 0]..chunk[b, 1] of the one slot that has any, alone in its pass."""
        batch = self.batch.first(self.model.sizes.prefill_chunk, self.model.sizes.prefill_chunk)
        state = self.state.whole
        self._feed(self.prefill_kind, 0, batch, state, state.draft_token_ids, num_logits=1)
        self._pass(batch)

    def _pass(self, batch: ForwardBatch, num_live: Tensor | None = None) -> None:
        """The model's, of a batch that was fed."""
        self.model.forward(batch, num_live)

    def _feed(
        self, kind: int, step: int, batch: ForwardBatch, state: State, window: Tensor, num_logits: int
    ) -> Tensor:
        """Fills the batch; the rows of its logits, [B * num_logits]."""
        slots = self.state.sizes.num_slots
        rows = self.logit_rows[: slots * num_logits]
        num_samples = num_logits if kind == DRAFT_WINDOW else 1
        places = slice(slots * num_samples)
        of = feeding.Sequences(
            *(state.token_ids, state.committed, state.pending, state.max_total_len, state.gamma),
            *(state.finish_reason, state.prompt_len, window, self.chunk, batch.block_table),
        )
        fed = feeding.Fed(
            *(batch.input_ids, batch.positions, batch.slot_mapping, batch.cu_seqlens_q, batch.context_lens),
            *(rows.view(slots, num_logits), state.num_rows, state.num_draft_tokens),
            *(self.sample_positions[places].view(slots, -1), self.ring_rows[places].view(slots, -1)),
        )
        block_size, ring_size = self.model.kv_cache.shape.block_size, state.draft_logits.shape[1]
        mask = self.model.config.pard_token or 0
        feeding.feed(kind, step, of, block_size, batch.max_q_len, ring_size, fed, mask, self.model.pdl)
        return rows


class TargetSteps(LaneSteps):
    """The target's lane: prefill, score, verify."""

    def __init__(self, model: Llama, state: DeviceState, features: Features | None = None) -> None:
        super().__init__(model, state, features)
        sizes = state.sizes
        num_bytes = max(
            verify_workspace(sizes.num_slots, sizes.gamma_max, sizes.vocab_size, kind) for kind in JUDGES
        )
        self.workspace = torch.empty(num_bytes, dtype=torch.uint8, device=model.weights.device)
        self._has_draft_rows = sizes.gamma_max > 0 and sizes.draft_vocab_size > 0

    def prefill(self, slot: int, prompt_len: int, gamma: int) -> None:
        """Feeds a prompt; row 0 of the slot is then the distribution of the token behind it."""
        for start, end in self.prefill_chunks(prompt_len):
            self.next_chunk(slot, start, end)
            self.prefill_chunk()
        self.prefill_logits(gamma, slot)

    def _pass(self, batch: ForwardBatch, num_live: Tensor | None = None) -> None:
        if self.features is None:
            self.model.forward(batch, num_live)
            return
        self.model.forward(batch, num_live, self.features.keep)
        self.features.store(batch, num_live)

    def prefill_logits(self, gamma: int, slot: int) -> None:
        """Row 0 of a slot from the last token of the chunk that was fed last, which is the slot's."""
        state = self.state.windowed(gamma)
        self.model.logits(self.logit_rows[slot : slot + 1], state.target_logits[slot, :1])
        state.num_rows[slot : slot + 1].fill_(1)  # an item that is set by index is copied from the host

    def score(self, gamma: int, include_window: bool) -> None:
        """Logits of position committed + r for r = 0..pending, and with the window up to its end.

        Without the window pending + 1 <= gamma rows are fed; the head fills gamma + 1 rows, the last ones
        again.
        """
        state, slots = self.state.windowed(gamma), self.state.sizes.num_slots
        fed = gamma + 1 if include_window else max(gamma, 1)
        batch = self.batch.first(slots * fed, fed)
        kind = SCORE_WINDOW if include_window else SCORE
        rows = self._feed(kind, 0, batch, state, state.draft_token_ids, num_logits=gamma + 1)
        logits = state.target_logits.view(slots * (gamma + 1), -1)
        if include_window:
            self._pass(batch, batch.num_live)
        else:  # no head drafts behind it
            self.model.forward(batch, batch.num_live)
        self.model.logits(rows, logits, batch.num_live)

    def verify(
        self, gamma: int, judge: str, processors: LogitsProcessors | None = None, *, joining: bool = False
    ) -> None:
        """Judges what was scored and commits it; in round 0 the prompt's row, whose token is the first.

        processors: what requests do to rows before they are judged. joining: the slots that `joining` of the
        state says run, and no others.
        """
        state = self.state.windowed(gamma, joining=joining)
        thresholds = processors.target(gamma, joining=joining) if processors is not None else None
        verify(  # type: ignore[call-arg]
            state.target_logits,
            state.draft_logits if self._has_draft_rows else None,  # one kernel for every gamma
            *state.verify_arguments()[2:],  # type: ignore[arg-type]  # all tensors before kind
            judge,
            self.workspace,
            thresholds,
            processors.drafted(gamma) if processors is not None else None,
            self.model.pdl,
        )


@dataclass(frozen=True)
class Windows:
    """What a draft is asked for."""

    gamma: int  # tokens of a window at most
    state: State  # windowed
    purpose: Purpose  # of the noise that tokens are drawn with
    kept: Tensor | None  # [B * 2 * gamma, Vd]: rows that a judge reads
    processors: LogitsProcessors | None


class DraftSteps(LaneSteps):
    """The draft's lane: prefill and draft."""

    def __init__(self, model: Llama, state: DeviceState, features: Features | None = None) -> None:
        super().__init__(model, state, features)
        slots, device = state.sizes.num_slots, model.weights.device
        rows = slots * self.window_rows(model, state.sizes.gamma_max)
        self.step_logits = torch.empty(rows, model.vocab_size, dtype=torch.float32, device=device)
        self.workspace = torch.empty(
            sample_workspace(rows, model.vocab_size), dtype=torch.uint8, device=device
        )
        # Of a window in one pass: what its slots have, for each row; and the places of one row of each slot.
        self.row_temperature = torch.zeros(rows, dtype=torch.float32, device=device)
        self.row_seed, self.step_positions, self.step_ring_rows = (
            torch.zeros(size, dtype=torch.int64, device=device) for size in (rows, slots, slots)
        )

    @staticmethod
    def window_rows(model: Llama, gamma_max: int) -> int:
        """Rows of a sequence that one pass samples from: with a mask token those of a window."""
        return max(gamma_max, 1) if model.config.pard_token is not None else 1

    def prefill(self, slot: int, prompt_len: int) -> None:
        """Feeds a prompt but for its last token, which the first window feeds."""
        for start, end in self.prefill_chunks(prompt_len - 1):
            self.next_chunk(slot, start, end)
            self.prefill_chunk()

    def draft(
        self, gamma: int, judge: str, keep_logits: bool, processors: LogitsProcessors | None = None
    ) -> None:
        """Fills the windows, of gamma tokens at most, that follow token committed + pending.

        keep_logits: for judge "rejection" at temperature > 0. processors: what requests do to rows before
        tokens are sampled from them.
        """
        state = self.state.windowed(gamma)
        kept = state.draft_logits.view(-1, self.model.vocab_size) if keep_logits else None
        purpose = Purpose.TARGET if judge == "coupled" else Purpose.DRAFT
        asked = Windows(gamma, state, purpose, kept, processors)
        if self.model.config.pard_token is not None:
            self._draft_at_once(asked)
        else:
            self._draft_by_token(asked)

    def _draft_by_token(self, asked: Windows) -> None:
        """A pass for each token. The first one feeds the last two tokens that it continues from: after a
        bonus token the cache lacks both, else one row is written again unchanged.
        """
        logits, positions, ring_rows = (
            tensor[: self.state.sizes.num_slots]
            for tensor in (self.step_logits, self.sample_positions, self.ring_rows)
        )
        for step in range(asked.gamma):
            batch, rows = self._step(asked, step)
            self.model.logits(rows, logits, batch.num_live)
            self._sample_step(asked, step, logits, positions, ring_rows)

    def _step(self, asked: Windows, step: int) -> tuple[ForwardBatch, Tensor]:
        """The pass of token `step` -> its batch, and the rows of its logits."""
        state, slots, fed = asked.state, self.state.sizes.num_slots, 2 if step == 0 else 1
        batch = self.batch.first(slots * fed, fed)
        kind = DRAFT_FIRST if step == 0 else DRAFT_NEXT
        rows = self._feed(kind, step, batch, state, state.draft_token_ids, num_logits=1)
        self.model.forward(batch, batch.num_live)
        return batch, rows

    def _draft_at_once(self, asked: Windows) -> None:
        """One pass for a window: the last gamma + 1 tokens that it continues from, then mask tokens. The
        cache lacks at most so many: where it holds rows of the last window's masks, the text has grown by
        that window and a bonus token. Other rows are written again unchanged.

        Without processors all rows are sampled at once; else one by one, as each sees the tokens before it.
        """
        state, gamma, slots = asked.state, asked.gamma, self.state.sizes.num_slots
        batch, places = self.batch.first(slots * 2 * gamma, 2 * gamma), slice(slots * gamma)
        rows = self._feed(DRAFT_WINDOW, 0, batch, state, state.draft_token_ids, num_logits=gamma)
        logits = self.step_logits[places]
        self.model.forward(batch, batch.num_live)
        self.model.logits(rows, logits, batch.num_live)
        positions, ring_rows = self.sample_positions[places], self.ring_rows[places]
        if asked.processors is None:
            temperature, seed = self.row_temperature[places], self.row_seed[places]
            temperature.view(slots, gamma).copy_(state.temperature[:, None])
            seed.view(slots, gamma).copy_(state.seed[:, None])
            out = state.draft_token_ids.view(-1)
            self._sample(asked, logits, temperature, seed, positions, ring_rows, out)
            return
        for step in range(gamma):
            self.step_positions.copy_(positions.view(slots, gamma)[:, step])
            self.step_ring_rows.copy_(ring_rows.view(slots, gamma)[:, step])
            own = logits.view(slots, gamma, -1)[:, step]
            self._sample_step(asked, step, own, self.step_positions, self.step_ring_rows)

    def _sample_step(
        self, asked: Windows, step: int, logits: Tensor, positions: Tensor, ring_rows: Tensor
    ) -> None:
        """Token `step` of each window, from rows [B, Vd]."""
        state, thresholds = asked.state, None
        if asked.processors is not None:
            thresholds = asked.processors.draft(asked.gamma, step, logits, ring_rows)
        out = state.draft_token_ids[:, step]
        self._sample(asked, logits, state.temperature, state.seed, positions, ring_rows, out, thresholds)

    def _sample(
        self,
        asked: Windows,
        logits: Tensor,
        temperature: Tensor,
        seed: Tensor,
        positions: Tensor,
        ring_rows: Tensor,
        out: Tensor,
        thresholds: Tensor | None = None,
    ) -> None:
        """A token of each row into out, and the rows into those of `kept`, if they are kept."""
        sample(
            logits,
            temperature,
            seed,
            positions,
            int(asked.purpose),
            out,
            thresholds,
            self.workspace,
            asked.kept,
            ring_rows if asked.kept is not None else None,
            self.model.pdl,
        )
