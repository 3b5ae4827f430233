"""The model on the kernels: its logits are those of the trainable model, and no row knows of the others."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from tiny_pairs import TINY, random_tensors

from pearl_rt.checkpoint.rope_scaling import RopeScaling
from pearl_rt.model.forward_batch import ForwardBatch
from pearl_rt.model.llama import Llama, LlamaWeights, Sizes
from recipes.train.model.llama import LlamaForCausalLM

BLOCK_SIZE, MAX_LEN, NUM_SEQUENCES, POISON_PAGE = 16, 80, 5, 2147480000
SMALL = replace(
    TINY,
    vocab_size=79,
    hidden_size=32,
    intermediate_size=44,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=MAX_LEN,
)
CONFIGS = {
    "gqa": SMALL,
    "wide-heads-tied": replace(SMALL, head_dim=32, num_hidden_layers=1, tie_word_embeddings=True),
    "bias": replace(SMALL, model_type="qwen2", attention_bias=True, num_hidden_layers=1),
    "qk-norm": replace(SMALL, model_type="qwen3", qk_norm=True, num_key_value_heads=1, num_hidden_layers=1),
    "llama3-rope": replace(
        SMALL,
        num_hidden_layers=1,
        rope_scaling=RopeScaling(
            "llama3", 8.0, original_max_position_embeddings=16, low_freq_factor=1.0, high_freq_factor=4.0
        ),
    ),
}
LONG, SHORT, ONE = tuple(range(40, 60)), (3, 1, 4, 1, 5), (7,)


@cache
def tensors_of(name: str) -> dict[str, torch.Tensor]:
    """Random in everything, norms and biases too."""
    generator = torch.Generator().manual_seed(5)
    tensors = random_tensors(CONFIGS[name], seed=3)
    return {
        key: 1 + 0.3 * torch.randn(t.shape, generator=generator) if key.endswith("norm.weight") else t
        for key, t in tensors.items()
    }


def model_of(name: str, device: torch.device, backend: str = "triton", **options: Any) -> Llama:
    """With NaN in all memory that was not written."""
    config = CONFIGS[name]
    weights = LlamaWeights.pack(config, tensors_of(name), dtype=torch.float32, device=device)
    sizes = Sizes(80, 80, 80, NUM_SEQUENCES, MAX_LEN, BLOCK_SIZE)
    model = Llama(config, weights, sizes, backend=backend, **options)
    buffers = [tensor for name, tensor in vars(model.buffers).items() if name != "counters"]
    for tensor in (*model.kv_cache.keys, *model.kv_cache.values, *buffers):
        tensor.fill_(255 if tensor.dtype == torch.uint8 else torch.nan)
    return model


def batch_of(
    fed: Sequence[tuple[int, int, Sequence[int]]], device: torch.device, *, num_rows: int | None = None
) -> ForwardBatch:
    """(slot, position of the first, tokens) of each sequence. Pages of slot s: s, s + 5, s + 10, ..."""
    num_tokens = sum(len(tokens) for _, _, tokens in fed)
    num_pages = MAX_LEN // BLOCK_SIZE
    table = torch.full((len(fed), num_pages), POISON_PAGE, dtype=torch.int32)
    for b, (slot, start, tokens) in enumerate(fed):
        used = -(-(start + len(tokens)) // BLOCK_SIZE)
        table[b, :used] = torch.arange(used, dtype=torch.int32) * NUM_SEQUENCES + slot
    longest = max(len(tokens) for _, _, tokens in fed)
    batch = ForwardBatch.empty(num_rows or num_tokens, longest, table.to(device))
    row = 0
    for b, (_, start, tokens) in enumerate(fed):
        for position, token in enumerate(tokens, start):
            batch.input_ids[row] = token
            batch.positions[row] = position
            batch.slot_mapping[row] = (
                int(table[b, position // BLOCK_SIZE]) * BLOCK_SIZE + position % BLOCK_SIZE
            )
            row += 1
        batch.cu_seqlens_q[b + 1] = row
        batch.context_lens[b] = start + len(tokens)
    return batch


def logits_of(model: Llama, batch: ForwardBatch) -> torch.Tensor:
    """[T, V] of all rows that are not padding."""
    num_rows = int(batch.cu_seqlens_q[-1])
    rows = torch.arange(num_rows, dtype=torch.int32, device=batch.input_ids.device)
    out = torch.full((num_rows, model.vocab_size), torch.nan, device=rows.device)
    model.forward(batch)
    model.logits(rows, out)
    return out


@cache
def expected_logits(name: str, tokens: tuple[int, ...]) -> torch.Tensor:
    """[T, V] of the trainable model."""
    model = LlamaForCausalLM(CONFIGS[name])
    model.load_state_dict(tensors_of(name))
    with torch.no_grad():
        return model(torch.tensor([tokens]))[0]


def check_close(logits: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.isfinite(logits).all()
    assert (logits.cpu() - expected).norm() <= 2e-5 * expected.norm()


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_trainable_model(name: str, device: torch.device) -> None:
    """A prompt in two chunks, the second of them beside another sequence, and padding behind both."""
    model = model_of(name, device)
    parts = [logits_of(model, batch_of([(2, 0, LONG[:14])], device))]
    both = logits_of(model, batch_of([(2, 14, LONG[14:]), (0, 0, SHORT)], device, num_rows=14))
    parts.append(both[: len(LONG) - 14])
    check_close(torch.cat(parts), expected_logits(name, LONG))
    check_close(both[len(LONG) - 14 :], expected_logits(name, SHORT))


@pytest.mark.slow
def test_no_row_knows_of_the_others(device: torch.device) -> None:
    """Alone, one by one, and among 5, 8 and 16 rows, at another index, in another slot and behind padding."""

    def last_two(fed: list[tuple[int, int, Sequence[int]]], at: int, **rows: int) -> torch.Tensor:
        model = model_of("llama3-rope", device)
        for slot, start, _ in fed:
            logits_of(model, batch_of([(slot, 0, SHORT[:start])], device))
        return logits_of(model, batch_of(fed, device, **rows))[at : at + 2]

    alone = last_two([(0, 3, SHORT[3:])], 0)
    one_by_one = model_of("llama3-rope", device)
    for position, token in enumerate(SHORT):
        last = logits_of(one_by_one, batch_of([(0, position, [token])], device))
    assert torch.equal(last[0], alone[1])
    assert torch.equal(last_two([(0, 3, [*SHORT[3:], 5, 4, 3])], 0), alone)
    assert torch.equal(last_two([(1, 3, [9, 9]), (3, 3, SHORT[3:])], 2, num_rows=8), alone)
    assert torch.equal(last_two([(4, 2, [1] * 9), (2, 3, SHORT[3:]), (1, 3, [8, 7, 6, 5, 4])], 9), alone)


def test_a_pass_that_feeds_nothing_leaves_the_linear_layers_alone(device: torch.device) -> None:
    """All sequences have ended: no weights are read, no cache is written; logits stay as they were."""
    model = model_of("gqa", device)
    logits_of(model, batch_of([(0, 0, SHORT)], device))
    batch = batch_of([(0, len(SHORT), [5]), (1, 0, [3])], device)
    batch.cu_seqlens_q.zero_()
    batch.context_lens.zero_()
    batch.slot_mapping.fill_(-1)
    own = model.buffers
    for buffer in (own.qkv, own.activated, own.attended):
        buffer.fill_(torch.nan)
    caches = [cache.clone() for cache in (*model.kv_cache.keys, *model.kv_cache.values)]
    out = torch.full((2, model.vocab_size), torch.nan, device=device)
    hidden = model.forward(batch, batch.num_live)
    assert torch.isfinite(hidden).all()  # the embedding, to which no layer added anything
    model.logits(torch.arange(2, dtype=torch.int32, device=device), out, batch.num_live)
    for tensor in (own.qkv, own.activated, own.attended, out):
        assert tensor.isnan().all()
    for before, after in zip(caches, (*model.kv_cache.keys, *model.kv_cache.values), strict=True):
        assert torch.equal(before.nan_to_num(), after.nan_to_num())


@pytest.mark.slow
def test_a_step_has_the_bits_of_a_pass(device: torch.device) -> None:
    batch = batch_of([(0, 0, SHORT)], device, num_rows=9)
    hidden = [model_of("gqa", device).forward(batch, live)[: len(SHORT)] for live in (None, batch.num_live)]
    assert torch.equal(*hidden)


@pytest.mark.slow
def test_more_rows_than_the_linear_kernel_takes(device: torch.device) -> None:
    """70 rows of a step: computed in blocks, with the bits of a small step."""
    model = model_of("wide-heads-tied", device)
    fed = [(slot, 0, [5, 4, 3, 2, 1, slot, *range(8)]) for slot in range(NUM_SEQUENCES)]
    many = logits_of(model, batch_of(fed, device))
    alone = logits_of(model_of("wide-heads-tied", device), batch_of([fed[4]], device))
    assert len(many) == 70
    assert torch.equal(many[56:], alone)


@pytest.mark.slow
def test_a_long_prefill_chunk_is_one_matmul(device: torch.device) -> None:
    """More rows than the kernels of short steps take, and padding behind them."""
    tokens = (*LONG, *LONG[::-1], *LONG, *range(6))
    model = model_of("wide-heads-tied", device)
    logits = logits_of(model, batch_of([(3, 0, tokens)], device, num_rows=80))
    assert len(logits) == 66
    check_close(logits, expected_logits("wide-heads-tied", tokens))


@pytest.mark.slow
def test_back_ends_agree(device: torch.device) -> None:
    fed = [(0, 0, SHORT), (1, 0, ONE), (2, 0, LONG[:4])]
    triton, sdpa = (
        logits_of(model_of("gqa", device, name), batch_of(fed, device)) for name in ("triton", "sdpa")
    )
    assert torch.isfinite(sdpa).all()
    assert (triton - sdpa).norm() <= 1e-5 * sdpa.norm()


def test_a_head_may_be_cut(device: torch.device) -> None:
    batch = batch_of([(0, 0, SHORT)], device)
    whole = logits_of(model_of("gqa", device), batch)
    cut = logits_of(model_of("gqa", device, vocab_size=61), batch)
    assert torch.equal(cut, whole[:, :61])


def test_a_tied_head_is_the_embedding(device: torch.device) -> None:
    weights = model_of("wide-heads-tied", device).weights
    assert weights.lm_head.data_ptr() == weights.embed_tokens.data_ptr()


def test_too_many_rows_are_refused(device: torch.device) -> None:
    model = model_of("gqa", device)
    with pytest.raises(ValueError, match=r"the batch has 81 rows, the buffers 80"):
        model.forward(batch_of([(0, 0, ONE)], device, num_rows=81))


def test_batches_of_other_shapes_are_refused(device: torch.device) -> None:
    batch = batch_of([(0, 0, SHORT)], device)
    with pytest.raises(
        ValueError, match=r"positions is torch.int64 \[5\], expected contiguous torch.int32 \[5\]"
    ):
        replace(batch, positions=batch.positions.long())
    with pytest.raises(ValueError, match=r"max_q_len is 6, expected 1 to the 5 rows"):
        replace(batch, max_q_len=6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_pass_is_the_eager_one() -> None:
    """Replayed twice, on other tokens, with nothing allocated in between."""
    device = torch.device("cuda")
    model = model_of("gqa", device)
    batch = batch_of([(0, 0, SHORT), (1, 0, LONG[:3])], device)
    rows = torch.tensor([4, 7], dtype=torch.int32, device=device)
    out = torch.zeros(2, model.vocab_size, device=device)
    model.forward(batch)
    model.logits(rows, out)
    torch.cuda.synchronize()
    first = torch.cuda.CUDAGraph()  # for which torch takes memory itself: the state of its generator
    with torch.cuda.graph(first):
        batch.input_ids.add_(0)
    graph = torch.cuda.CUDAGraph()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    with torch.cuda.graph(graph):
        model.forward(batch)
        model.logits(rows, out)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    for shift in (0, 5):
        batch.input_ids.add_(shift).remainder_(model.config.vocab_size)
        model.forward(batch)
        model.logits(rows, out)
        eager = out.clone()
        out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out, eager)
