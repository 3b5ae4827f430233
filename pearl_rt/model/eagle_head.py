"""An EAGLE-3 head on the kernels: one layer, fed a token and a feature of the token before it.

    feature   of a committed token: Features.rows; behind these what the head left at the row before
    layer     head_input, then as any layer of Llama, whose qkv_proj reads two rows beside one another
    logits    of the ids that the head drafts, spread over the target's

Knows rows and pages; not the target's layers, windows or steps. pearl_rt/reference/drafters/eagle3.py is the
definition.
"""

import torch

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.kernels.head.head_input import head_input
from pearl_rt.kernels.head.keep_rows import keep_rows
from pearl_rt.model.forward_batch import ForwardBatch
from pearl_rt.model.head_weights import HeadWeights
from pearl_rt.model.llama import Llama, LlamaWeights, Sizes, operands

Tensor = torch.Tensor


class EagleHead(Llama):
    """The head of one lane: as a model of one layer, whose passes are given features."""

    def __init__(
        self,
        config: ModelConfig,
        weights: LlamaWeights,
        head: HeadWeights,
        sizes: Sizes,
        *,
        backend: str = "triton",
        vocab_size: int,
        pdl: bool = False,
    ) -> None:
        """vocab_size: the target's, columns of the logits."""
        rows = weights.lm_head.shape[0]
        super().__init__(config, weights, sizes, backend=backend, vocab_size=rows, pdl=pdl)
        self.head, self.vocab_size = head, vocab_size
        dtype, device, hidden = weights.dtype, weights.device, config.hidden_size
        self.layer_input = torch.empty(sizes.max_tokens, 2 * hidden, dtype=dtype, device=device)
        # What it left at the last row of each sequence.
        self.last = torch.empty(sizes.max_sequences, hidden, dtype=torch.float32, device=device)
        self.own_logits = torch.empty(sizes.logit_rows, rows, dtype=torch.float32, device=device)

    def feed(self, batch: ForwardBatch, num_live: Tensor | None, features: Tensor | None) -> Tensor:
        """A pass -> as Llama.forward. features: [positions of all pages, H], of which each row has that of
        its place; None: each sequence has one row, fed what keep_last() kept.
        """
        self._check_rows(batch)
        rows, own = batch.num_tokens, self.layer_input[: batch.num_tokens]
        held, form = operands(self.weights.embed_tokens)
        places, ends = (batch.slot_mapping, None) if features is not None else (None, batch.cu_seqlens_q)
        head_input(
            batch.input_ids,
            held,
            self.last if features is None else features,
            places,
            ends,
            self.weights.layers[0].input_layernorm,
            self.head.hidden_norm,
            self.head.eps,
            self.head.norm_before_residual,
            own,
            self.buffers.residual[:rows],
            self.pdl,
            **form,
        )
        return self._layers(batch, own, None, num_live)

    def keep_last(self, rows: Tensor) -> None:
        """Keeps what the last pass left at rows [B], the features of the rows behind them. One of a sequence
        that has no row is any number.
        """
        norm = self.weights.norm if self.head.norm_output else None
        keep_rows(self.buffers.residual, self.last, rows, None, norm, self.head.eps, self.pdl)

    def logits(self, rows: Tensor, out: Tensor, num_live: Tensor | None = None) -> None:
        """As Llama's. An id that the head lacks keeps what `out` has."""
        if self.head.target_ids is None:
            return super().logits(rows, out, num_live)
        own = self.own_logits[: rows.shape[0]]
        super().logits(rows, own, num_live)
        out.index_copy_(1, self.head.target_ids, own)
        return None
