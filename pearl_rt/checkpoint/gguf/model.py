"""A model in GGUF: the headers of its files as one, and its configuration as config.json would have it.

Knows llama.cpp's names of metadata, and which of them change what a model computes. Whatever cannot be run
exactly is refused by name.
"""

import os
import struct
from dataclasses import dataclass
from math import isclose, pi

from pearl_rt.checkpoint.gguf.header import GgufHeader, TensorEntry
from pearl_rt.checkpoint.gguf.location import gguf_files
from pearl_rt.errors import CheckpointError, ConfigError, shown
from pearl_rt.types.json import Json

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
FACTORS = "rope_freqs.weight"  # what each rotary frequency is divided by, in files of Llama 3.1 and later
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
# Names of tokens that end a text, beside those that the metadata names: older files lack the keys.
_ENDS = (
    *("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "<|end|>", "<EOT>"),
    *("<｜end▁of▁sentence｜>", "<|EOT|>"),
)
CONTROL = 3  # type of a token: it stands for no text
_LLAMA3 = (1.0, 4.0, 8192)  # low and high frequency factors and the context of every Llama 3.x
# What would change logits, with the values that do not.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("logit_scale", "residual_scale", "embedding_scale"), (0, 1)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "attention.scale"), (0,)),
    **dict.fromkeys(("attention.clamp_kqv", "attention.max_alibi_bias", "expert_count"), (0,)),
    "attention.causal": (True,),
    "use_parallel_residual": (False,),
}


