"""Mends Triton 3.6's interpreter where numpy 2.4 breaks it: loops to a run-time bound (triton #9171).

Imported by kernel files with such a loop. Does nothing where kernels are compiled, or nothing is broken.
"""

from __future__ import annotations

from typing import Any

import numpy
from triton.runtime import interpreter

from .library import interpreting


def mend() -> None:
    """Makes __index__ of the interpreter's scalars, arrays of one element, work again."""
    try:
        int(numpy.zeros(1))  # type: ignore[call-overload]
    except TypeError:
        patch = interpreter._patch_lang_tensor

        def patch_and_mend(tensor: Any, scope: Any) -> None:
            patch(tensor, scope)
            scope.set_attr(tensor, "__index__", lambda scalar: int(scalar.handle.data.item()))

        interpreter._patch_lang_tensor = patch_and_mend


if interpreting():
    mend()
