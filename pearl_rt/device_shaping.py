"""What requests do to logits on a device: their parameters as tensors, and the launches that apply them.

Knows the state of a round; not models, lanes or order. A run whose requests ask for nothing has none of this.
A draft's rows are kept as they were sampled, with their thresholds, so that what was sampled from is what is
judged.
"""

from collections.abc import Sequence

import torch

from pearl_rt.device_state import DeviceState
from pearl_rt.errors import RequestError
from pearl_rt.kernels.filters import filters
from pearl_rt.kernels.filters import workspace_size as filters_workspace
from pearl_rt.kernels.penalties import TARGET_ROWS, penalties
from pearl_rt.kernels.penalties import workspace_size as penalties_workspace
from pearl_rt.kernels.state import State
from pearl_rt.request import FILTERS, SHAPING, Request

Tensor = torch.Tensor
MAX_BIASED = 64  # ids in logit_bias
FLOATS = ("repetition_penalty", "frequency_penalty", "presence_penalty", "top_p", "min_p")


class Shaping:
    """Tensors [B] of every slot's parameters, and memory for the rows of both lanes."""

    def __init__(self, state: DeviceState) -> None:
        self.state = state
        sizes, device = state.sizes, state.whole.temperature.device
        slots, rows = sizes.num_slots, sizes.num_slots * (sizes.gamma_max + 1)

        def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        # Set by start.
        self.floats = {name: tensor(slots) for name in FLOATS}
        self.top_k, self.min_tokens = (tensor(slots, dtype=torch.int32) for _ in range(2))
        self.masked_ids = tensor(slots, 2 * sizes.max_stop_ids, dtype=torch.int32)
        self.bias_ids = tensor(slots, MAX_BIASED, dtype=torch.int32)
        self.bias = tensor(slots, MAX_BIASED)
        self.penalises = self.filters = False
        # Set by target. A target's rows have their slot's parameters.
        self.row_floats = {name: tensor(rows) for name in ("temperature", "top_p", "min_p")}
        self.row_top_k = tensor(rows, dtype=torch.int32)
        self.target_thresholds = tensor(rows)
        # Set by draft.
        self.step_thresholds = tensor(slots)
        self.kept_thresholds = tensor(slots * 2 * max(sizes.gamma_max, 1))

        vocab, own = sizes.vocab_size, min(sizes.vocab_size, sizes.draft_vocab_size)
        target = max(penalties_workspace(slots, vocab), filters_workspace(rows, vocab))
        draft = max(penalties_workspace(slots, own), filters_workspace(slots, own))
        self.target_workspace = tensor(target, dtype=torch.uint8)  # the lanes may be at work at once
        self.draft_workspace = tensor(draft, dtype=torch.uint8)

    def start(self, requests: Sequence[Request]) -> None:
        """Request i has slot i. Raises RequestError for more ids than there is room for."""
        for request in requests:
            if len(request.logit_bias) > MAX_BIASED:
                raise RequestError(
                    f"logit_bias has {len(request.logit_bias)} ids; the device takes {MAX_BIASED}: pass less"
                )
        asked = {name for request in requests for name in request.asked()}
        self.penalises, self.filters = bool(asked & set(SHAPING)), bool(asked & set(FILTERS))
        off = Request(())
        for name, values in self.floats.items():
            values.fill_(getattr(off, name))
        for ids in (self.masked_ids, self.bias_ids):
            ids.fill_(-1)
        self.top_k.zero_()
        self.min_tokens.zero_()
        for slot, request in enumerate(requests):
            for name, values in self.floats.items():
                values[slot] = getattr(request, name)
            self.top_k[slot], self.min_tokens[slot] = request.top_k, request.min_tokens
            masked = sorted({*request.eos_ids, *request.stop_ids})
            self.masked_ids[slot, : len(masked)] = torch.tensor(masked, dtype=torch.int32)
            for place, (token_id, amount) in enumerate(request.logit_bias):
                self.bias_ids[slot, place], self.bias[slot, place] = token_id, amount

    def target(self, gamma: int) -> Tensor | None:
        """Transforms the rows that were scored, in place -> [B, gamma + 1] thresholds, if any are on."""
        state, slots = self.state.windowed(gamma), self.state.sizes.num_slots
        rows = state.target_logits.view(slots * (gamma + 1), -1)
        if self.penalises:
            window, workspace = state.draft_token_ids, self.target_workspace
            self._penalise(state, rows, window, state.num_rows, TARGET_ROWS, workspace)
        if not self.filters:
            return None
        sources = {
            "temperature": state.temperature,
            "top_p": self.floats["top_p"],
            "min_p": self.floats["min_p"],
        }
        spread = {
            name: self._spread(values, self.row_floats[name], gamma) for name, values in sources.items()
        }
        top_k = self._spread(self.top_k, self.row_top_k, gamma)
        thresholds = self.target_thresholds[: len(rows)]
        given = (spread["temperature"], top_k, spread["top_p"], spread["min_p"])
        filters(rows, *given, thresholds, self.target_workspace)
        return thresholds.view(slots, gamma + 1)

    def draft(self, gamma: int, step: int, logits: Tensor, ring_rows: Tensor) -> Tensor | None:
        """Transforms the rows of a draft's step, [B, Vd], in place -> [B] thresholds, which are kept too."""
        state = self.state.windowed(gamma)
        if self.penalises:
            window = self.state.drafted[:gamma].t()
            self._penalise(state, logits, window, None, step, self.draft_workspace)
        if not self.filters:
            return None
        given = (state.temperature, self.top_k, self.floats["top_p"], self.floats["min_p"])
        filters(logits, *given, self.step_thresholds, self.draft_workspace)
        self.kept_thresholds.index_copy_(0, ring_rows, self.step_thresholds)
        return self.step_thresholds

    def drafted(self, gamma: int) -> Tensor | None:
        """The thresholds of the draft's rows, [B, 2 * gamma], if any are on."""
        if not self.filters or gamma == 0:
            return None
        slots = self.state.sizes.num_slots
        return self.kept_thresholds[: slots * 2 * gamma].view(slots, 2 * gamma)

    def _penalise(
        self,
        state: State,
        rows: Tensor,
        window: Tensor,
        num_rows: Tensor | None,
        step: int,
        workspace: Tensor,
    ) -> None:
        penalties(
            rows,
            state.token_ids,
            window,
            state.committed,
            state.pending,
            state.finish_reason,
            state.prompt_len,
            num_rows,
            step,
            self.floats["repetition_penalty"],
            self.floats["frequency_penalty"],
            self.floats["presence_penalty"],
            self.min_tokens,
            self.masked_ids,
            self.bias_ids,
            self.bias,
            workspace,
        )

    def _spread(self, values: Tensor, rows: Tensor, gamma: int) -> Tensor:
        """[B] -> [B * (gamma + 1)], each as often as a slot has rows."""
        slots = self.state.sizes.num_slots
        part = rows[: slots * (gamma + 1)]
        part.view(slots, gamma + 1).copy_(values[:, None])
        return part
