"""A model on a device: where it can run, in which dtype, with which kind of kernels, and its packed weights.

Knows devices and checkpoints' tensors; not sequences, states or rounds. On "cpu" kernels run in Triton's
interpreter: they are imported only once that is decided.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pearl_rt.checkpoint.config import OF_WEIGHTS, Environment, ModelConfig
from pearl_rt.checkpoint.loader import loading_bar
from pearl_rt.checkpoint.shapes import weight_bytes
from pearl_rt.checkpoint.source import ModelSource, stored_forms
from pearl_rt.errors import ConfigError, ResourceError, gib
from pearl_rt.types.values import choice

if TYPE_CHECKING:
    from pearl_rt.model.coded_matrix import Part
    from pearl_rt.model.head_weights import HeadWeights
    from pearl_rt.model.llama import LlamaWeights

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
PREFILL_CHUNKS = {"cpu": 16, "cuda": 256}  # tokens of a prompt in one pass
MIN_COMPUTE_CAPABILITY = (8, 0)


@contextmanager
def memory_errors(device: torch.device, what: str) -> Iterator[None]:
    """Memory of a GPU that cannot be had, as our error."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"not enough memory on {device} for {what}: lower max_model_len or num_slots, or take smaller "
            f"models ({error})"
        ) from None


def device_of(name: str) -> torch.device:
    """ "auto", "cpu", "cuda" or "cuda:N" -> a device that is there. Raises ConfigError, ResourceError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and (kind == "cpu" or not number.isdecimal())):
        raise ConfigError(f"device {name!r} is not supported: pass 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ResourceError(f"device {name!r}: torch finds no GPU here: pass device='cpu' or 'auto'")
    if int(number or 0) >= torch.cuda.device_count():
        raise ResourceError(
            f"device {name!r}: there are {torch.cuda.device_count()} GPUs: pass a lower number"
        )
    device = torch.device("cuda", int(number) if number else torch.cuda.current_device())
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_COMPUTE_CAPABILITY:
        raise ResourceError(
            f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}, "
            "the kernels need 8.0 (Ampere) or more: pass device='cpu'"
        )
    return device


def device_dtype(dtype: str, config: ModelConfig, device: torch.device) -> str:
    """The dtype that a model computes in, by name. Raises ConfigError for what kernels do not compute rightly
    there.
    """
    choice("dtype", dtype, ("auto", *DTYPES), ConfigError)
    if device.type == "cpu" and not Environment.compiles_on_host():
        if dtype not in ("auto", "float32"):
            raise ConfigError(
                f"dtype {dtype!r} is not computed rightly by Triton's interpreter: pass dtype='float32' or "
                "'auto'"
            )
        return "float32"
    own = "float32" if config.torch_dtype == OF_WEIGHTS else config.torch_dtype
    return own if dtype == "auto" else dtype


def prepare_kernels(device: torch.device) -> None:
    """Has kernels interpreted on the CPU, where no compiled ones run; raises ConfigError if they are not what
    the device needs.
    """
    interpreted = device.type == "cpu" and not Environment.compiles_on_host()
    if interpreted:
        Environment.interpret_kernels()
    try:
        from triton.runtime.interpreter import InterpretedFunction

        from pearl_rt.kernels.forward.feed import feed_kernel
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the kernels need {error.name}, which is not installed: `pip install 'pearl_rt[gpu]'`"
        ) from None
    if isinstance(feed_kernel, InterpretedFunction) != interpreted:
        found, wanted = ("compiled", "interpreted") if interpreted else ("interpreted", "compiled")
        value = "1 before Python starts" if interpreted else "0, or unset it, before Python starts"
        raise ConfigError(
            f"kernels were imported to be {found} in this process, and {device} needs them {wanted}: set "
            f"TRITON_INTERPRET={value}"
        )


def check_biases(config: ModelConfig, name: str) -> None:
    """Raises ConfigError for biases that no kernel adds."""
    if config.output_bias or config.mlp_bias:
        raise ConfigError(
            f"the {name} has a bias on o_proj or in its MLP (output_bias={config.output_bias}, "
            f"mlp_bias={config.mlp_bias}), which the kernels do not add: pass device='cpu'"
        )


@dataclass(frozen=True)
class DeviceModel:
    """A model's weights as the kernels read them, shared by all lanes and pairs on their device."""

    config: ModelConfig
    dtype: str
    weights: "LlamaWeights"
    head: "HeadWeights | None" = None  # of a head that reads its target's passes

    @classmethod
    def pack(
        cls,
        config: ModelConfig,
        tensors: "Mapping[str, Part]",
        *,
        device: torch.device,
        dtype: str = "auto",
        name: str = "model",
        weights: str = "auto",
    ) -> "DeviceModel":
        """`tensors`, by their Hugging Face names, may be dropped then. `name` labels the progress bar.
        weights: what wider matrices are rounded to.
        """
        check_biases(config, name)
        chosen = device_dtype(dtype, config, device)
        prepare_kernels(device)
        from pearl_rt.model.llama import LlamaWeights

        size = weight_bytes(config, chosen, weights, stored_forms(tensors))
        need = f"{gib(size)} of the {name}'s weights"
        with memory_errors(device, need), loading_bar(f"packing the {name}", size) as advance:
            packed = LlamaWeights.pack(
                config, tensors, dtype=DTYPES[chosen], device=device, weights=weights, advance=advance
            )
        return cls(config, chosen, packed)

    @classmethod
    def of_source(cls, model: ModelSource, device: torch.device) -> "DeviceModel":
        """A model of its own, packed as its source says."""
        return cls.pack(
            model.config,
            model.tensors,
            device=device,
            dtype=model.dtype,
            name=model.name,
            weights=model.weights,
        )

    def view(self, draft: ModelSource) -> "DeviceModel":
        """A draft of this model's own tensors, in the same memory, and of those of the source, packed in this
        model's dtype: a model that skips layers, one that is left early, or a head.
        """
        from pearl_rt.model.head_weights import HeadWeights
        from pearl_rt.model.llama import LlamaWeights
        from pearl_rt.model.packing import Packing

        check_biases(draft.config, draft.name)
        own, device = self.weights.dtype, self.weights.device
        with memory_errors(device, "the draft's own layer"):
            packed = LlamaWeights.pack(
                draft.config,
                draft.tensors,
                dtype=own,
                device=device,
                weights=draft.weights,
                target=self.weights,
                shared=draft.shared or (),
            )
            if draft.head is None:
                return DeviceModel(draft.config, self.dtype, packed)
            packing = Packing(draft.tensors, own, device, draft.weights)
            head = HeadWeights.pack(draft.head, draft.config, packing)
        return DeviceModel(draft.config, self.dtype, packed, head)
