"""What an EAGLE-3 head has beside a layer and a vocabulary, packed on a device. Knows no passes."""

from dataclasses import dataclass

import torch

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.views.eagle3 import LAYER, Head
from pearl_rt.model.packing import Matrix, Packing

Tensor = torch.Tensor


@dataclass(frozen=True)
class HeadWeights:
    """What a head has beside its layer, embedding, norm and lm_head. Immutable."""

    taps: tuple[int, ...]  # the target's layers whose inputs it reads
    fc: Matrix  # [H, tap_size]
    tap_norms: tuple[Tensor, ...]  # none, one [tap_size], or one for each tap
    hidden_norm: Tensor  # [H]
    eps: float
    norm_before_residual: bool
    norm_output: bool
    target_ids: Tensor | None  # int64 [rows of lm_head] the target's id of each; None: its own

    @classmethod
    def pack(cls, head: Head, config: ModelConfig, packing: Packing) -> "HeadWeights":
        """config: of its layer. Raises CheckpointError for weights that cannot be rounded."""
        own, ids = head.config, list(head.target_ids)
        is_whole = ids == list(range(config.vocab_size))
        return cls(
            head.taps,
            packing.matrix("fc.weight"),
            tuple(packing.tensor(f"tap_norms.{i}.weight") for i in range(own.num_norms)),
            packing.tensor(f"{LAYER}hidden_norm.weight"),
            config.rms_norm_eps,
            own.norm_before_residual,
            own.norm_output,
            None if is_whole else torch.tensor(ids, dtype=torch.int64).to(packing.device),
        )
