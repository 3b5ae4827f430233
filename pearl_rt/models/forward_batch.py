"""What one forward pass is fed: a ragged batch, as tensors at fixed addresses.

Knows shapes only: the step that launches a pass has `pearl_rt.kernels.forward.feed` fill them on the device.

T rows in B sequences, whose rows follow each other; rows behind cu_seqlens_q[B] are padding. Two sequences,
of which the first feeds its tokens at positions 7 and 8 and the second at position 3, in a batch of 4 rows:

    input_ids       a8 b8 c4 0    positions     7 8 3 0     slot_mapping  23 24 35 -1
    cu_seqlens_q    0 2 3         context_lens  9 4         max_q_len     2
"""

from dataclasses import dataclass, replace

import torch

NO_SLOT = -1  # of slot_mapping: nothing is stored


@dataclass(frozen=True)
class ForwardBatch:
    """Static device tensors, contiguous. int32 but for slot_mapping."""

    input_ids: torch.Tensor  # [T]
    positions: torch.Tensor  # [T]
    slot_mapping: (
        torch.Tensor
    )  # [T] int64: row of the KV cache (block * block_size + offset); -1 stores nothing
    cu_seqlens_q: torch.Tensor  # [B + 1], with a leading 0
    context_lens: (
        torch.Tensor
    )  # [B] positions that the last row of a sequence sees, itself included; 0: no rows
    block_table: torch.Tensor  # [B, MB] pages of a sequence in order; entries past its length are never read
    max_q_len: int  # no sequence has more rows

    def __post_init__(self) -> None:
        num_tokens, num_sequences = self.num_tokens, self.num_sequences
        expected = {
            "input_ids": ((num_tokens,), torch.int32),
            "positions": ((num_tokens,), torch.int32),
            "slot_mapping": ((num_tokens,), torch.int64),
            "cu_seqlens_q": ((num_sequences + 1,), torch.int32),
            "context_lens": ((num_sequences,), torch.int32),
            "block_table": ((num_sequences, self.block_table.shape[1]), torch.int32),
        }
        for name, (shape, dtype) in expected.items():
            tensor = getattr(self, name)
            if tuple(tensor.shape) != shape or tensor.dtype != dtype or not tensor.is_contiguous():
                raise ValueError(
                    f"{name} is {tensor.dtype} {list(tensor.shape)}, expected contiguous {dtype} "
                    f"{list(shape)}"
                )
        if not 1 <= self.max_q_len <= num_tokens:
            raise ValueError(
                f"max_q_len is {self.max_q_len}, expected 1 to the {num_tokens} rows of the batch"
            )

    @property
    def num_tokens(self) -> int:
        """T, padding included."""
        return self.input_ids.shape[0]

    @property
    def num_live(self) -> torch.Tensor:
        """[1]: rows that are no padding. At 0 no sequence runs, and a pass has nothing to do."""
        return self.cu_seqlens_q[-1:]

    @property
    def num_sequences(self) -> int:
        """B."""
        return self.context_lens.shape[0]

    @classmethod
    def empty(cls, num_tokens: int, max_q_len: int, block_table: torch.Tensor) -> "ForwardBatch":
        """A batch of padding, on the device of the block table, which is shared and not copied."""
        device, num_sequences = block_table.device, block_table.shape[0]

        def zeros(size: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        return cls(
            input_ids=zeros(num_tokens),
            positions=zeros(num_tokens),
            slot_mapping=torch.full((num_tokens,), NO_SLOT, dtype=torch.int64, device=device),
            cu_seqlens_q=zeros(num_sequences + 1),
            context_lens=zeros(num_sequences),
            block_table=block_table,
            max_q_len=max_q_len,
        )

    def first(self, num_tokens: int, max_q_len: int) -> "ForwardBatch":
        """The same tensors, cut to their first `num_tokens` rows."""
        return replace(
            self,
            input_ids=self.input_ids[:num_tokens],
            positions=self.positions[:num_tokens],
            slot_mapping=self.slot_mapping[:num_tokens],
            max_q_len=max_q_len,
        )
