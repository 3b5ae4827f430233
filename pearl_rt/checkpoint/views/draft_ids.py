"""Ids of a draft whose vocabulary is not its target's: a head that was cut to the frequent ids, or a model
with a tokenizer of its own, of which the tokens that both have are drafted (token-level intersection, arXiv
2502.05202). Knows ids and tokenizers; no device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import torch

OFFSETS = "d2t"
NO_ID = -1


@dataclass(frozen=True)
class DraftIds:
    """Between a draft's ids and its target's.

    target_of  the target's id of each row of the draft's head, or NO_ID
    draft_of   what the draft is fed for each id of the target; empty: the same id
    """

    target_of: Sequence[int]
    draft_of: Sequence[int] = ()

    @property
    def num_shared(self) -> int:
        """Ids of the target that can be drafted."""
        return sum(each != NO_ID for each in self.target_of)


def ids_of_offsets(offsets: "torch.Tensor", vocab_size: int, source: str, way_out: str) -> list[int]:
    """The target's id of each of the head's: its own and `d2t` of it. Raises CheckpointError for one that
    leads out of the target's vocabulary, and for two that lead to one.
    """
    if offsets.is_floating_point():
        raise CheckpointError(f"d2t of {source} is {offsets.dtype}: whole numbers are needed")
    ids: list[int] = [place + offset for place, offset in enumerate(offsets.tolist())]
    taken: dict[int, int] = {}
    for place, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            raise CheckpointError(
                f"d2t[{place}] of {source} is {token - place}, which leads to id {token} of a vocabulary of "
                f"{vocab_size}: {way_out}"
            )
        if (other := taken.setdefault(token, place)) != place:
            raise CheckpointError(f"d2t of {source} leads from ids {other} and {place} to one, {token}")
    return ids


def shared_tokens(
    target: ModelConfig, draft: ModelConfig, tokenizer: Tokenizer, draft_tokenizer: Tokenizer
) -> DraftIds:
    """Of two tokenizers that differ: tokens that stand for the same bytes are one, and so are the ends of
    text. For a token that the draft lacks it is fed the last one of its text as it writes that. Raises
    ConfigError where less than a hundredth of the target's tokens can be drafted.
    """
    mine, theirs = tokenizer.spelled(), draft_tokenizer.spelled()
    draft_of_bytes: dict[bytes, int] = {}
    for token_id, spelled in theirs.items():
        if token_id < draft.vocab_size:
            draft_of_bytes.setdefault(spelled, token_id)
    shared = {
        token_id: draft_of_bytes[spelled]
        for token_id, spelled in mine.items()
        if spelled in draft_of_bytes and token_id < target.vocab_size
    }
    for end, own_end in zip(target.eos_token_ids, draft.eos_token_ids, strict=False):
        shared.setdefault(end, own_end)
    target_of = [NO_ID] * draft.vocab_size
    for token_id, own in shared.items():
        if target_of[own] == NO_ID:
            target_of[own] = token_id
    found = DraftIds(target_of, _fed(target.vocab_size, mine, shared, draft_tokenizer, draft))
    if found.num_shared * 100 < len(mine):
        raise ConfigError(
            f"the draft's tokenizer has {found.num_shared} of the target's {len(mine)} tokens, too few to "
            "draft: take a draft of the target's family, or distil one: `python -m recipes.train`, in a "
            "checkout"
        )
    return found


def _fed(
    vocab_size: int,
    mine: dict[int, bytes],
    shared: dict[int, int],
    draft_tokenizer: Tokenizer,
    draft: ModelConfig,
) -> list[int]:
    """What the draft is fed for each id of the target."""
    unknown = draft.eos_token_ids[0] if draft.eos_token_ids else 0
    fed = [unknown] * vocab_size
    lacking = [i for i in mine if i < vocab_size and i not in shared]
    texts = [mine[i].decode(errors="ignore") for i in lacking]
    for token_id, ids in zip(lacking, draft_tokenizer.encode_all(texts), strict=True):
        known = [own for own in ids if own < draft.vocab_size]
        fed[token_id] = known[-1] if known else unknown
    for token_id, own in shared.items():
        fed[token_id] = own
    return fed
