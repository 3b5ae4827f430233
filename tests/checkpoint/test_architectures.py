"""Every supported architecture against transformers: the same checkpoint, the same logits, the same tokens.

The checkpoints are random, tiny and written by transformers itself, with what hides bugs taken out: biases
and norms are random rather than 0 and 1, logits are far from flat, query heads outnumber key heads, head_dim
is not hidden_size / num_attention_heads, and positions pass the original context of a scaled rope.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.mistral.configuration_mistral import MistralConfig
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config

import pearl_rt
from pearl_rt import _C
from pearl_rt.backends.cpu import Model
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.loader import load_tensors

PROMPT_LEN, NUM_TOKENS, MAX_LEN = 70, 64, 160
ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": MAX_LEN,
    "placement": "shared",
    "num_threads": 1,  # threads change no bit, and one does not wait for others on a busy machine
}
SIZES = {
    "vocab_size": 111,
    "hidden_size": 96,
    "intermediate_size": 136,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
DERIVED_HEAD_DIM = {key: value for key, value in SIZES.items() if key != "head_dim"}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 8.0, "original_max_position_embeddings": 32}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0}


def theta(value: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": value}}


ARCHITECTURES = {
    "llama2": LlamaConfig(**DERIVED_HEAD_DIM | {"num_key_value_heads": None}),
    "llama2-70b-gqa": LlamaConfig(**DERIVED_HEAD_DIM),
    "llama3": LlamaConfig(**SIZES, **theta(500000.0)),
    "llama3.1": LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE),
    "llama3.2-tied": LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True),
    "llama-yarn": LlamaConfig(**SIZES, rope_parameters=YARN_ROPE),
    "tinyllama": LlamaConfig(**DERIVED_HEAD_DIM | {"num_key_value_heads": 1}),
    "smollm-tied": LlamaConfig(
        **DERIVED_HEAD_DIM | {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3},
        tie_word_embeddings=True,
    ),
    "llama-attention-bias": LlamaConfig(**SIZES, attention_bias=True),
    "llama-mlp-bias": LlamaConfig(**SIZES, mlp_bias=True),
    "llama-biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "codellama": LlamaConfig(**SIZES, **theta(1e6)),
    "deepseek-coder": LlamaConfig(**SIZES, rope_parameters=LINEAR_ROPE),
    "mistral": MistralConfig(**SIZES, sliding_window=None, **theta(1e6)),
    "mistral-window-unreached": MistralConfig(**SIZES, sliding_window=MAX_LEN),
    "qwen2": Qwen2Config(**DERIVED_HEAD_DIM, **theta(1e6)),
    "qwen2.5-tied-yarn": Qwen2Config(**DERIVED_HEAD_DIM, rope_parameters=YARN_ROPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, **theta(1e6)),
    "qwen3-bias": Qwen3Config(**SIZES, attention_bias=True),
    "qwen3-tied-yarn": Qwen3Config(**SIZES, rope_parameters=YARN_ROPE, tie_word_embeddings=True),
}


@dataclass
class Checkpoint:
    """A model of transformers, and the directory that it wrote."""

    path: Path
    model: Any
    prompt: list[int]

    def reference_logits(self) -> np.ndarray:
        """[PROMPT_LEN, vocab] fp32."""
        with torch.no_grad():
            logits: np.ndarray = self.model(torch.tensor([self.prompt])).logits[0].float().numpy()
        return logits

    def reference_tokens(self) -> list[int]:
        ids, cache = torch.tensor([self.prompt]), None
        tokens: list[int] = []
        with torch.no_grad():
            while len(tokens) < NUM_TOKENS:
                out = self.model(ids, past_key_values=cache, use_cache=True)
                cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
                tokens.append(int(ids))
        return tokens

    def load(self) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
        config = ModelConfig.from_pretrained(self.path)
        return config, load_tensors(self.path, config)


def randomise(model: torch.nn.Module) -> None:
    """Every parameter, biases and norms too, so that each matters to the logits."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1.0 + 0.3 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.5 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(noise if not model.config.tie_word_embeddings else 0.3 * noise)
            else:
                parameter.copy_(1.5 * noise / parameter.shape[-1] ** 0.5)


