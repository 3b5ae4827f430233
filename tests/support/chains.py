"""Models whose next token depends on the last one alone, on disk, with one token for each byte."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

NAMED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 256, 257, 258
END = 258
BYTE_CHARACTERS = [*range(33, 127), *range(161, 173), *range(174, 256)]


def letters() -> dict[int, str]:
    """The characters that byte-level vocabularies write bytes with, by byte."""
    rest = iter(range(256, 512))
    return {byte: chr(byte if byte in BYTE_CHARACTERS else next(rest)) for byte in range(256)}


def save_tokenizer(path: Path, special: Sequence[str] = NAMED, **settings: object) -> Tokenizer:
    """tokenizer.json with one token a byte, whose id is the byte, then the named ones; and its settings."""
    made = Tokenizer(models.BPE(vocab={character: byte for byte, character in letters().items()}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True) for name in special])
    path.mkdir(parents=True, exist_ok=True)
    made.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return made


def chain(text: str, end: int = END) -> dict[int, int]:
    """Each byte of a text after the one before it, and then the end."""
    ids = list(text.encode())
    return dict(zip(ids, [*ids[1:], end], strict=True))


def save_chain(
    path: Path,
    follows: Mapping[int, int | Mapping[int, float]],
    *,
    dtype: torch.dtype = torch.float32,
    template: str | None = None,
    **config: object,
) -> Path:
    """A Llama on disk, with its tokenizer. follows: token -> the next one, or the logit of each next one.
    config: changes to config.json; ... leaves a key out.
    """
    rows, width = END + 1, 320
    head = torch.zeros(rows, width)
    for token, after in follows.items():
        for following, logit in (after if isinstance(after, Mapping) else {after: 30.0}).items():
            head[following, token] = logit / width**0.5
    one, layer = torch.ones(width), "model.layers.0."
    weights = {"model.embed_tokens.weight": torch.eye(rows, width), "model.norm.weight": one}
    weights["lm_head.weight"] = head
    for name in ("input_layernorm", "post_attention_layernorm"):
        weights[f"{layer}{name}.weight"] = one.clone()
    weights |= {f"{layer}self_attn.{name}_proj.weight": torch.zeros(64, width) for name in "qkv"}
    weights |= {f"{layer}mlp.{name}_proj.weight": torch.zeros(64, width) for name in ("gate", "up")}
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        weights[f"{layer}{name}.weight"] = torch.zeros(width, 64)
    save_tokenizer(path, **({} if template is None else {"chat_template": template}))
    save_file({name: weight.to(dtype) for name, weight in weights.items()}, path / "model.safetensors")
    told = {
        "model_type": "llama",
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "rms_norm_eps": 1e-6,
        "eos_token_id": END,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **config,
    }
    kept = {name: value for name, value in told.items() if value is not ...}
    (path / "config.json").write_text(json.dumps(kept))
    return path
