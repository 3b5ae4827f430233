"""Models on disk whose next token depends on the last one alone, with one token for each byte, or for each
piece of an answer that is given.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

NAMED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 256, 257, 258
END = 258
FIRST_MARK = 0xE000  # of pieces: no text has it
BYTE_CHARACTERS = [*range(33, 127), *range(161, 173), *range(174, 256)]


def letters() -> dict[int, str]:
    """The characters that byte-level vocabularies write bytes with, by byte."""
    rest = iter(range(256, 512))
    return {byte: chr(byte if byte in BYTE_CHARACTERS else next(rest)) for byte in range(256)}


def save_tokenizer(
    path: Path, special: Sequence[str] = NAMED, pieces: Sequence[str] = (), **settings: object
) -> Tokenizer:
    """tokenizer.json with one token a byte, whose id is the byte, then the named ones, then one for each
    piece of text, also where two are equal: no prompt has them. And its settings.
    """
    written = letters()
    vocab = {character: byte for byte, character in written.items()}
    vocab |= {name: 256 + place for place, name in enumerate(special)}
    for place, piece in enumerate(pieces):
        name = "".join(written[byte] for byte in piece.encode()) + chr(FIRST_MARK + place)
        vocab[name] = 256 + len(special) + place
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if pieces:
        unmarked = decoders.Replace(Regex(f"[{chr(FIRST_MARK)}-{chr(FIRST_MARK + len(pieces))}]"), "")
        made.decoder = decoders.Sequence([unmarked, decoders.ByteLevel()])
    made.add_special_tokens([AddedToken(name, special=True) for name in special])
    path.mkdir(parents=True, exist_ok=True)
    made.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return made


def save_answers(
    path: Path, answers: Mapping[str, Sequence[str]], special: Sequence[str] = NAMED, **config: object
) -> Path:
    """A model that answers a prompt by its last letter, with these pieces, a token each. A piece that is one
    of `special` is that token, and may be in one answer only.
    """
    pieces = [piece for answer in answers.values() for piece in answer]
    follows: dict[int, int | Mapping[int, float]] = {}
    place = 256 + len(special)
    for letter, answer in answers.items():
        last = ord(letter)
        for piece in answer:
            token = 256 + special.index(piece) if piece in special else place
            follows[last], last, place = token, token, place + 1
        follows[last] = END
    return save_chain(path, follows, special=special, pieces=pieces, **config)


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
    special: Sequence[str] = NAMED,
    pieces: Sequence[str] = (),
    **config: object,
) -> Path:
    """A Llama on disk, with its tokenizer. follows: token -> the next one, or the logit of each next one.
    config: changes to config.json; ... leaves a key out.
    """
    rows = 256 + len(special) + len(pieces)
    width = max(320, (rows + 63) // 64 * 64)
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
    save_tokenizer(path, special, pieces, **({} if template is None else {"chat_template": template}))
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
