"""Configurations: old and new spellings mean the same model; what cannot be run is refused by name."""

from __future__ import annotations

import copy
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pearl_rt.checkpoint.config import Environment, ModelConfig
from pearl_rt.checkpoint.rope import rope_tables
from pearl_rt.checkpoint.rope_scaling import RopeScaling
from pearl_rt.errors import CheckpointError, ConfigError, ConfigFileError, PearlError
from pearl_rt.types.config_keys import KEYS, ROPE_KEYS

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 111,
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
ROPES = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn-betas": YARN | {"beta_fast": 16, "beta_slow": 2},
    "yarn-exact-ramp": YARN | {"truncate": False},
    "yarn-mscales": YARN | {"mscale": 0.7, "mscale_all_dim": 1.1},
    "yarn-attention-factor": YARN | {"attention_factor": 1.3},
    "yarn-original-from-config": {"rope_type": "yarn", "factor": 4.0},
}


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES.keys())
def test_rope_tables_equal_transformers_bit_for_bit(rope: dict[str, Any], theta: float) -> None:
    reference = LlamaConfig(**LLAMA, head_dim=24, rope_parameters=rope | {"rope_theta": theta})
    config = ModelConfig.from_dict(LLAMA | {"head_dim": 24, "rope_theta": theta, "rope_scaling": rope})
    expected = LlamaRotaryEmbedding(reference)(torch.zeros(1), torch.arange(512)[None])
    for table, wanted in zip(rope_tables(config, 512), expected, strict=True):
        assert table.shape == (512, 12) and table.dtype == torch.float32 and table.is_contiguous()
        assert torch.equal(table, wanted[0, :, :12])


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES.keys())
def test_spellings_of_rope_mean_the_same(rope: dict[str, Any]) -> None:
    new = ModelConfig.from_dict(LLAMA | {"rope_parameters": rope | {"rope_theta": 7000.0}})
    old = ModelConfig.from_dict(LLAMA | {"rope_theta": 7000.0, "rope_scaling": rope})
    as_type = {("type" if k == "rope_type" else k): v for k, v in rope.items()}
    oldest = ModelConfig.from_dict(LLAMA | {"rope_theta": 7000.0, "rope_scaling": as_type})
    assert new == old == oldest and new.rope_theta == 7000.0
    assert (new.rope_scaling is None) == (rope["rope_type"] == "default")


