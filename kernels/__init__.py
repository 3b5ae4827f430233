"""Triton kernels of pearl_rt, imported as ``pearl_rt.kernels``.

A second import under another name would register every operator twice. The bare name ``kernels`` belongs to a
package of Hugging Face that transformers looks for by importing it: under that name this one is empty.
"""

if __name__ != "pearl_rt.kernels":
    __path__ = []  # no submodule can be found
