"""What a model is, `ModelConfig`, read from config.json; and the variables of the process, `Environment`.

Knows the Hugging Face spellings, old and new, and nothing about torch, tensors or devices. Whatever pearl_rt
cannot run exactly is refused here, by name, before a single weight is read.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pearl_rt.checkpoint.gguf.model import GgufModel
from pearl_rt.checkpoint.open_file import OpenFile
from pearl_rt.checkpoint.quantised.scheme import read_scheme
from pearl_rt.checkpoint.rope_scaling import RopeScaling, read_rope
from pearl_rt.errors import CheckpointError, ConfigError, one_line, shown
from pearl_rt.types.config_keys import MASK_KEYS, check_keys, check_masks
from pearl_rt.types.json import Json
from pearl_rt.types.values import Integer

MOST_TOKENS = 2**31 - 513  # of a sequence, and of a cache: positions are 32-bit integers where they are used
MODEL_LENGTH = Integer(8, MOST_TOKENS, optional=True)  # of max_model_len: room for a prompt and an answer

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# What transformers takes for a key that config.json leaves out, where it is not the same for all.
_DEFAULTS: dict[str, Json] = {
    "llama": {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    "mistral": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32},
    "qwen3": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
}
# What sizes a model has: a configuration and the CPU's executor name them alike.
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
_DTYPES = ("float32", "float16", "bfloat16")
OF_WEIGHTS = "auto"  # the dtype of a checkpoint whose config.json names none: its tensors tell


@dataclass(frozen=True)
class ModelConfig:
    """A Llama-family decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    `attention_bias` is a bias on q, k and v (Qwen2), `output_bias` one on o_proj (Hugging Face's
    attention_bias means both), `mlp_bias` one on gate, up and down; `qk_norm` an RMSNorm over head_dim on q
    and k (Qwen3). `pard_token` is the mask token of a draft that fills a window in one pass (PARD),
    `diffusion_mask_token` of one that does so in `diffusion_passes` (None: 2; SpecDiff).
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: int = 2048
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_word_embeddings: bool = False
    torch_dtype: str = "bfloat16"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    sliding_window: int | None = None  # harmless while no sequence is longer: see check_max_model_len
    pard_token: int | None = None
    diffusion_mask_token: int | None = None
    diffusion_passes: int | None = None

    def __post_init__(self) -> None:
        if self.model_type not in ARCHITECTURES:
            raise ConfigError(_unsupported_model_type(self.model_type))
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        check_masks(self.vocab_size, *(getattr(self, name) for name in MASK_KEYS))
        if self.head_dim % 2:
            raise ConfigError(f"head_dim {self.head_dim} is odd; rotary positions need an even one")
        fits = self.attention_bias == (self.output_bias or self.model_type == "qwen2")
        fits &= self.model_type in ("llama", "qwen3") or not self.output_bias
        fits &= self.model_type == "llama" or not self.mlp_bias
        if not fits or self.qk_norm != (self.model_type == "qwen3"):
            names = ("attention_bias", "output_bias", "mlp_bias", "qk_norm")
            raise ConfigError(
                f"{', '.join(f'{name}={getattr(self, name)}' for name in names)} do not go with model_type "
                f"{self.model_type!r}: q, k and v have a bias in qwen2, with o in some of llama and qwen3"
            )
        if self.torch_dtype not in (*_DTYPES, OF_WEIGHTS):
            raise ConfigError(
                f"torch_dtype {shown(self.torch_dtype)} is not supported ({_listing(_DTYPES)} are): "
                "convert the checkpoint, or use its unquantised original"
            )

    def without_masks(self) -> "ModelConfig":
        """The same model, which goes token by token."""
        none: Json = dict.fromkeys(MASK_KEYS)
        return replace(self, **none)

    @property
    def default_max_model_len(self) -> int:
        """The longest sequence that the checkpoint was made for and that no sliding window cuts."""
        return min(self._reach, self.sliding_window or self._reach)

    @property
    def _reach(self) -> int:
        """Tokens that the positions are made for: YaRN stretches those of the original model."""
        scaling = self.rope_scaling
        if scaling is None or scaling.rope_type != "yarn" or not scaling.original_max_position_embeddings:
            return self.max_position_embeddings
        stretched = int(scaling.factor * scaling.original_max_position_embeddings)
        return max(self.max_position_embeddings, min(stretched, MOST_TOKENS))

    def check_max_model_len(self, max_model_len: int, name: str = "model") -> None:
        """Refuses a length at which a sliding window would bite, or that the checkpoint was not made for.
        name: of the model, in errors.
        """
        if self.sliding_window is not None and max_model_len > self.sliding_window:
            raise ConfigError(
                f"this {self.model_type} {name} has a sliding window of {self.sliding_window} tokens, which "
                f"would bite at max_model_len {max_model_len} and is not supported: pass "
                f"max_model_len={self.sliding_window} or less"
            )
        if max_model_len > (reach := self._reach):
            made_for = "max_position_embeddings" if reach == self.max_position_embeddings else "YaRN's reach"
            raise ConfigError(
                f"max_model_len {max_model_len} is more than the {name}'s {made_for} "
                f"{reach}: pass {reach} or less"
            )

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str]) -> "ModelConfig":
        """Reads config.json; the bos and eos ids of generation_config.json win, as they do in transformers.
        Of a GGUF file, or a directory with one, its metadata.

        Raises CheckpointError if `path` is not a readable model, ConfigError if the model is not supported.
        """
        if (gguf := GgufModel.open(path)) is not None:
            return cls.from_dict(gguf.config(), source=gguf.path)
        directory = model_directory(path)
        content = read_json(directory / "config.json")
        generation = directory / "generation_config.json"
        if generation.exists():
            settings = read_json(generation)
            content |= {
                k: settings[k] for k in ("bos_token_id", "eos_token_id") if settings.get(k) is not None
            }
        return cls.from_dict(content, source=str(directory / "config.json"))

    @classmethod
    def from_dict(cls, content: Json, *, source: str = "config") -> "ModelConfig":
        """From the content of a config.json. `source` is named in errors."""
        try:
            return cls._from_dict(content)
        except ConfigError as error:
            raise type(error)(f"{source}: {error}") from None

    @classmethod
    def _from_dict(cls, content: Json) -> "ModelConfig":
        model_type = content.get("model_type")
        check_keys(content)
        _refuse_unsupported(content)
        d = _DEFAULTS[str(model_type)] | dict(content)
        num_attention_heads = _needed(d, "num_attention_heads")
        hidden_size = _needed(d, "hidden_size")
        max_position_embeddings = _needed(d, "max_position_embeddings")
        if d.get("head_dim") is None:
            if hidden_size % num_attention_heads:
                raise ConfigError(
                    f"hidden_size {hidden_size} is not a multiple of num_attention_heads "
                    f"{num_attention_heads}, and there is no head_dim"
                )
            d["head_dim"] = hidden_size // num_attention_heads
        if d.get("num_key_value_heads") is None:
            d["num_key_value_heads"] = num_attention_heads
        rope_theta, rope_scaling = read_rope(d, max_position_embeddings)
        masks: Json = {name: d.get(name) for name in MASK_KEYS}
        return cls(
            model_type=str(model_type),
            **{name: _needed(d, name) for name in SIZES},
            rms_norm_eps=_number(d, "rms_norm_eps", 1e-6),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            max_position_embeddings=max_position_embeddings,
            attention_bias=model_type == "qwen2" or bool(d.get("attention_bias")),
            output_bias=bool(d.get("attention_bias")),
            mlp_bias=bool(d.get("mlp_bias")),
            qk_norm=model_type == "qwen3",
            tie_word_embeddings=bool(d.get("tie_word_embeddings", False)),
            torch_dtype=_read_dtype(d),
            bos_token_id=next(iter(_token_ids(d, "bos_token_id")), None),
            eos_token_ids=_token_ids(d, "eos_token_id"),
            sliding_window=_read_sliding_window(d),
            **masks,
        )

    def to_dict(self) -> Json:
        """The content of a config.json that pearl_rt and transformers both read as this model."""
        content = asdict(self)
        content["architectures"] = [ARCHITECTURES[self.model_type]]
        content["hidden_act"] = "silu"
        content["rope_scaling"] = self.rope_scaling.to_dict() if self.rope_scaling else None
        eos = content.pop("eos_token_ids")
        content["eos_token_id"] = None if not eos else eos[0] if len(eos) == 1 else list(eos)
        # The norm follows from model_type; attention_bias means o_proj's too.
        del content["qk_norm"]
        content = {k: value for k, value in content.items() if k not in MASK_KEYS or value is not None}
        content["attention_bias"] = content.pop("output_bias")
        if self.model_type.startswith("qwen"):
            content |= {"use_sliding_window": self.sliding_window is not None, "max_window_layers": 0}
        return content


