"""What a config.json says of how its checkpoint is quantised: whether pearl_rt reads it, or why not.

Bits, groups and shapes are those of the tensors themselves. Knows Hugging Face's names; no tensors.
"""

from dataclasses import dataclass

from pearl_rt.errors import ConfigError, shown
from pearl_rt.types.json import Json

_FORMATS = ("pack-quantized", "int-quantized", "naive-quantized", "float-quantized", "dense")
_REMEDY = "use the float32, float16 or bfloat16 original, or a GGUF file"


@dataclass(frozen=True)
class Scheme:
    """A checkpoint's quantisation, of a kind that is read."""

    method: str  # "gptq", "awq", "compressed-tensors" or "fp8"
    is_second_gptq: bool = False  # its zero points are stored as they are, not one less
    block: tuple[int, int] = (128, 128)  # of fp8: rows and columns that share a scale


def read_scheme(content: Json) -> Scheme | None:
    """Of a config.json; None for an unquantised model. Raises ConfigError for what is not read."""
    found = content.get("quantization_config") or content.get("compression_config")
    if not found:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else found
    if not isinstance(found, dict) or method not in ("gptq", "awq", "compressed-tensors", "fp8"):
        raise _refusal(f"method {shown(method)}", "gptq, awq, compressed-tensors and fp8 are")
    if method == "compressed-tensors":
        _check_compressed(found)
        return Scheme(method)
    if method == "fp8":
        block = found.get("weight_block_size") or [128, 128]
        if not (isinstance(block, list) and len(block) == 2 and all(_is_size(n) for n in block)):
            raise _refusal(f"weight_block_size {shown(block)}", "two positive integers are")
        return Scheme(method, block=(block[0], block[1]))
    bits = found.get("bits", found.get("w_bit"))
    if bits not in ((4, 8) if method == "gptq" else (4,)):
        raise _refusal(f"{method} of {shown(bits)} bits", "4 bits are, and 8 of gptq")
    if method == "awq":
        version = str(found.get("version", "gemm")).lower()
        if version != "gemm":
            raise _refusal(f"awq of version {shown(version)}", "gemm is")
        return Scheme(method)
    if found.get("desc_act"):
        raise _refusal("gptq with act-order (desc_act)", "desc_act=false is")
    if found.get("sym") is False:
        raise _refusal("asymmetric gptq (sym=false)", "sym=true is")
    form = found.get("checkpoint_format", "gptq")
    if form not in ("gptq", "gptq_v2"):
        raise _refusal(f"gptq of checkpoint_format {shown(form)}", "gptq and gptq_v2 are")
    return Scheme(method, is_second_gptq=form == "gptq_v2")


def _check_compressed(found: Json) -> None:
    """Raises ConfigError for compressed-tensors that are not read."""
    sparsity = found.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format") not in (None, "dense"):
        raise _refusal(f"compressed-tensors with sparsity {shown(sparsity.get('format'))}", "dense ones are")
    groups = found.get("config_groups")
    for name, group in groups.items() if isinstance(groups, dict) else ():
        if not isinstance(group, dict) or not isinstance(group.get("weights") or {}, dict):
            raise _refusal(f"config_groups with {shown(name)}: {shown(group)}", "objects with weights are")
        form = group.get("format") or found.get("format")
        if form not in _FORMATS:
            raise _refusal(f"compressed-tensors of format {shown(form)}", f"{', '.join(_FORMATS)} are")
        weights = group.get("weights") or {}
        kind = (weights.get("type"), weights.get("num_bits"))
        if kind not in (("int", 4), ("int", 8), ("float", 8)):
            raise _refusal(
                f"compressed-tensors of {shown(kind[1])} bits ({shown(kind[0])})",
                "int 4, int 8 and float 8 are",
            )
        if weights.get("actorder") not in (None, False, "static", "weight"):
            raise _refusal(
                f"compressed-tensors with actorder {shown(weights['actorder'])}", "none and weight are"
            )


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _refusal(what: str, supported: str) -> ConfigError:
    return ConfigError(
        f"the checkpoint is quantised (quantization_config): {what}, which is not supported ({supported}): "
        f"{_REMEDY}"
    )
