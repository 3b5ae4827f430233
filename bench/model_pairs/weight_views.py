"""The weights that an engine on the kernels runs, under Hugging Face's names: views of them, not copies; and
those of a GGUF file.

So other models can run on the very same memory, and a draft can be replanted while its engine stays. Knows
how pearl_rt.model.llama packs its tensors, and nothing of speed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.loader import load_tensors
from pearl_rt.checkpoint.rope import rope_tables


def weight_views(config: ModelConfig, weights: Any) -> dict[str, torch.Tensor]:
    """weights: pearl_rt.model.llama.LlamaWeights. Packed matrices are cut by rows: views are contiguous."""
    q_size = config.num_attention_heads * config.head_dim
    kv_size = config.num_key_value_heads * config.head_dim
    views: dict[str, torch.Tensor] = {"model.embed_tokens.weight": weights.embed_tokens}
    for index, layer in enumerate(weights.layers):
        prefix = f"model.layers.{index}"
        sizes = (q_size, kv_size, kv_size)
        for name, rows in zip("qkv", layer.qkv_proj.split(sizes), strict=True):
            views[f"{prefix}.self_attn.{name}_proj.weight"] = rows
        if layer.qkv_bias is not None:
            for name, rows in zip("qkv", layer.qkv_bias.split(sizes), strict=True):
                views[f"{prefix}.self_attn.{name}_proj.bias"] = rows
        for name, norm in (("q", layer.q_norm), ("k", layer.k_norm)):
            if norm is not None:
                views[f"{prefix}.self_attn.{name}_norm.weight"] = norm
        gate, up = layer.gate_up_proj.split(config.intermediate_size)
        views |= {
            f"{prefix}.input_layernorm.weight": layer.input_layernorm,
            f"{prefix}.self_attn.o_proj.weight": layer.o_proj,
            f"{prefix}.post_attention_layernorm.weight": layer.post_attention_layernorm,
            f"{prefix}.mlp.gate_proj.weight": gate,
            f"{prefix}.mlp.up_proj.weight": up,
            f"{prefix}.mlp.down_proj.weight": layer.down_proj,
        }
    views["model.norm.weight"] = weights.norm
    if not config.tie_word_embeddings:
        views["lm_head.weight"] = weights.lm_head
    return views


def torch_model(config: ModelConfig, views: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The model in plain torch (recipes.train.model.llama) over that memory."""
    from recipes.train.model.llama import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(views, assign=True)
    device = views["model.embed_tokens.weight"].device
    tables = rope_tables(config, config.max_position_embeddings)
    model.model.cos, model.model.sin = (table.to(device) for table in tables)
    return model.eval()


def hugging_face_file(path: Path) -> Any:
    """transformers' model with the values of a GGUF file: its own reader needs one package more. In fp32
    where no instruction multiplies bf16, which is faster there.
    """
    config = ModelConfig.from_pretrained(path)
    tensors = load_tensors(path, config)
    has_bf16 = "_bf16" in Path("/proc/cpuinfo").read_text()
    dtype = torch.bfloat16 if has_bf16 else torch.float32
    return hugging_face_model(config, {name: tensors.read(name, dtype) for name in tensors})


def hugging_face_model(config: ModelConfig, views: dict[str, torch.Tensor]) -> Any:
    """transformers' model over that memory."""
    import transformers

    config_of_peer = transformers.AutoConfig.for_model(**config.to_dict())
    head = views.get("lm_head.weight", views["model.embed_tokens.weight"])
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config_of_peer, dtype=head.dtype)
    model.load_state_dict(views, assign=True, strict=not config.tie_word_embeddings)
    model.tie_weights()
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config_of_peer).to(head.device)  # its buffers are in no state dict
    return model.eval()
