"""Layers to skip that a search has found, kept for each target in a folder of the user's.

A file is named by what the target is: its configuration and its small tensors. A wrong one would cost speed,
and never a token.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pearl_rt.checkpoint.config import Environment, ModelConfig, read_json
from pearl_rt.checkpoint.shapes import tensor_shapes
from pearl_rt.errors import ConfigError
from pearl_rt.types.json import Json
from pearl_rt.types.values import Layers

if TYPE_CHECKING:
    import torch


def file_of(config: ModelConfig, tensors: "Mapping[str, torch.Tensor]") -> Path:
    """Where the layers for this target are kept. Norms and biases tell one checkpoint from another."""
    known = {name: value for name, value in config.to_dict().items() if name != "torch_dtype"}
    found = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    for name, shape in tensor_shapes(config).items():
        if len(shape) == 1:
            found.update(name.encode() + tensors[name].detach().float().cpu().numpy().tobytes())
    return Environment.cache_folder() / "skip_layers" / f"{found.hexdigest()[:32]}.json"


def keep(file: Path, skipped: Sequence[int], figures: Json) -> None:
    """Keeps what a search found, in place of what was there. figures: of the search, for people."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({"skip_layers": list(skipped)} | figures, indent=1) + "\n")
    partial.replace(file)


def known_layers(config: ModelConfig, tensors: "Mapping[str, torch.Tensor]") -> tuple[int, ...]:
    """What a search has found for this target. Raises ConfigError, which says how to search, for none."""
    file = file_of(config, tensors)
    if not file.exists():
        raise ConfigError(
            "draft 'self' wants layers to leave out, and none are known for this target: pass "
            "skip_layers=[..] (--skip-layers), or find some by `python -m pearl_rt search-skip --target ..`"
        )
    try:
        found = Layers()("skip_layers", read_json(file).get("skip_layers"), ConfigError)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}; or delete the file, and search again") from None
    return found or ()