@dataclass(frozen=True)
class Environment:
    """What environment variables say; None where they say nothing. The only owner of `os.environ`."""

    isa: str | None = None  # PEARL_ISA: the instruction set of the CPU executor, for instance "portable"
    num_threads: int | None = None  # PEARL_NUM_THREADS: cores to use at most
    progress: bool | None = None  # PEARL_PROGRESS: 1 shows progress bars without a terminal too, 0 never
    device: str | None = None  # PEARL_DEVICE: what device="auto" is, for instance "cpu"
    api_key: str | None = None  # PEARL_API_KEY: what clients of the server must send

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> "Environment":
        """The process's environment, or the mapping given. Raises ConfigError for a meaningless value."""
        environ = os.environ if environ is None else environ
        isa = environ.get("PEARL_ISA") or None
        threads = environ.get("PEARL_NUM_THREADS") or None
        progress = environ.get("PEARL_PROGRESS") or None
        if threads is not None and not (threads.isdecimal() and int(threads) > 0):
            raise ConfigError(f"PEARL_NUM_THREADS={threads!r} is not a positive number: set one, or unset it")
        if progress not in (None, "0", "1"):
            raise ConfigError(f"PEARL_PROGRESS={progress!r} is neither 0 nor 1: set one of them, or unset it")
        device, api_key = environ.get("PEARL_DEVICE") or None, environ.get("PEARL_API_KEY") or None
        shown = None if progress is None else progress == "1"
        return cls(isa, int(threads) if threads else None, shown, device, api_key)

    @staticmethod
    def cache_folder() -> Path:
        """Where what can be made again is kept: $XDG_CACHE_HOME/pearl_rt, or ~/.cache/pearl_rt."""
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pearl_rt"

    @staticmethod
    def compiles_on_host() -> bool:
        """Whether Triton has a driver under which compiled kernels run on the host, as tests give it one."""
        triton = sys.modules.get("triton")
        if triton is None or os.environ.get("TRITON_INTERPRET") == "1":
            return False
        try:
            return bool(triton.runtime.driver.active.get_active_torch_device().type == "cpu")
        except RuntimeError:  # there is no driver
            return False

    @staticmethod
    def interpret_kernels() -> None:
        """Has Triton run kernels in its interpreter: sets TRITON_INTERPRET=1, which it reads on import. Does
        nothing where compiled ones run on the host.

        Raises ConfigError if it was imported without, so that its functions are compiled ones already.
        """
        if Environment.compiles_on_host():
            return
        if os.environ.get("TRITON_INTERPRET") != "1" and "triton" in sys.modules:
            raise ConfigError(
                "triton was imported before kernels were to be interpreted, and compiles them now: set "
                "TRITON_INTERPRET=1 before Python starts, or use device='interpret' first"
            )
        os.environ["TRITON_INTERPRET"] = "1"