@pytest.mark.parametrize(
    "told",
    [
        {"rope_scaling": ROPES["linear"], "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_theta": 1e6, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_theta": 1e6, "rope_parameters": {"rope_type": "default"}},
        {"rope_theta": 1e6, "rope_scaling": ROPES["linear"], "rope_parameters": ROPES["yarn"]},
        {"rope_scaling": YARN | {"type": "linear"}},
        {"original_max_position_embeddings": 128, "rope_scaling": YARN},
    ],
    ids=["scaling", "theta-inside", "theta-outside", "all-three", "rope_type", "original-outside"],
)
def test_of_contradictions_the_same_side_wins_as_in_transformers(told: dict[str, Any]) -> None:
    reference = LlamaRotaryEmbedding(LlamaConfig(**copy.deepcopy(LLAMA | told)))  # which writes into told
    cos, _ = rope_tables(ModelConfig.from_dict(LLAMA | told), 512)
    assert torch.equal(cos, reference(torch.zeros(1), torch.arange(512)[None])[0][0, :, :8])


def test_dtype_spellings_mean_the_same() -> None:
    for spelling in ({"dtype": "float16"}, {"torch_dtype": "float16"}, {"torch_dtype": "torch.float16"}):
        assert ModelConfig.from_dict({**LLAMA, "torch_dtype": None} | spelling).torch_dtype == "float16"


def test_missing_keys_get_the_defaults_of_transformers() -> None:
    needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    for model_type in ("llama", "mistral", "qwen2", "qwen3"):
        content = {k: LLAMA[k] for k in needed} | {"num_attention_heads": 32, "hidden_size": 256}
        reference = AutoConfig.for_model(model_type, **content)
        config = ModelConfig.from_dict(content | {"model_type": model_type})
        assert config.num_key_value_heads == reference.num_key_value_heads
        assert config.head_dim == (getattr(reference, "head_dim", None) or 256 // 32)
        assert config.max_position_embeddings == reference.max_position_embeddings
        assert config.rms_norm_eps == reference.rms_norm_eps
        assert config.rope_theta == reference.rope_parameters["rope_theta"]
        assert config.tie_word_embeddings == reference.tie_word_embeddings
        assert config.sliding_window == getattr(reference, "sliding_window", None)
        assert (config.bos_token_id, *config.eos_token_ids) == (
            reference.bos_token_id,
            *([] if reference.eos_token_id is None else [reference.eos_token_id]),
        )


def test_missing_head_dim_and_kv_heads() -> None:
    config = ModelConfig.from_dict({k: v for k, v in LLAMA.items() if k != "num_key_value_heads"})
    assert (config.head_dim, config.num_key_value_heads) == (16, 6)


@pytest.mark.parametrize(
    ("in_config", "in_generation", "expected"),
    [
        (2, None, (2,)),
        ([2, 5], None, (2, 5)),
        (2, {"eos_token_id": [2, 7]}, (2, 7)),
        (2, {"eos_token_id": 9}, (9,)),
        (2, {"temperature": 0.6}, (2,)),
        (None, {}, ()),
    ],
)
def test_eos_of_generation_config_wins(
    tmp_path: Path, in_config: Any, in_generation: Any, expected: tuple[int, ...]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"eos_token_id": in_config}))
    if in_generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(in_generation))
    assert ModelConfig.from_pretrained(tmp_path).eos_token_ids == expected


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("rope", ["default", "linear", "llama3", "yarn-mscales"])
def test_to_dict_is_read_back_by_both(tmp_path: Path, model_type: str, rope: str) -> None:
    architectures = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    content = LLAMA | {
        "model_type": model_type,
        "architectures": [architectures[model_type] + "ForCausalLM"],
        "rope_scaling": ROPES[rope],
        "rope_theta": 7000.0,
        "head_dim": 24,
        "eos_token_id": [2, 3],
    }
    config = ModelConfig.from_dict(content)
    assert ModelConfig.from_dict(config.to_dict()) == config
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    reference = AutoConfig.from_pretrained(tmp_path)
    assert ModelConfig.from_dict(reference.to_dict()) == config
    assert reference.rope_parameters["rope_theta"] == 7000.0 and reference.head_dim == 24