def write(path: Path, hf_config: Any, *, dtype: torch.dtype = torch.float32, **saving: Any) -> Checkpoint:
    model = AutoModelForCausalLM.from_config(hf_config, dtype=torch.float32, attn_implementation="eager")
    randomise(model.eval())
    model.to(dtype).save_pretrained(path, **saving)
    generator = torch.Generator().manual_seed(3)
    prompt = torch.randint(0, 111, (PROMPT_LEN,), generator=generator).tolist()
    # Read back: .float() after .to(bfloat16) would leave rounded rotary frequencies behind.
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    return Checkpoint(path, reference.eval(), prompt)


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Two threads of OpenMP that wait for each other take ten times as long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=ARCHITECTURES.keys())
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return write(tmp_path_factory.mktemp(request.param), ARCHITECTURES[request.param])


def prefill(
    config: ModelConfig, tensors: dict[str, torch.Tensor], prompt: list[int], isa: str | None = None
) -> np.ndarray:
    """Our logits of every prompt position, in fp32: [len(prompt), vocab]."""
    model = Model.pack(config, tensors, dtype="float32", isa=isa, max_model_len=MAX_LEN)
    (logits,) = model.executor([0]).forward_batch([(0, prompt, 0, len(prompt))])
    return np.asarray(logits)


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The worst row's largest difference, by that row's largest logit."""
    return float((np.abs(ours - theirs).max(-1) / np.abs(theirs).max(-1)).max())


def test_logits_equal_those_of_transformers(checkpoint: Checkpoint) -> None:
    theirs = checkpoint.reference_logits()
    assert theirs.std(-1).min() > 0.5  # not flat
    for isa in _C.available_isas():
        ours = prefill(*checkpoint.load(), checkpoint.prompt, isa)
        assert relative_error(ours, theirs) < 1e-4, isa


@pytest.mark.slow
def test_greedy_tokens_equal_those_of_transformers(checkpoint: Checkpoint) -> None:
    expected = checkpoint.reference_tokens()
    assert len(set(expected)) > 8  # no short loop
    config, tensors = checkpoint.load()
    params = pearl_rt.SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True)
    with pearl_rt.Engine(config, tensors, config, tensors, gamma=3, strategy="pearl", **ENGINE) as engine:
        for strategy in ("ar", "pearl"):
            (output,) = engine.generate(checkpoint.prompt, params, strategy=strategy)
            assert output.token_ids == expected, strategy


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_shards_load_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    checkpoint = write(tmp_path, ARCHITECTURES["qwen3"], dtype=dtype, max_shard_size="200KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    config, tensors = checkpoint.load()
    assert config.torch_dtype == str(dtype).removeprefix("torch.")
    ours = prefill(config, tensors, checkpoint.prompt)
    assert relative_error(ours, checkpoint.reference_logits()) < 1e-4


@pytest.mark.parametrize("name", ["llama3.2-tied", "qwen2", "qwen3-tied-yarn"])
def test_old_spellings_of_the_configuration_mean_the_same_model(tmp_path: Path, name: str) -> None:
    checkpoint = write(tmp_path, ARCHITECTURES[name])
    config, tensors = checkpoint.load()
    old = ModelConfig.from_dict(config.to_dict())
    assert old == config
    ours = prefill(old, tensors, checkpoint.prompt)
    assert relative_error(ours, checkpoint.reference_logits()) < 1e-4


def test_the_end_of_text_ends_the_text(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, ARCHITECTURES["llama3"])
    greedy = checkpoint.reference_tokens()
    ends = [greedy[20], 110]
    checkpoint.model.generation_config.eos_token_id = ends
    checkpoint.model.save_pretrained(tmp_path)
    config, tensors = checkpoint.load()
    assert config.eos_token_ids == tuple(ends)
    with pearl_rt.Engine(config, tensors, strategy="ar", **ENGINE) as engine:
        (output,) = engine.generate(checkpoint.prompt, pearl_rt.SamplingParams(max_tokens=NUM_TOKENS))
    expected = greedy[: min(greedy.index(e) for e in ends if e in greedy) + 1]
    assert (output.token_ids, output.finish_reason) == (expected, "stop")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama3.1", {"rope_scaling": None}),
        ("llama-yarn", {"rope_scaling": None}),
        ("deepseek-coder", {"rope_scaling": None}),
        ("codellama", {"rope_theta": 10000.0}),
        ("llama3", {"rms_norm_eps": 1e-2}),
    ],
)
def test_a_configuration_read_wrongly_is_seen(tmp_path: Path, name: str, change: dict[str, Any]) -> None:
    checkpoint = write(tmp_path, ARCHITECTURES[name])
    config, tensors = checkpoint.load()
    ours = prefill(replace(config, **change), tensors, checkpoint.prompt)
    assert relative_error(ours, checkpoint.reference_logits()) > 1e-3