def model_directory(path: str | os.PathLike[str]) -> Path:
    """`path`, if it is a directory with a config.json; else raises CheckpointError, which says what it is."""
    directory = Path(path)
    if (directory / "config.json").is_file():
        return directory
    if directory.is_dir():
        held = ", ".join(sorted(p.name for p in directory.iterdir())[:5]) or "nothing"
        raise CheckpointError(f"{directory} is not a model: it has no config.json (it holds {held})")
    if directory.exists():
        raise CheckpointError(
            f"{directory} is a file and no GGUF: give the directory with config.json and *.safetensors"
        )
    if not directory.is_absolute() and len(directory.parts) == 2 and not str(path).startswith("."):
        raise CheckpointError(
            f"{path} does not exist here. If it is a name on the Hugging Face hub, fetch it and give the "
            f"local directory: `hf download {path} --local-dir {directory.name}`"
        )
    raise CheckpointError(
        f"{path} does not exist: give a GGUF file, or a local directory with config.json and *.safetensors"
    )


def read_json(path: Path) -> Json:
    """The object in a JSON file. Raises CheckpointError if it is unreadable, damaged, or something else."""
    check_file(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError
        raise CheckpointError(
            f"{path} is not valid JSON ({one_line(error)}): fetch the file again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object: fetch the file again")
    return content


def check_file(path: Path) -> None:
    """Raises CheckpointError for what is no file of bytes, as a pipe, which would be waited for, and for a
    pointer of git-lfs.
    """
    OpenFile(path).check_no_pointer()


def _refuse_unsupported(d: Json) -> None:
    model_type = d.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise ConfigError(_unsupported_model_type(model_type))
    architectures = d.get("architectures") or [ARCHITECTURES[model_type]]
    if ARCHITECTURES[model_type] not in architectures:
        raise ConfigError(
            f"architecture {one_line(_listing(architectures), 200)} is not supported: "
            f"a {model_type} model for text generation ({ARCHITECTURES[model_type]}) is needed"
        )
    read_scheme(d)
    act = d.get("hidden_act") or "silu"
    if act not in ("silu", "swish"):
        raise ConfigError(f"hidden_act {shown(act)} is not supported: only silu (SwiGLU) is")
    for key in ("num_local_experts", "num_experts"):
        if d.get(key):
            raise ConfigError(f"{key}={d[key]}: mixtures of experts are not supported, only dense models")


def _read_sliding_window(d: Json) -> int | None:
    """The window that some layer attends through, or None."""
    if d.get("sliding_window") is None or d["model_type"] == "llama":
        return None
    if d["model_type"].startswith("qwen"):
        if not d.get("use_sliding_window", False):
            return None
        layer_types = d.get("layer_types")
        full = d.get("max_window_layers")
        if layer_types is None and (28 if full is None else full) >= d["num_hidden_layers"]:
            return None
        if layer_types is not None and "sliding_attention" not in layer_types:
            return None
    return int(d["sliding_window"])


def _read_dtype(d: Json) -> str:
    dtype = d.get("dtype") or d.get("torch_dtype") or OF_WEIGHTS
    return str(dtype).removeprefix("torch.")


def _token_ids(d: Json, key: str) -> tuple[int, ...]:
    value = d.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]  # -1: none
    return tuple(dict.fromkeys(token_id for token_id in ids if token_id >= 0))


def _needed(d: Json, key: str) -> int:
    if d.get(key) is None:
        raise ConfigError(f"no {key}")
    return int(d[key])


def _number(d: Json, key: str, default: float) -> float:
    return float(default if d.get(key) is None else d[key])


def _unsupported_model_type(model_type: object) -> str:
    return f"model_type {shown(model_type)} is not supported ({_listing(ARCHITECTURES)} are)"


def _listing(names: Iterable[object]) -> str:
    return ", ".join(str(name) for name in names)
