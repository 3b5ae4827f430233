"""What requests do to logits on a device: their parameters as tensors, and the launches that apply them.

Knows the state of a round; not models, lanes or order. A run whose requests ask for nothing has none of this.
Launches that are captured serve whatever is asked: where a parameter is off they leave every bit as it is.
A draft's rows are kept as they were sampled, with their thresholds, so that what was sampled from is what is
judged.
"""

import torch

from pearl_rt.device.state import DeviceState
from pearl_rt.errors import RequestError
from pearl_rt.kernels.sampling.filters import filters
from pearl_rt.kernels.sampling.filters import workspace_size as filters_workspace
from pearl_rt.kernels.sampling.penalties import TARGET_ROWS, Before, Parameters, penalties
from pearl_rt.kernels.sampling.penalties import workspace_size as penalties_workspace
from pearl_rt.state import State
from pearl_rt.types.request import FILTERS, PROCESSORS, Request

Tensor = torch.Tensor
MAX_BIASED = 64  # ids in logit_bias
OFF = Request(())  # a request that changes nothing
FLOATS = ("repetition_penalty", "frequency_penalty", "presence_penalty", "top_p", "min_p")


def check_biased(request: Request) -> None:
    """Raises RequestError for more ids in logit_bias than there is room for."""
    if len(request.logit_bias) > MAX_BIASED:
        raise RequestError(
            f"logit_bias has {len(request.logit_bias)} ids; the device takes {MAX_BIASED}: pass less"
        )


