"""Rows that see each other in the CPU's executor: those of torch, and the same bits in any company."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_pairs import TINY, random_tensors

from pearl_rt.backends.cpu import Model
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.errors import RequestError
from recipes.train.model.llama import LlamaForCausalLM

MASK = 287
QWEN3 = replace(TINY, model_type="qwen3", qk_norm=True, num_attention_heads=6, head_dim=24)
CONFIGS = {"llama": TINY, "qwen3": QWEN3}
CPUS = sorted(os.sched_getaffinity(0))[:2]


@cache
def packed(name: str, dtype: str) -> Model:
    config = CONFIGS[name]
    return Model.pack(config, random_tensors(config, 3), dtype=dtype, isa=None, max_model_len=512)


def executor(name: str, dtype: str, cpus: list[int]) -> Any:
    return packed(name, dtype).executor(cpus, 2)


def text_of(length: int, open_rows: int) -> list[int]:
    """A text, and a window in which each third token is known."""
    window = [MASK if i % 3 else 5 + i for i in range(1, open_rows + 1)]
    return [(11 * i + 4) % 280 for i in range(length)] + window


@torch.no_grad()
def in_torch(config: ModelConfig, token_ids: list[int], open_rows: int) -> np.ndarray:
    """[1 + open_rows, vocab]: of the last token of the text, and of those that see each other."""
    model = LlamaForCausalLM(config)
    model.load_state_dict(random_tensors(config, 3))
    place = torch.arange(len(token_ids))
    visible = place[None, :] <= place[:, None]
    visible[len(token_ids) - open_rows :] = True
    states = model.hidden_states(torch.tensor([token_ids]), positions=place, visible=visible)
    return F.linear(states[0, -1 - open_rows :], model.head_weight).numpy()


@pytest.mark.parametrize(
    "length,open_rows", [(1, 1), (1, 15), (2, 7), (63, 8), (127, 2), (130, 16), (300, 3)]
)
@pytest.mark.parametrize("name", CONFIGS)
def test_rows_are_those_of_torch(name: str, length: int, open_rows: int) -> None:
    ids = text_of(length, open_rows)
    want = in_torch(CONFIGS[name], ids, open_rows)
    got = executor(name, "float32", CPUS).forward(0, ids, 0, 1 + open_rows, open_rows)
    causal = executor(name, "float32", CPUS).forward(0, ids, 0, 1 + open_rows)
    assert np.abs(got - want).max() < 2e-4 * np.abs(want).max()
    assert np.array_equal(got[0], causal[0])  # the text sees no window
    assert open_rows == 1 or np.abs(causal - want).max() > 2e-3 * np.abs(want).max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_one_open_row_is_a_row(name: str, dtype: str) -> None:
    ids = text_of(37, 1)
    for cpus in (CPUS[:1], CPUS):
        run = executor(name, dtype, cpus)
        assert np.array_equal(run.forward(0, ids, 0, 2, 1), run.forward(1, ids, 0, 2))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("open_rows", [2, 15, 16])
def test_bits_do_not_depend_on_what_is_fed_with_them(name: str, dtype: str, open_rows: int) -> None:
    """Behind a text of any length in one call, where a step would end inside the window, or in two calls;
    again over rows that are there; with one thread or two.
    """
    for length in (1, 15, 16, 100, 112, 113, 114, 120, 127, 128, 129, 240, 245):
        ids = text_of(length, open_rows)
        found = []
        for cpus in (CPUS[:1], CPUS):
            run = executor(name, dtype, cpus)
            found.append(run.forward(0, ids, 0, open_rows, open_rows))
            run.forward(1, ids[:length], 0, 0)
            for _ in range(2):
                found.append(run.forward(1, ids[length:], length, open_rows, open_rows))
            run.forward(1, [MASK] * open_rows, length, 0, open_rows)
            found.append(run.forward(1, ids[length - 1 :], length - 1, open_rows, open_rows))
        assert all(np.array_equal(found[0], other) for other in found[1:]), length


def test_a_window_leaves_nothing_to_the_text() -> None:
    """Rows of the text that come over those of a window are what they are without it."""
    ids = text_of(90, 0)
    used, fresh = executor("llama", "bfloat16", CPUS), executor("llama", "bfloat16", CPUS)
    used.forward(0, ids[:61] + [MASK] * 9, 0, 0, 9)
    assert np.array_equal(used.forward(0, ids[61:], 61, 29), fresh.forward(0, ids, 0, 29))


def test_windows_that_cannot_be() -> None:
    run = executor("llama", "float32", CPUS)
    with pytest.raises(RequestError, match="num_open is 4; it must be"):
        run.forward(0, [1, 2, 3], 0, 0, 4)
    with pytest.raises((RequestError, ValueError), match=r"num_open 129 is not in \[0, 128\]"):
        run.forward(0, [1] * 130, 0, 0, 129)
    assert run.forward(0, [1] * 200, 0, 1, 128).shape == (1, TINY.vocab_size)
