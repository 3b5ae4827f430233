"""Linear layers of quantised Hugging Face checkpoints, read as the weights that they stand for.

GPTQ and AWQ pack integers along the inputs and the outputs of [in, out], compressed-tensors along the inputs
of [out, in]; 8-bit integers and floats lie as they are, with their scales. What a layer would do to its
activations is left out: they stay wide, which is more exact. Knows no model.
"""

from collections.abc import Mapping

import numpy as np
import torch

from pearl_rt.checkpoint.quantised.coded import Bytes, Coded, ComputedTensor, Floats, Rows
from pearl_rt.checkpoint.quantised.scheme import Scheme
from pearl_rt.checkpoint.stored_tensors import Stored, StoredTensor
from pearl_rt.errors import CheckpointError, ConfigError
from pearl_rt.reference.groups import GroupForm

# What only activations and the KV cache would need.
_DROPPED = ("input_scale", "input_zero_point", "output_scale", "q_scale", "k_scale", "v_scale")
_AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]  # of 8 columns, in which nibble each lies


class _Layer:
    """The tensors of one linear layer."""

    def __init__(self, name: str, parts: Mapping[str, StoredTensor]) -> None:
        self.name, self._parts = name, parts

    def __contains__(self, part: str) -> bool:
        return part in self._parts

    def stored(
        self, part: str, dtypes: tuple[str, ...], shape: tuple[int, ...] | None = None
    ) -> StoredTensor:
        """Raises CheckpointError if it is missing, or of another dtype or shape."""
        found = self._parts.get(part)
        if found is None:
            raise CheckpointError(
                f"tensor '{self.name}.{part}' of a quantised layer is missing from the checkpoint: fetch it "
                "again"
            )
        if found.dtype not in dtypes or (shape is not None and found.shape != shape):
            wanted = "" if shape is None else f" {list(shape)}"
            raise CheckpointError(
                f"tensor '{self.name}.{part}' in {found.file.path} is {found.dtype} {list(found.shape)}, "
                f"expected {' or '.join(dtypes)}{wanted}: the checkpoint contradicts itself"
            )
        return found

    def computed(
        self, part: str, shape: tuple[int, int], rows: Rows, form: GroupForm | None = None
    ) -> ComputedTensor:
        """The weight, from what lies beside that part, all rows at once."""
        return ComputedTensor(self._parts[part].file, f"{self.name}.{part}", shape, rows, shape[0], form)


def widened(entries: Mapping[str, StoredTensor], scheme: Scheme) -> dict[str, Stored]:
    """The tensors of a checkpoint with the weights of its quantised layers in the place of their parts."""
    layers: dict[str, dict[str, StoredTensor]] = {}
    for name, entry in entries.items():
        module, _, part = name.rpartition(".")
        if part not in _DROPPED:
            layers.setdefault(module, {})[part] = entry
    found: dict[str, Stored] = {}
    for name, parts in layers.items():
        layer = _Layer(name, parts)
        if "qweight" in parts:
            weight = (_awq if scheme.method == "awq" else _gptq)(layer, scheme)
        elif "weight_packed" in parts:
            weight = _packed(layer)
        elif "weight" in parts and parts["weight"].dtype in ("I8", "F8_E4M3"):
            weight = _scaled(layer, scheme)
        else:
            found |= {f"{name}.{part}": entry for part, entry in parts.items()}
            continue
        found[f"{name}.weight"] = weight
        if "bias" in parts:
            found[f"{name}.bias"] = parts["bias"]
    return found


def _unpacked(words: torch.Tensor, bits: int) -> Bytes:
    """int32 [...] -> uint8 [..., 32 / bits], the lowest bits first. bits: 8 or 4."""
    octets = words.contiguous().numpy().astype("<i4", copy=False).view(np.uint8).reshape(*words.shape, 4)
    if bits == 8:
        return octets
    return np.stack((octets & 15, octets >> 4), axis=-1).reshape(*words.shape, 8)


