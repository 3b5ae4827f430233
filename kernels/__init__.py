"""Triton kernels of pearl_rt, imported as ``pearl_rt.kernels``.

A second import under another name would register every operator twice, so it is refused.
"""

if __name__ != "pearl_rt.kernels":
    raise ImportError(f"these kernels were imported as {__name__!r}; import them as 'pearl_rt.kernels'")
