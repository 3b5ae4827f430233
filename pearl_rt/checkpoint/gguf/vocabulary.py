"""The tokenizer of a GGUF file, built with `tokenizers`: byte-level BPE by the name of its pre-tokenizer, or
SentencePiece.

Knows how llama.cpp's names of pre-tokenizers cut text. A name that is not here is refused: a text that is cut
otherwise than in training would be other tokens, silently.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from pearl_rt.checkpoint.gguf.model import CONTROL, GgufModel
from pearl_rt.errors import CheckpointError, ConfigError, one_line, shown

_NORMAL, _UNKNOWN, _USER_DEFINED = 1, 2, 4  # types of a token
_KEYS = "tokenizer.ggml."

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(*patterns: str) -> list[pre_tokenizers.PreTokenizer]:
    """Cuts by one pattern after the other, and writes bytes as characters."""
    cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    return [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


_GPT2 = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
_DIGITS = [pre_tokenizers.Digits(individual_digits=True), *_GPT2]
_DEEPSEEK_CODER = [
    *_split(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+")[:-1],
    pre_tokenizers.Digits(individual_digits=True),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
]


@dataclass(frozen=True)
class _PreTokenizer:
    steps: Sequence[pre_tokenizers.PreTokenizer]
    ignores_merges: bool = False  # a piece that is a token is that token, whatever the merges make of it
    adds_bos: bool = False  # where the metadata does not say
    is_nfc: bool = False


_PRE_TOKENIZERS: dict[str, _PreTokenizer] = {
    **dict.fromkeys(("gpt-2", "gpt2", "mpt", "olmo", "jais"), _PreTokenizer(_GPT2)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        _PreTokenizer(_DIGITS),
    ),
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral"),
        _PreTokenizer(_split(_LLAMA3), ignores_merges=True, adds_bos=True),
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _PreTokenizer(_split(_LLAMA3))),
    "qwen2": _PreTokenizer(_split(_QWEN2), is_nfc=True),
    "deepseek-r1-qwen": _PreTokenizer(_split(_QWEN2), is_nfc=True),
    "megrez": _PreTokenizer(_split(_QWEN2)),
    "tekken": _PreTokenizer(_split(_TEKKEN), ignores_merges=True),
    "deepseek-coder": _PreTokenizer(_DEEPSEEK_CODER),
}


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of text and tokens."""

    tokens: list[str]
    types: list[int]  # one for each token
    tokenizer: tokenizers.Tokenizer
    bos_token_id: int | None  # put before a prompt; None: nothing is


def read_vocabulary(model: GgufModel) -> Vocabulary:
    """Raises CheckpointError for what is missing or does not fit, ConfigError for what is not supported."""
    metadata = model.metadata
    kind = metadata.text(f"{_KEYS}model")
    tokens = metadata.texts(f"{_KEYS}tokens")
    if kind is None or tokens is None:
        missing = f"{_KEYS}{'model' if kind is None else 'tokens'}"
        raise metadata.damaged(f"it has no tokenizer: {missing} is missing")
    if kind not in ("gpt2", "llama"):
        raise ConfigError(
            f"{model.path}: tokenizer {shown(kind)} is not supported (gpt2, byte-level BPE, and llama, "
            "SentencePiece, are): take a model with one of these"
        )
    kinds = metadata.numbers(f"{_KEYS}token_type") or [_NORMAL] * len(tokens)
    if odd := [number for number in kinds if not isfinite(number)]:
        raise metadata.damaged(f"{_KEYS}token_type has {odd[0]}, expected integers")
    types = [int(number) for number in kinds]
    if len(types) != len(tokens):
        raise metadata.damaged(f"{_KEYS}token_type has {len(types)} entries for {len(tokens)} tokens")
    if len(tokens) > model.vocab_size:
        raise metadata.damaged(
            f"its vocabulary of {len(tokens)} tokens does not fit its embedding of {model.vocab_size} rows"
        )
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    if len(ids) < len(tokens):
        twice = next(token for token_id, token in enumerate(tokens) if ids[token] != token_id)
        raise metadata.damaged(f"token {twice!r} stands twice in its vocabulary")
    try:
        if kind == "gpt2":
            tokenizer, adds_bos = _byte_level(model, ids)
        else:
            tokenizer, adds_bos = _sentencepiece(model, tokens, types, ids), True
        tokenizer.add_special_tokens(_added(tokens, types, CONTROL))
        tokenizer.add_tokens(_added(tokens, types, _USER_DEFINED))
    except (CheckpointError, ConfigError):
        raise
    except Exception as error:  # the library raises no narrower type
        raise metadata.damaged(f"its vocabulary and merges make no tokenizer ({one_line(error)})") from error
    asked = metadata.flag(f"{_KEYS}add_bos_token")
    bos_token_id = metadata.integer(f"{_KEYS}bos_token_id")
    puts_bos = adds_bos if asked is None else asked
    if puts_bos and bos_token_id is not None and not 0 <= bos_token_id < len(tokens):
        raise metadata.damaged(f"{_KEYS}bos_token_id {bos_token_id} is none of its {len(tokens)} tokens")
    return Vocabulary(tokens, types, tokenizer, bos_token_id if puts_bos else None)