@dataclass(frozen=True)
class GgufModel:
    """The headers of all files of a model: metadata is that of the first."""

    headers: tuple[GgufHeader, ...]
    tensors: dict[str, TensorEntry]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "GgufModel | None":
        """The model that `path` means; None if it means none in GGUF. Raises CheckpointError."""
        files = gguf_files(path)
        return None if files is None else cls.of(tuple(GgufHeader(file) for file in files))

    @classmethod
    def of(cls, headers: tuple[GgufHeader, ...]) -> "GgufModel":
        """Raises CheckpointError for parts that are not those of one model."""
        first = headers[0]
        count = first.integer("split.count", 1)
        if len(headers) != max(count or 1, 1):
            raise CheckpointError(
                f"{first.file.path} is one of {count} parts, of which {len(headers)} are here: name all "
                "of them NAME-00001-of-0000N.gguf, and give the first"
            )
        for number, header in enumerate(headers):
            if len(headers) > 1 and header.integer("split.no") != number:
                raise header.damaged(f"its split.no is {header.integer('split.no')}, expected {number}")
        tensors: dict[str, TensorEntry] = {}
        for header in headers:
            for name, entry in header.tensors.items():
                if name in tensors:
                    raise header.damaged(f"tensor {name!r} stands in another part too")
                tensors[name] = entry
        return cls(headers, tensors)

    @property
    def metadata(self) -> GgufHeader:
        return self.headers[0]

    @property
    def path(self) -> str:
        return str(self.metadata.file.path)

    @property
    def architecture(self) -> str:
        """Raises ConfigError for one that is not supported."""
        name = self.metadata.text("general.architecture")
        if name is None:
            raise self.metadata.damaged("it has no general.architecture")
        if name not in ARCHITECTURES:
            raise ConfigError(
                f"{self.path}: architecture {shown(name)} is not supported ({', '.join(ARCHITECTURES)} are): "
                "take a model of one of these"
            )
        return name

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding. Raises CheckpointError without one."""
        return self.tensor(EMBEDDING, 2).shape[0]

    def tensor(self, name: str, dimensions: int) -> TensorEntry:
        """Raises CheckpointError if it is missing, or has another number of dimensions."""
        entry = self.tensors.get(name)
        if entry is None:
            raise self.metadata.damaged(f"tensor {name!r} is missing (it holds {len(self.tensors)} others)")
        if len(entry.shape) != dimensions:
            raise self.metadata.damaged(
                f"tensor {name!r} has shape {list(entry.shape)}, expected {dimensions} dimensions"
            )
        return entry

    def config(self) -> Json:
        """What config.json and generation_config.json say of such a model."""
        name = self.architecture
        self._refuse_what_changes_logits(name)
        heads = self._integer(f"{name}.attention.head_count")
        hidden = self._integer(f"{name}.embedding_length")
        if hidden % heads and self.metadata.integer(f"{name}.attention.key_length") is None:
            raise self.metadata.damaged(
                f"{name}.embedding_length {hidden} is no multiple of {name}.attention.head_count {heads}, "
                f"and there is no {name}.attention.key_length"
            )
        head_dim = self.metadata.integer(f"{name}.attention.key_length", hidden // heads)
        context = self._integer(f"{name}.context_length")
        window = self.metadata.integer(f"{name}.attention.sliding_window") or None
        model_type = "mistral" if name == "llama" and window else name
        content: Json = {
            "model_type": model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": hidden,
            "intermediate_size": self._integer(f"{name}.feed_forward_length"),
            "num_hidden_layers": self._integer(f"{name}.block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.metadata.integer(f"{name}.attention.head_count_kv", heads),
            "head_dim": head_dim,
            "rms_norm_eps": float(f"{self._number(f'{name}.attention.layer_norm_rms_epsilon'):.7g}"),
            "rope_theta": self.metadata.number(f"{name}.rope.freq_base", 10000.0),
            "rope_scaling": self._rope_scaling(name, head_dim, context),
            "max_position_embeddings": context,
            "tie_word_embeddings": HEAD not in self.tensors,
            "torch_dtype": self._dtype(),
            "bos_token_id": self.metadata.integer("tokenizer.ggml.bos_token_id"),
            "eos_token_id": list(self.end_ids()),
            "sliding_window": window,
        }
        if model_type.startswith("qwen"):
            content |= {"use_sliding_window": window is not None, "max_window_layers": 0}
        for key, expected in (("attention.value_length", head_dim), ("rope.dimension_count", head_dim)):
            value = self.metadata.integer(f"{name}.{key}", expected)
            if value != expected:
                raise ConfigError(
                    f"{self.path}: {name}.{key} is {value}, which is supported only if it is the head's "
                    f"{expected}: take another model"
                )
        return content

    def end_ids(self) -> tuple[int, ...]:
        """Ids that end a text: those of the metadata, and control tokens that are known to do so."""
        ends: dict[int, None] = {}
        for key in ("eos", "eot", "eom"):
            token_id = self.metadata.integer(f"tokenizer.ggml.{key}_token_id")
            if token_id is not None:
                ends[token_id] = None
        types = self.metadata.numbers("tokenizer.ggml.token_type") or []
        tokens = self.metadata.texts("tokenizer.ggml.tokens") or []
        for token_id, (token, kind) in enumerate(zip(tokens, types, strict=False)):
            if kind == CONTROL and token in _ENDS:
                ends[token_id] = None
        return tuple(ends)

    def named_tokens(self) -> dict[str, str]:
        """bos_token, eos_token and so on, as text."""
        tokens = self.metadata.texts("tokenizer.ggml.tokens") or []
        found = {}
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
            token_id = self.metadata.integer(f"tokenizer.ggml.{key}_token_id")
            if token_id is not None and 0 <= token_id < len(tokens):
                found[f"{name}_token"] = tokens[token_id]
        return found

    def _dtype(self) -> str:
        """What its matrices are stored in: bfloat16 if they have to be computed."""
        types = {entry.type for entry in self.tensors.values() if len(entry.shape) > 1}
        if types == {"F32"}:
            return "float32"
        return "float16" if types <= {"F32", "F16"} else "bfloat16"

    def _refuse_what_changes_logits(self, name: str) -> None:
        for key, neutral in _NEUTRAL.items():
            value = self.metadata.get(f"{name}.{key}")
            if value is not None and value not in neutral:
                what = "mixtures of experts are" if key.startswith("expert") else "it is"
                raise ConfigError(
                    f"{self.path}: {name}.{key} is {shown(value)}: {what} not supported: take a dense model "
                    f"of {', '.join(ARCHITECTURES)}"
                )

    def _rope_scaling(self, name: str, head_dim: int | None, context: int) -> Json | None:
        """rope_scaling of config.json, or None."""
        kind = self.metadata.text(f"{name}.rope.scaling.type")
        factor = self.metadata.number(f"{name}.rope.scaling.factor")
        if factor is None:
            factor = self.metadata.number(f"{name}.rope.scale_linear")
        if FACTORS in self.tensors:
            if kind not in (None, "none"):
                raise ConfigError(
                    f"{self.path}: rope scaling {shown(kind)} beside {FACTORS} is not supported"
                )
            return self._llama3_scaling(name, head_dim or 0)
        if kind in (None, "none", "linear"):
            stretched = factor not in (None, 0, 1) and (kind == "linear" or kind is None)
            return {"rope_type": "linear", "factor": factor} if stretched else None
        if kind != "yarn":
            raise ConfigError(
                f"{self.path}: {name}.rope.scaling.type {shown(kind)} is not supported (linear and yarn are)"
            )
        original = self.metadata.integer(f"{name}.rope.scaling.original_context_length", context)
        found: Json = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        for key in ("beta_fast", "beta_slow"):
            value = self.metadata.number(f"{name}.rope.scaling.yarn_{key}")
            if value is not None:
                found[key] = value
        for key in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor", "yarn_log_multiplier"):
            value = self.metadata.number(f"{name}.rope.scaling.{key}")
            if value not in (None, 0, 1):
                raise ConfigError(f"{self.path}: {name}.rope.scaling.{key} {value} is not supported")
        return found

    def _llama3_scaling(self, name: str, head_dim: int) -> Json:
        """The parameters of Llama 3 that give the factors of the file. Raises ConfigError if none do."""
        entry = self.tensor(FACTORS, 1)
        if entry.type != "F32" or entry.shape != (head_dim // 2,):
            raise self.metadata.damaged(
                f"tensor {FACTORS!r} is {entry.type} {list(entry.shape)}, expected F32 [{head_dim // 2}]"
            )
        found = struct.unpack(f"<{head_dim // 2}f", entry.file.read(entry.size, entry.begin))
        theta = self.metadata.number(f"{name}.rope.freq_base", 10000.0) or 10000.0
        low, high, original = _LLAMA3
        factor = max(found)
        expected: list[float] = []
        for i in range(head_dim // 2 if theta > 0 and factor > 0 else 0):
            wavelength = 2 * pi * theta ** (2 * i / head_dim)
            smooth = min(max((original / wavelength - low) / (high - low), 0.0), 1.0)
            expected.append(1 / ((1 - smooth) / factor + smooth))
        fits = len(expected) == len(found) and all(map(_is_near, found, expected))
        if not fits:
            raise ConfigError(
                f"{self.path}: the factors of {FACTORS} are not those of Llama 3.x, which alone are "
                "supported: take the model in the Hugging Face layout"
            )
        return {
            "rope_type": "llama3",
            "factor": round(factor, 3),
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }

    def _integer(self, key: str) -> int:
        value = self.metadata.integer(key)
        if value is None or value <= 0:
            raise self.metadata.damaged(
                f"{key} is missing" if value is None else f"{key} is {value}, expected a positive integer"
            )
        return value

    def _number(self, key: str) -> float:
        value = self.metadata.number(key)
        if value is None:
            raise self.metadata.damaged(f"{key} is missing")
        return value


def _is_near(a: float, b: float) -> bool:
    return isclose(a, b, rel_tol=1e-3)