YARN_QWEN = LLAMA | {
    "model_type": "qwen2",
    "architectures": None,
    "use_sliding_window": True,
    "sliding_window": 64,
    "rope_scaling": {"type": "yarn", "factor": 4.0},
}
COMPRESSED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
QUANTISED = {"quantization_config": {"quant_method": "gptq", "bits": 2}}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "mixtral"}, "mixtral"),
        ({"model_type": None}, "None"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        (QUANTISED, "quantised.*gptq.*original"),
        ({"torch_dtype": "int8"}, "int8"),
        ({"torch_dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"model_type": "mistral", "architectures": None, "attention_bias": True}, "attention_bias=True"),
        ({"model_type": "qwen3", "architectures": None, "mlp_bias": True}, "mlp_bias=True"),
        ({"num_local_experts": 8}, "experts"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_scaling": {"rope_type": "linear"}}, "linear.*positive factor.*None"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "4"}}, "factor, got '4'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -1}}, "factor, got -1"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor < high_freq_factor"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "kinds of layers"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"hidden_size": "96"}, "hidden_size must be a positive integer, got '96'"),
        ({"hidden_size": True}, "hidden_size must be a positive integer, got True"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, got 0"),
        ({"hidden_size": 97}, "97 is not a multiple of num_attention_heads 6"),
        ({"num_key_value_heads": 4}, "6 is not a multiple of num_key_value_heads 4"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive number, got 0"),
        ({"rope_theta": float("nan")}, "rope_theta must be a positive number, got nan"),
        ({"eos_token_id": "</s>"}, "eos_token_id.*'</s>'"),
        ({"rope_scaling": YARN | {"beta_fast": -1}}, "positive beta_fast, got -1"),
        ({"rope_scaling": YARN | {"beta_slow": 1e-320}}, "positive beta_slow, got 1e-320"),
        ({"rope_scaling": YARN, "rope_theta": 1}, "'yarn' needs a rope_theta other than 1"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 1e-320}}, "factor, got 1e-320"),
        ({"rope_theta": 1e-320}, "rope_theta must be a positive number, got 1e-320"),
        ({"architectures": ["\ud800\nGPT" * 300]}, r"architecture \? GPT"),
        ({"quantization_config": COMPRESSED | {"config_groups": {"a": 5}}}, "config_groups with 'a': 5"),
        ({"quantization_config": COMPRESSED | {"config_groups": {"a": {"weights": [1]}}}}, "with 'a'"),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, 8]}},
            "two positive integers",
        ),
        ({"quantization_config": {"quant_method": "awq", "version": "x" * 9000}}, "awq of None bits"),
    ],
    ids=lambda p: json.dumps(p) if isinstance(p, dict) else "",
)
def test_refused_by_name(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | change))
    with pytest.raises(ConfigError, match=named) as caught:
        ModelConfig.from_pretrained(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


ODD: list[Any] = [
    *(10**19, 10**400, 10**5000, -1, float("inf"), float("nan"), 1e300, "x", "9" * 10000, [], [[]], {}),
    *({"a": {}}, True, [None], ["a", 1], {"rope_type": []}, {"type": "yarn", "factor": 10**400}),
    {"type": "yarn", "factor": 4, "beta_fast": [], "original_max_position_embeddings": 1e9},
]
NESTED: Any = {}
for _ in range(900):
    NESTED = {"rope_scaling": NESTED}


@pytest.mark.parametrize("key", [*KEYS, "model_type", "quantization_config"])
def test_any_value_of_a_key_is_read_or_refused(key: str) -> None:
    """Nothing else is raised, and nothing that is long is repeated."""
    for value in [*ODD, NESTED]:
        for content in (LLAMA | {key: value}, YARN_QWEN | {key: value}):
            try:
                config = ModelConfig.from_dict(content)
                config.check_max_model_len(8)
            except PearlError as error:
                assert len(str(error)) < 1000


@pytest.mark.parametrize("key", ROPE_KEYS)
def test_any_value_of_rope_scaling_is_read_or_refused(key: str) -> None:
    for value in [*ODD, NESTED]:
        for rope_type in ("yarn", "llama3", "linear"):
            rope = LLAMA3 | {"rope_type": rope_type, "factor": 4.0, key: value}
            with suppress(ConfigFileError, ConfigError):
                ModelConfig.from_dict(LLAMA | {"rope_scaling": rope})


def test_a_model_of_ten_million_layers_is_refused_at_once() -> None:
    with pytest.raises(
        ConfigFileError,
        match="num_hidden_layers must be a positive integer, got 10000000, and 4096 is the most",
    ):
        ModelConfig.from_dict(LLAMA | {"num_hidden_layers": 10**7})
    assert issubclass(ConfigFileError, CheckpointError) and issubclass(ConfigFileError, ConfigError)


@pytest.mark.parametrize("ids", [-1, [-1], [258, -1]])
def test_an_end_of_text_of_minus_one_is_none(ids: object) -> None:
    config = ModelConfig.from_dict(LLAMA | {"eos_token_id": ids, "bos_token_id": -1})
    assert config.eos_token_ids == ((258,) if isinstance(ids, list) and 258 in ids else ())
    assert config.bos_token_id is None


def test_yarn_reaches_past_the_positions_that_it_stretches() -> None:
    told = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    for most, reach in ((512, 2048), (2048, 2048), (4096, 4096)):
        config = ModelConfig.from_dict(LLAMA | {"max_position_embeddings": most, "rope_scaling": told})
        assert config.default_max_model_len == reach
        config.check_max_model_len(reach)
        with pytest.raises(ConfigError, match=f"{reach}: pass {reach} or less"):
            config.check_max_model_len(reach + 1)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError):
        ModelConfig.from_pretrained(tmp_path)


