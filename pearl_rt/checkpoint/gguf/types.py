"""The types of a tensor in a GGUF file, by their number: name, values and bytes of a block. Knows no file."""

from typing import NamedTuple


class TensorType(NamedTuple):
    """A row is a whole number of blocks."""

    name: str
    block: int  # values of a block
    bytes: int  # of a block


SIZES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    30: TensorType("BF16", 1, 2),
    8: TensorType("Q8_0", 32, 34),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
}
# What else a file may hold, so that it is refused by name.
UNSUPPORTED = {
    number: name
    for first, names in (
        (9, "Q8_1 Q2_K Q3_K"),
        (15, "Q8_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M"),
        (34, "TQ1_0 TQ2_0"),
        (39, "MXFP4 NVFP4 Q1_0"),
    )
    for number, name in enumerate(names.split(), first)
}
