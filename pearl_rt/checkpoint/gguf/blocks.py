"""Blocks of a GGUF file's tensors as integer codes with their scales and minimums: Q8_0, Q4_0, Q4_1, Q5_0,
Q5_1, Q4_K, Q5_K and Q6_K.

Values are those of llama.cpp's own dequantisation, bit for bit in fp32. Knows bytes, and no file.
"""

from collections.abc import Callable

import numpy as np

from pearl_rt.checkpoint.gguf.types import SIZES
from pearl_rt.checkpoint.quantised.coded import Bytes, Coded, Codes, Floats
from pearl_rt.reference.groups import GroupForm

_SIZES = {kind.name: kind for kind in SIZES.values()}


def decoded(type_name: str, raw: Bytes, columns: int) -> Coded | Floats:
    """uint8 [n, bytes of a row] -> the rows [n, columns], as codes or, for F32, F16 and BF16, as fp32."""
    n = raw.shape[0]
    if type_name in _PLAIN:
        return _PLAIN[type_name](raw)
    kind = _SIZES[type_name]
    codes, scales, minimums = _BLOCKS[type_name](raw.reshape(-1, kind.bytes))
    group = kind.block // scales.shape[-1]
    return Coded(
        codes.reshape(n, columns),
        scales.reshape(n, -1),
        None if minimums is None else minimums.reshape(n, -1),
        group,
        4 if type_name.startswith("Q4") else 8,
    )


def form_of(type_name: str) -> GroupForm | None:
    """Of the codes of a type, as they are packed; None: it has none. Codes of 4 bits have minimums there."""
    if type_name in _PLAIN:
        return None
    has_minimums = type_name[:2] == "Q4" or type_name in ("Q5_1", "Q5_K")
    return GroupForm(4 if type_name[:2] == "Q4" else 8, 16 if type_name == "Q6_K" else 32, has_minimums)


def _bf16(raw: Bytes) -> Floats:
    return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


# Each takes blocks, uint8 [b, bytes], and gives codes [b, values], and scales and minimums fp32 [b, groups].
_Parts = tuple[Codes, Floats, Floats | None]


def _half(blocks: Bytes, at: int) -> Floats:
    """The fp16 at that byte of each block, as fp32 [b, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """uint8 [b, n] -> [b, 2 n]: the low halves, then the high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _fifth_bits(blocks: Bytes, at: int) -> Bytes:
    """Bit i of the 32 at that byte, as 16 or 0: uint8 [b, 32]."""
    return np.unpackbits(blocks[:, at : at + 4], axis=-1, bitorder="little") << np.uint8(4)


def _q8_0(blocks: Bytes) -> _Parts:
    return blocks[:, 2:].view(np.int8), _half(blocks, 0), None


def _q4_0(blocks: Bytes) -> _Parts:
    return _nibbles(blocks[:, 2:]).view(np.int8) - np.int8(8), _half(blocks, 0), None


def _q4_1(blocks: Bytes) -> _Parts:
    return _nibbles(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2)


def _q5_0(blocks: Bytes) -> _Parts:
    codes = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)
    return codes.view(np.int8) - np.int8(16), _half(blocks, 0), None


def _q5_1(blocks: Bytes) -> _Parts:
    return _nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4), _half(blocks, 0), _half(blocks, 2)


def _k_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    """Scales and minimums of 8 groups: two fp16 times integers of 6 bits, which 12 bytes hold."""
    low, middle, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 2 & 48)], axis=-1)
    minimums = np.concatenate([middle & 63, (high >> 4) | (middle >> 2 & 48)], axis=-1)
    return _half(blocks, 0) * scales, -(_half(blocks, 2) * minimums)


def _k_nibbles(packed: Bytes) -> Bytes:
    """uint8 [b, 128] -> [b, 256]: of each 32 bytes the low halves, then the high ones."""
    return _nibbles(packed.reshape(-1, 32)).reshape(len(packed), -1)


def _q4_k(blocks: Bytes) -> _Parts:
    return _k_nibbles(blocks[:, 16:]), *_k_scales(blocks)


def _q5_k(blocks: Bytes) -> _Parts:
    bits = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1  # [b, 8, 32]
    return _k_nibbles(blocks[:, 48:]) | bits.reshape(len(blocks), -1) << 4, *_k_scales(blocks)


def _q6_k(blocks: Bytes) -> _Parts:
    low = _nibbles(blocks[:, :128].reshape(-1, 64)).reshape(len(blocks), -1)
    high = blocks[:, 128:192].reshape(-1, 1, 32) >> np.array([[0], [2], [4], [6]], np.uint8) & 3
    codes = (low | high.reshape(len(blocks), -1) << 4).view(np.int8) - np.int8(32)
    return codes, _half(blocks, 208) * blocks[:, 192:208].view(np.int8), None


_PLAIN: dict[str, Callable[[Bytes], Floats]] = {
    "F32": lambda raw: raw.view(np.float32),
    "F16": lambda raw: raw.view(np.float16).astype(np.float32),
    "BF16": _bf16,
}
_BLOCKS: dict[str, Callable[[Bytes], _Parts]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
