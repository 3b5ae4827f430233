"""How many launches a decoder layer is, and a pass without its layers: counted, on tensors without memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

PROGRAM = """
import json
from typing import Any

import torch

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.shapes import tensor_shapes
from pearl_rt.kernels.tools.record import META, launches_taken
from pearl_rt.model.forward_batch import ForwardBatch
from pearl_rt.model.llama import Llama, LlamaWeights, Sizes

def names_of(layers: int, max_len: int, rows: int) -> list[str]:
    config = ModelConfig(
        model_type="llama", vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=max_len,
    )
    tensors = {n: torch.empty(s, dtype=torch.bfloat16, device=META) for n, s in tensor_shapes(config).items()}
    weights = LlamaWeights.pack(config, tensors, dtype=torch.bfloat16, device=META)
    model = Llama(config, weights, Sizes(rows, rows, rows, 1, max_len))
    table = torch.empty(1, model.sizes.max_blocks, dtype=torch.int32, device=META)
    batch = ForwardBatch.empty(rows, rows, table)
    found: list[str] = []
    with launches_taken(lambda kernel, *_, **__: found.append(kernel.__name__)):
        model.forward(batch, batch.num_live)
        model.logits(batch.input_ids, torch.empty(rows, 512, device=META), batch.num_live)
    return found

sizes = (2048, 1), (128, 9), (2048, 40)
print(json.dumps([[names_of(layers, *given) for layers in (1, 2)] for given in sizes]))
"""
LAYER = [
    *("linear_kernel", "rope_store_kernel", "split_kernel", "linear_kernel"),
    *("gate_up_silu_kernel", "linear_kernel"),
]


@pytest.mark.slow
def test_a_layer_is_six_launches(compiled_python: Callable[..., CompletedProcess[str]]) -> None:
    """Of one row, of nine and of forty."""
    run = compiled_python(PROGRAM)
    assert run.returncode == 0, run.stdout
    for one, two in json.loads(run.stdout.splitlines()[-1]):
        assert one == ["embedding_kernel", *LAYER, "linear_kernel"]
        assert two == ["embedding_kernel", *LAYER, *LAYER, "linear_kernel"]
