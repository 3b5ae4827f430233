"""Which tensors a Llama-family model has, by name and shape. Knows neither torch nor files."""

from collections.abc import Mapping
from math import prod

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.reference.groups import GroupForm

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
WEIGHT_BITS = {"auto": 0, "int8": 8, "int4": 4}  # to which matrices are rounded; 0: they stay as they are
HEADS = ("model.embed_tokens.weight", "lm_head.weight")  # never below 8 bits


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, named and ordered as Hugging Face does. Linear weights: [out, in]."""
    hidden, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    q_size, kv_size = config.num_attention_heads * head, config.num_key_value_heads * head
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for i in range(config.num_hidden_layers):
        layer, attention = f"model.layers.{i}", f"model.layers.{i}.self_attn"
        for name, size in (("q", q_size), ("k", kv_size), ("v", kv_size)):
            shapes[f"{attention}.{name}_proj.weight"] = (size, hidden)
            if config.attention_bias:
                shapes[f"{attention}.{name}_proj.bias"] = (size,)
        shapes[f"{attention}.o_proj.weight"] = (hidden, q_size)
        if config.output_bias:
            shapes[f"{attention}.o_proj.bias"] = (hidden,)
        if config.qk_norm:
            shapes[f"{attention}.q_norm.weight"] = (head,)
            shapes[f"{attention}.k_norm.weight"] = (head,)
        for name, rows, columns in (
            ("gate", inner, hidden),
            ("up", inner, hidden),
            ("down", hidden, inner),
        ):
            shapes[f"{layer}.mlp.{name}_proj.weight"] = (rows, columns)
            if config.mlp_bias:
                shapes[f"{layer}.mlp.{name}_proj.bias"] = (rows,)
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def num_weights(config: ModelConfig) -> int:
    """How many numbers a model is; a tied head and embedding count once."""
    return sum(prod(shape) for shape in tensor_shapes(config).values())


def bits_of(name: str, weights: str) -> int:
    """To how many bits `weights` rounds a matrix; 0: it stays as it is."""
    bits = WEIGHT_BITS[weights]
    return 8 if bits and name in HEADS else bits


def tensor_bytes(
    name: str, shape: tuple[int, ...], dtype: str, weights: str = "auto", stored: GroupForm | None = None
) -> int:
    """Bytes of one tensor of a model that computes in `dtype`, its matrices rounded as `weights` says.
    stored: the codes that its checkpoint has.
    """
    form = GroupForm.joined([stored], bits_of(name, weights)) if len(shape) == 2 else None
    return prod(shape) * ITEM_BYTES[dtype] if form is None else form.num_bytes(shape)


def weight_bytes(
    config: ModelConfig, dtype: str, weights: str = "auto", stored: Mapping[str, GroupForm] | None = None
) -> int:
    """Bytes of a model's weights. stored: the codes that its checkpoint has, by name."""
    shapes = tensor_shapes(config).items()
    return sum(tensor_bytes(name, shape, dtype, weights, (stored or {}).get(name)) for name, shape in shapes)
