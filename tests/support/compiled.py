"""Marks for tests of what the interpreter cannot show: bf16, and layouts of compiled kernels.

They run on a GPU, and on the host with --ptx (docs/compiled_kernels.md).
"""

import pytest
import torch

from pearl_rt.kernels.base.checks import interpreting

NEEDS_GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))
COMPILED = (
    pytest.mark.gpu,
    pytest.mark.skipif(interpreting(), reason="needs a CUDA device, or --ptx: kernels are interpreted here"),
)


def skip_where_compiled() -> None:
    """For tests of what the interpreter alone does."""
    if not interpreting():
        pytest.skip("kernels are compiled here")
