"""The kernels under the names, shapes and meaning that other runtimes know: one file per runtime.

Knows no engine. On CPU tensors they run in Triton's interpreter, or through the references without it.
"""