def test_a_missing_size_is_named() -> None:
    with pytest.raises(ConfigError, match="no vocab_size"):
        ModelConfig.from_dict({k: v for k, v in LLAMA.items() if k != "vocab_size"})


def test_fields_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"attention_bias=True.*'llama'"):
        ModelConfig("llama", 111, 96, 128, 2, 6, 2, 24, attention_bias=True)
    with pytest.raises(ConfigError, match="'ntk' is not supported"):
        RopeScaling("ntk", 2.0)


MISTRAL = LLAMA | {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
QWEN2 = LLAMA | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "max_window_layers": 1}
SLIDING = QWEN2 | {"sliding_window": 64, "use_sliding_window": True}


@pytest.mark.parametrize(
    ("content", "window"),
    [
        (LLAMA | {"sliding_window": 64}, None),
        (MISTRAL | {"sliding_window": None}, None),
        (MISTRAL | {"sliding_window": 64}, 64),
        (SLIDING | {"use_sliding_window": False}, None),
        (SLIDING, 64),
        (SLIDING | {"max_window_layers": 2}, None),
        (SLIDING | {"max_window_layers": None}, None),
        (SLIDING | {"layer_types": ["full_attention"] * 2}, None),
        (SLIDING | {"layer_types": ["sliding_attention"] * 2}, 64),
    ],
)
def test_sliding_window_is_refused_only_where_it_bites(content: dict[str, Any], window: int | None) -> None:
    config = ModelConfig.from_dict(content)
    assert config.sliding_window == window
    assert config.default_max_model_len == (window or 512)
    config.check_max_model_len(config.default_max_model_len)
    if window:
        with pytest.raises(ConfigError, match=r"sliding window of 64.*max_model_len=64 or less"):
            config.check_max_model_len(65)
    with pytest.raises(ConfigError, match=r"64 or less|max_position_embeddings 512: pass 512 or less"):
        config.check_max_model_len(513)


def test_paths_that_are_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "model.bin"
    file.write_bytes(b"0123")
    for path, named in [
        (tmp_path, "has no config.json.*model.bin"),
        (file, "is a file and no GGUF: give the directory"),
        (tmp_path / "nothing", "does not exist: give a GGUF file, or a local directory"),
        ("meta-llama/Llama-3.2-1B", "hf download meta-llama/Llama-3.2-1B --local-dir Llama-3.2-1B"),
        ("", "has no config.json"),
    ]:
        with pytest.raises(CheckpointError, match=named):
            ModelConfig.from_pretrained(path)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b'{"model_type": "lla', "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[1, 2]", "holds a list, not an object"),
    ],
)
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_damaged_json_is_named(tmp_path: Path, file: str, content: bytes, named: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{file}.*{named}"):
        ModelConfig.from_pretrained(tmp_path)


def test_environment() -> None:
    told = {"PEARL_ISA": "portable", "PEARL_NUM_THREADS": "3", "PEARL_PROGRESS": "0"}
    assert Environment.read(told) == Environment("portable", 3, False)
    assert Environment.read({"PEARL_ISA": "", "PEARL_PROGRESS": "1"}) == Environment(progress=True)
    with pytest.raises(ConfigError, match="PEARL_NUM_THREADS='two'"):
        Environment.read({"PEARL_NUM_THREADS": "two"})
    with pytest.raises(ConfigError, match="PEARL_PROGRESS='yes'"):
        Environment.read({"PEARL_PROGRESS": "yes"})
