"""The coordinator over real forward passes: a tiny Llama pair on core sets, weights from numpy, no torch.

What scripted executors cannot show: helpers of a core set, scratch and KV caches under the lanes' threads.
The sanitizers run this too.
"""

import os
from typing import Any

import numpy as np
import pytest

from pearl_rt import _C
from pearl_rt.strategy.program import PLACEMENTS, STRATEGIES, program

CPUS = sorted(os.sched_getaffinity(0))
MAX_LEN = 96
CONFIG = {
    "vocab_size": 67,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "qk_norm": False,
    "tie_word_embeddings": True,
}


def weights(seed: int, noise: float) -> Any:
    """Packed fp32 weights of a seed, with a share of other noise: a draft that is often right."""
    rng, other = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    kv = CONFIG["num_key_value_heads"] * CONFIG["head_dim"]
    shapes = {"model.embed_tokens.weight": (CONFIG["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for layer in range(CONFIG["num_hidden_layers"]):
        sizes = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": size for name, size in sizes.items()}
    tensors = {}
    for name, shape in shapes.items():
        scale = 1.0 if len(shape) == 1 else 1 / np.sqrt(shape[1])
        drawn = rng.standard_normal(shape) + noise * other.standard_normal(shape)
        tensors[name] = np.ascontiguousarray(drawn * scale, dtype=np.float32)
    views = {name: (array, "float32", list(array.shape)) for name, array in tensors.items()}
    return _C.LlamaWeights(CONFIG, views, "float32")


def executor(packed: Any, core_set: Any, num_slots: int) -> Any:
    """A forward pass with plain rotary tables."""
    half = CONFIG["head_dim"] // 2
    angles = np.outer(np.arange(MAX_LEN), 10000.0 ** (-np.arange(half) / half))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    return _C.LlamaExecutor(packed, core_set, num_slots, MAX_LEN, cos, sin)


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return weights(3, 0.0), weights(3, 0.1)


def coordinator(pair: tuple[Any, Any], placement: str, num_slots: int) -> Any:
    target_cpus, draft_cpus = (
        (CPUS[:2], CPUS[:2]) if placement == "shared" else (CPUS[:1], CPUS[1:2] or CPUS[:1])
    )
    target_set, target_device = _C.CoreSet(target_cpus), _C.Device(target_cpus)
    draft_set, draft_device = target_set, target_device
    if placement != "shared":
        draft_set, draft_device = _C.CoreSet(draft_cpus), _C.Device(draft_cpus)
    return _C.Coordinator(
        [
            _C.CpuLane("target", executor(pair[0], target_set, num_slots), target_device),
            _C.CpuLane("draft", executor(pair[1], draft_set, num_slots), draft_device),
        ],
        num_slots=num_slots,
        gamma_max=8,
        capacity=MAX_LEN,
        vocab_size=CONFIG["vocab_size"],
    )


def answers(native: Any, strategy: str, placement: str, requests: list[Any]) -> tuple[list[list[int]], int]:
    """Tokens of each slot, and how many drafts were accepted."""
    native.start(program(strategy, placement), requests, "coupled")
    tokens: list[list[int]] = [[] for _ in requests]
    accepted = 0
    while (results := native.next(60_000)) is not None:
        for result in results:
            tokens[result.slot] += result.token_ids
            accepted += result.accept_len
    return tokens, accepted


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_all_programs_give_the_same_bits(pair: tuple[Any, Any], placement: str, temperature: float) -> None:
    """Four sequences in one batch or alone, every strategy: the same tokens."""
    prompts = [[5], [7, 8, 9], list(range(40)), [1, 2]]
    alone = coordinator(pair, placement, 1)
    batch = coordinator(pair, placement, 4)

    def request(slot: int, gamma: int) -> Any:
        return _C.Request(prompts[slot], gamma=gamma, max_tokens=30, temperature=temperature, seed=slot)

    expected = [answers(alone, "ar", placement, [request(slot, 0)])[0][0] for slot in range(4)]
    for strategy in STRATEGIES:
        for gamma in (1, 3, 8) if strategy != "ar" else (0,):
            tokens, accepted = answers(
                batch, strategy, placement, [request(slot, gamma) for slot in range(4)]
            )
            assert tokens == expected
            assert strategy == "ar" or accepted > 10