class LogitsProcessors:
    """Tensors [B] of every slot's parameters, and memory for the rows of both lanes."""

    def __init__(self, state: DeviceState, *, captured: bool = True, pdl: bool = False) -> None:
        """captured: its launches are, once for all; else each looks at the parameters when it is launched.
        pdl: as of the lane's model.
        """
        self.state, self._pdl = state, pdl
        sizes, device = state.sizes, state.whole.temperature.device
        slots, rows = sizes.num_slots, sizes.num_slots * (sizes.gamma_max + 1)

        def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        # Set by native lanes: off in all slots, until a run has a request with some.
        self.floats = {name: tensor(slots).fill_(getattr(OFF, name)) for name in FLOATS}
        self.top_k, self.min_tokens = (tensor(slots, dtype=torch.int32) for _ in range(2))
        self.masked_ids = tensor(slots, 2 * sizes.max_stop_ids, dtype=torch.int32)
        self.bias_ids = tensor(slots, MAX_BIASED, dtype=torch.int32).fill_(-1)
        self.bias = tensor(slots, MAX_BIASED)
        self._captured = captured
        # Set by target. A target's rows have their slot's parameters.
        self.row_floats = {name: tensor(rows) for name in ("temperature", "top_p", "min_p")}
        self.row_top_k = tensor(rows, dtype=torch.int32)
        self.target_thresholds = tensor(rows)
        # Set by draft.
        self._has_filtered = captured  # when it was launched last
        self.step_thresholds = tensor(slots)
        self.kept_thresholds = tensor(slots * 2 * max(sizes.gamma_max, 1))

        vocab, own = sizes.vocab_size, min(sizes.vocab_size, sizes.draft_vocab_size)
        target = max(penalties_workspace(slots, vocab), filters_workspace(rows, vocab))
        draft = max(penalties_workspace(slots, own), filters_workspace(slots, own))
        self.target_workspace = tensor(target, dtype=torch.uint8)  # the lanes may be at work at once
        self.draft_workspace = tensor(draft, dtype=torch.uint8)

    def arrays(self) -> dict[str, Tensor]:
        """What csrc/cuda/memory/array_table.h writes, by its names there."""
        names = ("top_k", "min_tokens", "masked_ids", "bias_ids", "bias", "kept_thresholds")
        return self.floats | {name: getattr(self, name) for name in names}

    @property
    def served(self) -> frozenset[str]:
        """The parameters that launches serve. Of those that are captured: all. Else those that are not off in
        some slot, which costs less in the interpreter than launches that change nothing.
        """
        names = (*PROCESSORS, *FILTERS)
        if self._captured:
            return frozenset(names)
        values = {name: getattr(self, name) for name in ("top_k", "min_tokens")} | self.floats
        on = {name for name, own in values.items() if bool((own != getattr(OFF, name)).any())}
        return frozenset(on | ({"logit_bias"} if bool((self.bias_ids >= 0).any()) else set()))

    @property
    def penalises(self) -> bool:
        """Whether rows are changed in place."""
        return not self.served.isdisjoint(PROCESSORS)

    @property
    def filters(self) -> bool:
        """Whether rows have thresholds."""
        return not self.served.isdisjoint(FILTERS)

    def target(self, gamma: int, *, joining: bool = False) -> Tensor | None:
        """Transforms the rows that were scored, in place -> [B, gamma + 1] thresholds, if any are on.
        joining: as in verify.
        """
        state, slots = self.state.windowed(gamma, joining=joining), self.state.sizes.num_slots
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
        k, p, m = self._wanted(top_k, spread["top_p"], spread["min_p"])
        filters(rows, spread["temperature"], k, p, m, thresholds, self.target_workspace, self._pdl)
        return thresholds.view(slots, gamma + 1)

    def draft(self, gamma: int, step: int, logits: Tensor, ring_rows: Tensor) -> Tensor | None:
        """Transforms the rows of a draft's step, [B, Vd], in place -> [B] thresholds, which are kept too."""
        state = self.state.windowed(gamma)
        if self.penalises:
            self._penalise(state, logits, state.draft_token_ids, None, step, self.draft_workspace)
        filtered, self._has_filtered = self._has_filtered, self.filters
        if not self._has_filtered:
            return None
        if not filtered:
            self.kept_thresholds.fill_(-torch.inf)  # what is pending was not filtered
        k, p, m = self._wanted(self.top_k, self.floats["top_p"], self.floats["min_p"])
        filters(logits, state.temperature, k, p, m, self.step_thresholds, self.draft_workspace, self._pdl)
        self.kept_thresholds.index_copy_(0, ring_rows, self.step_thresholds)
        return self.step_thresholds

    def drafted(self, gamma: int) -> Tensor | None:
        """The thresholds of the draft's rows, [B, 2 * gamma], if any are on."""
        if not self.filters or self.state.sizes.gamma_max == 0:
            return None
        return self._kept(gamma)

    def _kept(self, gamma: int) -> Tensor:
        slots, rows = self.state.sizes.num_slots, 2 * max(gamma, 1)
        return self.kept_thresholds[: slots * rows].view(slots, rows)

    def _wanted(
        self, top_k: Tensor, top_p: Tensor, min_p: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Each filter's values; None of one that is not served."""
        served = self.served
        return (
            top_k if "top_k" in served else None,
            top_p if "top_p" in served else None,
            min_p if "min_p" in served else None,
        )

    def _penalise(
        self,
        state: State,
        rows: Tensor,
        window: Tensor,
        num_rows: Tensor | None,
        step: int,
        workspace: Tensor,
    ) -> None:
        before = Before(
            *(state.token_ids, window, state.committed, state.pending, state.finish_reason),
            *(state.prompt_len, num_rows),
        )
        asked = Parameters(
            repetition=self.floats["repetition_penalty"],
            frequency=self.floats["frequency_penalty"],
            presence=self.floats["presence_penalty"],
            min_tokens=self.min_tokens,
            masked_ids=self.masked_ids,
            bias_ids=self.bias_ids,
            bias=self.bias,
        )
        penalties(rows, before, step, asked, workspace, self._pdl)

    def _spread(self, values: Tensor, rows: Tensor, gamma: int) -> Tensor:
        """[B] -> [B * (gamma + 1)], each as often as a slot has rows."""
        slots = self.state.sizes.num_slots
        part = rows[: slots * (gamma + 1)]
        part.view(slots, gamma + 1).copy_(values[:, None])
        return part