def _added(tokens: Sequence[str], types: Sequence[int], kind: int) -> list[AddedToken]:
    """Tokens of a type, which are found in a text before it is cut."""
    return [
        AddedToken(token, normalized=False, special=kind == CONTROL)
        for token, its_kind in zip(tokens, types, strict=True)
        if its_kind == kind and token
    ]


def _byte_level(model: GgufModel, ids: dict[str, int]) -> tuple[tokenizers.Tokenizer, bool]:
    """The tokenizer, and whether a prompt begins with bos where the metadata does not say."""
    name = model.metadata.text(f"{_KEYS}pre")
    pre_tokenizer = _PRE_TOKENIZERS.get(name or "")
    if pre_tokenizer is None:
        raise ConfigError(
            f"{model.path}: pre-tokenizer {shown(name)} is not supported ({', '.join(_PRE_TOKENIZERS)} are): "
            "take the model in the Hugging Face layout, or a file that a newer converter wrote"
        )
    merges = _merges(model)
    if merges is None:
        raise model.metadata.damaged(f"it has no tokenizer: {_KEYS}merges is missing")
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=ids, merges=merges, ignore_merges=pre_tokenizer.ignores_merges)
    )
    if pre_tokenizer.is_nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(pre_tokenizer.steps))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, pre_tokenizer.adds_bos


def _merges(model: GgufModel) -> list[tuple[str, str]] | None:
    """The pairs of tokens that become one, first those that do so first."""
    texts = model.metadata.texts(f"{_KEYS}merges")
    if texts is None:
        return None
    merges = [tuple(text.split(" ")) for text in texts]
    for merge, text in zip(merges, texts, strict=True):
        if len(merge) != 2:
            raise model.metadata.damaged(f"{_KEYS}merges has {text!r}, expected two tokens")
    return merges  # type: ignore[return-value]


def _sentencepiece(
    model: GgufModel, tokens: Sequence[str], types: Sequence[int], ids: dict[str, int]
) -> tokenizers.Tokenizer:
    """SentencePiece's BPE: spaces as U+2581, one put before each text, bytes for what is in no token."""
    if model.metadata.flag(f"{_KEYS}remove_extra_whitespaces"):
        raise ConfigError(
            f"{model.path}: {_KEYS}remove_extra_whitespaces is not supported: take another model"
        )
    merges = _merges(model)
    if merges is None:
        scores = model.metadata.numbers(f"{_KEYS}scores")
        if scores is None or len(scores) != len(tokens):
            raise model.metadata.damaged(
                f"{_KEYS}scores has {len(scores or [])} entries for {len(tokens)} tokens"
            )
        merges = _merges_by_score(tokens, types, scores, ids)
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN), None)
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=ids, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix = model.metadata.flag(f"{_KEYS}add_space_prefix") is not False
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def _merges_by_score(
    tokens: Sequence[str], types: Sequence[int], scores: Sequence[float], ids: dict[str, int]
) -> list[tuple[str, str]]:
    """The merges that a vocabulary with scores means, in transformers' order: every way to make a token of
    two, the best score first.
    """
    found: list[tuple[float, int, int, str, str]] = []
    for token, kind, score in zip(tokens, types, scores, strict=True):
        if kind == _NORMAL:
            cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
            pairs = [pair for pair in cuts if pair[0] in ids and pair[1] in ids]
            pairs.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
            found += [(-score, -len(left), -len(right), left, right) for left, right in pairs]
    found.sort(key=lambda merge: merge[:3])
    return [(left, right) for *_, left, right in found]
