"""How many blocks of KV cache an engine has, and how many a request may come to need.

Knows lengths; not caches. The coordinator knows which sequence holds which block.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pearl_rt._C as _C
from pearl_rt.errors import ConfigError, RequestError
from pearl_rt.model.kv_cache import MAX_BLOCK_SIZE, MIN_BLOCK_SIZE, check_block_size
from pearl_rt.strategy.program import MAX_GAMMA
from pearl_rt.types.request import Request

# Of the executor where prompts share blocks: only whole ones are found again, so half of one is fed twice.
SHARED_BLOCK_SIZE = 16
DEVICE_BLOCK_SIZE = 16  # positions of a page on a device, unless its cache shares blocks with the executor's


@dataclass(frozen=True)
class KvPool:
    """The KV blocks of all sequences together, of each model and placement."""

    block_size: int  # positions: a multiple of 16, 16 to 256
    num_blocks: int
    max_model_len: int  # tokens of one sequence at most
    prefix_caching: bool = False  # whether blocks are found again by their tokens

    def __post_init__(self) -> None:
        """Raises ConfigError for blocks that no kernel takes, or none at all."""
        check_block_size(self.block_size)
        if self.num_blocks < 1:
            raise ConfigError(f"num_blocks {self.num_blocks} holds nothing: pass 1 or more")

    @classmethod
    def of(
        cls,
        kv_cache_tokens: int | None,
        *,
        num_slots: int,
        max_model_len: int,
        block_size: int | None = None,
        prefix_caching: bool = False,
    ) -> "KvPool":
        """kv_cache_tokens: rounded up to whole blocks; None: every slot has its own. block_size None: the
        executor's.
        """
        if block_size is None and prefix_caching:
            block_size = SHARED_BLOCK_SIZE
        elif block_size is None:
            # The largest that there is, as long as a chunk of a prompt: few calls of a matmul.
            block_size = min(MAX_BLOCK_SIZE, -(-max_model_len // MIN_BLOCK_SIZE) * MIN_BLOCK_SIZE)
        per_slot = -(-max_model_len // check_block_size(block_size))
        blocks = num_slots * per_slot if kv_cache_tokens is None else -(-kv_cache_tokens // block_size)
        return cls(block_size, blocks, max_model_len, prefix_caching)

    @property
    def num_tokens(self) -> int:
        """Positions of all blocks."""
        return self.block_size * self.num_blocks

    def branch_blocks(self, num_slots: int, candidates: int) -> int:
        """Blocks of the windows beside the first of each sequence, behind these."""
        shape = {"num_slots": num_slots, "gamma_max": MAX_GAMMA, "block_size": self.block_size}
        return _C.Coordinator.branch_blocks(**shape, candidates=candidates)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that fits, prompt included."""
        return min(self.num_tokens, self.max_model_len)

    def blocks_for(self, request: Request) -> int:
        """Blocks that are reserved for a request: it may grow to fill them."""
        return -(-request.total_len(self.max_model_len) // self.block_size)

    def check(self, request: Request) -> None:
        """Raises RequestError for a request that needs more blocks than there are."""
        needed = self.blocks_for(request)
        if needed > self.num_blocks:
            raise RequestError(
                f"the prompt has {len(request.prompt_ids)} tokens and max_tokens is {request.max_tokens}: "
                f"{request.total_len(self.max_model_len)} tokens need {needed} KV blocks of "
                f"{self.block_size}, and there are {self.num_blocks}: lower max_tokens, or build the engine "
                "with a larger kv_cache_tokens"
            )

    def check_together(self, requests: Sequence[Request]) -> None:
        """Raises RequestError for requests that can never run at once."""
        for request in requests:
            self.check(request)
        needed = sum(map(self.blocks_for, requests))
        if needed > self.num_blocks:
            raise RequestError(
                f"{len(requests)} requests need {needed} KV blocks of {self.block_size} tokens, and there "
                f"are {self.num_blocks} together: start fewer, or build it with more"
            )

    def described(self, num_free: Iterable[int]) -> dict[str, int]:
        """For Engine.stats(). num_free: of each placement that was used."""
        free = min(num_free, default=self.num_blocks)
        return {"block_size": self.block_size, "total": self.num_blocks, "free": free}
