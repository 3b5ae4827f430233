"""What an EAGLE-3 head is fed of its target: fc of the taps, a row for each position of the pages.

A pass of the target keeps its taps, and stores their features by the same places as keys and values: they
lie as long as these do, and any later pass of the head may read them. Knows rows and pages; not sequences,
windows or the head's layer.
"""

import torch

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.kernels.forward.linear import MAX_ROWS, linear
from pearl_rt.kernels.forward.linear import workspace_size as linear_workspace
from pearl_rt.kernels.head.keep_rows import keep_rows
from pearl_rt.model.forward_batch import ForwardBatch
from pearl_rt.model.head_weights import HeadWeights
from pearl_rt.model.llama import Sizes, blocks_of, operands

Tensor = torch.Tensor


class Features:
    """Of each position of the pages, what a head is fed of it: fc of the target's taps."""

    def __init__(self, head: HeadWeights, target: ModelConfig, sizes: Sizes, *, pdl: bool = False) -> None:
        """target, sizes: of the model whose passes are read."""
        device, dtype, hidden = head.hidden_norm.device, head.hidden_norm.dtype, head.hidden_norm.shape[0]
        num_blocks = sizes.max_sequences * sizes.max_blocks if sizes.num_blocks is None else sizes.num_blocks
        self.head, self.pdl, self._width = head, pdl, target.hidden_size

        def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        self.rows = empty(num_blocks * sizes.block_size, hidden)  # by slot_mapping
        self._taps = empty(sizes.max_tokens, head.fc.shape[1])
        self._normed = empty(sizes.max_tokens, head.fc.shape[1]) if len(head.tap_norms) == 1 else self._taps
        self._fused = empty(sizes.max_tokens, hidden, dtype=torch.float32)
        blocks = {min(sizes.max_tokens, MAX_ROWS), sizes.prefill_chunk}
        num_bytes = max(linear_workspace(rows, hidden, head.fc.shape[1]) for rows in blocks)
        self._workspace = empty(max(num_bytes, 16), dtype=torch.uint8)

    def keep(self, layer: int, residual: Tensor) -> None:
        """The target's: what a layer is fed, if it is a tap."""
        if layer not in self.head.taps:
            return
        at, norms = self.head.taps.index(layer), self.head.tap_norms
        norm = norms[at] if len(norms) > 1 else None
        to = self._taps[: len(residual), at * self._width : (at + 1) * self._width]
        keep_rows(residual, to, norm=norm, eps=self.head.eps, pdl=self.pdl)

    def store(self, batch: ForwardBatch, num_live: Tensor | None = None) -> None:
        """The features of a pass whose taps were kept, into the rows of their places."""
        rows, head = batch.num_tokens, self.head
        taps, fused = self._normed[:rows], self._fused[:rows]
        if len(head.tap_norms) == 1:
            keep_rows(self._taps[:rows], taps, norm=head.tap_norms[0], eps=head.eps, pdl=self.pdl)
        held, form = operands(head.fc)
        for block in blocks_of(head.fc, batch):
            linear(
                *(taps[block], held, fused[block], None, None, self._workspace, num_live),
                pdl=self.pdl,
                **form,
            )
        keep_rows(fused, self.rows, places=batch.slot_mapping, pdl=self.pdl)