def _floats(stored: StoredTensor) -> Floats:
    values: Floats = stored.read(torch.float32).numpy()
    return values


_SCALES = ("F32", "F16", "BF16")


def _groups(layer: _Layer, part: str, inputs: int, groups: int) -> int:
    """Inputs to a scale."""
    if groups < 1 or inputs % groups:
        raise CheckpointError(
            f"tensor '{layer.name}.{part}' has {groups} groups for {inputs} inputs: the checkpoint "
            "contradicts itself"
        )
    return inputs // groups


def _gptq(layer: _Layer, scheme: Scheme) -> ComputedTensor:
    """scale * (code - 2 ** (bits - 1)); qweight [in * bits / 32, out], scales [groups, out]."""
    packed = layer.stored("qweight", ("I32",))
    scales = layer.stored("scales", _SCALES)
    order = layer.stored("g_idx", ("I32",)) if "g_idx" in layer else None
    inputs = order.shape[0] if order is not None else packed.shape[0] * 8
    bits = 32 * packed.shape[0] // inputs
    outputs, num_groups = packed.shape[1], scales.shape[0]
    group = _groups(layer, "scales", inputs, num_groups)
    zeros = layer.stored("qzeros", ("I32",), (num_groups, outputs * bits // 32))
    layer.stored("scales", _SCALES, (num_groups, outputs))
    middle = 1 << (bits - 1)

    def rows(_first: int, _last: int) -> Coded:
        if order is not None and not torch.equal(order.read().long(), torch.arange(inputs) // group):
            raise ConfigError(
                f"tensor '{layer.name}.g_idx' reorders the inputs (gptq with act-order), which is not "
                "supported: take a checkpoint with desc_act=false, or a GGUF file"
            )
        zero = _unpacked(zeros.read(), bits) + np.uint8(0 if scheme.is_second_gptq else 1)
        if (zero != middle).any():
            raise ConfigError(
                f"tensor '{layer.name}.qzeros' is asymmetric (zero points other than {middle}), which is not "
                "supported: take a symmetric checkpoint, or a GGUF file"
            )
        codes = _unpacked(packed.read(), bits).swapaxes(1, 2).reshape(inputs, outputs)
        signed = (codes - np.uint8(middle)).view(np.int8)
        return Coded(
            np.ascontiguousarray(signed.T), np.ascontiguousarray(_floats(scales).T), None, group, bits
        )

    return layer.computed("qweight", (outputs, inputs), rows, GroupForm.packed(bits, group, bits == 4))


def _awq(layer: _Layer, _: Scheme) -> ComputedTensor:
    """scale * (code - zero); qweight [in, out / 8], qzeros [groups, out / 8], scales [groups, out]."""
    packed = layer.stored("qweight", ("I32",))
    inputs, outputs = packed.shape[0], packed.shape[1] * 8
    num_groups = layer.stored("scales", _SCALES).shape[0]
    scales = layer.stored("scales", _SCALES, (num_groups, outputs))
    zeros = layer.stored("qzeros", ("I32",), (num_groups, outputs // 8))
    group = _groups(layer, "scales", inputs, num_groups)

    def columns(words: StoredTensor) -> Bytes:
        return _unpacked(words.read(), 4)[..., _AWQ_ORDER].reshape(-1, outputs)

    def rows(_first: int, _last: int) -> Coded:
        scale = np.ascontiguousarray(_floats(scales).T)
        minimums = -(columns(zeros).T * scale)
        return Coded(np.ascontiguousarray(columns(packed).T), scale, minimums, group, 4)

    return layer.computed("qweight", (outputs, inputs), rows, GroupForm.packed(4, group, True))


def _packed(layer: _Layer) -> ComputedTensor:
    """scale * (code - zero), codes of 4 or 8 bits with 2 ** (bits - 1) added; zero 0 where there is none."""
    packed = layer.stored("weight_packed", ("I32",))
    shape = layer.stored("weight_shape", ("I64", "I32"), (2,)).read().tolist()
    outputs, inputs = int(shape[0]), int(shape[1])
    if packed.shape[0] != outputs or packed.shape[1] * 4 not in (inputs, -(-inputs // 8) * 4):
        raise CheckpointError(
            f"tensor '{layer.name}.weight_packed' {list(packed.shape)} does not fit its weight_shape "
            f"{shape}: the checkpoint contradicts itself"
        )
    bits = 8 if packed.shape[1] * 4 == inputs else 4
    scales = layer.stored("weight_scale", _SCALES)
    num_groups = scales.shape[1] if len(scales.shape) == 2 else 1
    layer.stored("weight_scale", _SCALES, (outputs, num_groups))
    group = _groups(layer, "weight_scale", inputs, num_groups)
    if "weight_g_idx" in layer:
        raise ConfigError(
            f"tensor '{layer.name}.weight_g_idx' reorders the inputs (act-order), which is not supported: "
            "take a checkpoint without, or a GGUF file"
        )
    zeros = layer.stored("weight_zero_point", ("I32",)) if "weight_zero_point" in layer else None
    middle = np.uint8(1 << (bits - 1))

    def rows(_first: int, _last: int) -> Coded:
        codes = _unpacked(packed.read(), bits).reshape(outputs, -1)[:, :inputs]
        scale = _floats(scales)
        if zeros is None:
            return Coded(np.ascontiguousarray(codes - middle).view(np.int8), scale, None, group, bits)
        zero = _unpacked(zeros.read(), bits).swapaxes(1, 2).reshape(-1, num_groups)[:outputs]
        if bits == 4:
            return Coded(np.ascontiguousarray(codes), scale, -(zero * scale), group, bits)
        signed = np.ascontiguousarray(codes - middle).view(np.int8)
        return Coded(signed, scale, -((zero - middle).view(np.int8) * scale), group, bits)

    form = GroupForm.packed(bits, group, bits == 4 or zeros is not None)
    return layer.computed("weight_packed", (outputs, inputs), rows, form)


def _scaled(layer: _Layer, scheme: Scheme) -> ComputedTensor:
    """scale * weight, of int8 or of fp8; a scale for the tensor, a row, a group of inputs, or a block."""
    weight = layer.stored("weight", ("I8", "F8_E4M3"))
    outputs, inputs = weight.shape
    name = "weight_scale_inv" if "weight_scale_inv" in layer else "weight_scale"
    stored = layer.stored(name, _SCALES)
    zeros = layer.stored("weight_zero_point", ("I8",), stored.shape) if "weight_zero_point" in layer else None
    rows_of, columns_of = scheme.block  # that share a scale
    if len(stored.shape) < 2 and stored.shape in ((), (1,)):
        grid, rows_of, columns_of = (1, 1), outputs, inputs
    elif stored.shape in ((outputs,), (outputs, 1)):
        grid, rows_of, columns_of = (outputs, 1), 1, inputs
    elif weight.dtype == "I8" and stored.shape[0] == outputs and inputs % stored.shape[1] == 0:
        grid, rows_of, columns_of = (outputs, stored.shape[1]), 1, inputs // stored.shape[1]
    else:
        grid = (-(-outputs // rows_of), -(-inputs // columns_of))
        layer.stored(name, _SCALES, grid)

    def spread(part: StoredTensor) -> Floats:
        values = _floats(part).reshape(grid).repeat(rows_of, axis=0)[:outputs]
        return values.repeat(columns_of, axis=1)[:, :inputs]

    def rows(_first: int, _last: int) -> Floats:
        values = _floats(weight)
        if zeros is not None:
            values = values - spread(zeros)
        return values * spread(stored)

    return layer.computed("weight", (outputs, inputs), rows)
